// Attention in float64, by blocks of rows of one head: five products a block, two of them for the values and three, in
// f32, for the noise.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/parallel.h"
#include "replay/noise.h"
#include "replay/ops.h"
#include "replay/product.h"

namespace lockstep {
namespace {

constexpr int64_t kRows = 64;
constexpr int64_t kSegment = 64;  // keys

double Capped(double score, double cap) { return cap > 0 ? cap * std::tanh(score / cap) : score; }

// A key or value that is not finite.
struct NotFinite {
  int64_t key = 0;
  int64_t channel = -1;  // of the value; -1: the key itself is meant, which spoils all channels
  double value = 0;
};

// Keys and values of one key/value head, as the cache holds them.
struct HeadCache {
  std::vector<double> keys;                  // [keys, d]
  std::vector<float> key_squares;            // [keys, d]
  std::vector<float> key_variances;          // [keys, d]; empty: exact
  std::vector<double> values;                // [d, keys]: transposed; 0 where not finite
  std::vector<float> value_floats, squares;  // [d, keys]
  std::vector<float> value_variances;        // [d, keys]; empty: exact
  std::vector<NotFinite> not_finite;
};

HeadCache CacheOf(const Block& k, const Block& v, int64_t head, int64_t d, DType dtype) {
  const Grid grid(dtype);
  const int64_t n = k.rows;
  HeadCache out;
  const auto size = static_cast<size_t>(n * d);
  out.keys.resize(size), out.key_squares.resize(size), out.values.resize(size);
  out.value_floats.resize(size), out.squares.resize(size);
  if (!k.variance.empty()) out.key_variances.resize(size);
  if (!v.variance.empty()) out.value_variances.resize(size);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t c = 0; c < d; ++c) {
      const int64_t at = head * d + c;
      const double key = grid.Round(k.Row(j)[at]);
      double value = grid.Round(v.Row(j)[at]);
      if (!std::isfinite(key)) out.not_finite.push_back({j, -1, key});
      if (!std::isfinite(value)) out.not_finite.push_back({j, c, std::exchange(value, 0.0)});
      out.keys[j * d + c] = key;
      out.key_squares[j * d + c] = static_cast<float>(Square(key));
      out.values[c * n + j] = value;
      out.value_floats[c * n + j] = static_cast<float>(value);
      out.squares[c * n + j] = static_cast<float>(Square(value));
      if (!k.variance.empty()) out.key_variances[j * d + c] = static_cast<float>(k.Variance(j)[at]);
      if (!v.variance.empty()) out.value_variances[c * n + j] = static_cast<float>(v.Variance(j)[at]);
    }
  }
  return out;
}

// What rounding does to scores, and scores to results.
struct ScoreNoise {
  Grid storage;
  double a;
  double scale;
  double depth;

  ScoreNoise(const OpCall& call, const Arithmetic& arithmetic)
      : storage(arithmetic.storage),
        a(Grid(arithmetic.accumulate).unit_error()),
        scale(call.attention.scale),
        depth(static_cast<double>(call.head_dim)) {}

  // dot = q·k; squares = sum q^2 k^2
  double Variance(double dot, double squares) const {
    const double product = storage.Rounding(dot) + a * a * depth / 4 * squares;
    return Square(scale) * product + storage.Rounding(scale * dot);
  }
};

class HeadBlock {
 public:
  HeadBlock(const HeadCache& cache, const OpCall& call, const Arithmetic& arithmetic, int64_t keys, int64_t cached)
      : cache_(cache),
        params_(call.attention),
        noise_(call, arithmetic),
        d_(call.head_dim),
        keys_(keys),
        cached_(cached) {}

