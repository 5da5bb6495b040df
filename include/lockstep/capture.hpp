// Lockstep's capture header: writes a trace of what your engine computes, to be compared with PyTorch's.
//
// It stands alone: C++17, POSIX, no dependency. Copy it into your engine, or install Lockstep.
//
//   #include <lockstep/capture.hpp>
//
//   lockstep::TraceInfo info;
//   info.producer = "my-engine";
//   info.storage = lockstep::DType::kBF16;                          // of weights and activations
//   info.config_json = R"({"num_hidden_layers": 28, "rope_theta": 1e6})";
//   info.points = {"input_embeddings", "layer_0_attn_q_rope", "logits"};  // what every step will hold
//   lockstep::Trace trace("cpp.trace", info);                       // lockstep::Trace trace; is switched off
//
//   // One step is one forward call. Tokens of several sequences may be mixed; -1 as sequence marks padding.
//   auto step = trace.BeginStep(input_ids, positions, sequences, num_tokens, lockstep::Phase::kPrefill);
//   step.Record("input_embeddings", x, lockstep::DType::kBF16, {num_tokens, hidden});
//   if (step.wants("layer_0_attn_q_rope")) {                        // skip a copy from the device
//     // The buffer is [heads, tokens, head_dim]: strides (in elements) make it token-major.
//     step.Record("layer_0_attn_q_rope", q, lockstep::DType::kBF16, {num_tokens, heads, head_dim},
//                 {head_dim, num_tokens * head_dim, 1});
//   }
//   step.RecordRows("logits", y, lockstep::DType::kF32, {1, vocab}, {last_token});  // only one row was computed
//   step.End();
//
//   trace.Close();
//   if (!trace.error().empty()) …
//
// Then: `lockstep compare py.trace cpp.trace --model MODEL`. The names and shapes of the points are in docs/points.md,
// the format is in docs/trace-format.md.
//
// - Data are copied by the call: the buffer may be reused as soon as Record returns. It must be in host memory.
// - Nothing is thrown into the engine unless TraceInfo::throw_errors is set. The first error is printed on stderr and
//   given by error(); all of them are written into the trace, and the comparison fails because of them.
// - Thread safe: steps may run in several threads, and several threads may record into one step.
// - What a killed process had recorded stays readable. A full disk ends the trace, never the engine.
// - LOCKSTEP_POINTS, LOCKSTEP_LAYERS, LOCKSTEP_STEPS and LOCKSTEP_ROWS (such as "last:16") in the environment bound
//   what is written.
// - Switched off, a call costs one branch; build names only `if (step)`.
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace lockstep {

// Element types, the ones of safetensors.
enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kF64,
  kI64,
  kU64
};
constexpr int kNumDTypes = 15;

// Bytes of one element.
constexpr size_t DTypeSize(DType dtype) {
  return dtype < DType::kI16 ? 1 : dtype < DType::kI32 ? 2 : dtype < DType::kF64 ? 4 : 8;
}

// "BF16": the name in safetensors and in trace.json.
constexpr const char* DTypeName(DType dtype) {
  constexpr const char* kNames[kNumDTypes] = {"BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "I16", "U16", "F16",
                                              "BF16", "I32", "U32", "F32",     "F64",     "I64", "U64"};
  return kNames[static_cast<size_t>(dtype)];
}

enum class Phase : uint8_t { kPrefill, kDecode };

// Where tensors differ from docs/points.md. What is left out is as there.
struct TensorLayout {
  std::string pattern;            // of names; `*` stands for any characters: "*_attn_q_rope"
  std::vector<std::string> axes;  // in stored order: {"q_head", "token", "head_dim"}
  std::string layout;             // free text for a basis that differs: "interleaved"
  std::string shard_axis;         // this rank holds slice `shard_index` of `shard_count` equal ones along that axis
  int shard_index = -1;           // -1: the rank
  int shard_count = 1;
  bool partial = false;  // the true tensor is the sum over the ranks
};

// What is known of a run before its first step.
struct TraceInfo {
  std::string producer;
  std::string producer_version;
  std::string model_type = "qwen3";
  std::string config_json =
      "{}";  // the keys of config.json that matter: num_hidden_layers, rope_theta, rms_norm_eps, …

  DType storage = DType::kF32;    // of weights and activations
  std::optional<DType> operands;  // of the matrix products; default: storage
  std::optional<DType> cache;     // of keys and values; default: storage
  DType accumulate = DType::kF32;
  std::string overrides_json;  // {"*_layer_output": {"storage": "F32"}} for engines that mix

  std::vector<std::string> points;          // promised: a step without one of them fails by its name
  std::vector<std::string> not_observable;  // patterns of points that the engine never has in memory
  std::vector<TensorLayout> tensors;        // of the patterns that match a name, the one with most letters counts

  // What is written; empty: LOCKSTEP_POINTS, …_LAYERS, …_STEPS, …_ROWS of the environment, or else everything.
  std::string select_points;  // "attn_*,logits"; attn_scores and attn_probs only where they are named without `*`
  std::string select_layers;  // "0,2-4"
  std::string select_steps;   // "0-3"
  std::string select_rows;    // "last:16" of each sequence in each step, or positions: "0-3,100"

  std::string extra_json;     // an object with further members for trace.json, which readers ignore
  int rank = 0;               // of this process
  bool throw_errors = false;  // std::runtime_error instead of silence
};

// A list that is only looked at: an initializer list or a vector, without a copy.
template <typename T>
class ListView {
 public:
  ListView() = default;
  ListView(std::initializer_list<T> list) : size_(list.size()) { data_ = list.begin(); }
  ListView(const std::vector<T>& list) : data_(list.data()), size_(list.size()) {}
  ListView(const T* data, size_t size) : data_(data), size_(size) {}
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  const T* data_ = nullptr;
  size_t size_ = 0;
};

namespace detail {
class TraceFile;
class OpenStep;
}  // namespace detail

// One forward call. Ends with End() or with its life. A default-constructed one records nothing.
class Step {
 public:
  Step() = default;
  Step(Step&&) = default;
  Step& operator=(Step&& other);  // NOLINT(performance-noexcept-move-constructor): ends the old one
  ~Step();

  // False where nothing will be recorded: names need not be built.
  explicit operator bool() const { return step_ != nullptr; }
  // Whether a tensor of that name would be written.
  bool wants(std::string_view name) const { return step_ && WantsImpl(name); }

  // Copies a tensor, one row for each token of the step. `shape` and `strides` are in elements; without strides it is
  // packed. Every name can be recorded once a step.
  void Record(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape,
              ListView<int64_t> strides = {}) {
    if (step_) RecordImpl(name, data, dtype, shape, strides, nullptr, nullptr);
  }
  // The same for tensors that hold only some of the step's tokens: rows[i] is the token of row i.
  void RecordRows(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape, ListView<int32_t> rows,
                  ListView<int64_t> strides = {}) {
    if (step_) RecordImpl(name, data, dtype, shape, strides, &rows, nullptr);
  }
  // The same for attention scores and probabilities whose last axis is not the keys at position 0, 1, 2, …: keys[r * K
  // + i] is the absolute position of key i for row r, -1 where the slot is unused. K is the last extent of `shape`.
  void RecordKeys(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape, ListView<int32_t> keys,
                  ListView<int64_t> strides = {}) {
    if (step_) RecordImpl(name, data, dtype, shape, strides, nullptr, &keys);
  }
  // Closes the file. Later calls record nothing.
  void End() {
    if (step_) EndImpl();
  }

