// Reads. Searches use one view of the rows in memory; what they return beside ids comes from the
// database, which keeps it for as long as a view shows the row.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "index/checks.h"
#include "storage/collection.h"
#include "storage/errors.h"

namespace turboquant::storage {
namespace {

constexpr int kTries = 3;
// Numbers of originals times queries between two looks at a caller's deadline.
constexpr std::uint64_t kScoredBetweenChecks = std::uint64_t{1} << 24;

// Exact scores, in double: eight lanes, so that every processor adds in the same order.
class ExactScorer {
 public:
  ExactScorer(DistanceMetric metric, std::size_t dimension)
      : metric_(metric), dimension_(dimension) {}

  float score(const float* query, const float* x) const {
    if (metric_ == DistanceMetric::kL2) {
      return finite(sum([&](std::size_t i) {
        const double difference = static_cast<double>(query[i]) - x[i];
        return difference * difference;
      }));
    }
    const double product = sum([&](std::size_t i) { return static_cast<double>(query[i]) * x[i]; });
    if (metric_ == DistanceMetric::kInnerProduct) return finite(product);
    const double norms =
        sum([&](std::size_t i) { return static_cast<double>(query[i]) * query[i]; }) *
        sum([&](std::size_t i) { return static_cast<double>(x[i]) * x[i]; });
    return norms > 0 ? finite(product / std::sqrt(norms)) : 0.0F;
  }

 private:
  // Zero without a sign, so that equal scores are equal bits.
  static float finite(double value) {
    constexpr double kMost = std::numeric_limits<float>::max();
    return static_cast<float>(std::clamp(value, -kMost, kMost)) + 0.0F;
  }

  template <class Term>
  double sum(const Term& term) const {
    double lanes[8] = {};
    std::size_t i = 0;
    for (; i + 8 <= dimension_; i += 8) {
      for (std::size_t lane = 0; lane < 8; ++lane) lanes[lane] += term(i + lane);
    }
    for (std::size_t lane = 0; i < dimension_; ++i, ++lane) lanes[lane] += term(i);
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
           ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }

