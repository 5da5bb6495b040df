// The sampler's rules on distributions that can be followed by hand; that the kept tokens are those of transformers is
// for tests/python/test_sampler.py to say.
#include "lockstep/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "checkpoint/test_files.h"

namespace lockstep {
namespace {

using test::ErrorOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Logits whose softmax is 0.4, 0.1, 0.3, 0.2.
const std::vector<float> kLogits = {std::log(0.4F), std::log(0.1F), std::log(0.3F), std::log(0.2F)};

std::vector<int32_t> Kept(const SamplerOptions& options, const std::vector<float>& logits) {
  std::vector<int32_t> tokens;
  double sum = 0;
  for (const Sampler::Candidate& candidate : Sampler(options).Candidates(logits)) {
    tokens.push_back(candidate.token);
    sum += candidate.probability;
  }
  EXPECT_NEAR(sum, 1, 1e-12);
  return tokens;
}

std::vector<float> RandomLogits(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = static_cast<float>(random() % 4096) / 256 - 8;  // with ties
  return logits;
}

// ---- Greedy ----

TEST(Sampler, IsGreedyByDefault) {
  EXPECT_EQ(Sampler({}).Next(kLogits), 0);
  EXPECT_EQ(Sampler({}).Next(std::vector<float>{1, 3, 3, -kInfinity}), 1) << "the first of the largest";
}

TEST(Sampler, GreedyHeedsNoFilterButThePenalty) {
  Sampler sampler({.top_k = 1, .top_p = 0.1, .min_p = 1, .repetition_penalty = 2});
  const std::vector<float> logits = {1, 1.5F, 2};
  EXPECT_EQ(sampler.Next(logits), 2);
  EXPECT_EQ(sampler.Next(logits), 1) << "2 was seen and counts half";
  EXPECT_EQ(sampler.Next(logits), 0);
}

// ---- Filters ----

TEST(Sampler, Temperature) {
  const auto at = [](double temperature) { return Sampler({.temperature = temperature}).Candidates(kLogits); };
  EXPECT_NEAR(at(1)[2].probability, 0.3, 1e-6);
  EXPECT_NEAR(at(0.5)[2].probability, 0.09 / 0.30, 1e-6);
  EXPECT_NEAR(at(1e9)[2].probability, 0.25, 1e-6);
  EXPECT_EQ(at(1e-310)[0].probability, 1) << "nothing overflows";
}

TEST(Sampler, TopKKeepsTies) {
  EXPECT_THAT(Kept({.temperature = 1, .top_k = 2}, kLogits), ElementsAre(0, 2));
  EXPECT_THAT(Kept({.temperature = 1, .top_k = 9}, kLogits), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Kept({.temperature = 1, .top_k = 2}, {1, 2, 1, 0, 1}), ElementsAre(0, 1, 2, 4));
}

TEST(Sampler, TopPKeepsTheFewestThatAreEnough) {
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.01}, kLogits), ElementsAre(0));
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.41}, kLogits), ElementsAre(0, 2));
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.89}, kLogits), ElementsAre(0, 2, 3));
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.91}, kLogits), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.6}, {1, 1, 1}), ElementsAre(0, 1)) << "the first of equals";
}

TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  EXPECT_THAT(Kept({.temperature = 1, .min_p = 0.49}, kLogits), ElementsAre(0, 2, 3));
  EXPECT_THAT(Kept({.temperature = 1, .min_p = 0.51}, kLogits), ElementsAre(0, 2));
  EXPECT_THAT(Kept({.temperature = 1, .min_p = 1}, kLogits), ElementsAre(0));
  EXPECT_THAT(Kept({.temperature = 2, .min_p = 0.51}, kLogits), ElementsAre(0, 2, 3)) << "after the temperature";
}

TEST(Sampler, EachFilterSeesWhatTheLastOneLeft) {
  // Of 0.4 and 0.3, which top-k leaves, the first holds 0.571.
  EXPECT_THAT(Kept({.temperature = 1, .top_k = 2, .top_p = 0.56}, kLogits), ElementsAre(0));
  EXPECT_THAT(Kept({.temperature = 1, .top_p = 0.56}, kLogits), ElementsAre(0, 2));
}

TEST(Sampler, ImpossibleTokensAreNeverKept) {
  EXPECT_THAT(Kept({.temperature = 1, .top_k = 3}, {0, -kInfinity, 1, -kInfinity}), ElementsAre(0, 2));
}

