#include <cstdlib>
#include <cstring>
#include <new>

#include "capi/error_boundary.h"
#include "lockstep/compare.h"
#include "lockstep/diagnose.h"
#include "lockstep/error.h"
#include "lockstep/lockstep.h"
#include "lockstep/report.h"
#include "lockstep/version.h"

namespace lockstep {

std::string& LastError() {
  static thread_local std::string message;
  return message;
}

namespace {

char* CopyOf(const std::string& text) {
  auto* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy == nullptr) throw std::bad_alloc();
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

// Its JSON, where that is wanted, and the status to return. Result: Judged or Diagnosis.
template <typename Result>
int Answer(const Result& result, char** json) {
  if (json != nullptr) *json = CopyOf(JsonReport(result));
  return result.ExitCode() == 0 ? LOCKSTEP_OK : LOCKSTEP_DIFFERENT;
}

}  // namespace
}  // namespace lockstep

const char* lockstep_version(void) { return LOCKSTEP_VERSION; }

const char* lockstep_last_error(void) { return lockstep::LastError().c_str(); }

void lockstep_string_free(char* text) { std::free(text); }

int lockstep_compare(const char* reference_trace, const char* candidate_trace, double atol, double rtol,
                     const char* model, char** json) {
  if (json != nullptr) *json = nullptr;
  return lockstep::Guarded([&] {
    if (reference_trace == nullptr || candidate_trace == nullptr) {
      throw lockstep::Error("lockstep_compare: expected two paths of traces, found NULL");
    }
    lockstep::CompareOptions options;
    if (atol >= 0) options.atol = atol;
    if (rtol >= 0) options.rtol = rtol;
    lockstep::Judged judged{lockstep::Compare({reference_trace}, {candidate_trace}, options)};
    if (model != nullptr) {
      judged.reference = lockstep::Diagnose({reference_trace}, model);
      judged.candidate = lockstep::Diagnose({candidate_trace}, model);
    }
    return lockstep::Answer(judged, json);
  });
}

int lockstep_replay(const char* trace, const char* model, char** json) {
  if (json != nullptr) *json = nullptr;
  return lockstep::Guarded([&] {
    if (trace == nullptr || model == nullptr) {
      throw lockstep::Error("lockstep_replay: expected the paths of a trace and of its checkpoint, found NULL");
    }
    return lockstep::Answer(lockstep::Diagnose({trace}, model), json);
  });
}