 private:
  friend class Trace;
  explicit Step(std::shared_ptr<detail::OpenStep> step) : step_(std::move(step)) {}
  bool WantsImpl(std::string_view name) const;
  void RecordImpl(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape,
                  ListView<int64_t> strides, const ListView<int32_t>* rows, const ListView<int32_t>* keys);
  void EndImpl();

  std::shared_ptr<detail::OpenStep> step_;
};

// A trace being written. Ends with Close() or with its life. A default-constructed one is switched off.
class Trace {
 public:
  Trace() = default;
  // Creates the directory `path`, or replaces the trace that is there; a directory with anything else in it is left
  // alone.
  Trace(const std::string& path, const TraceInfo& info);
  Trace(Trace&&) = default;
  Trace& operator=(Trace&& other);  // NOLINT(performance-noexcept-move-constructor): closes the old one
  ~Trace();

  // False when switched off, closed, or stopped by an error.
  explicit operator bool() const { return trace_ && ActiveImpl(); }
  // Whether a tensor of that name would be written in some step.
  bool wants(std::string_view name) const { return trace_ && WantsImpl(name); }

  // Begins a forward call over num_tokens tokens. `positions` are absolute in their sequence; `input_ids` may be null
  // (embeddings as input), and so may `sequences` (one sequence, 0). Where one process holds several ranks (0, 1, …),
  // each calls it for each step: the k-th call of a rank is step k.
  Step BeginStep(const int32_t* input_ids, const int32_t* positions, const int32_t* sequences, int64_t num_tokens,
                 Phase phase,
                 int rank = -1) {  // -1: TraceInfo::rank
    return trace_ ? BeginImpl(input_ids, positions, sequences, num_tokens, phase, rank) : Step();
  }

  // The fingerprint of a weight as the engine holds it (docs/trace-format.md): 16 hex digits. Written with the next
  // step.
  void SetWeight(const std::string& name, DType dtype, ListView<int64_t> shape, const std::string& hash) {
    if (trace_) SetWeightImpl(name, dtype, shape, hash);
  }

  // The first error; empty when all is well.
  std::string error() const;
  // Marks the trace as finished and unlocks it. Steps that are still open record nothing any more.
  void Close();

 private:
  bool ActiveImpl() const;
  bool WantsImpl(std::string_view name) const;
  Step BeginImpl(const int32_t* input_ids, const int32_t* positions, const int32_t* sequences, int64_t num_tokens,
                 Phase phase, int rank);
  void SetWeightImpl(const std::string& name, DType dtype, ListView<int64_t> shape, const std::string& hash);

  std::shared_ptr<detail::TraceFile> trace_;
};

// ---- Selections: which part of a run is written, or compared
// ----------------------------------------------------------------

// `*` in the pattern stands for any run of characters.
inline bool MatchesPattern(std::string_view pattern, std::string_view name) {
  size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {  // let the last star take one more character
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

namespace detail {

// "layer_12_rest" is (12, "rest"), any other name (-1, name).
inline std::pair<int, std::string_view> SplitLayerName(std::string_view name) {
  constexpr std::string_view kPrefix = "layer_";
  constexpr size_t kMaxDigits = 6;
  if (name.substr(0, kPrefix.size()) != kPrefix) return {-1, name};
  const std::string_view rest = name.substr(kPrefix.size());
  const size_t digits = rest.find_first_not_of("0123456789");
  if (digits == 0 || digits == rest.npos || digits > kMaxDigits || rest[digits] != '_') return {-1, name};
  if (digits > 1 && rest[0] == '0') return {-1, name};
  return {std::atoi(std::string(rest.substr(0, digits)).c_str()), rest.substr(digits + 1)};
}

// Of two patterns that match a name, the one with more letters counts; the first by name where they are equal.
inline bool IsNarrower(const std::string& a, const std::string& b) {
  const auto letters = [](const std::string& pattern) {
    return pattern.size() - static_cast<size_t>(std::count(pattern.begin(), pattern.end(), '*'));
  };
  return letters(a) != letters(b) ? letters(a) > letters(b) : a < b;
}

struct Range {
  int64_t first;
  int64_t last;
};

inline bool InRanges(const std::vector<Range>& ranges, int64_t value) {
  return std::any_of(ranges.begin(), ranges.end(), [&](const Range& r) { return r.first <= value && value <= r.last; });
}

}  // namespace detail

// The selection strings of docs/trace-format.md. Empty strings select everything except the points on request.
class Selection {
 public:
  Selection() = default;
  // Throws std::invalid_argument that names the bad string.
  Selection(const std::string& points, const std::string& layers, const std::string& steps, const std::string& rows) {
    for (const std::string& pattern : Items("points", points)) patterns_.push_back(pattern);
    for (const std::string& item : Items("layers", layers)) layers_.push_back(ParseRange("layers", layers, item));
    for (const std::string& item : Items("steps", steps)) steps_.push_back(ParseRange("steps", steps, item));
    for (const std::string& item : Items("rows", rows)) {
      if (item.compare(0, 5, "last:") == 0) {
        last_ = std::max(last_, ParseNumber("rows", rows, item.substr(5)));
        if (last_ == 0) Fail("rows", rows, item);
      } else {
        positions_.push_back(ParseRange("rows", rows, item));
      }
    }
  }

  bool WantsPoint(std::string_view name) const {
    const auto [layer, rest] = detail::SplitLayerName(name);
    if (layer >= 0 && !layers_.empty() && !detail::InRanges(layers_, layer)) return false;
    const bool on_request = layer >= 0 && (rest == "attn_scores" || rest == "attn_probs");
    if (patterns_.empty()) return !on_request;
    for (const std::string& pattern : patterns_) {
      if (on_request && pattern.find('*') != std::string::npos) continue;
      if (MatchesPattern(pattern, name) || MatchesPattern(pattern, rest)) return true;
    }
    return false;
  }

  bool WantsStep(int64_t step) const { return steps_.empty() || detail::InRanges(steps_, step); }

  bool WantsAllRows() const { return last_ == 0 && positions_.empty(); }

  // A token at `position` that is followed by `later` more tokens of its sequence in the same step.
  bool WantsRow(int64_t position, int64_t later) const {
    return WantsAllRows() || later < last_ || detail::InRanges(positions_, position);
  }

  // The selected tokens of a step. Padding (sequence -1) is selected only when everything is.
  std::vector<int32_t> SelectRows(ListView<int32_t> positions, ListView<int32_t> sequences) const {
    std::vector<int32_t> rows;
    std::map<int32_t, int64_t> later;
    for (size_t i = positions.size(); i-- > 0;) {
      const bool padding = sequences[i] < 0;
      if (padding ? WantsAllRows() : WantsRow(positions[i], later[sequences[i]]++))
        rows.push_back(static_cast<int32_t>(i));
    }
    std::reverse(rows.begin(), rows.end());
    return rows;
  }

 private:
  [[noreturn]] static void Fail(const std::string& kind, const std::string& text, const std::string& item) {
    const std::string expected = kind == "points" ? "patterns such as \"attn_*,logits\""
                                 : kind == "rows" ? "\"last:16\" or positions such as \"0-3,100\""
                                                  : "numbers and ranges such as \"0,2-4\"";
    throw std::invalid_argument("selection of " + kind + " \"" + text + "\": expected " + expected + ", found \"" +
                                item + "\"");
  }

  static std::vector<std::string> Items(const std::string& kind, const std::string& text) {
    std::vector<std::string> items;
    if (text.empty()) return items;
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find(',', begin), text.size());
      const size_t first = std::min(text.find_first_not_of(' ', begin), end);
      const size_t last = std::max(first, text.find_last_not_of(' ', end - (end > 0)) + 1);
      items.push_back(text.substr(first, std::min(last, end) - first));
      if (items.back().empty()) Fail(kind, text, items.back());
      begin = end + 1;
    }
    return items;
  }

  static int64_t ParseNumber(const std::string& kind, const std::string& text, const std::string& item) {
    constexpr size_t kMaxDigits = 10;
    if (item.empty() || item.size() > kMaxDigits || item.find_first_not_of("0123456789") != item.npos)
      Fail(kind, text, item);
    return std::strtoll(item.c_str(), nullptr, 10);
  }

  static detail::Range ParseRange(const std::string& kind, const std::string& text, const std::string& item) {
    const size_t dash = item.find('-');
    const int64_t first = ParseNumber(kind, text, item.substr(0, dash));
    const int64_t last = dash == item.npos ? first : ParseNumber(kind, text, item.substr(dash + 1));
    if (last < first) Fail(kind, text, item);
    return {first, last};
  }

  std::vector<std::string> patterns_;
  std::vector<detail::Range> layers_, steps_, positions_;
  int64_t last_ = 0;  // 0: no "last:N"
};

