// Damage on disk is found or does no harm, wherever it is: single bits are flipped all over the
// files of a small store. A sample by default; TURBOQUANT_FLIP_STRIDE=1 flips every bit, and
// TURBOQUANT_FLIP_SHARD=3/16 every sixteenth of those, beginning with the fourth. Also what a start
// refuses: formats and fingerprints that it does not know, missing files.
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "storage/coding.h"
#include "storage/database.h"
#include "storage/records.h"
#include "tests/storage/store_util.h"
#include "turboquant/store.h"

namespace turboquant::test {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kDimension = 8;

struct State {
  std::vector<Record> records;
  std::vector<Hits> hits;
  std::vector<Hits> filtered;
};

std::vector<Hits> search(const Collection& c, std::optional<Filter> filter, absl::Status& status) {
  SearchOptions options;
  options.filter = std::move(filter);
  options.rescore = true;
  const auto found = c.search(random_vectors(2, kDimension, 61), options);
  if (!found.ok()) status = found.status();
  return found.ok() ? *found : std::vector<Hits>();
}

// Everything that a caller can see.
absl::Status look(const Store& store, State& state) {
  const auto c = store.collection("c");
  if (!c.ok()) return c.status();
  ScrollOptions all;
  all.limit = 10'000;
  all.parts = {true, true};
  const auto page = (*c)->scroll(all);
  if (!page.ok()) return page.status();
  state.records = page->records;
  absl::Status status;
  state.hits = search(**c, {}, status);
  state.filtered = search(**c, Filter::equal("part", std::int64_t{1}), status);
  return status;
}

bool same(const State& a, const State& b) {
  const auto same_hits = [](const std::vector<Hits>& x, const std::vector<Hits>& y) {
    for (std::size_t q = 0; q < x.size(); ++q) {
      if (q >= y.size() || x[q].size() != y[q].size()) return false;
      for (std::size_t i = 0; i < x[q].size(); ++i) {
        if (x[q][i].id != y[q][i].id || bits_of(x[q][i].score) != bits_of(y[q][i].score)) {
          return false;
        }
      }
    }
    return x.size() == y.size();
  };
  if (a.records.size() != b.records.size()) return false;
  for (std::size_t i = 0; i < a.records.size(); ++i) {
    if (a.records[i].id != b.records[i].id || a.records[i].metadata != b.records[i].metadata ||
        a.records[i].vector != b.records[i].vector) {
      return false;
    }
  }
  return same_hits(a.hits, b.hits) && same_hits(a.filtered, b.filtered);
}

// A store whose content is partly in SSTs and blob files, partly in the log; closed.
void make_store(const std::string& folder, State& state) {
  CollectionOptions options;
  options.dimension = kDimension;
  options.originals = Originals::kFp32;
  options.fields = {{"part", FieldType::kInt64}};
  const auto write = [](Collection& c, std::uint64_t first) {
    const std::vector<float> x = random_vectors(25, kDimension, first);
    RecordBatch batch;
    batch.ids = number_ids(25, first);
    batch.vectors = x;
    for (std::size_t i = 0; i < 25; ++i) {
      batch.metadata.push_back({{"part", static_cast<std::int64_t>(i % 3)}});
    }
    WriteOptions named;
    named.operation_id = "operation " + std::to_string(first);
    ASSERT_OK(c.upsert(batch, named));
  };
  {
    auto store = Store::open(folder, quiet_options());
    ASSERT_OK(store);
    ASSERT_OK((*store)->create_collection("c", options));
    write(**(*store)->collection("c"), 0);
    ASSERT_OK((*(*store)->collection("c"))->remove(number_ids(5, 3)));
  }
  auto store = Store::open(folder, quiet_options());
  ASSERT_OK(store);
  write(**(*store)->collection("c"), 20);
  ASSERT_OK(look(**store, state));
  ASSERT_OK((*store)->close());
}

void copy_store(const std::string& from, const std::string& to) {
  std::error_code error;
  fs::remove_all(to, error);
  fs::copy(from, to, fs::copy_options::recursive);
}

void flip(const fs::path& path, std::uint64_t bit) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(bit / 8));
  const char byte = static_cast<char>(file.get() ^ (1 << bit % 8));
  file.seekp(static_cast<std::streamoff>(bit / 8));
  file.put(byte);
}

struct Shard {
  std::uint64_t number = 0;
  std::uint64_t of = 1;
};

Shard shard_of_environment() {
  Shard shard;
  const char* text = std::getenv("TURBOQUANT_FLIP_SHARD");
  if (text == nullptr) return shard;
  char* slash = nullptr;
  shard.number = std::strtoull(text, &slash, 10);
  shard.of = *slash == '/' ? std::strtoull(slash + 1, nullptr, 10) : 0;
  EXPECT_LT(shard.number, shard.of) << "TURBOQUANT_FLIP_SHARD=" << text;
  return shard;
}

