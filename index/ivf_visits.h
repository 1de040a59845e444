// The visits of a batch of queries to the lists of an IndexIVFTurboQuant: which rows of which lists
// the queries look at, and the scan of each list for all its visitors at once.
#pragma once

#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "index/ivf_lists.h"
#include "index/ivf_search.h"
#include "quantizer/list_scan.h"
#include "quantizer/prepared_queries.h"

namespace turboquant {

/// A query's visit to a list.
struct IvfVisit {
  std::uint32_t list;   ///< IvfVisits' own number of it
  std::uint32_t query;  ///< of the batch
  std::uint32_t rank;   ///< how many lists of the query come before it
  std::uint32_t rows_end;
};

/// Takes what the visits of one thread find. ScanSink's v counts from `visits` of start.
class VisitSink : public ScanSink {
 public:
  /// What follows are rows from first_row on of one list. ids: null for pairs of list and offset.
  virtual void start(const IvfVisit* visits, std::size_t n, std::int64_t list,
                     const std::int64_t* ids, std::size_t first_row) {
    visits_ = visits;
    n_ = n;
    list_ = list;
    ids_ = ids;
    first_row_ = first_row;
  }
  virtual void finish() = 0;

 protected:
  /// row: as offered.
  std::int64_t label(std::size_t row) const {
    const std::size_t at = first_row_ + row;
    return ids_ != nullptr ? id_at(ids_, at) : pair_of(list_, at);
  }

  const IvfVisit* visits_ = nullptr;
  std::size_t n_ = 0;
  std::int64_t list_ = 0;
  const std::int64_t* ids_ = nullptr;
  std::size_t first_row_ = 0;
};

class IvfVisits {
 public:
  struct Options {
    bool store_pairs = false;
    const faiss::IDSelector* selector = nullptr;
    std::size_t max_codes = 0;  ///< rows that a query may look at; 0 for no limit
    bool whole_lists = false;   ///< the last list of max_codes is not cut short
  };

  /// Both are borrowed.
  IvfVisits(const IndexIVFTurboQuant& index, const Options& options);

  /// Takes the next batch. nearest_first: the nearest lists of all queries come before others.
  /// Throws on lists that the index does not have, and on NaN or infinity in a query.
  void take(const IvfProbes& batch, bool nearest_first);

  /// Threads that scan asks for at most.
  static std::size_t threads();

  /// sink_of(thread), called once for each.
  void scan(const std::function<VisitSink&(std::size_t)>& sink_of);

  void add_to(faiss::IndexIVFStats& stats) const;

  /// Memory that a query of a batch takes here, roughly.
  std::size_t bytes_per_query(std::size_t nprobe) const;

 private:
  // What of one list a search looks at.
  struct ListRows {
    std::int64_t list = 0;
    std::size_t begin = 0, end = 0;  // rows
    bool masked = false;             // then by mask, whose bit 0 is row `begin`
    std::vector<std::uint64_t> mask;

    // How many of the rows below `limit` are looked at.
    std::size_t selected_below(std::size_t limit) const;
  };
  // Rows [begin, end) of one list for the visits [first, last).
  struct Task {
    std::size_t first, last;
    std::size_t begin, end;
  };
  struct Seen {
    std::size_t lists = 0, rows = 0;
  };
  class Worker;

  template <class Put>
  void each_visit(std::size_t q, Seen& seen, const Put& put) const;
  void collect_lists();
  void select(ListRows& rows) const;
  void collect_visits(bool nearest_first);
  void prepare();
  void make_tasks();

  const IndexIVFTurboQuant& index_;
  const Quantizer::Impl& impl_;
  const Metric metric_;
  const Options options_;
  const bool per_list_;  // queries are prepared for each list

  IvfProbes batch_;
  std::vector<std::uint32_t> numbers_;  // of each list of the index: its place in lists_
  std::vector<ListRows> lists_;
  std::vector<IvfVisit> visits_;
  std::vector<Task> tasks_;
  std::unique_ptr<PreparedQueries> prepared_;  // unless per_list_
  std::vector<UnitRotation> rotations_;        // with per_list_
  std::size_t visited_ = 0, compared_ = 0;
};

}  // namespace turboquant