  DistanceMetric metric_;
  std::size_t dimension_;
};

absl::Status no_originals() {
  return make_error(absl::StatusCode::kFailedPrecondition, "NO_ORIGINALS",
                    "this collection keeps no original vectors to score with");
}

absl::Status check_options(const SearchOptions& options, Originals originals) {
  if (options.k < 1 || options.k > kMaxK) {
    return invalid("BAD_OPTION", absl::StrCat("k must be 1 to ", kMaxK, ", not ", options.k));
  }
  if ((options.rescore || options.exact) && originals == Originals::kNone) return no_originals();
  if (options.rescore && !(options.oversampling >= 1 && options.oversampling <= kMaxK)) {
    return invalid("BAD_OPTION", "oversampling must be 1 or more");
  }
  return absl::OkStatus();
}

}  // namespace

std::shared_ptr<const View> CollectionImpl::view() const {
  const std::lock_guard<std::mutex> lock(state_);
  if (!view_) {
    auto view = std::make_shared<View>();
    view->blocks = blocks_;
    view->version = version_;
    view->live_rows = static_cast<std::uint64_t>(totals_.live_rows);
    view_ = std::move(view);
    views_.erase(std::remove_if(views_.begin(), views_.end(),
                                [](const auto& entry) { return entry.second.expired(); }),
                 views_.end());
    views_.emplace_back(version_, view_);
  }
  return view_;
}

CollectionInfo CollectionImpl::info() const {
  CollectionInfo info;
  info.name = name_;
  info.options = record_.options;
  info.code_bytes = quantizer_.code_size();
  BlockTotals totals;
  {
    const std::lock_guard<std::mutex> lock(state_);
    totals = totals_;
    info.version = version_;
  }
  info.records = static_cast<std::uint64_t>(totals.live_rows);
  info.dead_rows = static_cast<std::uint64_t>(totals.dead_rows);
  info.memory_bytes = static_cast<std::uint64_t>(totals.memory_bytes);
  info.block_bytes = static_cast<std::uint64_t>(totals.disk_bytes);
  return info;
}

absl::StatusOr<std::vector<float>> CollectionImpl::prepare_queries(
    absl::Span<const float> queries) const {
  const std::size_t d = dimension();
  if (queries.empty() || queries.size() % d != 0) {
    return invalid("BAD_VECTOR", absl::StrCat("queries must be vectors of ", d, " numbers, not ",
                                              queries.size(), " numbers"));
  }
  const std::size_t n = queries.size() / d;
  if (n > kMaxBatchRows) {
    return invalid("BAD_OPTION", absl::StrCat("more than ", kMaxBatchRows, " queries"));
  }
  std::vector<float> prepared(queries.begin(), queries.end());
  try {
    if (record_.options.metric == DistanceMetric::kCosine) {
      normalize_rows(queries.data(), static_cast<std::int64_t>(n), d, "query", prepared.data());
      for (std::size_t i = 0; i < n; ++i) {
        const float* row = prepared.data() + i * d;
        if (std::all_of(row, row + d, [](float v) { return v == 0; })) {
          return invalid("BAD_VECTOR", absl::StrCat("query ", i, " is zero, which has no cosine"));
        }
      }
    } else {
      require_finite(queries.data(), static_cast<std::int64_t>(n), d, "query");
    }
  } catch (const faiss::FaissException& error) {
    return invalid("BAD_VECTOR", error.what());
  }
  return prepared;
}

absl::StatusOr<std::optional<FilterNode>> CollectionImpl::compile(
    const std::optional<Filter>& filter) const {
  if (!filter) return std::optional<FilterNode>();
  auto node = compile_filter(*filter, fields());
  if (!node.ok()) return node.status();
  return std::optional<FilterNode>(*std::move(node));
}

absl::Status CollectionImpl::read_parts(const Database& database, const View& view,
                                        const std::vector<std::uint64_t>& rows, const Parts& parts,
                                        std::vector<Record*> records) const {
  std::vector<std::string> keys;
  keys.reserve(rows.size());
  for (const std::uint64_t row : rows) keys.push_back(row_key(cid(), row));
  if (parts.metadata) {
    const auto values = database.get_many(kPayload, keys);
    if (!values.ok()) return values.status();
    for (std::size_t i = 0; i < rows.size(); ++i) {
      if ((*values)[i] && !decode_metadata(*(*values)[i], records[i]->metadata)) {
        return damaged("the metadata of a record are damaged");
      }
    }
  }
  if (!parts.vector) return absl::OkStatus();
  for (Record* record : records) record->vector.resize(dimension());
  if (record_.options.originals == Originals::kNone) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Block& block = *view.find(rows[i]);
      quantizer_.dequantize(block.memory->code(static_cast<std::uint32_t>(rows[i] % kBlockRows)), 1,
                            records[i]->vector.data());
    }
    return absl::OkStatus();
  }
  const auto values = database.get_many(kOrig, keys);
  if (!values.ok()) return values.status();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (!(*values)[i] || !decode_original(*(*values)[i], dimension(), record_.options.originals,
                                          records[i]->vector.data())) {
      return damaged("an original vector is missing or damaged");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Hits>> CollectionImpl::make_hits(
    const Database* database, const View& view, std::vector<std::vector<Candidate>> found,
    const Parts& parts, const ReadControl& control) const {
  std::vector<Hits> hits(found.size());
  for (std::size_t q = 0; q < found.size(); ++q) {
    hits[q].resize(found[q].size());
    for (std::size_t i = 0; i < found[q].size(); ++i) {
      hits[q][i].id = id_at(view, found[q][i].position);
      hits[q][i].score = found[q][i].score;
    }
    if (!parts.metadata && !parts.vector) continue;
    TQ_RETURN_IF_ERROR(check_control(control));
    std::vector<std::uint64_t> rows;
    std::vector<Record> records(found[q].size());
    std::vector<Record*> pointers;
    for (std::size_t i = 0; i < found[q].size(); ++i) {
      rows.push_back(row_at(view, found[q][i].position));
      pointers.push_back(&records[i]);
    }
    TQ_RETURN_IF_ERROR(read_parts(*database, view, rows, parts, std::move(pointers)));
    for (std::size_t i = 0; i < records.size(); ++i) {
      hits[q][i].metadata = std::move(records[i].metadata);
      hits[q][i].vector = std::move(records[i].vector);
    }
  }
  return hits;
}

absl::Status CollectionImpl::rescore(const Database& database, const View& view,
                                     absl::Span<const float> queries, std::size_t k,
                                     const ReadControl& control,
                                     std::vector<std::vector<Candidate>>& found) const {
  const ExactScorer scorer(record_.options.metric, dimension());
  const CandidateOrder order(view, scan_metric(record_.options.metric));
  std::vector<float> vector(dimension());
  for (std::size_t q = 0; q < found.size(); ++q) {
    TQ_RETURN_IF_ERROR(check_control(control));
    std::vector<std::string> keys;
    keys.reserve(found[q].size());
    for (const Candidate& candidate : found[q]) {
      keys.push_back(row_key(cid(), row_at(view, candidate.position)));
    }
    const auto values = database.get_many(kOrig, keys);
    if (!values.ok()) return values.status();
    for (std::size_t i = 0; i < found[q].size(); ++i) {
      if (!(*values)[i] ||
          !decode_original(*(*values)[i], dimension(), record_.options.originals, vector.data())) {
        return damaged("an original vector is missing or damaged");
      }
      found[q][i].score = scorer.score(queries.data() + q * dimension(), vector.data());
    }
    std::sort(found[q].begin(), found[q].end(), order);
    if (found[q].size() > k) found[q].resize(k);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<Candidate>>> CollectionImpl::scan_originals(
    const Database& database, const View& view, absl::Span<const float> queries,
    const FilterNode* filter, std::size_t k, const ReadControl& control) const {
  const Metric metric = scan_metric(record_.options.metric);
  const ExactScorer scorer(record_.options.metric, dimension());
  const std::size_t nq = queries.size() / dimension();
  std::vector<BestRows> best(
      nq, BestRows(CandidateOrder(view, metric), metric, std::min<std::size_t>(k, view.live_rows)));
  std::vector<float> vector(dimension());
  std::uint64_t scored = 0;
  RowBits scratch;
  for (std::size_t b = 0; b < view.blocks.size(); ++b) {
    TQ_RETURN_IF_ERROR(check_control(control));
    const Block& block = *view.blocks[b];
    const RowBits* bits = select_rows(block, filter, scratch);
    if (bits != nullptr && bits->none()) continue;
    std::uint32_t seen = 0;
    const std::string first = row_key(cid(), block.first_row());
    const auto visit = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
      ByteReader reader(key.substr(4));
      const auto row = reader.take_ordered<std::uint64_t>();
      if (row >= block.first_row() + block.rows) return false;
      const auto i = static_cast<std::uint32_t>(row - block.first_row());
      if (bits != nullptr && !bits->test(i)) return true;
      if (!decode_original(value, dimension(), record_.options.originals, vector.data())) {
        return damaged("an original vector is damaged");
      }
      ++seen;
      if ((scored += queries.size()) >= kScoredBetweenChecks) {
        scored = 0;
        TQ_RETURN_IF_ERROR(check_control(control));
      }
      for (std::size_t q = 0; q < nq; ++q) {
        best[q].offer({scorer.score(queries.data() + q * dimension(), vector.data()),
                       static_cast<std::uint32_t>(b * kBlockRows + i)});
      }
      return true;
    };
    TQ_RETURN_IF_ERROR(database.each(kOrig, collection_key(cid()), visit, first));
    if (seen != (bits != nullptr ? bits->count() : block.rows)) {
      return damaged("original vectors are missing");
    }
  }
  std::vector<std::vector<Candidate>> found;
  found.reserve(best.size());
  for (BestRows& rows : best) found.push_back(rows.take());
  return found;
}

absl::StatusOr<std::vector<Hits>> CollectionImpl::search(absl::Span<const float> queries,
                                                         const SearchOptions& options) const {
  return guard([&]() -> absl::StatusOr<std::vector<Hits>> {
    TQ_RETURN_IF_ERROR(check_options(options, record_.options.originals));
    const auto prepared = prepare_queries(queries);
    if (!prepared.ok()) return prepared.status();
    const auto filter = compile(options.filter);
    if (!filter.ok()) return filter.status();
    const FilterNode* node = filter->has_value() ? &**filter : nullptr;

    // A search of codes alone needs no database, and no gate that a recovery may hold.
    std::optional<Use> use;
    const Database* database = nullptr;
    if (options.exact || options.rescore || options.parts.metadata || options.parts.vector) {
      use.emplace(*core_);
      TQ_RETURN_IF_ERROR(use->status());
      database = &use->database();
    }
    TQ_RETURN_IF_ERROR(check_alive());
    const std::shared_ptr<const View> view = this->view();
    absl::StatusOr<std::vector<std::vector<Candidate>>> found;
    if (options.exact) {
      found = scan_originals(*database, *view, queries, node, options.k, options.control);
    } else {
      ScanRequest request;
      request.quantizer = &quantizer_;
      request.metric = scan_metric(record_.options.metric);
      request.queries = prepared->data();
      request.nq = queries.size() / dimension();
      request.filter = node;
      request.control = options.control;
      const double wanted = static_cast<double>(options.k) * options.oversampling;
      const std::size_t k =
          options.rescore ? static_cast<std::size_t>(std::min<double>(std::ceil(wanted), kMaxK))
                          : options.k;
      found = scan_top_k(*view, request, k);
    }
    if (!found.ok()) return found.status();
    if (options.rescore && !options.exact) {
      TQ_RETURN_IF_ERROR(rescore(*database, *view, queries, options.k, options.control, *found));
    }
    return make_hits(database, *view, *std::move(found), options.parts, options.control);
  });
}

absl::StatusOr<std::vector<Hits>> CollectionImpl::range_search(absl::Span<const float> queries,
                                                               const RangeOptions& options) const {
  return guard([&]() -> absl::StatusOr<std::vector<Hits>> {
    if (std::isnan(options.radius)) return invalid("BAD_OPTION", "the radius is NaN");
    const auto prepared = prepare_queries(queries);
    if (!prepared.ok()) return prepared.status();
    const auto filter = compile(options.filter);
    if (!filter.ok()) return filter.status();
    std::optional<Use> use;
    const Database* database = nullptr;
    if (options.parts.metadata || options.parts.vector) {
      use.emplace(*core_);
      TQ_RETURN_IF_ERROR(use->status());
      database = &use->database();
    }
    TQ_RETURN_IF_ERROR(check_alive());
    const std::shared_ptr<const View> view = this->view();
    ScanRequest request;
    request.quantizer = &quantizer_;
    request.metric = scan_metric(record_.options.metric);
    request.queries = prepared->data();
    request.nq = queries.size() / dimension();
    request.filter = filter->has_value() ? &**filter : nullptr;
    request.control = options.control;
    auto found = scan_range(*view, request, options.radius, options.max_hits);
    if (!found.ok()) return found.status();
    return make_hits(database, *view, *std::move(found), options.parts, options.control);
  });
}

absl::StatusOr<std::optional<CollectionImpl::Located>> CollectionImpl::locate(
    const Database& database, const RecordId& id, std::shared_ptr<const View> first) const {
  // A write shows in the database before it shows in memory, so a row may be newer than the view.
  // A view that is older than the look-up keeps what the row has in the database from being purged.
  std::shared_ptr<const View> view = std::move(first);
  std::unique_lock<std::mutex> lock(writer_, std::defer_lock);
  for (int attempt = 0; attempt <= kTries; ++attempt) {
    if (attempt == kTries) lock.lock();
    if (attempt > 0) view = this->view();
    const auto rows = rows_of(database, absl::MakeConstSpan(&id, 1));
    if (!rows.ok()) return rows.status();
    if (!rows->front().has_value()) return std::optional<Located>();
    if (view->live(*rows->front())) {
      return std::optional<Located>(Located{std::move(view), *rows->front()});
    }
  }
  return damaged("an id refers to a row that does not exist");
}

absl::StatusOr<std::vector<std::optional<Record>>> CollectionImpl::get(
    absl::Span<const RecordId> ids, const Parts& parts) const {
  return guard([&]() -> absl::StatusOr<std::vector<std::optional<Record>>> {
    if (ids.size() > kMaxBatchRows) {
      return invalid("BAD_OPTION", absl::StrCat("more than ", kMaxBatchRows, " ids"));
    }
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(check_alive());
    const std::shared_ptr<const View> view = this->view();
    const auto rows = rows_of(use.database(), ids);
    if (!rows.ok()) return rows.status();
    std::vector<std::optional<Record>> records(ids.size());
    std::vector<std::uint64_t> in_view;
    std::vector<Record*> pointers;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (!(*rows)[i].has_value()) continue;
      records[i].emplace().id = ids[i];
      if (view->live(*(*rows)[i])) {
        in_view.push_back(*(*rows)[i]);
        pointers.push_back(&*records[i]);
        continue;
      }
      const auto located = locate(use.database(), ids[i], view);
      if (!located.ok()) return located.status();
      if (!located->has_value()) {
        records[i].reset();
        continue;
      }
      TQ_RETURN_IF_ERROR(
          read_parts(use.database(), *(*located)->view, {(*located)->row}, parts, {&*records[i]}));
    }
    TQ_RETURN_IF_ERROR(read_parts(use.database(), *view, in_view, parts, std::move(pointers)));
    return records;
  });
}

absl::StatusOr<ScrollPage> CollectionImpl::scroll(const ScrollOptions& options) const {
  return guard([&]() -> absl::StatusOr<ScrollPage> {
    if (options.limit < 1 || options.limit > kMaxK) {
      return invalid("BAD_OPTION",
                     absl::StrCat("limit must be 1 to ", kMaxK, ", not ", options.limit));
    }
    RecordId after;
    if (!options.cursor.empty() && !parse_id_key(options.cursor, after)) {
      return invalid("BAD_CURSOR", "the cursor is not one that scroll returned");
    }
    const auto filter = compile(options.filter);
    if (!filter.ok()) return filter.status();
    const Use use(*core_);
    TQ_RETURN_IF_ERROR(use.status());
    TQ_RETURN_IF_ERROR(check_alive());
    const std::shared_ptr<const View> view = this->view();
    std::vector<std::optional<RowBits>> selected(view->blocks.size());
    const auto wanted = [&](const View& state, std::uint64_t row) {
      if (!filter->has_value()) return true;
      const Block* block = state.find(row);
      const auto i = static_cast<std::uint32_t>(row % kBlockRows);
      if (&state != view.get()) return block->select(**filter).test(i);
      std::size_t at = 0;  // the bits of a block are made once
      const auto found = std::lower_bound(
          state.blocks.begin(), state.blocks.end(), block->number,
          [](const auto& candidate, std::uint32_t n) { return candidate->number < n; });
      at = static_cast<std::size_t>(found - state.blocks.begin());
      if (!selected[at]) selected[at] = block->select(**filter);
      return selected[at]->test(i);
    };

    ScrollPage page;
    std::vector<std::pair<std::shared_ptr<const View>, std::uint64_t>> places;
    std::uint64_t visited = 0;
    const auto visit = [&](std::string_view key, std::string_view value) -> absl::StatusOr<bool> {
      if (visited++ % kBlockRows == 0) TQ_RETURN_IF_ERROR(check_control(options.control));
      const std::string_view id_bytes = key.substr(4);
      if (id_bytes == options.cursor) return true;
      if (page.records.size() == options.limit) {
        put_id_key(page.cursor, page.records.back().id);
        return false;
      }
      Record record;
      ByteReader reader(value);
      std::uint64_t row = reader.take<std::uint64_t>();
      if (!parse_id_key(id_bytes, record.id) || !reader.at_end()) {
        return damaged("an id record is damaged");
      }
      std::shared_ptr<const View> state = view;
      if (!view->live(row)) {
        const auto located = locate(use.database(), record.id, view);
        if (!located.ok()) return located.status();
        if (!located->has_value()) return true;
        state = (*located)->view;
        row = (*located)->row;
      }
      if (!wanted(*state, row)) return true;
      page.records.push_back(std::move(record));
      places.emplace_back(std::move(state), row);
      return true;
    };
    const std::string prefix = collection_key(cid());
    TQ_RETURN_IF_ERROR(use.database().each(kIds, prefix, visit, prefix + options.cursor));
    if (!options.parts.metadata && !options.parts.vector) return page;
    std::vector<std::uint64_t> rows;
    std::vector<Record*> records;
    for (std::size_t i = 0; i < places.size(); ++i) {
      if (places[i].first != view) {
        TQ_RETURN_IF_ERROR(read_parts(use.database(), *places[i].first, {places[i].second},
                                      options.parts, {&page.records[i]}));
        continue;
      }
      rows.push_back(places[i].second);
      records.push_back(&page.records[i]);
    }
    TQ_RETURN_IF_ERROR(read_parts(use.database(), *view, rows, options.parts, std::move(records)));
    return page;
  });
}

absl::StatusOr<std::uint64_t> CollectionImpl::count(const std::optional<Filter>& filter) const {
  return guard([&]() -> absl::StatusOr<std::uint64_t> {
    const auto node = compile(filter);
    if (!node.ok()) return node.status();
    TQ_RETURN_IF_ERROR(check_alive());
    const std::shared_ptr<const View> view = this->view();
    if (!node->has_value()) return view->live_rows;
    std::uint64_t n = 0;
    for (const auto& block : view->blocks) n += block->select(**node).count();
    return n;
  });
}

}  // namespace turboquant::storage
