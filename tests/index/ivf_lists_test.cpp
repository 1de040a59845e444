// Where the lists and the centroids of an inverted file live: lists in files of FAISS's, merged and
// grown there, lists emptied; rotations of centroids kept, and noticed when they are of others.
#include <faiss/IndexFlat.h>
#include <faiss/IndexHNSW.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/index/index_test_util.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"

namespace turboquant {
namespace {

using test::clustered;
using test::expect_same;
using test::Results;
using test::search;

constexpr std::size_t kD = 40;
constexpr std::size_t kLists = 16;
constexpr std::int64_t kN = 1200;

// Called merge_from before 1.7.4.
template <class Lists>
auto merge(Lists& to, const faiss::InvertedLists** from, int n, int)
    -> decltype(to.merge_from_multiple(from, n)) {
  return to.merge_from_multiple(from, n);
}
template <class Lists>
std::size_t merge(Lists& to, const faiss::InvertedLists** from, int n, long) {
  return to.merge_from(from, n);
}

template <class Vector>
auto capacity_of(const Vector& vector, int) -> decltype(vector.capacity()) {
  return vector.capacity();
}
template <class Vector>  // from 1.11 on
auto capacity_of(const Vector& vector, long) -> decltype(vector.owned_data.capacity()) {
  return vector.owned_data.capacity();
}

struct Case {
  const char* name;
  faiss::MetricType metric;
};

class IvfLists : public testing::TestWithParam<Case> {
 protected:
  IvfLists() : x_(clustered(kN, kD, 1)), queries_(clustered(30, kD, 2)), coarse_(kD, metric()) {
    coarse_.add(kLists, clustered(kLists, kD, 3).data());
  }
  ~IvfLists() override {
    for (const std::string& path : files_) std::remove(path.c_str());
  }

  static faiss::MetricType metric() { return GetParam().metric; }

  std::unique_ptr<IndexIVFTurboQuant> make(std::size_t lists = kLists) {
    auto index = std::make_unique<IndexIVFTurboQuant>(&coarse_, kD, lists,
                                                      parse_index_name(GetParam().name), metric());
    index->is_trained = true;
    index->nprobe = 5;
    return index;
  }

  // Rows [begin, end) of x_ under their numbers.
  void add(IndexIVFTurboQuant& index, std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = begin; i < end; ++i) ids.push_back(i);
    index.add_with_ids(end - begin, x_.data() + begin * static_cast<std::int64_t>(kD), ids.data());
  }

  std::string file(const char* name) {
    files_.push_back(testing::TempDir() + "ivf_lists_" + GetParam().name +
                     (metric() == faiss::METRIC_L2 ? "_l2_" : "_ip_") + name);
    return files_.back();
  }

  void expect_equal(const faiss::Index& a, const faiss::Index& b) {
    expect_same(search(a, queries_, 10), search(b, queries_, 10));
    faiss::RangeSearchResult of_a(30);
    faiss::RangeSearchResult of_b(30);
    const float radius = search(b, queries_, 10).distances[9];
    a.range_search(30, queries_.data(), radius, &of_a);
    b.range_search(30, queries_.data(), radius, &of_b);
    ASSERT_EQ(std::vector<std::size_t>(of_a.lims, of_a.lims + 31),
              std::vector<std::size_t>(of_b.lims, of_b.lims + 31));
    EXPECT_GT(of_b.lims[30], 0U);
    EXPECT_EQ(std::vector<std::int64_t>(of_a.labels, of_a.labels + of_a.lims[30]),
              std::vector<std::int64_t>(of_b.labels, of_b.labels + of_b.lims[30]));
  }

