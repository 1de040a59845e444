// One int64 id per row: .npy (i8, u8, i4, u4), .ibin of dimension 1, or one id per text line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace turboquant::io {

/// By extension; anything but .npy and .ibin is text. Throws IoError, DataError (naming the row).
std::vector<std::int64_t> read_ids(const std::string& path);

}  // namespace turboquant::io
