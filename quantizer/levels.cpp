#include "quantizer/levels.h"

#include <limits>
#include <stdexcept>

namespace turboquant {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

constexpr kernels::CodeTable kTables[4] = {
    {1,
     1,
     {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1},
     {kInf, kInf, kInf, kInf, kInf, kInf, kInf, kInf}},
    {2,
     10,
     {-10, -3, 3, 10, -10, -3, 3, 10, -10, -3, 3, 10, -10, -3, 3, 10},
     {0.981727362f, kInf, kInf, kInf, kInf, kInf, kInf, kInf}},
    {3,
     26,
     {-26, -16, -9, -3, 3, 9, 16, 26, -26, -16, -9, -3, 3, 9, 16, 26},
     {0.498399645f, 1.03833258f, 1.74439883f, kInf, kInf, kInf, kInf, kInf}},
    {4,
     61,
     {-61, -46, -36, -28, -21, -15, -9, -3, 3, 9, 15, 21, 28, 36, 46, 61},
     {0.268819392f, 0.537638783f, 0.806458235f, 1.09767926f, 1.43370354f, 1.83693254f, 2.39697313f,
      kInf}},
};

constexpr double kSteps[4] = {0.79788456080286541, 0.15103497807615399, 0.083066609158353774,
                              0.044803233952945824};

}  // namespace

const kernels::CodeTable& level_table(int bits) {
  if (bits < 1 || bits > 4) throw std::invalid_argument("bits must be 1 to 4");
  return kTables[bits - 1];
}

double level_step(int bits) { return kSteps[level_table(bits).bits - 1]; }

kernels::CodeTable qjl_level_table(int bits) {
  kernels::CodeTable table = level_table(bits);
  const int n = 1 << (bits - 1);
  table.offset = bits > 1 ? level_table(bits - 1).offset : 0;
  for (int code = 0; code < 16; ++code) {
    table.levels[code] =
        static_cast<std::int8_t>(bits > 1 ? level_table(bits - 1).levels[code % n] : 0);
  }
  return table;
}

kernels::CodeTable qjl_sign_table(int bits) {
  kernels::CodeTable table = level_table(bits);
  table.offset = 1;
  for (int code = 0; code < 16; ++code) {
    table.levels[code] = static_cast<std::int8_t>((code >> (bits - 1) & 1) != 0 ? 1 : -1);
  }
  return table;
}

}  // namespace turboquant
