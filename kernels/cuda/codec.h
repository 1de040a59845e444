// Rows and queries from floats, on the device: rotation, quantization, packing and factors, with
// the bytes of docs/code_format.md. Plain C++: no CUDA header is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cuda/buffer.h"
#include "kernels/cuda/row_layout.h"
#include "kernels/kernel_table.h"

namespace turboquant::cuda {

/// A rotation as quantizer/rotation.h makes it: factors [rounds][window]; null for none.
struct RotationTable {
  const float* factors = nullptr;
  std::size_t window = 0;
  std::size_t rounds = 0;
};

/// What encoding takes; host pointers, read by Codec's constructor alone.
struct CodecTables {
  std::size_t dimension = 0;
  int bits = 0;
  bool two_parts = false;  // kQjl
  bool mse = false;        // kMse
  bool with_norm = false;
  bool normalize = false;  // scale vectors and queries to length 1 first
  RotationTable rotation;
  RotationTable projection;         // of the residual, two_parts
  const float* gaussian = nullptr;  // [d][d], in the projection's place
  const float* centre = nullptr;    // [d], null for none
  float centre_norm_squared = 0;
  kernels::CodeTable quantizer{};  // magnitudes to codes; of bits - 1 with two_parts
  int quantizer_bits = 0;          // 0: none (kQjl of 1 bit)
  double step = 0;                 // of the levels that quantizer gives
  const kernels::TrellisTable* trellis = nullptr;  // kTrellis
  kernels::CodeTable levels{};                     // readings of a code
  kernels::CodeTable signs{};
};

/// Rows on the device: codes [n][RowLayout::stride] and the factors that rows of this kind have.
struct RowPointers {
  std::uint8_t* codes = nullptr;
  float* scale = nullptr;
  float* residual = nullptr;  // two_parts
  float* centre = nullptr;    // <c, x>, with a centre
  float* norm = nullptr;      // with_norm

  RowPointers at(const RowLayout& layout, std::size_t row) const {
    const auto moved = [row](float* p) { return p != nullptr ? p + row : nullptr; };
    return {codes + row * static_cast<std::size_t>(layout.stride), moved(scale), moved(residual),
            moved(centre), moved(norm)};
  }
};

/// Queries as a scan takes them. Eight make a tile: operands are [tiles][groups][quads][32] times
/// 16 bytes, lane 4 n + t with what lane t of a row multiplies for query n. Past the last query:
/// zeros.
struct QueryPointers {
  std::uint8_t* operands = nullptr;
  std::uint8_t* sign_operands = nullptr;  // two_parts
  float* scales = nullptr;
  float* sign_scales = nullptr;
  std::int32_t* bias = nullptr;  // what integer products start from
  std::int32_t* sign_bias = nullptr;
  float* norm = nullptr;    // |q|^2
  float* offset = nullptr;  // <q, c> - |c|^2; 0 without a centre
};

class Codec {
 public:
  /// Throws Error or OutOfMemory.
  Codec(int device, const CodecTables& tables);
  ~Codec();
  Codec(Codec&&) noexcept;
  Codec& operator=(Codec&&) noexcept;

  int device() const;
  const RowLayout& layout() const;

  /// x[n][d] of the device to rows, in stream order. *bad_row (of the device)
  /// becomes the smaller of what it was and first_row plus the first row that holds NaN or
  /// infinity.
  void encode(const float* x, std::size_t n, const RowPointers& rows, std::size_t first_row,
              unsigned long long* bad_row, StreamPointer stream) const;

  /// x[n][d] of the device to n queries rounded up to whole tiles of 8.
  void prepare(const float* x, std::size_t n, const QueryPointers& queries, std::size_t first_query,
               unsigned long long* bad_query, StreamPointer stream) const;

  struct State;

 private:
  void encode_trellis(const float* x, std::size_t n, const RowPointers& rows, std::size_t first_row,
                      unsigned long long* bad_row, StreamPointer stream) const;

  std::unique_ptr<State> state_;
};

/// Between rows of the device and rows of `code_size` bytes as docs/code_format.md writes them,
/// both in memory of the device.
void write_rows(const RowLayout& layout, const RowPointers& rows, std::size_t n,
                std::size_t code_size, std::uint8_t* bytes, StreamPointer stream);
void read_rows(const RowLayout& layout, const std::uint8_t* bytes, std::size_t n,
               std::size_t code_size, const RowPointers& rows, StreamPointer stream);

/// Row i of `to` becomes row chosen[i] of `from`, i < n; all in memory of the device.
void gather_rows(const RowLayout& layout, const RowPointers& from, const std::uint32_t* chosen,
                 std::size_t n, const RowPointers& to, StreamPointer stream);

}  // namespace turboquant::cuda
