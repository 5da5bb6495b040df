#include "tokenizer/normalize.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {
namespace {

// So many marks on one letter are no text; ICU sorts them by insertion, in quadratic time.
constexpr size_t kManyMarks = 64;
constexpr UChar32 kFirstMark = 0x300;

void Check(UErrorCode status, const char* what) {
  if (U_FAILURE(status))
    throw Error(std::string("Unicode normalization: ") + what + ": ICU says " + u_errorName(status));
}

// The `tokenizers` package normalizes by the tables of Unicode 9.0: it leaves characters alone that are newer. Since
// characters never change in this respect, ICU does the same where it sees only those of that age.
const icu::UnicodeSet& OldCharacters() {
  static const icu::UnicodeSet* const set = [] {
    UErrorCode status = U_ZERO_ERROR;
    auto* out = new icu::UnicodeSet(u"[:age=9.0:]", status);
    Check(status, "no data; is libicu whole?");
    return out->freeze();
  }();
  return *set;
}

const icu::Normalizer2& Require(const icu::Normalizer2* (*instance)(UErrorCode&)) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* out = instance(status);
  Check(status, "no data; is libicu whole?");
  return *out;
}

bool IsMark(UChar32 point) {
  return u_getIntPropertyValue(point, UCHAR_LEAD_CANONICAL_COMBINING_CLASS) != 0 && OldCharacters().contains(point);
}

// The marks decomposed and in canonical order, which is a stable sort by combining class.
void AppendSorted(std::string_view marks, std::string& out) {
  static const icu::Normalizer2& nfd = Require(icu::Normalizer2::getNFDInstance);
  std::vector<std::pair<uint8_t, UChar32>> sorted;
  icu::UnicodeString decomposed;
  for (size_t at = 0; at < marks.size();) {
    UChar32 point = 0;
    U8_NEXT_UNSAFE(marks.data(), at, point);
    if (!nfd.getDecomposition(point, decomposed)) decomposed.setTo(point);
    for (int32_t k = 0; k < decomposed.length(); k = decomposed.moveIndex32(k, 1)) {
      sorted.emplace_back(nfd.getCombiningClass(decomposed.char32At(k)), decomposed.char32At(k));
    }
  }
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& [combining_class, point] : sorted) {
    char bytes[U8_MAX_LENGTH];
    size_t size = 0;
    U8_APPEND_UNSAFE(bytes, size, point);
    out.append(bytes, size);
  }
}

// Calls on_run(begin, end) for each run of more than kManyMarks marks.
template <typename OnRun>
void ForEachLongRun(std::string_view text, OnRun&& on_run) {
  size_t begin = 0;
  size_t marks = 0;
  const auto end_run = [&](size_t end) {
    if (marks > kManyMarks) on_run(begin, end);
    marks = 0;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    UChar32 point = 0;
    U8_NEXT_UNSAFE(text.data(), at, point);
    if (point < kFirstMark || !IsMark(point)) {
      end_run(start);
    } else if (marks++ == 0) {
      begin = start;
    }
  }
  end_run(text.size());
}

// `text`, or what is written to `storage`: canonically equivalent, and long runs of marks sorted.
std::string_view SortLongRuns(std::string_view text, std::string& storage) {
  size_t done = 0;
  ForEachLongRun(text, [&](size_t begin, size_t end) {
    storage += text.substr(done, begin - done);
    AppendSorted(text.substr(begin, end - begin), storage);
    done = end;
  });
  if (done == 0) return text;
  storage += text.substr(done);
  return storage;
}

}  // namespace

std::string_view Nfc(std::string_view text, std::string& storage) {
  // Below U+0300 everything is in NFC.
  const auto is_low = [](char c) { return static_cast<uint8_t>(c) < 0xCC; };
  if (std::all_of(text.begin(), text.end(), is_low)) return text;

  static const icu::FilteredNormalizer2 nfc(Require(icu::Normalizer2::getNFCInstance), OldCharacters());
  std::string sorted;
  const std::string_view tame = SortLongRuns(text, sorted);
  const icu::StringPiece piece(tame.data(), static_cast<int32_t>(tame.size()));
  UErrorCode status = U_ZERO_ERROR;
  const bool normal = nfc.isNormalizedUTF8(piece, status) != 0;
  Check(status, "checking a text");
  storage.clear();
  if (normal && sorted.empty()) return text;
  icu::StringByteSink<std::string> sink(&storage);
  nfc.normalizeUTF8(0, piece, sink, nullptr, status);
  Check(status, "normalizing a text");
  return storage;
}

}  // namespace lockstep