// ---- From here on: how it works. Nothing below is meant to be called.
// ---------------------------------------------------------

namespace detail {

// Bytes of the UTF-8 character at text[i]; 0 where there is none.
inline size_t Utf8Length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : (lead & 0xF0u) == 0xE0       ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(k) & 0xC0u) != 0x80) return 0;
  }
  const bool overlong = (lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xF0 && byte(1) < 0x90);
  const bool beyond = (lead == 0xED && byte(1) >= 0xA0) || (lead == 0xF4 && byte(1) >= 0x90);
  return overlong || beyond ? 0 : length;
}

// Text as a JSON string; bytes that are not UTF-8 become '?'.
inline std::string JsonString(std::string_view text) {
  std::string out = "\"";
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (length == 0) {
      out += '?';
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += text[i];
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      out += escape;
    } else {
      out += text.substr(i, length);
    }
    i += std::max<size_t>(length, 1);
  }
  return out + "\"";
}

template <typename List, typename ToText>
std::string JoinJson(const List& list, ToText to_text) {
  std::string out;
  for (const auto& item : list) {
    if (!out.empty()) out += ",";
    out += to_text(item);
  }
  return out;
}

inline std::string JsonStrings(const std::vector<std::string>& list) { return "[" + JoinJson(list, JsonString) + "]"; }

inline std::string JsonNumbers(ListView<int64_t> list) {
  return "[" + JoinJson(list, [](int64_t value) { return std::to_string(value); }) + "]";
}

// Checks JSON that is handed in as text before it is embedded, so that no caller's typing error makes a trace
// unreadable.
class JsonScanner {
 public:
  using Members = std::vector<std::pair<std::string, std::string>>;  // key and value as raw text

  // The members of an object. Throws std::invalid_argument when the text is anything else.
  static Members Parse(std::string_view text) {
    JsonScanner scanner(text);
    scanner.Space();
    Members members = scanner.Object(0);
    scanner.Space();
    if (scanner.at_ != text.size()) scanner.Fail("the end");
    return members;
  }

 private:
  static constexpr int kMaxDepth = 32;

  explicit JsonScanner(std::string_view text) : text_(text) {}

