// What one request, one token and one server may take. GetInfo tells them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace turboquant::service {

struct Limits {
  std::uint64_t max_message_bytes = std::uint64_t{64} << 20;  ///< of a request and of an answer
  std::uint64_t max_rows = 100'000;                           ///< records or ids of a request
  std::uint64_t max_k = 10'000;
  std::uint64_t max_results = 1'000'000;  ///< queries times k; hits of a range search
  std::uint64_t max_dimension = 65'536;
  std::uint64_t max_collections = 1'000;
  std::uint64_t memory_limit_bytes = 0;  ///< of the collections; 0: no limit
};

}  // namespace turboquant::service
