// `info`: what an index file or a file of vectors holds.
#pragma once

#include <ostream>
#include <string>

namespace turboquant::tools {

/// Throws io::DataError, io::IoError.
void print_info(const std::string& path, bool json, std::ostream& out);

}  // namespace turboquant::tools
