#include "quantizer/trellis.h"

#include <stdexcept>

namespace turboquant {
namespace {

constexpr int kLargest[4] = {16, 16, 32, 64};
constexpr std::uint64_t kSeeds[4] = {5, 4, 5, 3};
constexpr double kSteps[4] = {0.13398935510341931, 0.1796399665517526, 0.10202524091311271,
                              0.054085903718304275};

// Of states 128 to 255; state 255 - s has the level of s with the other sign.
constexpr std::int8_t kUpper[4][128] = {
    {2, -6,  1,  5,   1,   6,   16, -5, 1,   2,  15, 3,   -4, 7,  6,  -6, 2,   4,  5,  -4,  -1, -10,
     7, -1,  6,  -6,  -5,  5,   0,  3,  -13, 1,  4,  3,   -6, -3, -7, 11, 14,  8,  5,  -7,  -6, -1,
     4, -10, -2, -11, -2,  -9,  2,  13, 3,   5,  5,  -7,  11, -7, -5, 3,  -3,  -1, 8,  -13, -3, 4,
     0, -3,  11, -5,  -7,  2,   -6, 2,  4,   11, 1,  -11, 2,  -8, 1,  -7, -11, 5,  3,  -4,  -8, 6,
     4, 1,   -1, 5,   -10, -5,  8,  4,  -14, -2, 6,  12,  3,  -5, -2, 3,  -10, 2,  -4, 5,   -6, 3,
     2, 9,   -3, -2,  2,   -11, 9,  0,  -11, 9,  -5, -1,  3,  13, 3,  6,  -7,  5},
    {-1, 3,  13,  -6, -1,  -2, 3,  -5, -3, 2,  1,   6,   7,  -5, 1,  6,  8,  1,  4,  1,  -4, -12,
     11, -6, -3,  11, 5,   4,  3,  0,  5,  -3, -1,  -9,  -4, 4,  -1, 2,  6,  -8, 1,  7,  3,  -4,
     -5, 1,  -10, 5,  -16, 4,  0,  10, 0,  4,  -10, -3,  7,  -8, -4, 15, -4, 1,  -8, 6,  7,  1,
     3,  -3, 4,   -7, -2,  8,  9,  4,  1,  -4, 13,  -10, -2, 3,  1,  -3, -6, -3, 10, 0,  4,  -12,
     4,  -4, 1,   -3, 0,   8,  3,  -6, -4, 1,  7,   4,   -8, 7,  -3, 1,  -5, 2,  7,  -1, 4,  0,
     8,  -4, 0,   -5, -11, 0,  -4, -7, 1,  7,  2,   -2,  -9, 8,  0,  -7, -4, 2},
    {-1,  -4,  7,   5,   2,   13, 22,  -10, 0,  6,   16,  5,   -7,  11,  19, -3, 0,   -2,  10,
     4,   -7,  -12, 7,   -5,  13, -12, -4,  8,  -7,  0,   -26, 4,   -1,  3,  -8, 1,   -19, 23,
     32,  9,   10,  -14, -8,  -3, 5,   -10, -4, -18, 4,   -9,  16,  27,  8,  11, 1,   -15, 17,
     -15, -7,  3,   -10, -3,  11, -21, 4,   8,  -2,  -2,  12,  1,   -16, -7, -5, -2,  7,   15,
     2,   -16, 5,   -10, 7,   -5, -18, 11,  -1, -9,  -13, 5,   7,   -2,  1,  11, -14, -7,  18,
     5,   -25, -7,  13,  21,  1,  -4,  9,   5,  -11, 2,   -5,  10,  -2,  5,  0,  15,  -4,  -13,
     4,   -9,  12,  0,   -20, 17, -1,  -6,  8,  15,  6,   3,   -14, 10},
    {-3,  2,   11,  -13, -4,  -9,  5,   -18, 24,  31,  -28, 8,   -8,  -21, -15, 0,   -20, -5,  -43,
     4,   30,  21,  -5,  1,   -15, 8,   11,  15,  25,  36,  17,  -10, 41,  34,  -25, 21,  15,  0,
     9,   -13, 11,  -4,  4,   -19, 5,   -16, -27, 13,  24,  7,   -9,  -6,  22,  16,  13,  -20, -28,
     12,  29,  0,   9,   4,   36,  -50, 6,   -2,  7,   -30, -19, 2,   64,  -6,  3,   -16, 23,  11,
     33,  -25, -11, 16,  33,  44,  -55, -39, -27, -20, 22,  -2,  -11, 38,  -16, -8,  2,   18,  29,
     27,  -38, 5,   33,  12,  -22, -17, -16, -8,  8,   1,   -12, -3,  20,  -13, -7,  24,  13,  2,
     -14, -11, 47,  6,   -24, -15, -19, 0,   -8,  32,  17,  -2,  -6,  9}};

// The encoder works in 1/8192 of the deviation of a coordinate, or a little more, so that levels
// are integers there too.
constexpr kernels::TrellisTable make(int bits) {
  kernels::TrellisTable table{};
  const int i = bits - 1;
  table.bits = bits;
  table.offset = kLargest[i];
  const int units = static_cast<int>(8192 * kSteps[i]);
  table.factor = static_cast<float>(units / kSteps[i]);
  for (int s = 0; s < 256; ++s) {
    const int level = s < 128 ? -kUpper[i][127 - s] : kUpper[i][s - 128];
    table.levels[s] = static_cast<std::int8_t>(level);
    table.targets[s] = static_cast<std::int16_t>(level * units);
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

std::uint64_t trellis_seed(int bits) { return kSeeds[index(bits)]; }

}  // namespace turboquant
