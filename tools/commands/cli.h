// The command line of turboquant-index.
#pragma once

#include <ostream>

namespace turboquant::tools {

/// Parses and runs; results go to out, messages and progress to err. Never throws; returns a code
/// of exit_codes.h.
int run_turboquant_index(int argc, const char* const* argv, std::ostream& out, std::ostream& err);

}  // namespace turboquant::tools
