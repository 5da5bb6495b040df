#include "base/safetensors.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "lockstep/error.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() : path_(testing::TempDir() + "safetensors_test." + std::to_string(getpid())) {}
  ~SafetensorsTest() override { std::filesystem::remove(path_); }

  void Write(const std::string& bytes) { std::ofstream(path_, std::ios::binary) << bytes; }
  void Write(const std::string& header, const std::string& data) { Write(File(header, data)); }

  static std::string File(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
  }

  std::string ErrorOf(const std::string& header, const std::string& data, bool allow_tail = false) {
    Write(header, data);
    return ErrorOfFile(allow_tail);
  }
  std::string ErrorOfFile(bool allow_tail = false) {
    try {
      OpenSafetensors(path_, allow_tail);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path_));
      return error.what();
    }
    return "";
  }

  std::string path_;
};

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

TEST_F(SafetensorsTest, ReadsTensorsInTheOrderOfTheirData) {
  Write("{\"__metadata__\":{\"a\":\"b\"}," + Entry("z", "U8", "[2,2]", "[0,4]") + "," +
            Entry("a", "F32", "[]", "[4,8]") + "," + Entry("empty", "I64", "[0,5]", "[4,4]") + "}   ",
        "abcd0000");
  const SafetensorsFile file = OpenSafetensors(path_);
  ASSERT_EQ(file.tensors.size(), 3u);
  EXPECT_EQ(file.tensors[0].name, "z");
  EXPECT_EQ(std::memcmp(file.tensors[0].data, "abcd", 4), 0);
  EXPECT_THAT(file.tensors[0].shape, ElementsAre(2, 2));
  EXPECT_EQ(file.tensors[1].name, "empty");
  EXPECT_EQ(file.tensors[2].name, "a");
  EXPECT_EQ(file.tensors[2].bytes, 4u);
  EXPECT_EQ(file.indexed_bytes, std::filesystem::file_size(path_));
}

TEST_F(SafetensorsTest, ReadsFilesWithoutTensors) {
  Write("{}", "");
  EXPECT_TRUE(OpenSafetensors(path_).tensors.empty());
}

TEST_F(SafetensorsTest, TailsAndDuplicatesAreForTraces) {
  const std::string one = Entry("a", "U8", "[2]", "[0,2]");
  EXPECT_THAT(ErrorOf("{" + one + "}", "abXYZ"), HasSubstr("3 bytes after the last tensor"));
  EXPECT_EQ(OpenSafetensors(path_, true).indexed_bytes + 3, std::filesystem::file_size(path_));
  EXPECT_THAT(ErrorOf("{" + one + "," + Entry("a", "U8", "[1]", "[2,3]") + "}", "abc"),
              HasSubstr("\"a\" stands twice"));
  const SafetensorsFile file = OpenSafetensors(path_, true);
  EXPECT_THAT(file.duplicates, ElementsAre("a"));
  ASSERT_EQ(file.tensors.size(), 1u);
  EXPECT_EQ(static_cast<char>(*file.tensors[0].data), 'c');
}