  std::vector<float> x_, queries_;
  faiss::IndexFlat coarse_;
  std::vector<std::string> files_;
};

INSTANTIATE_TEST_SUITE_P(All, IvfLists,
                         testing::Values(Case{"TQ4", faiss::METRIC_INNER_PRODUCT},
                                         Case{"TQ3", faiss::METRIC_L2},
                                         Case{"TQ2t", faiss::METRIC_L2},
                                         Case{"TQ3qjl", faiss::METRIC_INNER_PRODUCT}),
                         [](const auto& instance) {
                           return std::string(instance.param.name) +
                                  (instance.param.metric == faiss::METRIC_L2 ? "_L2" : "_IP");
                         });

// Shards merged into one file, as contrib/ondisk.py's merge_ondisk does. FAISS takes the places of
// merged lists for free ones, so that such a file must not grow; rows beyond it stand beside it.
TEST_P(IvfLists, ShardsMergeIntoAFile) {
  auto memory = make();
  add(*memory, 0, 900);
  std::vector<std::unique_ptr<IndexIVFTurboQuant>> shards;
  std::vector<const faiss::InvertedLists*> lists;
  for (int i = 0; i < 3; ++i) {
    shards.push_back(make());
    add(*shards.back(), i * 300, i * 300 + 300);
    lists.push_back(shards.back()->invlists);
  }
  auto disk = make();
  const auto path = file("merged");
  faiss::OnDiskInvertedLists on_disk(kLists, disk->code_size, path.c_str());
  EXPECT_EQ(merge(on_disk, lists.data(), 3, 0), 900U);
  disk->replace_invlists(&on_disk);
  disk->ntotal = 900;
  expect_equal(*disk, *memory);

  auto later = make();
  add(*later, 900, kN);
  add(*memory, 900, kN);
  const faiss::InvertedLists* parts[] = {&on_disk, later->invlists};
  faiss::HStackInvertedLists both(2, parts);
  disk->replace_invlists(&both);
  disk->ntotal = kN;
  expect_equal(*disk, *memory);
  disk->replace_invlists(nullptr);
}

// Lists move behind what was mapped when they outgrow their places, and back when rows go.
TEST_P(IvfLists, ListsInAFileGrowAndShrink) {
  auto memory = make();
  auto disk = make();
  const auto path = file("growing");
  faiss::OnDiskInvertedLists on_disk(kLists, disk->code_size, path.c_str());
  disk->replace_invlists(&on_disk);
  std::size_t mapped = 0;
  for (std::int64_t i = 0; i < kN; i += 50) {
    add(*disk, i, i + 50);
    add(*memory, i, i + 50);
    if (i == 0) mapped = on_disk.totsize;
    if (i % 400 == 0) expect_equal(*disk, *memory);
  }
  EXPECT_GT(on_disk.totsize, mapped);
  expect_equal(*disk, *memory);
  const faiss::IDSelectorRange some(200, 500);
  EXPECT_EQ(disk->remove_ids(some), memory->remove_ids(some));
  expect_equal(*disk, *memory);
  const faiss::IDSelectorRange rest(-10, kN);
  disk->remove_ids(rest);
  for (const std::int64_t id : search(*disk, queries_, 3).labels) EXPECT_EQ(id, -1);
  add(*disk, 0, 100);
  memory->reset();
  add(*memory, 0, 100);
  expect_equal(*disk, *memory);
  disk->replace_invlists(nullptr);
}

// An index file that names the file of its lists, and one whose lists are mapped from it.
TEST_P(IvfLists, FilesOfIndexesWithListsOnDisk) {
  auto memory = make();
  add(*memory, 0, kN);
  auto disk = make();
  const auto path = file("lists");
  {
    faiss::OnDiskInvertedLists on_disk(kLists, disk->code_size, path.c_str());
    disk->replace_invlists(&on_disk);
    add(*disk, 0, kN);
    const auto name = file("index");
    write_index(*disk, name);
    const auto read = turboquant::read_index(name);
    const auto& ivf = dynamic_cast<const IndexIVFTurboQuant&>(*read);
    EXPECT_NE(dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf.invlists), nullptr);
    expect_equal(*read, *memory);
    disk->replace_invlists(nullptr);
  }
  const auto name = file("mapped");
  write_index(*memory, name);
  auto mapped = turboquant::read_index(name, faiss::IO_FLAG_MMAP);
  expect_equal(*mapped, *memory);
  auto& ivf = dynamic_cast<IndexIVFTurboQuant&>(*mapped);
  EXPECT_NE(dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf.invlists), nullptr);
}

// All at once or little by little, lists hold the same, and not twice the memory.
TEST_P(IvfLists, ListsTakeTheRoomThatTheyNeed) {
  auto index = make();
  add(*index, 0, kN);
  auto& lists = dynamic_cast<faiss::ArrayInvertedLists&>(*index->invlists);
  for (std::size_t list = 0; list < kLists; ++list) {
    EXPECT_EQ(capacity_of(lists.codes[list], 0), lists.list_size(list) * index->code_size);
    EXPECT_EQ(capacity_of(lists.ids[list], 0), lists.list_size(list));
  }
  auto slowly = make();
  for (std::int64_t i = 0; i < kN; i += i < 300 ? 1 : 100) add(*slowly, i, i + (i < 300 ? 1 : 100));
  expect_equal(*slowly, *index);
  slowly->reset();
  add(*slowly, 0, kN);
  expect_equal(*slowly, *index);
}

