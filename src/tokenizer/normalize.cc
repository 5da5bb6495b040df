#include "tokenizer/normalize.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "lockstep/error.h"

namespace lockstep {
namespace {

// So many marks on one letter are no text; ICU sorts them by insertion, in quadratic time.
constexpr size_t kManyMarks = 64;

void Check(UErrorCode status, const char* what) {
  if (U_FAILURE(status))
    throw Error(std::string("Unicode normalization: ") + what + ": ICU says " + u_errorName(status));
}

const icu::Normalizer2& Normalizer(const icu::Normalizer2* (*instance)(UErrorCode&)) {
  UErrorCode status = U_ZERO_ERROR;
  const icu::Normalizer2* out = instance(status);
  Check(status, "no data; is libicu whole?");
  return *out;
}

bool IsMark(UChar32 point) { return u_getIntPropertyValue(point, UCHAR_LEAD_CANONICAL_COMBINING_CLASS) != 0; }

// The marks decomposed and in canonical order, which is a stable sort by combining class.
void AppendSorted(std::string_view marks, std::string& out) {
  static const icu::Normalizer2& nfd = Normalizer(icu::Normalizer2::getNFDInstance);
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

// A canonically equivalent text whose long runs of marks are sorted.
std::string SortLongRunsOfMarks(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;  // of the run of marks that ends at `at`
  size_t marks = 0;
  const auto end_run = [&](size_t end) {
    const std::string_view run = text.substr(begin, end - begin);
    if (marks > kManyMarks) {
      AppendSorted(run, out);
    } else {
      out += run;
    }
    begin = end;
    marks = 0;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t start = at;
    UChar32 point = 0;
    U8_NEXT_UNSAFE(text.data(), at, point);
    if (point >= 0x300 && IsMark(point)) {
      if (marks++ == 0) {
        out += text.substr(begin, start - begin);
        begin = start;
      }
    } else if (marks > 0) {
      end_run(start);
    }
  }
  end_run(text.size());
  return out;
}

}  // namespace

std::string_view Nfc(std::string_view text, std::string& storage) {
  static const icu::Normalizer2& nfc = Normalizer(icu::Normalizer2::getNFCInstance);
  UErrorCode status = U_ZERO_ERROR;
  const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
  const bool normal = nfc.isNormalizedUTF8(piece, status) != 0;
  Check(status, "checking a text");
  if (normal) return text;

  const std::string tame = SortLongRunsOfMarks(text);
  storage.clear();
  storage.reserve(tame.size());
  icu::StringByteSink<std::string> sink(&storage);
  nfc.normalizeUTF8(0, {tame.data(), static_cast<int32_t>(tame.size())}, sink, nullptr, status);
  Check(status, "normalizing a text");
  return storage;
}

}  // namespace lockstep
