// What kill_writer.cc writes and kill_test.cc expects.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pattern {

struct Finished {
  int32_t rank;
  int32_t step;
  int32_t tensor;
  int32_t columns;
};

inline std::string Name(int32_t tensor) { return "a_tensor_with_a_rather_long_name_" + std::to_string(tensor); }

// [2, columns]
inline std::vector<int32_t> Values(const Finished& f) {
  std::vector<int32_t> values(2 * static_cast<size_t>(f.columns));
  int32_t value = f.rank * 1000003 + f.step * 1009 + f.tensor * 31 + 1;
  for (int32_t& v : values) v = value++;
  return values;
}

}  // namespace pattern