  // q, q_variance (or null): the first row's head; out, variance: where its results go. All with `stride` from row to
  // row. doubtful: as Block's, null where nothing is.
  void Run(const double* q, const double* q_variance, int64_t q_stride, const KeyRange* seen, int64_t rows, double* out,
           double* variance, char* doubtful, int64_t out_stride) {
    LoadQueries(q, q_variance, q_stride, rows);
    Scores(rows);
    for (std::vector<float>* weights : {&by_spread_, &by_value_, &squared_}) weights->assign(scores_.size(), 0.0f);
    for (int64_t r = 0; r < rows; ++r) Softmax(r, seen[r]);
    Results(rows, seen, out, variance, out_stride);
    for (const NotFinite& bad : cache_.not_finite) {
      for (int64_t r = 0; r < rows; ++r) Spoil(bad, r, seen[r], out + r * out_stride, doubtful + r * out_stride);
    }
  }

 private:
  size_t Size(int64_t rows, int64_t width) const { return static_cast<size_t>(rows * width); }

  void LoadQueries(const double* q, const double* q_variance, int64_t stride, int64_t rows) {
    q_.resize(Size(rows, d_)), q_squares_.resize(Size(rows, d_)), q_variances_.clear();
    if (q_variance) q_variances_.resize(Size(rows, d_));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < d_; ++c) {
        q_[r * d_ + c] = q[r * stride + c];
        q_squares_[r * d_ + c] = static_cast<float>(Square(q[r * stride + c]));
        if (q_variance) q_variances_[r * d_ + c] = static_cast<float>(q_variance[r * stride + c]);
      }
    }
  }

  // scores_ and their variance, for all keys.
  void Scores(int64_t rows) {
    scores_.resize(Size(rows, keys_)), score_variance_.resize(Size(rows, keys_));
    Product({q_.data(), d_}, rows, {cache_.keys.data(), d_}, keys_, d_, {scores_.data(), keys_});
    Product({q_squares_.data(), d_}, rows, {cache_.key_squares.data(), d_}, keys_, d_, {score_variance_.data(), keys_});
    inherited_.clear();
    if (!q_variances_.empty()) AddInherited(q_variances_, cache_.key_squares, rows);
    if (!cache_.key_variances.empty()) AddInherited(q_squares_, cache_.key_variances, rows);
    for (size_t i = 0; i < scores_.size(); ++i) {
      double v = noise_.Variance(scores_[i], score_variance_[i]);
      if (!inherited_.empty()) v += Square(noise_.scale) * inherited_[i];
      score_variance_[i] = static_cast<float>(v);
      scores_[i] = Capped(scores_[i] * noise_.scale, params_.softcap);
    }
  }

  void AddInherited(const std::vector<float>& x, const std::vector<float>& w, int64_t rows) {
    std::vector<float> sums(Size(rows, keys_));
    Product({x.data(), d_}, rows, {w.data(), d_}, keys_, d_, {sums.data(), keys_});
    inherited_.resize(sums.size());
    for (size_t i = 0; i < sums.size(); ++i) inherited_[i] += sums[i];
  }

  // Scores become probabilities; the weights of the noise: of (v - o)^2, and of v^2.
  void Softmax(int64_t r, const KeyRange& seen) {
    double* s = scores_.data() + r * keys_;
    double largest = -INFINITY, sum = 0;
    const Grid plain(params_.plain_softmax);
    const bool is_plain = params_.plain_softmax != DType::kF64;
    for (int64_t j = seen.begin; j < seen.end; ++j) largest = std::max(largest, s[j]);
    for (int64_t j = 0; j < keys_; ++j) {
      const bool is_seen = j >= seen.begin && j < seen.end;
      s[j] = !is_seen ? 0 : is_plain ? plain.Round(std::exp(plain.Round(s[j]))) : std::exp(s[j] - largest);
      sum += s[j];
    }
    const double a = noise_.a;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      const double p = s[j] / sum;
      const int64_t at = r * keys_ + j;
      s[j] = p;
      const double spread = Square(p) * (score_variance_[at] + Square(4 * a));
      by_spread_[at] = static_cast<float>(spread);
      by_value_[at] = static_cast<float>(spread + noise_.storage.Rounding(p));
      squared_[at] = static_cast<float>(Square(p));
    }
  }

  // y = x · wᵀ of the transposed values, whose rows are as long as the cache.
  template <typename T>
  void Weigh(const std::vector<T>& x, int64_t rows, const std::vector<T>& w, std::vector<T>* y) const {
    y->resize(Size(rows, d_));
    Product({x.data(), keys_}, rows, {w.data(), cached_}, d_, keys_, {y->data(), d_});
  }

  // The results, and the mean square of the sums on the way: where values of one sign come first, they rise far above
  // the result, and with them their rounding.
  void WeighValues(int64_t rows, std::vector<double>* o, std::vector<double>* on_the_way) const {
    o->assign(Size(rows, d_), 0.0), on_the_way->assign(o->size(), 0.0);
    std::vector<double> part(o->size());
    for (int64_t begin = 0; begin < keys_; begin += kSegment) {
      const int64_t count = std::min(kSegment, keys_ - begin);
      Product({scores_.data() + begin, keys_}, rows, {cache_.values.data() + begin, cached_}, d_, count,
              {part.data(), d_});
      for (size_t i = 0; i < part.size(); ++i) {
        (*o)[i] += part[i];
        (*on_the_way)[i] += Square((*o)[i]) * static_cast<double>(count) / static_cast<double>(keys_);
      }
    }
  }

  void Results(int64_t rows, const KeyRange* seen, double* out, double* variance, int64_t stride) {
    std::vector<double> o, on_the_way;
    std::vector<float> squares, mixed, inherited;
    WeighValues(rows, &o, &on_the_way);
    Weigh(by_value_, rows, cache_.squares, &squares);
    Weigh(by_spread_, rows, cache_.value_floats, &mixed);
    if (!cache_.value_variances.empty()) Weigh(squared_, rows, cache_.value_variances, &inherited);
    for (int64_t r = 0; r < rows; ++r) {
      double spread = 0;
      for (int64_t j = 0; j < keys_; ++j) spread += by_spread_[r * keys_ + j];
      const int64_t keys = seen[r].end - seen[r].begin;
      const double softmax_error = SumOfSquaresError(noise_.a, keys);
      const double sum_error = Square(noise_.a) * static_cast<double>(keys) / 3;
      for (int64_t c = 0; c < d_; ++c) {
        const int64_t at = r * d_ + c;
        // sum A (v - o)^2 + B v^2 = sum (A + B) v^2 - 2 o sum A v + o^2 sum A
        double v = squares[at] - 2 * o[at] * mixed[at] + Square(o[at]) * spread;
        v = std::max(v, 0.0) + noise_.storage.Rounding(o[at]) + Square(o[at]) * softmax_error +
            on_the_way[at] * sum_error;
        if (!inherited.empty()) v += inherited[at];
        out[r * stride + c] = o[at];
        variance[r * stride + c] = v;
      }
    }
  }

  void Spoil(const NotFinite& bad, int64_t r, const KeyRange& seen, double* out, char* doubtful) const {
    const bool is_seen = bad.key >= seen.begin && bad.key < seen.end;
    if (!is_seen && bad.key < seen.written) {
      std::fill_n(doubtful + std::max<int64_t>(bad.channel, 0), bad.channel < 0 ? d_ : 1, 1);
    } else if (is_seen && bad.channel >= 0) {
      out[bad.channel] += scores_[r * keys_ + bad.key] * bad.value;
    }
  }

  const HeadCache& cache_;
  const AttentionParams& params_;
  const ScoreNoise noise_;
  const int64_t d_, keys_, cached_;
  std::vector<double> q_, scores_;
  std::vector<float> q_squares_, q_variances_, score_variance_, inherited_, by_spread_, by_value_, squared_;
};

}  // namespace