  [[noreturn]] void Fail(const std::string& expected) const {
    throw std::invalid_argument("not a valid JSON object: expected " + expected + " at byte " + std::to_string(at_));
  }
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }
  void Expect(char c) {
    if (!Take(c)) Fail(std::string("'") + c + "'");
  }
  void Space() {
    while (Peek() == ' ' || Peek() == '\t' || Peek() == '\n' || Peek() == '\r') ++at_;
  }
  void Word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) Fail("a value");
    at_ += word.size();
  }
  bool Digits() {
    const size_t begin = at_;
    while (Peek() >= '0' && Peek() <= '9') ++at_;
    return at_ > begin;
  }

  Members Object(int depth) {
    Members members;
    std::set<std::string> keys;
    Expect('{');
    Space();
    if (Take('}')) return members;
    do {
      Space();
      const size_t key = at_;
      String();
      std::string name(text_.substr(key + 1, at_ - key - 2));
      if (!keys.insert(name).second) Fail("no second \"" + name + "\"");
      Space();
      Expect(':');
      Space();
      const size_t value = at_;
      Value(depth + 1);
      members.emplace_back(std::move(name), text_.substr(value, at_ - value));
      Space();
    } while (Take(','));
    Expect('}');
    return members;
  }

  void Array(int depth) {
    Expect('[');
    Space();
    if (Take(']')) return;
    do {
      Space();
      Value(depth + 1);
      Space();
    } while (Take(','));
    Expect(']');
  }

  void Value(int depth) {
    if (depth > kMaxDepth) Fail("less nesting");
    switch (Peek()) {
      case '{': Object(depth); return;
      case '[': return Array(depth);
      case '"': return String();
      case 't': return Word("true");
      case 'f': return Word("false");
      case 'n': return Word("null");
      default: return Number();
    }
  }

  void Number() {
    const size_t begin = at_;
    Take('-');
    if (!Take('0') && !Digits()) Fail("a value");
    if (Take('.') && !Digits()) Fail("a digit");
    if (Take('e') || Take('E')) {
      if (!Take('+')) Take('-');
      if (!Digits()) Fail("a digit");
    }
    if (!std::isfinite(std::strtod(std::string(text_.substr(begin, at_ - begin)).c_str(), nullptr)))
      Fail("a smaller number");
  }

  int Hex4() {
    int value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = Peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
      if (digit < 0) Fail("a hexadecimal digit");
      value = value * 16 + digit;
    }
    return value;
  }

  void Escape() {
    const char c = Peek();
    if (c == '\0' || std::strchr("\"\\/bfnrtu", c) == nullptr) Fail("an escape");
    ++at_;
    if (c != 'u') return;
    const int unit = Hex4();
    const bool high = unit >= 0xD800 && unit < 0xDC00;
    if (unit >= 0xDC00 && unit < 0xE000) Fail("a high surrogate before the low one");
    if (!high) return;
    Word("\\u");
    const int low = Hex4();
    if (low < 0xDC00 || low >= 0xE000) Fail("a low surrogate");
  }

  void String() {
    Expect('"');
    while (!Take('"')) {
      if (at_ >= text_.size() || static_cast<unsigned char>(Peek()) < 0x20) Fail("'\"'");
      const size_t length = Utf8Length(text_, at_);
      if (length == 0) Fail("UTF-8");
      const bool escape = Peek() == '\\';
      at_ += length;
      if (escape) Escape();
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

// The file system said no: the trace ends here.
struct IoError : std::runtime_error {
  using std::runtime_error::runtime_error;
  IoError(const std::string& what, int code)
      : std::runtime_error(what + ": " + std::generic_category().message(code)) {}
};

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { Close(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  // 0, or the errno of a write that failed late.
  int Close() {
    const int fd = std::exchange(fd_, -1);
    return fd >= 0 && close(fd) != 0 && errno != EINTR ? errno : 0;
  }

 private:
  int fd_ = -1;
};

inline void WriteAll(int fd, const void* data, size_t size, uint64_t offset, const std::string& path) {
  constexpr size_t kMostAtOnce = size_t{1} << 30;
  const char* from = static_cast<const char*>(data);
  for (size_t done = 0; done < size;) {
    const ssize_t n = pwrite(fd, from + done, std::min(size - done, kMostAtOnce), static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      throw IoError(path + ": " + std::to_string(size - done) + " of " + std::to_string(size) +
                        " bytes could not be written; the trace ends here",
                    n < 0 ? errno : ENOSPC);
    }
    done += static_cast<size_t>(n);
  }
}

// A tensor in the engine's memory, and which of its rows are wanted.
struct TensorView {
  const char* data;
  size_t element;                // bytes
  std::vector<int64_t> shape;    // of what is written
  std::vector<int64_t> strides;  // in bytes
  size_t row_axis = 0;
  std::optional<std::vector<int32_t>> picks;  // indices along row_axis; none: all

  size_t Bytes() const {
    size_t bytes = element;
    for (const int64_t extent : shape) bytes *= static_cast<size_t>(extent);
    return bytes;
  }
  // The number of leading axes that have to be walked; what lies behind them is one piece of `*block` bytes.
  size_t OuterAxes(size_t* block) const {
    size_t axes = shape.size();
    *block = element;
    while (axes > 0 && !(picks && axes - 1 == row_axis) &&
           (shape[axes - 1] == 1 || strides[axes - 1] == static_cast<int64_t>(*block))) {
      *block *= static_cast<size_t>(shape[--axes]);
    }
    return axes;
  }
};

// Packs a view and writes it, a buffer at a time.
class Packer {
 public:
  Packer(const TensorView& view, int fd, uint64_t offset, const std::string& path)
      : view_(view), fd_(fd), offset_(offset), path_(path) {}

  void Write() {
    outer_ = view_.OuterAxes(&block_);
    if (view_.Bytes() == 0) return;
    if (outer_ == 0) return WriteAll(fd_, view_.data, block_, offset_, path_);
    buffer_.reserve(std::min(view_.Bytes(), kBuffer));
    Walk(view_.data, 0);
    Flush();
  }

 private:
  static constexpr size_t kBuffer = size_t{256} << 10;  // stays in a core's cache

  void Walk(const char* from, size_t axis) {
    if (axis == outer_) return Put(from);
    const bool picking = view_.picks && axis == view_.row_axis;
    const bool elements = axis + 1 == outer_ && !picking;
    if (elements && block_ == 2) return PutElements<2>(from, axis);
    if (elements && block_ == 4) return PutElements<4>(from, axis);
    for (int64_t i = 0; i < view_.shape[axis]; ++i) {
      const int64_t index = picking ? (*view_.picks)[static_cast<size_t>(i)] : i;
      Walk(from + index * view_.strides[axis], axis + 1);
    }
  }

  void Put(const char* from) {
    if (block_ >= kBuffer) {
      Flush();
      WriteAll(fd_, from, block_, offset_, path_);
      offset_ += block_;
      return;
    }
    if (buffer_.size() + block_ > kBuffer) Flush();
    buffer_.insert(buffer_.end(), from, from + block_);
  }

  // A transposed tensor moves element by element: a copy of known size is many times faster than one of any size.
  template <size_t kSize>
  void PutElements(const char* from, size_t axis) {
    const int64_t stride = view_.strides[axis];
    for (int64_t left = view_.shape[axis]; left > 0;) {
      if (buffer_.size() + kSize > kBuffer) Flush();
      const int64_t count = std::min<int64_t>(left, static_cast<int64_t>((kBuffer - buffer_.size()) / kSize));
      size_t at = buffer_.size();
      buffer_.resize(at + static_cast<size_t>(count) * kSize);
      for (int64_t i = 0; i < count; ++i, at += kSize, from += stride) std::memcpy(&buffer_[at], from, kSize);
      left -= count;
    }
  }

  void Flush() {
    WriteAll(fd_, buffer_.data(), buffer_.size(), offset_, path_);
    offset_ += buffer_.size();
    buffer_.clear();
  }

  const TensorView& view_;
  int fd_;
  uint64_t offset_;
  const std::string& path_;
  size_t outer_ = 0;
  size_t block_ = 0;
  std::vector<char> buffer_;
};

constexpr size_t kPage = 4096;  // a write within one page is whole or not there

// A safetensors file that grows by whole tensors: a region of blanks for the header stands in front, data are appended,
// and then one write within one page makes the tensor known.
class StepFile {
 public:
  static constexpr size_t kMinRegion = 2 * kPage;  // any entry fits
  static constexpr size_t kMaxEntry = kPage - 96;

  // Creates it under a temporary name. `region` is a multiple of the page.
  StepFile(int directory, const std::string& directory_path, const std::string& name, size_t region)
      : directory_(directory), name_(name), path_(directory_path + "/" + name), region_(region) {
    fd_ = Descriptor(openat(directory, Temporary().c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0666));
    if (!fd_) throw IoError(path_ + ": cannot be created", errno);
    std::string header(8, '\0');
    for (size_t i = 0; i < 8; ++i) header[i] = static_cast<char>((region - 8) >> (8 * i));
    header += R"({"__metadata__":{"format":"lockstep-step"})";
    entry_at_ = header.size();
    header.resize(region - 1, ' ');
    header += '}';
    try {
      WriteAll(fd_.get(), header.data(), header.size(), 0, path_);
    } catch (...) {
      Discard();
      throw;
    }
  }

  const std::string& name() const { return name_; }

  void Publish() {
    if (renameat(directory_, Temporary().c_str(), directory_, name_.c_str()) != 0) {
      const int code = errno;
      Discard();
      throw IoError(path_ + ": cannot be created", code);
    }
  }
  // Before it is published only.
  void Discard() { unlinkat(directory_, Temporary().c_str(), 0); }

  // False when the header region is full. Throws IoError with nothing added.
  bool Add(const std::string& name, DType dtype, const TensorView& view) {
    const size_t bytes = view.Bytes();
    const std::string entry = "," + JsonString(name) + ":{\"dtype\":\"" + DTypeName(dtype) +
                              "\",\"shape\":" + JsonNumbers(view.shape) + ",\"data_offsets\":[" +
                              std::to_string(data_) + "," + std::to_string(data_ + bytes) + "]}";
    if (entry.size() > kMaxEntry)
      throw std::runtime_error("tensor name of " + std::to_string(name.size()) + " bytes is too long");
    size_t at = entry_at_;
    if (at / kPage != (at + entry.size() - 1) / kPage) at = (at / kPage + 1) * kPage;
    if (at + entry.size() > region_ - 1) return false;
    try {
      Packer(view, fd_.get(), region_ + data_, path_).Write();
      WriteAll(fd_.get(), entry.data(), entry.size(), at, path_);
    } catch (const IoError&) {
      // Gives the disk its room back; where even that fails, readers ignore the tail.
      if (ftruncate(fd_.get(), static_cast<off_t>(region_ + data_)) != 0) {
      }
      throw;
    }
    entry_at_ = at + entry.size();
    data_ += bytes;
    return true;
  }

  void Close() {
    const int code = fd_.Close();
    if (code != 0) throw IoError(path_ + ": cannot be written", code);
  }

 private:
  std::string Temporary() const { return name_ + ".tmp"; }

  int directory_;
  std::string name_;
  std::string path_;
  size_t region_;        // where the data begin
  size_t entry_at_ = 0;  // where the next header entry may stand
  uint64_t data_ = 0;    // bytes of data
  Descriptor fd_;
};

struct StepRecord {
  Phase phase;
  std::vector<std::pair<std::string, int>> files;  // name and rank
};

// The directory: trace.json, the lock, and the errors.
class TraceFile : public std::enable_shared_from_this<TraceFile> {
 public:
  TraceFile(const std::string& path, const TraceInfo& info) : path_(path), info_(info) {
    while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  }

  void Open();
  void Close();
  std::shared_ptr<OpenStep> BeginStep(const int32_t* input_ids, const int32_t* positions, const int32_t* sequences,
                                      int64_t num_tokens, Phase phase, int rank);
  void SetWeight(const std::string& name, DType dtype, ListView<int64_t> shape, const std::string& hash);
  // A further file of a step; it is in trace.json before its first tensor is.
  std::unique_ptr<StepFile> ContinueStep(size_t step, int rank, int file);

  // Runs an action of the engine's; keeps its error.
  template <typename Action>
  void Guard(Action&& action) {
    std::string message;
    try {
      action();
      return;
    } catch (const IoError& error) {
      active_ = false;
      message = error.what();
    } catch (const std::exception& error) {
      message = error.what();
    }
    Keep(message);
    if (info_.throw_errors) throw std::runtime_error(message);
  }

  bool active() const { return active_; }
  bool closed() const { return closed_; }
  const std::string& path() const { return path_; }
  const TraceInfo& info() const { return info_; }
  const Selection& selection() const { return selection_; }
  std::string error() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return errors_.empty() ? std::string() : errors_.front();
  }
  // Of the tensor's axes, the one that counts tokens.
  size_t TokenAxis(std::string_view name) const;

 private:
  static constexpr size_t kMaxErrors = 100;

  void Keep(const std::string& message);
  void CheckInfo();
  void TakeOver();
  std::vector<std::string> List() const;
  std::string ReadOld() const;
  std::string StepName(size_t step, int rank, int file) const;
  size_t RegionSize(bool selected) const;
  std::string Text(bool closed) const;
  std::string ArithmeticText() const;
  std::string TensorsText() const;
  void WriteText(bool closed) const;

  std::string path_;
  TraceInfo info_;
  Selection selection_;
  std::string extra_;  // further members, each with a comma in front
  Descriptor directory_;
  std::atomic<bool> active_{false};
  std::atomic<bool> closed_{false};

  mutable std::mutex mutex_;  // for everything below
  bool ours_ = false;         // the directory is locked and holds our trace.json
  std::vector<StepRecord> steps_;
  std::map<int, size_t> next_step_;  // by rank
  std::map<std::string, std::string> weights_;
  std::vector<std::string> errors_;
};

// A step that is being recorded.
class OpenStep {
 public:
  OpenStep(std::shared_ptr<TraceFile> trace, std::unique_ptr<StepFile> file, size_t index, int rank, int64_t num_tokens)
      : trace_(std::move(trace)), file_(std::move(file)), index_(index), rank_(rank), num_tokens_(num_tokens) {}

  TraceFile& trace() { return *trace_; }
  StepFile& file() { return *file_; }
  bool Wants(std::string_view name) const { return trace_->active() && trace_->selection().WantsPoint(name); }

  // positions, sequences and input_ids.
  void AddTokens(const std::string& name, const int32_t* values) {
    names_.insert(name);
    Add(name, DType::kI32,
        {reinterpret_cast<const char*>(values), sizeof(int32_t), {num_tokens_}, {sizeof(int32_t)}, 0, {}});
  }
  void SelectRows(const int32_t* positions, const int32_t* sequences) {
    const Selection& selection = trace_->selection();
    if (selection.WantsAllRows()) return;
    const size_t count = static_cast<size_t>(num_tokens_);
    rows_ = selection.SelectRows({positions, count}, {sequences, count});
  }

  void Record(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape, ListView<int64_t> strides,
              const ListView<int32_t>* rows, const ListView<int32_t>* keys) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      if (trace_->closed()) throw std::runtime_error("recorded after the trace was closed");
      if (!Wants(name)) return;
      if (!file_) throw std::runtime_error("recorded after the step had ended");
      CheckName(name);
      TensorView view = View(data, dtype, shape, strides);
      view.row_axis = trace_->TokenAxis(name);
      const std::vector<int32_t> tokens = PickRows(&view, rows);
      std::vector<int32_t> key_rows = keys ? PickKeys(view, *keys) : std::vector<int32_t>();
      if (!names_.insert(std::string(name)).second)
        throw std::runtime_error("recorded twice; a name can be recorded once a step");
      // What explains a tensor is written before it: a tensor that is there can be understood.
      if (rows || view.picks) AddNumbers("rows:" + std::string(name), tokens, {static_cast<int64_t>(tokens.size())});
      if (keys) AddNumbers("keys:" + std::string(name), key_rows, {view.shape[view.row_axis], view.shape.back()});
      Add(std::string(name), dtype, view);
    } catch (const IoError&) {
      throw;  // names the file
    } catch (const std::exception& error) {
      throw std::runtime_error("step " + std::to_string(index_) +
                               (rank_ != 0 ? ", rank " + std::to_string(rank_) : "") + ": " + std::string(name) + ": " +
                               error.what());
    }
  }

  void End() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::unique_ptr<StepFile> file = std::move(file_);
    if (file) file->Close();
  }

 private:
  static void CheckName(std::string_view name) {
    if (name.empty()) throw std::runtime_error("a tensor needs a name");
    if (name == "__metadata__" || name.substr(0, 5) == "rows:" || name.substr(0, 5) == "keys:") {
      throw std::runtime_error("this name is reserved; see RecordRows and RecordKeys");
    }
    for (size_t i = 0; i < name.size();) {
      const size_t length = Utf8Length(name, i);
      if (length == 0) throw std::runtime_error("the name is not UTF-8");
      i += length;
    }
  }

  static TensorView View(const void* data, DType dtype, ListView<int64_t> shape, ListView<int64_t> strides) {
    constexpr size_t kMaxAxes = 16;
    if (shape.size() > kMaxAxes) throw std::runtime_error("more than 16 axes");
    if (!strides.empty() && strides.size() != shape.size()) {
      throw std::runtime_error(std::to_string(strides.size()) + " strides for a shape of " +
                               std::to_string(shape.size()) + " axes");
    }
    TensorView view{static_cast<const char*>(data), DTypeSize(dtype), {shape.begin(), shape.end()}, {}, 0, {}};
    view.strides.resize(shape.size());
    int64_t packed = static_cast<int64_t>(view.element);
    for (size_t i = shape.size(); i-- > 0;) {
      view.strides[i] = strides.empty() ? packed : strides[i] * static_cast<int64_t>(view.element);
      if (shape[i] < 0) throw std::runtime_error("negative extent in shape " + JsonNumbers(shape));
      if (shape[i] > 0 && packed > std::numeric_limits<int64_t>::max() / shape[i]) {
        throw std::runtime_error("shape " + JsonNumbers(shape) + " is too large");
      }
      packed *= std::max<int64_t>(shape[i], 1);
    }
    if (data == nullptr && view.Bytes() > 0) throw std::runtime_error("no data (a null pointer)");
    return view;
  }

  // Restricts the view to the selected rows and returns the tokens that its rows belong to.
  std::vector<int32_t> PickRows(TensorView* view, const ListView<int32_t>* given) const {
    const std::vector<int64_t>& shape = view->shape;
    const int64_t expected = given ? static_cast<int64_t>(given->size()) : num_tokens_;
    if (shape.size() <= view->row_axis || shape[view->row_axis] != expected) {
      throw std::runtime_error("expected " + std::to_string(expected) + (given ? " rows" : " tokens") + " along axis " +
                               std::to_string(view->row_axis) + ", found shape " + JsonNumbers(shape) +
                               (given ? "" : "; RecordRows is for tensors that hold only some of the tokens"));
    }
    if (expected > 0 && view->Bytes() == 0)
      throw std::runtime_error("rows without elements: shape " + JsonNumbers(shape));
    std::vector<int32_t> tokens, picks;
    std::set<int32_t> seen;
    for (int32_t i = 0; i < static_cast<int32_t>(expected); ++i) {
      const int32_t token = given ? (*given)[static_cast<size_t>(i)] : i;
      if (token < 0 || token >= num_tokens_) {
        throw std::runtime_error("row " + std::to_string(i) + " belongs to token " + std::to_string(token) +
                                 ", expected 0 to " + std::to_string(num_tokens_ - 1));
      }
      if (given && !seen.insert(token).second)
        throw std::runtime_error("token " + std::to_string(token) + " has two rows");
      if (rows_ && !std::binary_search(rows_->begin(), rows_->end(), token)) continue;
      tokens.push_back(token);
      picks.push_back(i);
    }
    if (picks.size() < static_cast<size_t>(expected)) {
      view->shape[view->row_axis] = static_cast<int64_t>(picks.size());
      view->picks = std::move(picks);
    }
    return tokens;
  }

  // The lines of `keys` that belong to the view's rows.
  static std::vector<int32_t> PickKeys(const TensorView& view, ListView<int32_t> keys) {
    const size_t rows = static_cast<size_t>(view.shape[view.row_axis]);
    const size_t width = static_cast<size_t>(view.shape.back());
    size_t last_row = rows;
    if (view.picks) last_row = view.picks->empty() ? 0 : static_cast<size_t>(view.picks->back()) + 1;
    if (view.shape.size() < 2 || (view.picks ? keys.size() < last_row * width : keys.size() != rows * width)) {
      throw std::runtime_error("expected keys for each row and each extent of the last axis, found " +
                               std::to_string(keys.size()));
    }
    std::vector<int32_t> out;
    for (size_t r = 0; r < rows; ++r) {
      const size_t row = view.picks ? static_cast<size_t>((*view.picks)[r]) : r;
      out.insert(out.end(), keys.begin() + row * width, keys.begin() + (row + 1) * width);
    }
    return out;
  }

  void AddNumbers(const std::string& name, const std::vector<int32_t>& values, const std::vector<int64_t>& shape) {
    Add(name, DType::kI32, View(values.data(), DType::kI32, shape, {}));
  }

  void Add(const std::string& name, DType dtype, const TensorView& view) {
    if (file_->Add(name, dtype, view)) return;
    std::unique_ptr<StepFile> next = trace_->ContinueStep(index_, rank_, ++continued_);
    file_->Close();
    file_ = std::move(next);
    file_->Add(name, dtype, view);
  }

  std::shared_ptr<TraceFile> trace_;
  std::mutex mutex_;  // for everything below
  std::unique_ptr<StepFile> file_;
  size_t index_;
  int rank_;
  int64_t num_tokens_;
  int continued_ = 0;
  std::set<std::string> names_;
  std::optional<std::vector<int32_t>> rows_;  // selected tokens, ascending; none: all
};

