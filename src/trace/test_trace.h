// For tests: traces in a directory that goes away.
#pragma once

#include <gmock/gmock.h>
#include <stdlib.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <sstream>
#include <string>
#include <vector>

#include "lockstep/capture.hpp"
#include "lockstep/trace.h"

namespace lockstep {

class TraceTest : public testing::Test {
 protected:
  TraceTest() {
    std::string name = testing::TempDir() + "trace_test.XXXXXX";
    root_ = mkdtemp(name.data());
    path_ = root_ + "/x.trace";
  }
  ~TraceTest() override { std::filesystem::remove_all(root_); }

  std::string root_;
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path, std::ios::binary).rdbuf();
  return out.str();
}

inline void WriteFile(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return at == text.npos ? text : text.replace(at, from.size(), to);
}

// The message of the Error, or "" where there is none.
inline std::string ErrorOf(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline std::string OpenError(const std::string& path) {
  return ErrorOf([&] { TraceReader::Open(path); });
}

inline std::vector<int32_t> Count(int32_t n, int32_t first = 0) {
  std::vector<int32_t> out(static_cast<size_t>(n));
  std::iota(out.begin(), out.end(), first);
  return out;
}

inline std::vector<float> Values(size_t n, float first = 0) {
  std::vector<float> out(n);
  std::iota(out.begin(), out.end(), first);
  return out;
}

template <typename T = float>
std::vector<T> Contents(const TraceTensor* tensor) {
  EXPECT_NE(tensor, nullptr);
  if (tensor == nullptr) return {};
  std::vector<T> out(tensor->bytes / sizeof(T));
  if (!out.empty()) std::memcpy(out.data(), tensor->data, tensor->bytes);
  return out;
}

inline std::vector<std::string> Names(const TraceStep& step) {
  std::vector<std::string> out;
  for (const TraceTensor& tensor : step.tensors) out.push_back(tensor.name);
  return out;
}

}  // namespace lockstep
