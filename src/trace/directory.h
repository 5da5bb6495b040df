// A trace's directory, locked as long as this lives.
#pragma once

#include <string>

namespace lockstep {

enum class LockKind { kRead, kWrite };

class LockedDirectory {
 public:
  // Throws Error when there is no such directory, or when its writer (for kWrite: or a reader) is at work.
  LockedDirectory(const std::string& path, LockKind kind);
  ~LockedDirectory();
  LockedDirectory(const LockedDirectory&) = delete;
  LockedDirectory& operator=(const LockedDirectory&) = delete;

  const std::string& path() const { return path_; }  // without a slash at the end

 private:
  std::string path_;
  int fd_ = -1;
};

}  // namespace lockstep