TEST_P(IvfLists, EmptyListsOneListAndMoreProbesThanLists) {
  auto index = make();
  index->nprobe = 100;
  for (const std::int64_t id : search(*index, queries_, 3).labels) EXPECT_EQ(id, -1);
  add(*index, 0, 1);  // every other list is empty
  for (std::size_t q = 0; q < 30; ++q) {
    EXPECT_EQ(search(*index, queries_, 2).labels[q * 2], 0);
    EXPECT_EQ(search(*index, queries_, 2).labels[q * 2 + 1], -1);
  }
  faiss::IndexFlat single(kD, metric());
  single.add(1, x_.data());
  IndexIVFTurboQuant one(&single, kD, 1, parse_index_name(GetParam().name), metric());
  one.is_trained = true;
  one.nprobe = 7;
  one.add(200, x_.data());
  const Results found = search(one, queries_, 200);
  for (std::size_t q = 0; q < 30; ++q) {
    std::vector<std::int64_t> ids(found.labels.begin() + static_cast<long>(q * 200),
                                  found.labels.begin() + static_cast<long>(q * 200 + 200));
    std::sort(ids.begin(), ids.end());
    for (std::int64_t i = 0; i < 200; ++i) EXPECT_EQ(ids[static_cast<std::size_t>(i)], i);
  }
}

// ---- centroids ----

TEST_P(IvfLists, CentroidsAreCountedAndForgotten) {
  auto index = make();
  add(*index, 0, kN);
  search(*index, queries_, 3);
  const std::size_t bytes = index->centroids().bytes();
  const std::size_t rotations = metric() == faiss::METRIC_L2 ? kLists * kD * sizeof(float) : 0;
  EXPECT_GT(bytes, kLists * kD + rotations);
  const auto copy = turboquant::clone_index(*index);
  auto& cloned = dynamic_cast<IndexIVFTurboQuant&>(*copy);
  EXPECT_EQ(cloned.centroids().bytes(), 0U);
  expect_equal(*copy, *index);
  EXPECT_EQ(cloned.centroids().bytes(), bytes);
  index->reset();
  EXPECT_EQ(index->centroids().bytes(), 0U);
}

// A coarse quantizer with other centroids, in its place or in the same object.
TEST_P(IvfLists, ChangedCentroidsAreNoticed) {
  auto index = make();
  add(*index, 0, kN);
  search(*index, queries_, 3);

  const auto others = clustered(kLists, kD, 9);
  faiss::IndexFlat second(kD, metric());
  second.add(kLists, others.data());
  auto fresh = std::make_unique<IndexIVFTurboQuant>(&second, kD, kLists,
                                                    parse_index_name(GetParam().name), metric());
  fresh->is_trained = true;
  fresh->nprobe = 5;
  add(*fresh, 0, kN);

  index->reset();
  index->quantizer = &second;
  add(*index, 0, kN);
  expect_equal(*index, *fresh);

  // The same object, with contents that nobody tells the index of; its old lists stay.
  auto again = make();
  add(*again, 0, kN);
  search(*again, queries_, 3);
  coarse_.reset();
  coarse_.add(kLists, others.data());
  auto untouched = make();
  for (std::size_t list = 0; list < kLists; ++list) {
    untouched->invlists->add_entries(
        list, again->invlists->list_size(list),
        faiss::InvertedLists::ScopedIds(again->invlists, list).get(),
        faiss::InvertedLists::ScopedCodes(again->invlists, list).get());
  }
  untouched->ntotal = kN;
  expect_equal(*again, *untouched);
  const std::vector<float> one(queries_.begin(), queries_.begin() + kD);
  expect_same(search(*again, one, 10), search(*untouched, one, 10));
}

TEST_P(IvfLists, ThreadsMakeTheTableOnce) {
  auto index = make();
  add(*index, 0, kN);
  std::vector<Results> found(8);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < found.size(); ++t) {
    threads.emplace_back([&, t] {
      found[t] = search(*index, queries_, 10);
      const std::vector<float> one(queries_.begin(), queries_.begin() + kD);
      search(*index, one, 10);
      faiss::RangeSearchResult hits(30);
      index->range_search(30, queries_.data(), found[t].distances[9], &hits);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Results& results : found) expect_same(results, search(*index, queries_, 10));
}

// Coarse quantizers that are no plain flat index, from which centroids are reconstructed.
TEST_P(IvfLists, GraphsAsCoarseQuantizers) {
  auto flat = make();
  add(*flat, 0, kN);
  faiss::IndexHNSWFlat graph(kD, 8, metric());
  std::vector<float> centroids(kLists * kD);
  coarse_.reconstruct_n(0, kLists, centroids.data());
  graph.add(kLists, centroids.data());
  IndexIVFTurboQuant ivf(&graph, kD, kLists, parse_index_name(GetParam().name), metric());
  ivf.is_trained = true;
  ivf.replace_invlists(flat->invlists);
  ivf.ntotal = kN;
  ivf.nprobe = flat->nprobe = kLists;
  graph.hnsw.efSearch = 64;
  expect_same(search(ivf, queries_, 10), search(*flat, queries_, 10));
  if (metric() == faiss::METRIC_L2) {
    EXPECT_GT(ivf.centroids().bytes(), kLists * kD * sizeof(float));
  } else {
    EXPECT_EQ(ivf.centroids().bytes(), 0U);
  }
  ivf.replace_invlists(nullptr);
}

}  // namespace
}  // namespace turboquant
