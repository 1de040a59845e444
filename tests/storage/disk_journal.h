// Records what a program asks of a disk for the files of one folder, and makes the images that a
// power loss at any moment may leave. disk_journal.cpp defines open, write, fsync and the like in
// the test program itself, where the dynamic linker finds them before libc's.
//
// What counts as legal: bytes are on disk once their file was synced after they were written;
// before that any of their 512-byte sectors may be there or not. A name is on disk once its folder
// was synced after it changed; of later changes in a folder tree any beginning may be there, in
// order, as journalling file systems do it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

namespace turboquant::test {

/// Starts recording for files under `folder`, which is empty.
void start_journal(const std::string& folder);
void stop_journal();

/// The number of events so far.
std::size_t journal_size();

enum class Unsynced { kLost, kKept, kTorn };

/// Makes in `target`, an empty folder, an image of a power loss after the first `events` events.
void make_image(std::size_t events, Unsynced unsynced, std::mt19937_64& random,
                const std::string& target);

}  // namespace turboquant::test