inline void TraceFile::Open() {
  CheckInfo();
  if (mkdir(path_.c_str(), 0777) != 0 && errno != EEXIST) throw IoError(path_ + ": cannot be created", errno);
  directory_ = Descriptor(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory_) throw IoError(path_ + ": cannot be opened as a directory", errno);
  if (flock(directory_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw IoError(path_ + ": another program is writing or reading this trace; wait for it, or choose another path");
  }
  TakeOver();
  active_ = true;
}

inline void TraceFile::CheckInfo() {
  if (path_.empty()) throw std::runtime_error("a trace needs a path");
  const auto fill = [](std::string* text, const char* variable) {
    const char* value = std::getenv(variable);
    if (text->empty() && value != nullptr) *text = value;
  };
  fill(&info_.select_points, "LOCKSTEP_POINTS");
  fill(&info_.select_layers, "LOCKSTEP_LAYERS");
  fill(&info_.select_steps, "LOCKSTEP_STEPS");
  fill(&info_.select_rows, "LOCKSTEP_ROWS");
  selection_ = Selection(info_.select_points, info_.select_layers, info_.select_steps, info_.select_rows);

  const auto members = [](const char* what, const std::string& text) {
    try {
      return text.empty() ? JsonScanner::Members() : JsonScanner::Parse(text);
    } catch (const std::invalid_argument& error) {
      throw std::runtime_error(std::string("TraceInfo::") + what + ": " + error.what());
    }
  };
  if (info_.config_json.empty()) info_.config_json = "{}";
  members("config_json", info_.config_json);
  members("overrides_json", info_.overrides_json);
  for (const auto& [key, value] : members("extra_json", info_.extra_json)) {
    for (const char* own : {"format", "version", "producer", "model", "arithmetic", "points", "not_observable",
                            "selection", "weights", "tensors", "rank", "errors", "closed", "steps"}) {
      if (key == own)
        throw std::runtime_error("TraceInfo::extra_json: \"" + key +
                                 "\" has a field of its own in TraceInfo, or is not yours");
    }
    extra_ += ",\n\"" + key + "\":" + value;
  }
}

// Puts our trace.json in the place of an older one, and only then removes the older one's steps: a kill in between
// leaves a trace.
inline void TraceFile::TakeOver() {
  const auto starts = [](const std::string& name, std::string_view with) {
    return name.compare(0, with.size(), with) == 0;
  };
  const auto temporary = [&](const std::string& name) {
    return name.size() > 4 && name.substr(name.size() - 4) == ".tmp" &&
           (starts(name, "trace.json") || starts(name, "step-"));
  };
  const std::vector<std::string> names = List();
  if (std::find(names.begin(), names.end(), "trace.json") != names.end()) {
    bool trace = false;
    try {
      for (const auto& [key, value] : JsonScanner::Parse(ReadOld()))
        trace |= key == "format" && value == "\"lockstep-trace\"";
    } catch (const std::invalid_argument&) {
      // Not JSON, so not a trace.
    }
    if (!trace)
      throw std::runtime_error(path_ +
                               ": expected a Lockstep trace to replace, found another trace.json; choose another path");
  } else if (!std::all_of(names.begin(), names.end(), temporary)) {
    throw std::runtime_error(
        path_ + ": expected an empty directory or a Lockstep trace, found other files; choose another path");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  WriteText(false);
  ours_ = true;
  for (const std::string& name : names) {
    const bool step = starts(name, "step-") && name.find(".safetensors") != name.npos;
    if (step || temporary(name)) unlinkat(directory_.get(), name.c_str(), 0);
  }
}

inline std::vector<std::string> TraceFile::List() const {
  const int fd = openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR* directory = fd >= 0 ? fdopendir(fd) : nullptr;
  if (directory == nullptr) throw IoError(path_ + ": cannot be listed", errno);
  std::vector<std::string> names;
  while (const dirent* entry = readdir(directory)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  closedir(directory);
  return names;
}

inline std::string TraceFile::ReadOld() const {
  const Descriptor fd(openat(directory_.get(), "trace.json", O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) throw IoError(path_ + "/trace.json: cannot be read", errno);
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t n = read(fd.get(), buffer, sizeof(buffer));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw IoError(path_ + "/trace.json: cannot be read", errno);
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

inline void TraceFile::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_.exchange(true)) return;
  const bool ours = std::exchange(ours_, false);
  active_ = false;
  try {
    if (ours) WriteText(true);
  } catch (...) {
    directory_.Close();
    throw;
  }
  // Steps may still be open: nothing is written by them, yet a forked child may hold the descriptor.
  if (directory_) flock(directory_.get(), LOCK_UN);
  directory_.Close();
}

inline void TraceFile::Keep(const std::string& message) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (errors_.empty()) std::fprintf(stderr, "lockstep: %s\n", message.c_str());
  if (errors_.size() >= kMaxErrors) return;
  errors_.push_back(message);
  try {
    if (ours_) WriteText(false);
  } catch (const std::exception&) {
    // The error that led here is the one to report.
  }
}

inline void TraceFile::SetWeight(const std::string& name, DType dtype, ListView<int64_t> shape,
                                 const std::string& hash) {
  if (hash.size() != 16 || hash.find_first_not_of("0123456789abcdef") != hash.npos) {
    throw std::runtime_error("weight " + name + ": expected a hash of 16 hex digits, found \"" + hash + "\"");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  weights_[JsonString(name)] = std::string("{\"dtype\":\"") + DTypeName(dtype) + "\",\"shape\":" + JsonNumbers(shape) +
                               ",\"hash\":\"" + hash + "\"}";
}

inline size_t TraceFile::TokenAxis(std::string_view name) const {
  const TensorLayout* best = nullptr;
  for (const TensorLayout& layout : info_.tensors) {
    if (MatchesPattern(layout.pattern, name) && (!best || IsNarrower(layout.pattern, best->pattern))) best = &layout;
  }
  if (!best) return 0;
  const auto found = std::find(best->axes.begin(), best->axes.end(), "token");
  return found == best->axes.end() ? 0 : static_cast<size_t>(found - best->axes.begin());
}

inline std::shared_ptr<OpenStep> TraceFile::BeginStep(const int32_t* input_ids, const int32_t* positions,
                                                      const int32_t* sequences, int64_t num_tokens, Phase phase,
                                                      int rank) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!active_) return nullptr;
  if (rank < 0) rank = info_.rank;
  const size_t index = next_step_[rank];
  const std::string what = "step " + std::to_string(index) + ": ";
  if (num_tokens < 0 || num_tokens > std::numeric_limits<int32_t>::max()) {
    throw std::runtime_error(what + "expected 0 tokens or more, found " + std::to_string(num_tokens));
  }
  if (positions == nullptr && num_tokens > 0)
    throw std::runtime_error(what + "positions are obligatory, found a null pointer");
  if (index < steps_.size() && steps_[index].phase != phase) {
    throw std::runtime_error(what + "rank " + std::to_string(rank) +
                             " calls it prefill where another rank calls it decode, or the reverse");
  }
  const std::vector<int32_t> zeros(sequences == nullptr ? static_cast<size_t>(num_tokens) : 0);
  if (sequences == nullptr) sequences = zeros.data();

  auto file = std::make_unique<StepFile>(directory_.get(), path_, StepName(index, rank, 0),
                                         RegionSize(selection_.WantsStep(static_cast<int64_t>(index))));
  StepFile& first = *file;
  auto step = std::make_shared<OpenStep>(shared_from_this(), std::move(file), index, rank, num_tokens);
  try {
    step->AddTokens("positions", positions);
    step->AddTokens("sequences", sequences);
    if (input_ids != nullptr || num_tokens == 0) step->AddTokens("input_ids", input_ids);
  } catch (const IoError&) {
    first.Discard();
    throw;
  }
  step->SelectRows(positions, sequences);
  first.Publish();

  // From here on the step exists: a step in trace.json is complete from the moment it stands there.
  next_step_[rank] = index + 1;
  if (index == steps_.size()) steps_.push_back({phase, {}});
  steps_[index].files.emplace_back(first.name(), rank);
  WriteText(false);
  if (selection_.WantsStep(static_cast<int64_t>(index))) return step;
  step->End();
  return nullptr;
}

inline std::unique_ptr<StepFile> TraceFile::ContinueStep(size_t step, int rank, int file) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!ours_) throw std::runtime_error("recorded after the trace was closed");
  auto next = std::make_unique<StepFile>(directory_.get(), path_, StepName(step, rank, file), RegionSize(true));
  next->Publish();
  steps_[step].files.emplace_back(next->name(), rank);
  WriteText(false);
  return next;
}

