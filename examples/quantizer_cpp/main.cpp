// Compresses vectors to 3 bits a coordinate and estimates inner products from the codes. No FAISS.
#include <turboquant/quantizer.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

int main() {
  const std::size_t d = 128, n = 1000;
  std::mt19937 random(42);
  std::normal_distribution<float> normal;
  std::vector<float> x(d * n), query(d);
  for (float& value : x) value = normal(random);
  for (float& value : query) value = normal(random);

  turboquant::QuantizerOptions options;
  options.dimension = d;
  options.bits = 3;
  const turboquant::Quantizer quantizer(options);
  std::vector<std::uint8_t> codes(n * quantizer.code_size());
  quantizer.quantize(x.data(), n, codes.data());
  std::vector<float> estimates(n);
  quantizer.inner_products(query.data(), 1, codes.data(), n, estimates.data());

  double squared_error = 0;
  for (std::size_t i = 0; i < n; i++) {
    double exact = 0;
    for (std::size_t j = 0; j < d; j++) exact += double{query[j]} * double{x[i * d + j]};
    squared_error += (exact - estimates[i]) * (exact - estimates[i]);
  }
  // Products of these vectors have a standard deviation of sqrt(d); an estimate errs by far less.
  const double error = std::sqrt(squared_error / static_cast<double>(n)),
               spread = std::sqrt(static_cast<double>(d));
  std::printf("%zu bytes a vector (%.1f times smaller), error %.2f where products vary by %.2f\n",
              quantizer.code_size(), quantizer.compression_ratio(), error, spread);
  return error < 0.3 * spread ? 0 : 1;
}
