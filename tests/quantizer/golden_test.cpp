// The byte format, pinned: rows of codes for fixed inputs, compared with tests/golden/codes.txt,
// and scores by their bits. Registered once per backend. To write the file anew after a deliberate
// change of format: TURBOQUANT_WRITE_GOLDEN=path golden_test.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "quantizer/scanner.h"
#include "tests/forced_isa.h"
#include "tests/quantizer/vectors.h"

namespace turboquant {
namespace {

std::string hex(const std::vector<std::uint8_t>& bytes) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

// FNV-1a, for rows too long to keep whole.
std::string digest(const std::vector<std::uint8_t>& bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (const std::uint8_t byte : bytes) hash = (hash ^ byte) * 0x100000001b3u;
  std::ostringstream text;
  text << "fnv1a:" << std::hex << hash;
  return text.str();
}

// The lines of the golden file.
std::vector<std::string> lines() {
  std::vector<std::string> all;
  std::vector<std::size_t> dimensions;
  for (std::size_t d = 1; d <= 300; ++d) dimensions.push_back(d);
  for (const std::size_t d : {384, 768, 1000, 1536, 3072}) dimensions.push_back(d);
  for (const std::size_t d : dimensions) {
    const std::vector<float> x = gaussian_vectors(3, d, d), q = gaussian_vectors(2, d, d + 1);
    for (const Estimator estimator :
         {Estimator::kTurboQuant, Estimator::kQjl, Estimator::kMse, Estimator::kTrellis}) {
      for (const Projection projection : {Projection::kOrthogonal, Projection::kGaussian}) {
        if (projection == Projection::kGaussian && (estimator != Estimator::kQjl || d > 100))
          continue;
        const bool every = estimator == Estimator::kTurboQuant || estimator == Estimator::kTrellis;
        if (!every && d > 20 && d % 29 != 0) continue;
        std::ostringstream line;
        line << "d=" << d << " estimator=" << static_cast<int>(estimator)
             << " projection=" << static_cast<int>(projection);
        for (int bits = 1; bits <= 4; ++bits) {
          QuantizerOptions o;
          o.dimension = d;
          o.bits = bits;
          o.estimator = estimator;
          o.projection = projection;
          o.with_norm = true;
          const Quantizer quantizer(o);
          std::vector<std::uint8_t> codes(3 * quantizer.code_size());
          quantizer.quantize(x.data(), 3, codes.data());
          std::vector<float> scores(6);
          quantizer.inner_products(q.data(), 2, codes.data(), 3, scores.data());
          std::vector<std::uint8_t> score_bytes(24);
          std::memcpy(score_bytes.data(), scores.data(), 24);
          const bool whole = d <= 12 || d == 50;
          line << ' ' << (whole ? hex(codes) : digest(codes)) << ' ' << digest(score_bytes);
        }
        all.push_back(line.str());
      }
    }
  }
  return all;
}

TEST(Golden, CodesFactorsAndScores) {
  const std::vector<std::string> got = lines();
  if (const char* path = std::getenv("TURBOQUANT_WRITE_GOLDEN")) {
    std::ofstream file(path);
    for (const std::string& line : got) file << line << '\n';
    ASSERT_TRUE(file.good());
    return;
  }
  std::ifstream file(TQ_GOLDEN_DIR "/codes.txt");
  ASSERT_TRUE(file.good());
  std::string line;
  std::size_t i = 0;
  for (; std::getline(file, line); ++i) {
    ASSERT_LT(i, got.size());
    EXPECT_EQ(got[i], line);
  }
  EXPECT_EQ(i, got.size());
}

}  // namespace
}  // namespace turboquant