// RocksDB's record of its settings; the store gives them anew.
bool is_options(const std::string& name) { return name.find("OPTIONS-") != std::string::npos; }

// The bit of a table that RocksDB aborts for; storage/table_check.h says why.
TEST(Damage, ATableWhosePropertiesSeemToHaveAHashIndexIsRefused) {
  const TempFolder folder;
  const std::string whole = folder.path() + "/whole";
  const std::string hurt = folder.path() + "/hurt";
  State expected;
  make_store(whole, expected);
  int tables = 0;
  for (const auto& entry : fs::recursive_directory_iterator(whole)) {
    if (entry.path().extension() != ".sst") continue;
    copy_store(whole, hurt);
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    const std::size_t footer = bytes.size() - 53;
    std::uint64_t behind = 0;
    for (std::size_t i = footer + 1, shift = 0;; ++i, shift += 7) {
      behind |= static_cast<std::uint64_t>(bytes[i] & 127) << shift;
      if ((bytes[i] & 128) == 0) break;
    }
    ASSERT_LT(behind, footer);
    ASSERT_EQ(bytes.substr(behind - 9, 4), std::string("\1\0\0\0", 4));
    flip(fs::path(hurt) / fs::relative(entry.path(), whole), 8 * (behind - 6) + 7);
    const absl::Status status = Store::open(hurt, quiet_options()).status();
    EXPECT_EQ(absl::StatusCode::kDataLoss, status.code()) << status;
    EXPECT_THAT(std::string(status.message()),
                testing::HasSubstr(entry.path().filename().string()));
    ++tables;
  }
  EXPECT_GT(tables, 2);
}

TEST(Damage, EverySingleBitFlipIsFoundOrHarmless) {
  const TempFolder folder;
  const std::string whole = folder.path() + "/whole";
  const std::string hurt = folder.path() + "/hurt";
  State expected;
  make_store(whole, expected);
  ASSERT_EQ(40u, expected.records.size());
  std::uint64_t bits = 0;
  std::vector<std::pair<std::string, std::uint64_t>> files;
  for (const auto& entry : fs::recursive_directory_iterator(whole)) {
    // RocksDB's own log is text for people; nothing reads it.
    if (!entry.is_regular_file() || entry.path().filename().string().rfind("LOG", 0) == 0) continue;
    files.emplace_back(fs::relative(entry.path(), whole).string(), 8 * entry.file_size());
    if (!is_options(files.back().first)) bits += files.back().second;
  }
  std::sort(files.begin(), files.end());
  const char* chosen = std::getenv("TURBOQUANT_FLIP_STRIDE");
  const std::uint64_t stride = chosen != nullptr ? std::strtoull(chosen, nullptr, 10)
                                                 : std::max<std::uint64_t>(1, bits / 200);
  const Shard shard = shard_of_environment();
  ASSERT_FALSE(HasFailure());
  std::uint64_t counted = 0;
  std::map<std::string, int> outcomes;
  for (std::size_t index = 0; index < files.size(); ++index) {
    const auto& [name, size] = files[index];
    // Four fifths of the bytes are these two files, which no start reads: a sample of them will do.
    const std::uint64_t step = is_options(name) ? std::max<std::uint64_t>(stride, 9973) : stride;
    const std::uint64_t first = size == 0 ? 0 : 7 * index % std::min(step, size);
    for (std::uint64_t bit = first; bit < size; bit += step) {
      if (counted++ % shard.of != shard.number) continue;
      copy_store(whole, hurt);
      flip(fs::path(hurt) / name, bit);
      SCOPED_TRACE(name + " bit " + std::to_string(bit));
      const auto store = Store::open(hurt, quiet_options());
      if (!store.ok()) {
        ASSERT_FALSE(store.status().message().empty());
        // Found at the start. That it was refused changed nothing: flipped back, all is there.
        ++outcomes["refused"];
        if (outcomes["refused"] % 20 == 1) {
          flip(fs::path(hurt) / name, bit);
          const auto again = Store::open(hurt, quiet_options());
          ASSERT_OK(again);
          State state;
          ASSERT_OK(look(**again, state));
          ASSERT_TRUE(same(expected, state));
        }
        continue;
      }
      State state;
      const absl::Status status = look(**store, state);
      if (!status.ok()) {
        ++outcomes["found by a read"];
        continue;
      }
      ASSERT_TRUE(same(expected, state)) << "a wrong answer";
      ++outcomes["harmless"];
    }
  }
  std::ostringstream text;
  for (const auto& [outcome, n] : outcomes) text << outcome << ' ' << n << "  ";
  std::printf("%llu bits, every %llu, %llu chosen, one in %llu of them: %s\n",
              static_cast<unsigned long long>(bits), static_cast<unsigned long long>(stride),
              static_cast<unsigned long long>(counted), static_cast<unsigned long long>(shard.of),
              text.str().c_str());
  EXPECT_GT(outcomes["refused"], 10);
}