inline std::string TraceFile::StepName(size_t step, int rank, int file) const {
  std::string digits = std::to_string(step);
  if (digits.size() < 6) digits.insert(0, 6 - digits.size(), '0');
  return "step-" + digits + (rank != info_.rank ? ".rank" + std::to_string(rank) : "") +
         (file > 0 ? "." + std::to_string(file) : "") + ".safetensors";
}

// Room for the entries of what was promised; what is recorded beyond that goes into further files.
inline size_t TraceFile::RegionSize(bool selected) const {
  constexpr size_t kEntry =
      112;  // dtype, shape, offsets and punctuation of an ordinary entry, and its share of the gaps
  constexpr size_t kUnknown = 16 * kPage;
  constexpr size_t kMost = 4096 * kPage;
  if (!selected) return StepFile::kMinRegion;
  size_t entries = 0;
  for (const std::string& name : info_.points) {
    if (selection_.WantsPoint(name)) entries += (name.size() + kEntry) * (selection_.WantsAllRows() ? 1 : 2);
  }
  if (info_.points.empty()) entries = kUnknown;
  return std::min(StepFile::kMinRegion + (entries + entries / 16 + kPage - 1) / kPage * kPage, kMost);
}

inline std::string TraceFile::ArithmeticText() const {
  return std::string("{\"storage\":\"") + DTypeName(info_.storage) + "\",\"operands\":\"" +
         DTypeName(info_.operands.value_or(info_.storage)) + "\",\"accumulate\":\"" + DTypeName(info_.accumulate) +
         "\",\"cache\":\"" + DTypeName(info_.cache.value_or(info_.storage)) + "\"" +
         (info_.overrides_json.empty() ? "" : ",\"overrides\":" + info_.overrides_json) + "}";
}

