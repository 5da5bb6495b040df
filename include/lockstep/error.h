// The one exception type of Lockstep: bad input, missing data, a full disk. A bug asserts instead, and a difference is
// a value.
#pragma once

#include <stdexcept>
#include <string>

namespace lockstep {

// What a message says: the thing, what was expected, what was found, the way out.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

}  // namespace lockstep