Block Attention(const Block& q, const Block& k, const Block& v, const std::vector<KeyRange>& seen, const OpCall& call,
                const Arithmetic& arithmetic) {
  const int64_t d = call.head_dim;
  const auto heads = static_cast<int64_t>(call.attention.kv_head.size());
  Block y;
  y.Resize(q.rows, heads * d);
  y.variance.assign(y.value.size(), 0.0);
  const int64_t blocks = CeilDiv(q.rows, kRows);
  for (int64_t kv = 0; kv < k.width / d; ++kv) {
    std::vector<int64_t> readers;
    for (int64_t h = 0; h < heads; ++h) {
      if (call.attention.kv_head[h] == kv) readers.push_back(h);
    }
    if (readers.empty()) continue;
    const HeadCache cache = CacheOf(k, v, kv, d, arithmetic.cache);
    if (!cache.not_finite.empty()) y.doubtful.resize(y.value.size());
    ParallelForDynamic(blocks * static_cast<int64_t>(readers.size()), [&](int64_t i) {
      const int64_t head = readers[static_cast<size_t>(i / blocks)], begin = i % blocks * kRows;
      const int64_t rows = std::min(kRows, q.rows - begin);
      int32_t keys = 1;
      for (int64_t r = begin; r < begin + rows; ++r) keys = std::max(keys, seen[r].end);
      const int64_t to = call.attention.out_head.empty() ? head : call.attention.out_head[head];
      HeadBlock(cache, call, arithmetic, keys, k.rows)
          .Run(q.Row(begin) + head * d, q.variance.empty() ? nullptr : q.Variance(begin) + head * d, q.width,
               seen.data() + begin, rows, y.Row(begin) + to * d, y.Variance(begin) + to * d,
               y.doubtful.empty() ? nullptr : y.doubtful.data() + begin * y.width + to * d, y.width);
    });
  }
  return y;
}