inline std::string TraceFile::TensorsText() const {
  return "{" +
         JoinJson(info_.tensors,
                  [](const TensorLayout& t) {
                    std::vector<std::string> members;
                    if (!t.axes.empty()) members.push_back("\"axes\":" + JsonStrings(t.axes));
                    if (!t.layout.empty()) members.push_back("\"layout\":" + JsonString(t.layout));
                    if (!t.shard_axis.empty()) {
                      members.push_back("\"shard\":{\"axis\":" + JsonString(t.shard_axis) +
                                        (t.shard_index >= 0 ? ",\"index\":" + std::to_string(t.shard_index) : "") +
                                        ",\"count\":" + std::to_string(t.shard_count) + "}");
                    }
                    if (t.partial) members.push_back("\"partial\":true");
                    return JsonString(t.pattern) + ":{" +
                           JoinJson(members, [](const std::string& text) { return text; }) + "}";
                  }) +
         "}";
}

inline std::string TraceFile::Text(bool closed) const {
  const auto step = [](const StepRecord& record) {
    return std::string("\n{\"phase\":\"") + (record.phase == Phase::kPrefill ? "prefill" : "decode") +
           "\",\"files\":[" +
           JoinJson(record.files,
                    [](const auto& file) {
                      return "{\"file\":" + JsonString(file.first) + ",\"rank\":" + std::to_string(file.second) + "}";
                    }) +
           "]}";
  };
  const auto weight = [](const auto& entry) { return "\n" + entry.first + ":" + entry.second; };
  return "{\n\"format\":\"lockstep-trace\",\n\"version\":1,\n\"producer\":{\"name\":" + JsonString(info_.producer) +
         ",\"version\":" + JsonString(info_.producer_version) +
         "},\n\"model\":{\"type\":" + JsonString(info_.model_type) + ",\"config\":" + info_.config_json +
         "},\n\"arithmetic\":" + ArithmeticText() + ",\n\"points\":" + JsonStrings(info_.points) +
         ",\n\"not_observable\":" + JsonStrings(info_.not_observable) +
         ",\n\"selection\":{\"points\":" + JsonString(info_.select_points) +
         ",\"layers\":" + JsonString(info_.select_layers) + ",\"steps\":" + JsonString(info_.select_steps) +
         ",\"rows\":" + JsonString(info_.select_rows) + "},\n\"weights\":{" + JoinJson(weights_, weight) +
         "},\n\"tensors\":" + TensorsText() + ",\n\"rank\":" + std::to_string(info_.rank) +
         ",\n\"errors\":" + JsonStrings(errors_) + ",\n\"closed\":" + (closed ? "true" : "false") + ",\n\"steps\":[" +
         JoinJson(steps_, step) + "]" + extra_ + "\n}\n";
}

