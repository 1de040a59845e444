// `push`: a file of vectors, with ids and metadata, into a collection of a running server, or of a
// store on this machine. A killed push goes on where it was (--resume) and gives the same
// collection: what was acknowledged is in a manifest, and batches have the same operation ids when
// they are sent again.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "tools/commands/progress.h"
#include "tools/commands/push_source.h"
#include "tools/commands/remote.h"
#include "turboquant/client.h"

namespace turboquant::tools {

enum class OnBadRow : std::uint8_t { kFail, kSkip, kQuarantine };

struct PushOptions {
  PushInput input;
  ServerAddress server;
  std::string data_dir;  ///< of a store that no server has open; then server is not used
  std::string collection;
  std::optional<NewCollection> create;  ///< make it when it is not there
  std::size_t batch_rows = 1000;
  bool insert = false;
  std::string durability = "fsync";  ///< memory, wal or fsync
  bool resume = false;
  std::string manifest;  ///< empty: beside the input
  bool dry_run = false;
  OnBadRow on_bad_row = OnBadRow::kFail;
};

struct PushReport {
  std::uint64_t rows = 0;  ///< of the input
  std::uint64_t inserted = 0;
  std::uint64_t updated = 0;
  std::uint64_t bad = 0;
  std::uint64_t resumed_at = 0;
  double seconds = 0;
  std::size_t window = 0;       ///< batches that were under way at the end
  std::string quarantine_file;  ///< a line of JSON for each bad row; empty: none
};

/// Throws io::UsageError, io::DataError (naming the row), io::IoError, io::Interrupted.
PushReport push(const PushOptions& options, Progress& progress);

}  // namespace turboquant::tools