Block Scores(const Block& q, const Block& k, const std::vector<KeyRange>& seen, int64_t columns, const OpCall& call,
             const Arithmetic& arithmetic) {
  const auto heads = static_cast<int64_t>(call.attention.kv_head.size());
  const int64_t d = call.head_dim;
  const Grid cache(arithmetic.cache);
  const ScoreNoise noise(call, arithmetic);
  Block y;
  y.Resize(q.rows, heads * columns);
  std::fill(y.value.begin(), y.value.end(), -INFINITY);
  y.variance.assign(y.value.size(), 0.0);
  ParallelFor(q.rows, [&](int64_t r) {
    const KeyRange range = seen[static_cast<size_t>(r)];
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t j = range.begin; j < std::min<int64_t>(range.end, columns); ++j) {
        const double* key = k.Row(j) + call.attention.kv_head[h] * d;
        double dot = 0, squares = 0;
        for (int64_t c = 0; c < d; ++c) {
          const double product = q.Row(r)[h * d + c] * cache.Round(key[c]);
          dot += product;
          squares += Square(product);
        }
        y.Row(r)[h * columns + j] = Capped(dot * noise.scale, call.attention.softcap);
        y.Variance(r)[h * columns + j] = noise.Variance(dot, squares);
      }
    }
  });
  return y;
}

void SoftmaxRow(const double* scores, int64_t count, const Arithmetic& arithmetic, double* out, double* variance) {
  const Grid storage(arithmetic.storage);
  const double a = Grid(arithmetic.accumulate).unit_error();
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < count; ++j) largest = std::max(largest, scores[j]);
  for (int64_t j = 0; j < count; ++j) sum += out[j] = std::exp(scores[j] - largest);
  for (int64_t j = 0; j < count; ++j) {
    out[j] /= sum;
    const double exponential = Square(a) * (16 + Square(std::min(largest - scores[j], 90.0)));
    variance[j] = storage.Rounding(out[j]) + Square(out[j]) * (SumOfSquaresError(a, count) + exponential);
  }
}

}  // namespace lockstep