inline void TraceFile::WriteText(bool closed) const {
  const std::string path = path_ + "/trace.json";
  const char* temporary = "trace.json.tmp";
  Descriptor fd(openat(directory_.get(), temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666));
  if (!fd) throw IoError(path + ": cannot be written", errno);
  const std::string text = Text(closed);
  try {
    WriteAll(fd.get(), text.data(), text.size(), 0, path);
    const int code = fd.Close();
    if (code != 0) throw IoError(path + ": cannot be written", code);
    if (renameat(directory_.get(), temporary, directory_.get(), "trace.json") != 0)
      throw IoError(path + ": cannot be replaced", errno);
  } catch (const IoError&) {
    unlinkat(directory_.get(), temporary, 0);
    throw;
  }
}

}  // namespace detail

inline Step& Step::operator=(Step&& other) {  // NOLINT(performance-noexcept-move-constructor)
  if (this == &other) return *this;
  End();
  step_ = std::move(other.step_);
  return *this;
}

inline Step::~Step() {
  try {
    End();
  } catch (const std::exception&) {
    // Kept by the trace; a destructor does not throw.
  }
}

inline bool Step::WantsImpl(std::string_view name) const { return step_->Wants(name); }

inline void Step::RecordImpl(std::string_view name, const void* data, DType dtype, ListView<int64_t> shape,
                             ListView<int64_t> strides, const ListView<int32_t>* rows, const ListView<int32_t>* keys) {
  step_->trace().Guard([&] { step_->Record(name, data, dtype, shape, strides, rows, keys); });
}

inline void Step::EndImpl() {
  step_->trace().Guard([&] { step_->End(); });
}

inline Trace::Trace(const std::string& path, const TraceInfo& info)
    : trace_(std::make_shared<detail::TraceFile>(path, info)) {
  trace_->Guard([&] { trace_->Open(); });
}

inline Trace& Trace::operator=(Trace&& other) {  // NOLINT(performance-noexcept-move-constructor)
  if (this == &other) return *this;
  Close();
  trace_ = std::move(other.trace_);
  return *this;
}

inline Trace::~Trace() {
  try {
    Close();
  } catch (const std::exception&) {
    // Kept; a destructor does not throw.
  }
}

inline bool Trace::ActiveImpl() const { return trace_->active(); }

inline bool Trace::WantsImpl(std::string_view name) const {
  return trace_->active() && trace_->selection().WantsPoint(name);
}

inline Step Trace::BeginImpl(const int32_t* input_ids, const int32_t* positions, const int32_t* sequences,
                             int64_t num_tokens, Phase phase, int rank) {
  std::shared_ptr<detail::OpenStep> step;
  trace_->Guard([&] { step = trace_->BeginStep(input_ids, positions, sequences, num_tokens, phase, rank); });
  return Step(std::move(step));
}

inline void Trace::SetWeightImpl(const std::string& name, DType dtype, ListView<int64_t> shape,
                                 const std::string& hash) {
  trace_->Guard([&] { trace_->SetWeight(name, dtype, shape, hash); });
}

inline std::string Trace::error() const { return trace_ ? trace_->error() : std::string(); }

inline void Trace::Close() {
  if (trace_) trace_->Guard([&] { trace_->Close(); });
}

}  // namespace lockstep
