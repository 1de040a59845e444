#include "quantizer/trellis.h"

#include <stdexcept>

namespace turboquant {
namespace {

constexpr double kSteps[4] = {0.24779434330210054, 0.17292780504915067, 0.080766106959691997,
                              0.050246606625615461};

// The positive levels.
constexpr std::int8_t kUpper[4][16] = {{1, 5},
                                       {1, 3, 6, 11},
                                       {1, 4, 6, 9, 12, 16, 22, 31},
                                       {1, 3, 5, 7, 9, 11, 13, 16, 18, 21, 24, 28, 33, 39, 47, 59}};

// The encoder works in 1/8192 of the deviation of a coordinate, or a little more, so that levels
// are integers there too.
constexpr kernels::TrellisTable make(int bits) {
  kernels::TrellisTable table{};
  const int i = bits - 1;
  const int half = 1 << bits;
  table.bits = bits;
  table.offset = kUpper[i][half - 1];
  const int units = static_cast<int>(8192 * kSteps[i]);
  table.factor = static_cast<float>(units / kSteps[i]);
  for (int r = 0; r < 2 * half; ++r) {
    const int level = r < half ? -kUpper[i][half - 1 - r] : kUpper[i][r - half];
    table.levels[r] = static_cast<std::int8_t>(level);
    table.targets[r] = static_cast<std::int16_t>(level * units);
    const int rest = r / 4, high = r / 2 % 2, low = r % 2;
    const int at = bits == 2   ? 4 * low + 2 * high + rest
                   : bits == 4 ? 16 * low + 8 * high + rest
                               : r;
    for (int repeat = at; repeat < 32; repeat += 2 * half) {
      table.lookup[repeat] = static_cast<std::int8_t>(level);
    }
  }
  return table;
}

constexpr kernels::TrellisTable kTables[4] = {make(1), make(2), make(3), make(4)};

int index(int bits) {
  if (bits < 1 || bits > 4) throw std::invalid_argument("bits must be 1 to 4");
  return bits - 1;
}

}  // namespace

const kernels::TrellisTable& trellis_table(int bits) { return kTables[index(bits)]; }

double trellis_step(int bits) { return kSteps[index(bits)]; }

}  // namespace turboquant
