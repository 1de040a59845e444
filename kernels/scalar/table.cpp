// The reference: every operation in the plainest form of its contract. Other backends are tested
// against this one.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/backends.h"

namespace turboquant::kernels::scalar {
namespace {

double norm_squared(const float* x, std::size_t d) {
  double lanes[8] = {};
  for (std::size_t i = 0; i < d; ++i) {
    const double v = x[i];
    lanes[i % 8] += v * v;
  }
  for (std::size_t half = 4; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

void scale(const float* x, std::size_t d, double factor, float* out) {
  for (std::size_t i = 0; i < d; ++i) out[i] = static_cast<float>(x[i] * factor);
}

void multiply(float* y, const float* factors, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] *= factors[i];
}

void fwht(float* y, std::size_t n) {
  for (std::size_t span = 1; span < n; span *= 2) {
    for (std::size_t i = 0; i < n; i += 2 * span) {
      for (std::size_t j = i; j < i + span; ++j) {
        const float a = y[j];
        const float b = y[j + span];
        y[j] = a + b;
        y[j + span] = a - b;
      }
    }
  }
}

float quantize(const float* y, std::size_t d, const CodeTable& table, std::uint8_t* codes) {
  const int half = 1 << (table.bits - 1);
  float lanes[16] = {};
  for (std::size_t i = 0; i < d; ++i) {
    int above = 0;
    for (int t = 0; t < half - 1; ++t) above += table.thresholds[t] <= std::fabs(y[i]);
    const int code = y[i] >= 0 ? half + above : half - 1 - above;
    codes[i] = static_cast<std::uint8_t>(code);
    lanes[i % 16] += y[i] * static_cast<float>(table.levels[code]);
  }
  for (std::size_t n = 8; n > 0; n /= 2) {
    for (std::size_t i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

void to_half(const float* x, std::size_t n, std::uint16_t* out) {
  for (std::size_t i = 0; i < n; ++i) {
    float a = std::fabs(x[i]);
    if (!(a < 65504.0f)) a = 65504.0f;
    // In units of the last place of a half of this size: 2^-24 for subnormal ones.
    int exponent = 0;
    std::frexp(a, &exponent);
    if (a < 0x1p-14f) exponent = -13;  // subnormal: a < 2^exponent in any case
    const float units = std::nearbyint(std::ldexp(a, 11 - exponent));  // at most 2^11
    const int biased = exponent + 13;  // 0 for subnormal ones: the carry into it is right
    std::uint32_t half = static_cast<std::uint32_t>(units);
    if (biased > 0) half += static_cast<std::uint32_t>(biased) * 1024;
    out[i] = static_cast<std::uint16_t>(half | (std::signbit(x[i]) ? 0x8000u : 0u));
  }
}

void to_float(const std::uint16_t* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const int exponent = x[i] >> 10 & 31;
    const int fraction = x[i] & 1023;
    const float a = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                  : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    out[i] = (x[i] & 0x8000) != 0 ? -a : a;
  }
}

float sum_lanes(float lanes[16]) {
  for (std::size_t n = 8; n > 0; n /= 2) {
    for (std::size_t i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

float dot(const float* a, const float* b, std::size_t n) {
  float lanes[16] = {};
  for (std::size_t i = 0; i < n; ++i) lanes[i % 16] += a[i] * b[i];
  return sum_lanes(lanes);
}

void add_scaled(const float* x, float factor, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; ++i) y[i] += x[i] * factor;
}

float exp_sum(const float* x, std::size_t n, float shift, float* out) {
  float lanes[16] = {};
  for (std::size_t i = 0; i < n; ++i) {
    const float t = x[i] - shift;
    float e = 0;
    if (t > -87.0f) {
      const float power = (t * 1.44269504f + 12582912.0f) - 12582912.0f;
      const float r = (t - power * 0.693145752f) - power * 1.42860677e-6f;
      constexpr float kTaylor[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                   1.0f / 6,    0.5f,       1.0f,       1.0f};
      e = kTaylor[0];
      for (std::size_t c = 1; c < 8; ++c) e = e * r + kTaylor[c];
      e = std::ldexp(e, static_cast<int>(power));
    }
    out[i] = e;
    lanes[i % 16] += e;
  }
  return sum_lanes(lanes);
}

void add_tile_scores(const std::int32_t* dots, std::size_t n, const float* factors,
                     const float* steps, float* scores, std::size_t stride) {
  for (std::size_t t = 0; t < n; ++t) {
    for (std::size_t l = 0; l < kLane; ++l) {
      scores[l * stride + t] += static_cast<float>(dots[t * kLane + l]) * (factors[t] * steps[l]);
    }
  }
}

void add_tile_sums(const std::int32_t* dots, std::size_t n, const float* steps, float* sums) {
  for (std::size_t i = 0; i < n * kLane; ++i) {
    sums[i] += static_cast<float>(dots[i]) * steps[i % kLane];
  }
}

float take_off(const std::int8_t* values, float step, std::size_t n, float* x) {
  float lanes[16] = {};
  for (std::size_t i = 0; i < n; ++i) {
    x[i] -= static_cast<float>(values[i]) * step;
    lanes[i % 16] += std::fabs(x[i]);
  }
  return sum_lanes(lanes);
}

// Where code i of a row lies: plane by plane inside a block, a bit stream in the tail.
template <typename Visit>
void for_each_bit(std::size_t d, int bits, const Visit& visit) {
  const std::size_t n_bits = static_cast<std::size_t>(bits);
  const std::size_t full = d / kBlock * kBlock;
  for (std::size_t i = 0; i < d; ++i) {
    const std::size_t block = i / kBlock * block_bytes(bits);
    for (std::size_t b = 0; b < n_bits; ++b) {
      if (i >= full) {
        const std::size_t bit = (i - full) * n_bits + b;
        visit(i, b, block + bit / 8, bit % 8);
        continue;
      }
      const bool top_of_three = bits == 3 && b == 2;
      const std::size_t width = top_of_three ? 1 : (bits == 3 ? 2 : n_bits);
      const std::size_t plane = plane_bytes(static_cast<int>(width));
      const std::size_t base = block + (top_of_three ? plane_bytes(2) : 0);
      const std::size_t in_block = i % kBlock;
      const std::size_t bit = width * (in_block / plane) + (top_of_three ? 0 : b);
      visit(i, b, base + in_block % plane, bit);
    }
  }
}

void pack(const std::uint8_t* codes, std::size_t d, int bits, std::uint8_t* packed) {
  std::memset(packed, 0, packed_bytes(d, bits));
  for_each_bit(d, bits, [&](std::size_t i, std::size_t b, std::size_t byte, std::size_t bit) {
    packed[byte] = static_cast<std::uint8_t>(packed[byte] | (codes[i] >> b & 1) << bit);
  });
}

void unpack(const std::uint8_t* packed, std::size_t d, int bits, std::int8_t* out) {
  std::memset(out, 0, d);
  for_each_bit(d, bits, [&](std::size_t i, std::size_t b, std::size_t byte, std::size_t bit) {
    out[i] = static_cast<std::int8_t>(out[i] | (packed[byte] >> bit & 1) << b);
  });
}

float max_abs(const float* u, std::size_t d) {
  float largest = 0;
  for (std::size_t i = 0; i < d; ++i) largest = std::fmax(largest, std::fabs(u[i]));
  return largest;
}

std::int32_t quantize_query(const float* u, std::size_t d, float factor, std::int8_t* values) {
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < d; ++i) {
    values[i] = static_cast<std::int8_t>(std::lrintf(u[i] * factor));
    sum += values[i];
  }
  std::memset(values + d, 0, round_up(d, kBlock) - d);
  return sum;
}

void decode(const std::uint8_t* packed, std::size_t d, int bits, const std::int8_t table[16],
            std::int8_t* out) {
  unpack(packed, d, bits, out);
  for (std::size_t i = 0; i < d; ++i) out[i] = table[out[i]];
}

void dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
              std::size_t n, std::size_t d, const CodeTable& table, QueryView query,
              std::int32_t* dots) {
  for (std::size_t j = 0; j < n; ++j) {
    const std::uint8_t* row = codes + stride * (rows != nullptr ? rows[j] : j);
    std::int32_t dot = 0;
    for (std::size_t first = 0; first < d; first += kBlock) {
      const std::size_t count = d - first < kBlock ? d - first : kBlock;
      std::int8_t levels[kBlock];
      decode(row + packed_bytes(first, table.bits), count, table.bits, table.levels, levels);
      for (std::size_t i = 0; i < count; ++i) dot += levels[i] * query.values[first + i];
    }
    dots[j] = dot;
  }
}

// What each label costs at a coordinate, and which rest has it.
struct LabelCosts {
  std::int32_t cost[4] = {};
  unsigned rest[4] = {};
};

LabelCosts label_costs(float y, const TrellisTable& table) {
  const float limited = std::fmax(-32767.0f, std::fmin(32767.0f, y * table.factor));
  const auto x = static_cast<std::int32_t>(std::lrintf(limited));
  LabelCosts best;
  for (unsigned r = 0; r < 2u << table.bits; ++r) {
    const std::int32_t e = std::max(-32768, std::min(32767, x - table.targets[r]));
    const std::int32_t cost = (e * e + (1 << 14)) >> 15;
    if (r < 4 || cost < best.cost[r % 4]) {
      best.cost[r % 4] = cost;
      best.rest[r % 4] = r / 4;
    }
  }
  return best;
}

// The coordinate of step t; d or more where there is none.
std::size_t coordinate_of_step(std::size_t t, std::size_t d, int bits) {
  const std::size_t tail = trellis_tail(d, bits);
  if (t >= trellis_steps(d - tail, bits)) return t;
  const std::size_t bytes = trellis_plane_bytes(d, bits);
  const std::size_t i = plane_coordinate({t % bytes, t / bytes}, d - tail, coded_width(bits));
  return i < d - tail ? i : d;
}

std::size_t step_of_coordinate(std::size_t i, std::size_t d, int bits) {
  const std::size_t in_planes = d - trellis_tail(d, bits);
  if (i >= in_planes) return i;
  const PlanePlace at = plane_place(i, in_planes, coded_width(bits));
  return at.field * trellis_plane_bytes(d, bits) + at.byte;
}

// Where the coded bit and the lowest bit of the rest of a step are: bits of the row.
struct StepPlace {
  std::size_t coded, rest;
};

StepPlace step_place(std::size_t t, std::size_t d, int bits) {
  const std::size_t tail = trellis_tail(d, bits);
  const std::size_t in_planes = trellis_steps(d - tail, bits);
  if (t >= in_planes) {
    const std::size_t code = 8 * trellis_bytes(d - tail, bits) + 3 * (t - in_planes);
    return {code + 2, code};
  }
  const std::size_t bytes = trellis_plane_bytes(d, bits);
  const PlanePlace at{t % bytes, t / bytes};
  const auto width = static_cast<std::size_t>(coded_width(bits));
  const std::size_t field = 8 * (1 + at.byte) + width * at.field;
  if (bits != 3) return {field + width - 1, field};
  const PlanePlace rest = rest_place(at, bytes);
  return {field, 8 * (1 + bytes + rest.byte) + 2 * rest.field};
}

unsigned get_bits(const std::uint8_t* row, std::size_t at, int n) {
  unsigned value = 0;
  for (int k = n; k-- > 0;) {
    const std::size_t bit = at + static_cast<std::size_t>(k);
    value = value << 1 | (row[bit / 8] >> bit % 8 & 1u);
  }
  return value;
}

// Into bits that are 0.
void put_bits(std::uint8_t* row, std::size_t at, unsigned value) {
  for (; value != 0; value >>= 1, ++at) {
    row[at / 8] = static_cast<std::uint8_t>(row[at / 8] | (value & 1u) << at % 8);
  }
}

void trellis_encode(const float* y, std::size_t d, const TrellisTable& table, std::uint8_t* work,
                    std::uint8_t* row) {
  const std::size_t steps = trellis_steps(d, table.bits);
  const auto costs_at = [&](std::size_t t) {
    const std::size_t i = coordinate_of_step(t, d, table.bits);
    return i < d ? label_costs(y[i], table) : LabelCosts{};
  };
  std::int32_t sums[256] = {};
  std::int32_t floor = 0;
  for (std::size_t t = 0; t < steps; ++t) {
    const LabelCosts costs = costs_at(t);
    std::int32_t next[256];
    for (unsigned m = 0; m < 256; ++m) {
      const std::int32_t a = sums[m / 2] + costs.cost[trellis_label(m, table.bits)];
      const std::int32_t b = sums[m / 2 + 128] + costs.cost[trellis_label(m + 256, table.bits)];
      work[256 * t + m] = b < a ? 1 : 0;
      next[m] = std::min(std::min(a, b) - floor, 32767);
    }
    std::copy_n(next, 256, sums);
    floor = *std::min_element(sums, sums + 256);
  }
  auto state = static_cast<unsigned>(std::min_element(sums, sums + 256) - sums);
  std::memset(row, 0, trellis_bytes(d, table.bits));
  for (std::size_t t = steps; t-- > 0;) {
    const unsigned window = state + 256u * work[256 * t + state];
    const StepPlace at = step_place(t, d, table.bits);
    put_bits(row, at.coded, window & 1);
    put_bits(row, at.rest, costs_at(t).rest[trellis_label(window, table.bits)]);
    state = window >> 1;
  }
  row[0] = static_cast<std::uint8_t>(state);
}

std::int8_t trellis_level(const std::uint8_t* row, std::size_t i, std::size_t d,
                          const TrellisTable& table) {
  const std::size_t t = step_of_coordinate(i, d, table.bits);
  unsigned window = 0;
  for (std::size_t k = 0; k <= kMemory; ++k) {
    const unsigned bit = t < k ? row[0] >> (k - t - 1) & 1u
                               : get_bits(row, step_place(t - k, d, table.bits).coded, 1);
    window |= bit << k;
  }
  const unsigned rest = get_bits(row, step_place(t, d, table.bits).rest, table.bits - 1);
  return table.levels[4 * rest + trellis_label(window, table.bits)];
}

void trellis_decode(const std::uint8_t* row, std::size_t d, const TrellisTable& table,
                    std::int32_t add, std::int8_t* out) {
  for (std::size_t i = 0; i < d; ++i) {
    out[i] = static_cast<std::int8_t>(trellis_level(row, i, d, table) + add);
  }
}

void trellis_dot_rows(const std::uint8_t* codes, std::size_t stride, const std::uint32_t* rows,
                      std::size_t n, std::size_t d, const TrellisTable& table, QueryView query,
                      std::int32_t* dots) {
  for (std::size_t j = 0; j < n; ++j) {
    const std::uint8_t* row = codes + stride * (rows != nullptr ? rows[j] : j);
    dots[j] = 0;
    for (std::size_t i = 0; i < d; ++i)
      dots[j] += trellis_level(row, i, d, table) * query.values[i];
  }
}

void dot_tile(const std::int8_t* rows, std::size_t n_rows, std::size_t d_padded,
              const CodeTable& /*table*/, const std::int8_t* queries, std::size_t groups,
              const std::int32_t* bias, std::int32_t* dots) {
  for (std::size_t g = 0; g < groups; ++g) {
    const std::int8_t* group = queries + g * kLane * d_padded;
    for (std::size_t r = 0; r < n_rows; ++r) {
      for (std::size_t q = 0; q < kLane; ++q) {
        std::int32_t dot = bias[g * kLane + q];
        for (std::size_t i = 0; i < d_padded; ++i) {
          dot += rows[r * d_padded + i] * group[i / 4 * 4 * kLane + q * 4 + i % 4];
        }
        dots[(g * n_rows + r) * kLane + q] = dot;
      }
    }
  }
}

bool passes(std::int32_t dot, float row_scale, float row_term, float query_term, float cutoff) {
  return !(static_cast<float>(dot) * row_scale - row_term * query_term <= cutoff);
}

std::size_t select_tile(const std::int32_t* dots, std::size_t n_rows, const float* row_scale,
                        const float* row_term, const float* query_term, const float* cutoff,
                        Hit* hits) {
  std::size_t n = 0;
  for (std::size_t r = 0; r < n_rows; ++r) {
    const float term = row_term != nullptr ? row_term[r] : 0;
    for (std::size_t q = 0; q < kLane; ++q) {
      const std::int32_t dot = dots[r * kLane + q];
      const float of_query = row_term != nullptr ? query_term[q] : 0;
      if (passes(dot, row_scale[r], term, of_query, cutoff[q])) {
        hits[n++] = {static_cast<std::uint32_t>(r), static_cast<std::uint32_t>(q), dot};
      }
    }
  }
  return n;
}

std::size_t select_rows(const std::int32_t* dots, std::size_t n, const float* row_scale,
                        const float* row_term, float query_term, float cutoff, Hit* hits) {
  std::size_t n_hits = 0;
  for (std::size_t r = 0; r < n; ++r) {
    const float term = row_term != nullptr ? row_term[r] : 0;
    if (passes(dots[r], row_scale[r], term, row_term != nullptr ? query_term : 0, cutoff)) {
      hits[n_hits++] = {static_cast<std::uint32_t>(r), 0, dots[r]};
    }
  }
  return n_hits;
}

void sign_sums(const std::uint8_t* plane, std::size_t n_bytes, const std::uint8_t* tables,
               std::int32_t start, std::size_t /*ahead*/, std::int32_t* sums) {
  for (std::size_t r = 0; r < kBlock; ++r) {
    sums[r] = start;
    for (std::size_t g = 0; g < n_bytes; ++g) {
      const std::uint8_t byte = plane[g * kBlock + sign_position(r)];
      sums[r] += tables[2 * g * 16 + byte % 16] + tables[(2 * g + 1) * 16 + byte / 16];
    }
  }
}

}  // namespace

const KernelTable kTable = {"scalar",
                            false,
                            1,
                            norm_squared,
                            scale,
                            multiply,
                            fwht,
                            quantize,
                            pack,
                            max_abs,
                            quantize_query,
                            to_half,
                            to_float,
                            dot,
                            add_scaled,
                            exp_sum,
                            add_tile_scores,
                            add_tile_sums,
                            take_off,
                            decode,
                            trellis_encode,
                            trellis_decode,
                            trellis_dot_rows,
                            dot_rows,
                            dot_tile,
                            select_tile,
                            select_rows,
                            sign_sums};

}  // namespace turboquant::kernels::scalar
