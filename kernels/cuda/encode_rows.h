// Encoding of many rows of the usual dimensions, whose rotation fits in registers. Bytes are those
// of the kernel that takes any row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/codec.h"

namespace turboquant::cuda {

struct CodecView;

/// A kernel for rows of one dimension: 128, 256, 512, 768, 1,024 or 1,536.
struct RowEncoder {
  int log_plane;  // of elements of a plane
  int rounds;     // 2: of two planes, 4: of three
  std::size_t shared_bytes;
  void (*kernel)(CodecView, const std::uint32_t*, const float*, std::size_t, RowPointers,
                 unsigned long long, unsigned long long*);
};

/// Null where none fits what is encoded.
const RowEncoder* row_encoder(const CodecTables& tables);

/// Signs by lane as the kernel reads them: [rounds][32].
std::vector<std::uint32_t> lane_signs(const RowEncoder& encoder, const RotationTable& rotation);

/// Lets it use the shared memory that it takes.
void prepare_launches(const RowEncoder& encoder, int device);

/// x: aligned to 16 bytes. As Codec::encode.
void encode_rows(const RowEncoder& encoder, const CodecView& view, const std::uint32_t* signs,
                 const float* x, std::size_t n, const RowPointers& rows, std::size_t first_row,
                 unsigned long long* bad_row, StreamPointer stream);

}  // namespace turboquant::cuda
