#include "tokenizer/byte_level.h"

#include <gtest/gtest.h>

#include <set>

namespace lockstep {
namespace {

TEST(ByteLevel, SpellsAsGpt2Does) {
  EXPECT_EQ(SpellBytes("a \n\t\x7F!~"), "aĠĊĉġ!~");
  EXPECT_EQ(SpellBytes({"\0\xA0\xA1\xAD\xFF", 5}), "Āł¡Ńÿ");
  EXPECT_EQ(SpellBytes("中"), "ä¸Ń");
}

TEST(ByteLevel, GoesBothWays) {
  std::set<std::string> seen;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string spelled(SpellByte(static_cast<uint8_t>(byte)));
    EXPECT_TRUE(seen.insert(spelled).second) << byte;
    EXPECT_EQ(UnspellBytes(spelled), std::string(1, static_cast<char>(byte)));
  }
}

TEST(ByteLevel, KnowsWhatIsNoSpelling) {
  EXPECT_EQ(UnspellBytes(""), "");
  for (const char* text : {" ", "a b", "\n", "\u0144", "\u00AD", "\u0080", "中", "😀", "Ġ中"}) {
    EXPECT_EQ(UnspellBytes(text), std::nullopt) << text;
  }
}

}  // namespace
}  // namespace lockstep