TEST(Sampler, ThePenaltyCountsATokenOnce) {
  Sampler sampler({.temperature = 1, .repetition_penalty = 2});
  sampler.See(std::vector<int32_t>{0, 0, 1, 1, 1, 99});
  const auto probabilities = sampler.Candidates(std::vector<float>{1, -1, 0});
  const double sum = std::exp(0.5) + std::exp(-2.0) + 1;
  EXPECT_NEAR(probabilities[0].probability, std::exp(0.5) / sum, 1e-7);
  EXPECT_NEAR(probabilities[1].probability, std::exp(-2.0) / sum, 1e-7);
}

// The slow twin: everything sorted.
TEST(Sampler, TheKeptAreThoseOfASort) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> logits = RandomLogits(1 + 97 * seed, seed);
    std::vector<Sampler::Candidate> sorted = Sampler({.temperature = 1}).Candidates(logits);
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
      return a.probability > b.probability || (a.probability == b.probability && a.token < b.token);
    });
    for (const double top_p : {0.05, 0.5, 0.9, 0.999}) {
      std::vector<int32_t> expected;
      double sum = 0;
      for (const Sampler::Candidate& candidate : sorted) {
        if (sum >= top_p) break;
        expected.push_back(candidate.token);
        sum += candidate.probability;
      }
      std::sort(expected.begin(), expected.end());
      EXPECT_EQ(Kept({.temperature = 1, .top_p = top_p}, logits), expected) << seed << " " << top_p;
    }
  }
}

// ---- Draws ----

TEST(Sampler, ASeedRepeatsAndAnotherDiffers) {
  const std::vector<float> logits = RandomLogits(2000, 1);
  const auto draw = [&](uint64_t seed) {
    Sampler sampler({.temperature = 1, .seed = seed});
    std::vector<int32_t> tokens(20);
    for (int32_t& token : tokens) token = sampler.Next(logits);
    return tokens;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
}

// Whoever changes the generator breaks what users have written down.
TEST(Sampler, DrawsStayTheSame) {
  Sampler sampler({.temperature = 1, .seed = 42});
  std::vector<int32_t> tokens(12);
  for (int32_t& token : tokens) token = sampler.Next(kLogits);
  EXPECT_THAT(tokens, ElementsAre(2, 0, 0, 0, 0, 3, 0, 3, 0, 2, 0, 1));
}

TEST(Sampler, DrawsFollowTheProbabilities) {
  Sampler sampler({.temperature = 1});
  std::vector<double> counts(4);
  constexpr int kDraws = 40000;
  for (int i = 0; i < kDraws; ++i) counts[static_cast<size_t>(sampler.Next(kLogits))] += 1.0 / kDraws;
  EXPECT_NEAR(counts[0], 0.4, 0.01);
  EXPECT_NEAR(counts[1], 0.1, 0.01);
  EXPECT_NEAR(counts[2], 0.3, 0.01);
  EXPECT_NEAR(counts[3], 0.2, 0.01);
}

// ---- Bad input ----

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler({.temperature = temperature});
    EXPECT_THAT(ErrorOf([&] { sampler.Next(std::vector<float>{0, kNan, 1}); }), HasSubstr("nan for token 1"));
    EXPECT_THAT(ErrorOf([&] { sampler.Next(std::vector<float>{0, 1, kInfinity}); }), HasSubstr("inf for token 2"));
    EXPECT_THAT(ErrorOf([&] { sampler.Next(std::vector<float>{-kInfinity}); }), HasSubstr("no finite one"));
    EXPECT_THAT(ErrorOf([&] { sampler.Next({}); }), HasSubstr("no finite one"));
  }
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();
  const auto error = [](const SamplerOptions& options) { return ErrorOf([&] { Sampler sampler(options); }); };
  for (const double bad : {-1.0, kNoNumber, std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(error({.temperature = bad}), HasSubstr("temperature: expected"));
  }
  EXPECT_THAT(error({.top_k = -1}), HasSubstr("top-k: expected"));
  for (const double bad : {0.0, -0.5, 1.5, kNoNumber}) EXPECT_THAT(error({.top_p = bad}), HasSubstr("top-p: expected"));
  for (const double bad : {-0.5, 1.5, kNoNumber}) EXPECT_THAT(error({.min_p = bad}), HasSubstr("min-p: expected"));
  for (const double bad : {0.0, -1.0, 1e-60, 1e60, kNoNumber}) {
    EXPECT_THAT(error({.repetition_penalty = bad}), HasSubstr("repetition penalty: expected"));
  }
}

}  // namespace
}  // namespace lockstep
