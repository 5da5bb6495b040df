#include "tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <random>

namespace lockstep {
namespace {

std::string Repaired(std::string_view bytes) {
  std::string out;
  if (AppendRepaired(bytes, out) > 0) out += kReplacement;
  return out;
}

// What Python's bytes.decode("utf-8", errors="replace") gives; "?" stands for U+FFFD.
TEST(AppendRepaired, ReplacesMaximalParts) {
  const struct {
    std::string_view bytes;
    std::string_view expected;
  } cases[] = {
      {"", ""},
      {"plain ASCII, longer than a word of the machine", "plain ASCII, longer than a word of the machine"},
      {"é中😀", "é中😀"},
      {"\xFF", "?"},
      {"a\x80z", "a?z"},
      {"\xC3", "?"},
      {"\xC3(", "?("},
      {"\xC0\xAF", "??"},
      {"\xE2\x82", "?"},
      {"\xE2\x82x", "?x"},
      {"\xE0\x80\x80", "???"},
      {"\xED\xA0\x80", "???"},
      {"\xEF\xBF\xBF", "\xEF\xBF\xBF"},
      {"\xF0\x9F\x98", "?"},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", "?😀"},
      {"\xF0\x8F\xBF\xBF", "????"},
      {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
      {"\xF4\x90\x80\x80", "????"},
      {"\xF5\x80\x80\x80", "????"},
      {"12345678\xE2\x82", "12345678?"},
  };
  for (const auto& [bytes, expected] : cases) {
    std::string wanted;
    for (const char c : expected) c == '?' ? wanted += kReplacement : wanted += c;
    EXPECT_EQ(Repaired(bytes), wanted) << testing::PrintToString(std::string(bytes));
  }
}

TEST(AppendRepaired, LeavesOutATailThatCanGoOn) {
  for (const std::string_view tail : {"\xC3", "\xE2", "\xE2\x82", "\xED\x9F", "\xF0\x9F", "\xF0\x9F\x98", "\xF4\x8F"}) {
    std::string out;
    EXPECT_EQ(AppendRepaired("é" + std::string(tail), out), tail.size());
    EXPECT_EQ(out, "é");
  }
  for (const std::string_view broken : {"\x80", "\xC0", "\xED\xA0", "\xF4\x90", "\xF5"}) {
    std::string out;
    EXPECT_EQ(AppendRepaired(broken, out), 0U);
  }
}

// Bytes near the borders of what is allowed, in pieces of any size.
TEST(AppendRepaired, PiecesEqualTheWhole) {
  constexpr std::string_view kBytes = "a\x7F\x80\x8F\x90\x9F\xA0\xBF\xC1\xC2\xDF\xE0\xE1\xED\xEF\xF0\xF1\xF4\xF5\xFF";
  std::mt19937 random(1);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes;
    for (uint32_t k = random() % 24; k > 0; --k) bytes += kBytes[random() % kBytes.size()];
    std::string pieces;
    std::string pending;
    for (size_t at = 0; at < bytes.size();) {
      const size_t size = 1 + random() % 3;
      pending += bytes.substr(at, size);
      at += size;
      const size_t tail = AppendRepaired(pending, pieces);
      pending.erase(0, pending.size() - tail);
    }
    EXPECT_EQ(pieces + Repaired(pending), Repaired(bytes));
    EXPECT_EQ(ValidPrefix(Repaired(bytes)), Repaired(bytes).size());
  }
}

}  // namespace
}  // namespace lockstep