TEST_F(SafetensorsTest, NamesWhatIsWrong) {
  const auto error = [&](const std::string& entries, const std::string& data) {
    return ErrorOf("{" + entries + "}", data);
  };
  EXPECT_THAT(error(Entry("a", "F33", "[1]", "[0,4]"), "1234"), HasSubstr("tensor a: unknown dtype \"F33\""));
  EXPECT_THAT(error("\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}", "1234"), HasSubstr("unknown dtype (none)"));
  EXPECT_THAT(error("\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}", "1234"), HasSubstr("unknown dtype 7"));
  EXPECT_THAT(error("\"a\":[]", ""), HasSubstr("tensor a: expected an object"));
  EXPECT_THAT(error(Entry("a", "F32", "[-1]", "[0,4]"), "1234"), HasSubstr("expected sizes from 0"));
  EXPECT_THAT(error(Entry("a", "F32", "[1.0]", "[0,4]"), "1234"), HasSubstr("expected sizes from 0"));
  EXPECT_THAT(error(Entry("a", "F32", "[18446744073709551615]", "[0,4]"), "1234"), HasSubstr("expected sizes from 0"));
  EXPECT_THAT(error(Entry("a", "F32", "7", "[0,4]"), "1234"), HasSubstr("expected \"shape\""));
  EXPECT_THAT(error(Entry("a", "F32", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,4]"), "1234"),
              HasSubstr("expected \"shape\""));
  EXPECT_THAT(error(Entry("a", "F32", "[1]", "[0]"), "1234"), HasSubstr("two offsets"));
  EXPECT_THAT(error(Entry("a", "F32", "[1]", "[0,4,8]"), "1234"), HasSubstr("two offsets"));
  EXPECT_THAT(error(Entry("a", "F32", "[1]", "[-4,0]"), "1234"), HasSubstr("two offsets"));
  EXPECT_THAT(error(Entry("a", "F32", "[1]", "[4,0]"), "1234"), HasSubstr("outside the file's 4 bytes"));
  EXPECT_THAT(error(Entry("a", "F32", "[2]", "[0,8]"), "1234"), HasSubstr("outside the file's 4 bytes"));
  EXPECT_THAT(error(Entry("a", "F32", "[2]", "[0,4]"), "1234"), HasSubstr("[2] of F32 does not take the 4 bytes"));
  // Products that wrap around 2^64 to the right number.
  EXPECT_THAT(error(Entry("a", "U8", "[4294967296,4294967296]", "[0,0]"), ""), HasSubstr("does not take"));
  EXPECT_THAT(error(Entry("a", "F32", "[4611686018427387905]", "[0,4]"), "1234"), HasSubstr("does not take"));
  EXPECT_THAT(error(Entry("a", "U8", "[0,4294967296,4294967296]", "[0,0]"), ""), HasSubstr("does not take"));
  EXPECT_THAT(error(Entry("a", "U8", "[2]", "[0,2]") + "," + Entry("b", "U8", "[2]", "[1,3]"), "abc"),
              HasSubstr("overlaps"));
  EXPECT_THAT(error(Entry("a", "U8", "[2]", "[0,2]") + "," + Entry("b", "U8", "[2]", "[0,2]"), "ab"),
              HasSubstr("overlaps"));
  EXPECT_THAT(error(Entry("a", "U8", "[2]", "[0,2]") + "," + Entry("b", "U8", "[1]", "[3,4]"), "abcd"),
              HasSubstr("leaves a hole"));
  EXPECT_THAT(error(Entry("a", "U8", "[1]", "[1,2]"), "ab"), HasSubstr("leaves a hole"));
  EXPECT_THAT(ErrorOf("[]", ""), HasSubstr("expected a JSON object"));
  EXPECT_THAT(ErrorOf("", ""), HasSubstr("expected valid JSON"));
}

TEST_F(SafetensorsTest, NamesFilesThatAreNone) {
  Write("abc");
  EXPECT_THAT(ErrorOfFile(), HasSubstr("at least 8 bytes, found 3"));
  Write("");
  EXPECT_THAT(ErrorOfFile(), HasSubstr("at least 8 bytes, found 0"));
  Write(std::string(8, '\xFF') + "{}");
  EXPECT_THAT(ErrorOfFile(), HasSubstr("does not fit"));
  std::filesystem::remove(path_);
  EXPECT_THAT(ErrorOfFile(), HasSubstr("cannot be opened"));
  std::filesystem::create_directory(path_);
  EXPECT_THAT(ErrorOfFile(), HasSubstr("regular file"));
}

// Whatever is changed, the answer is an Error or tensors that lie within the file.
TEST_F(SafetensorsTest, SurvivesEveryByteAndEveryLength) {
  const std::string good =
      File("{" + Entry("ab", "BF16", "[2,1]", "[0,4]") + "," + Entry("c", "U8", "[3]", "[4,7]") + "}", "1234567");
  size_t valid = 0, tried = 0;
  const auto probe = [&] {
    for (const bool allow_tail : {false, true}) {
      ++tried;
      try {
        const SafetensorsFile file = OpenSafetensors(path_, allow_tail);
        const std::span<const std::byte> all = file.file->bytes();
        for (const StoredTensor& tensor : file.tensors) {
          ASSERT_GE(tensor.data, all.data());
          ASSERT_LE(tensor.data + tensor.bytes, all.data() + all.size());
          ASSERT_EQ(*NumElements(tensor.shape) * DTypeSize(tensor.dtype), tensor.bytes);
        }
        ++valid;
      } catch (const Error&) {
      }
    }
  };
  for (size_t length = 0; length < good.size(); ++length) {
    Write(good.substr(0, length));
    probe();
  }
  Write(good);
  std::fstream file(path_,
                    std::ios::binary | std::ios::in | std::ios::out);  // in place: a new file each time takes minutes
  const auto put = [&](size_t at, char value) { file.seekp(static_cast<std::streamoff>(at)).put(value).flush(); };
  for (size_t at = 0; at < good.size(); ++at) {
    for (int value = 0; value < 256; ++value) {
      put(at, static_cast<char>(value));
      probe();
    }
    put(at, good[at]);
  }
  EXPECT_GT(valid, 0u);
  EXPECT_GT(tried - valid, tried / 2);
}

TEST(MappedFileTest, ReadsTextUpToALimit) {
  const std::string path = testing::TempDir() + "mapped_file_test." + std::to_string(getpid());
  std::ofstream(path) << "hello";
  EXPECT_EQ(ReadTextFile(path, 5), "hello");
  EXPECT_THROW(ReadTextFile(path, 4), Error);
  MappedFile file(path);
  const MappedFile moved = std::move(file);
  EXPECT_EQ(moved.bytes().size(), 5u);
  moved.Release(moved.bytes().data(), moved.bytes().size());
  EXPECT_EQ(static_cast<char>(moved.bytes()[4]), 'o');
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace lockstep
