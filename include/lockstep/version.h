#pragma once

// Kept equal to CMakeLists.txt and python/lockstep/__init__.py by a test.
#define LOCKSTEP_VERSION "0.1.0"
