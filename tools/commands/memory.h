// Sizes in bytes as people write them, and what the process uses now.
#pragma once

#include <cstdint>
#include <string>

namespace turboquant::tools {

/// "1500000", "512M", "2G", "1.5GiB" (K, M, G, T are powers of 1,024). Throws io::UsageError.
std::uint64_t parse_size(const std::string& text);

/// "1.5 GiB"
std::string format_size(std::uint64_t bytes);

/// Resident memory of this process; 0 where the system does not tell.
std::uint64_t resident_bytes();

}  // namespace turboquant::tools
