// Random calls of the C API beside a plain model of what a cache holds, steered by bytes: for a
// test with fixed seeds and for a fuzzer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace turboquant::kv::test {

/// Makes the calls that the bytes say. Returns what was wrong first, empty if nothing was.
std::string random_calls(const std::uint8_t* bytes, std::size_t n);

}  // namespace turboquant::kv::test
