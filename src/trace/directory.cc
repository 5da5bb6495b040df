#include "trace/directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "lockstep/error.h"

namespace lockstep {

LockedDirectory::LockedDirectory(const std::string& path, LockKind kind) : path_(path) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  fd_ = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd_ < 0) throw Error(path_ + ": expected a trace (a directory with trace.json in it): " + std::strerror(errno));
  // File systems without locks are read all the same.
  if (flock(fd_, (kind == LockKind::kRead ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
  close(fd_);
  throw Error(path_ + (kind == LockKind::kRead ? ": this trace is still being written; wait until its writer has ended"
                                               : ": this trace is open in another program; wait until that has ended"));
}

LockedDirectory::~LockedDirectory() {
  flock(fd_, LOCK_UN);  // a forked child may hold the descriptor too
  close(fd_);
}

}  // namespace lockstep
