// Where C++ exceptions end: every function of the C API runs its body in Guarded().
#pragma once

#include <exception>
#include <string>

#include "lockstep/lockstep.h"

namespace lockstep {

// This thread's last message.
std::string& LastError();

// Runs `body`, which returns a status; an exception becomes LOCKSTEP_ERROR and a message.
template <typename Body>
int Guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& e) {
    LastError() = e.what();
  } catch (...) {
    LastError() = "unknown error";
  }
  return LOCKSTEP_ERROR;
}

}  // namespace lockstep
