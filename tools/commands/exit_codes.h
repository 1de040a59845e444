// Exit codes of the command-line programs.
#pragma once

namespace turboquant::tools {

enum ExitCode : int {
  kExitOk = 0,
  kExitInternal = 1,       ///< out of memory, or a failure inside FAISS
  kExitUsage = 2,          ///< options that make no sense, or a limit that cannot be kept
  kExitData = 3,           ///< an input file's contents are wrong; the message names file and row
  kExitIo = 4,             ///< the system refused to open, read or write
  kExitInterrupted = 130,  ///< SIGINT
  kExitTerminated = 143,   ///< SIGTERM
};

}  // namespace turboquant::tools
