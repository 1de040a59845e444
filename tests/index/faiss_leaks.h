// For tests that give damaged files to FAISS's reader: before 1.14 it leaks what it has built when
// it throws. Included once by a program.
#pragma once

// NOLINTBEGIN(readability-identifier-naming,bugprone-reserved-identifier): the sanitizer's name
extern "C" const char* __lsan_default_suppressions();
extern "C" const char* __lsan_default_suppressions() {
  return "leak:faiss::read_index\nleak:faiss::read_VectorTransform\n";
}
// NOLINTEND(readability-identifier-naming,bugprone-reserved-identifier)