// Changes one value of a closed store, with a correct CRC.
void rewrite(const std::string& folder, storage::Family family, const std::string& key,
             const std::string& value) {
  storage::Database::Config config;
  config.folder = folder;
  auto database = storage::Database::open(config);
  ASSERT_OK(database);
  storage::Batch batch(**database);
  batch.put(family, key, value);
  ASSERT_OK((*database)->write(batch));
  ASSERT_OK((*database)->sync());
}

TEST(Damage, OtherFormatsAndFingerprintsAreRefusedWithASentence) {
  const TempFolder folder;
  const std::string whole = folder.path() + "/whole";
  const std::string other = folder.path() + "/other";
  State expected;
  make_store(whole, expected);
  storage::CollectionRecord record;
  {
    storage::Database::Config config;
    config.folder = whole;
    const auto database = storage::Database::open(config);
    ASSERT_OK(database);
    const auto bytes = (*database)->get(storage::kMeta, "c/c");
    ASSERT_OK(bytes);
    ASSERT_TRUE(storage::decode_collection(**bytes, record));
  }
  const auto refusal = [&](const std::string& key, const std::string& value) {
    copy_store(whole, other);
    rewrite(other, storage::kMeta, key, value);
    return Store::open(other, quiet_options()).status();
  };
  storage::CollectionRecord changed = record;
  changed.fingerprint ^= 1;
  absl::Status status = refusal("c/c", storage::encode_collection(changed));
  EXPECT_EQ("WRONG_FINGERPRINT", error_reason(status));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("export"));
  changed = record;
  changed.options.seed = *record.options.seed + 1;
  EXPECT_EQ("WRONG_FINGERPRINT", error_reason(refusal("c/c", storage::encode_collection(changed))));
  changed = record;
  changed.version = storage::kPackedVersion + 1;
  status = refusal("c/c", storage::encode_collection(changed));
  EXPECT_EQ("UNKNOWN_FORMAT", error_reason(status));
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("version 3"));
  std::string version;
  storage::put(version, std::uint32_t{9});
  status = refusal("format", version);
  EXPECT_EQ("UNKNOWN_FORMAT", error_reason(status));
  EXPECT_EQ("DAMAGED",
            error_reason(refusal("c/c", storage::encode_collection(record).substr(0, 30))));
  EXPECT_EQ("DAMAGED", error_reason(refusal("a/alias", "no collection")));
}

TEST(Damage, MissingFilesAreNoticed) {
  const TempFolder folder;
  const std::string whole = folder.path() + "/whole";
  const std::string hurt = folder.path() + "/hurt";
  State expected;
  make_store(whole, expected);
  int refused = 0;
  for (const auto& entry : fs::recursive_directory_iterator(whole)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.rfind("LOG", 0) == 0) continue;
    copy_store(whole, hurt);
    fs::remove(fs::path(hurt) / fs::relative(entry.path(), whole));
    const auto store = Store::open(hurt, quiet_options());
    if (!store.ok()) {
      ++refused;
      continue;
    }
    State state;
    const absl::Status status = look(**store, state);
    EXPECT_TRUE(!status.ok() || same(expected, state)) << name;
  }
  EXPECT_GT(refused, 3);
  copy_store(whole, hurt);
  fs::remove_all(hurt + "/db-00000001");
  EXPECT_EQ("DAMAGED", error_reason(Store::open(hurt, quiet_options()).status()));
}

// The end of the log that a power loss tears off is no damage, as long as nothing acknowledged as
// synced was in it.
TEST(Damage, ATornEndOfTheLogIsCutOff) {
  const TempFolder folder;
  State expected;
  make_store(folder.path(), expected);
  {
    auto store = Store::open(folder.path(), quiet_options());
    ASSERT_OK(store);
  }
  fs::path log;
  for (const auto& entry : fs::directory_iterator(folder.path() + "/db-00000001")) {
    if (entry.path().extension() == ".log" && (log.empty() || entry.path() > log))
      log = entry.path();
  }
  ASSERT_FALSE(log.empty());
  std::ofstream(log, std::ios::app | std::ios::binary) << "torn garbage that is no record";
  State state;
  auto store = Store::open(folder.path(), quiet_options());
  ASSERT_OK(store);
  ASSERT_OK(look(**store, state));
  EXPECT_TRUE(same(expected, state));
}

}  // namespace
}  // namespace turboquant::test
