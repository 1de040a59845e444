// A program that knows FAISS alone. It links turboquant::index, whose linker options make FAISS's
// own functions understand TurboQuant.
#include <faiss/Index.h>
#include <faiss/clone_index.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>

#include "tests/index/index_test_util.h"

namespace {

using turboquant::test::clustered;
using turboquant::test::expect_same;
using turboquant::test::search;

constexpr int kD = 24;
using Owned = std::unique_ptr<faiss::Index>;

class PlainFaiss : public testing::TestWithParam<std::string> {
 protected:
  PlainFaiss() : index_(faiss::index_factory(kD, GetParam().c_str(), faiss::METRIC_L2)) {
    turboquant::test::fill(*index_, clustered(300, kD, 1));
    before_ = search(*index_, queries_, 4);
  }

  void check(const Owned& other) { expect_same(search(*other, queries_, 4), before_); }

  std::vector<float> queries_ = clustered(10, kD, 2);
  Owned index_;
  turboquant::test::Results before_;
};

INSTANTIATE_TEST_SUITE_P(All, PlainFaiss,
                         testing::Values("TQ3", "IDMap2,TQ3", "PCA12,TQ3", "L2norm,TQ4",
                                         "TQ4,RFlat", "TQ2,Refine(TQ4)", "HNSW8,TQ3", "NSG8,TQ3",
                                         "IVF4,TQ4", "IVF4(TQ3),Flat", "Flat", "IVF4,SQ8"),
                         [](const auto& instance) {
                           return turboquant::test::test_name(instance.param);
                         });

TEST_P(PlainFaiss, Path) {
  const std::string path = testing::TempDir() + "plain_faiss.index";
  faiss::write_index(index_.get(), path.c_str());
  check(Owned(faiss::read_index(path.c_str())));
#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
  check(faiss::read_index_up(path.c_str()));
#endif
  std::remove(path.c_str());
}

TEST_P(PlainFaiss, File) {
  std::FILE* file = std::tmpfile();
  ASSERT_NE(file, nullptr);
  faiss::write_index(index_.get(), file);
  std::rewind(file);
  check(Owned(faiss::read_index(file)));
#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
  std::rewind(file);
  check(faiss::read_index_up(file));
#endif
  std::fclose(file);
}

TEST_P(PlainFaiss, WriterAndReader) {
  faiss::VectorIOWriter writer;
  faiss::write_index(index_.get(), &writer);
  faiss::VectorIOReader reader;
  reader.data = writer.data;
  check(Owned(faiss::read_index(&reader)));
#if FAISS_VERSION_MAJOR > 1 || FAISS_VERSION_MINOR >= 14
  reader.rp = 0;
  check(faiss::read_index_up(&reader));
#endif
}

TEST_P(PlainFaiss, Clone) {
  // Flat and scalar quantizer indexes are FAISS's own business.
  check(Owned(faiss::clone_index(index_.get())));
}

TEST(PlainFaissErrors, AreFaissExceptions) {
  EXPECT_THROW(faiss::index_factory(kD, "TQ9"), faiss::FaissException);
  EXPECT_THROW(faiss::index_factory(kD, "TQ3,Nonsense"), faiss::FaissException);
  EXPECT_THROW(faiss::index_factory(kD, "Nonsense"), faiss::FaissException);
  EXPECT_THROW(faiss::read_index("/nonexistent/file"), faiss::FaissException);
}

}  // namespace
