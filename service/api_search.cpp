// The methods of SearchService.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/kernel_table.h"
#include "service/api.h"
#include "service/convert.h"
#include "service/errors.h"
#include "service/version.h"

namespace turboquant::service {
namespace {

constexpr std::size_t kScrollDefault = 100;

absl::StatusOr<std::optional<Filter>> optional_filter(bool present, const v1::Filter& filter,
                                                      Call& call) {
  if (!present) return std::optional<Filter>();
  call.filtered = true;
  auto converted = from_proto(filter);
  if (!converted.ok()) return converted.status();
  return std::optional<Filter>(*std::move(converted));
}

template <class Response>
void results_to_proto(const std::vector<Hits>& found, const Parts& parts, Response& response) {
  for (const Hits& hits : found) to_proto(hits, parts, response.add_results());
}

}  // namespace

absl::Status check_query(absl::Span<const float> query, DistanceMetric metric) {
  bool zero = true;
  for (const float x : query) {
    if (!std::isfinite(x)) return invalid("BAD_VECTOR", "the query holds NaN or infinity");
    zero = zero && x == 0;
  }
  if (zero && metric == DistanceMetric::kCosine) {
    return invalid("BAD_VECTOR", "the query is all zero, which has no direction");
  }
  return absl::OkStatus();
}

absl::Status Api::need_collection(Call& call, const std::string& name) const {
  call.collection = name;
  if (call.caller->may_use(name)) return absl::OkStatus();
  return make_error(absl::StatusCode::kPermissionDenied, "SCOPE",
                    absl::StrCat("the token is not for the collection \"", name, "\""));
}

absl::Status Api::need_all_collections(const Call& call) const {
  if (call.caller->all_collections) return absl::OkStatus();
  return make_error(absl::StatusCode::kPermissionDenied, "SCOPE",
                    "the method concerns the whole server, and the token some collections");
}

absl::StatusOr<Api::Target> Api::target(Call& call, const std::string& name) const {
  auto collection = store_.collection(name);
  if (!call.caller->may_use(name)) {
    // An alias may be used by those who may use what it stands for. Whether a name that is out of
    // reach exists is not told.
    const std::string resolved = collection.ok() ? (*collection)->name() : name;
    if (absl::Status status = need_collection(call, resolved); !status.ok()) {
      return need_collection(call, name);
    }
  }
  call.collection = name;
  if (!collection.ok()) return collection.status();
  const CollectionOptions& options = (*collection)->options();
  return Target{*std::move(collection), options.dimension, options.metric};
}

absl::Status Api::check_rows(std::size_t rows) const {
  if (rows <= limits_.max_rows) return absl::OkStatus();
  return invalid("TOO_MANY_ROWS", absl::StrCat(rows, " rows are given, at most ", limits_.max_rows,
                                               " are taken in one request"));
}

absl::StatusOr<SearchOptions> Api::search_options(Call& call, const v1::SearchRequest& request,
                                                  const Target& target, std::size_t queries) const {
  SearchOptions options;
  if (request.k() < 1 || request.k() > limits_.max_k) {
    return invalid("BAD_OPTION",
                   absl::StrCat("k is ", request.k(), ", not between 1 and ", limits_.max_k));
  }
  options.k = request.k();
  if (queries > limits_.max_results / options.k) {
    return invalid("TOO_MANY_RESULTS", absl::StrCat(queries, " queries times k = ", options.k,
                                                    " is more than ", limits_.max_results));
  }
  auto filter = optional_filter(request.has_filter(), request.filter(), call);
  if (!filter.ok()) return filter.status();
  options.filter = *std::move(filter);
  options.parts = from_proto(request.parts());
  if (options.parts.vector &&
      queries * options.k > limits_.max_message_bytes / 4 / target.dimension) {
    return invalid("TOO_MANY_RESULTS", "so many vectors do not fit in one answer");
  }
  options.rescore = request.rescore();
  if (request.has_oversampling()) options.oversampling = request.oversampling();
  if (!(options.oversampling >= 1 &&
        options.oversampling * static_cast<double>(options.k) <= static_cast<double>(kMaxK))) {
    return invalid("BAD_OPTION",
                   absl::StrCat("oversampling is below 1 or k times oversampling above ", kMaxK));
  }
  options.exact = request.exact();
  options.control = call.control();
  return options;
}

bool Api::search(Call& call, const v1::SearchRequest& request, const Done& done, bool may_scan) {
  const auto refuse = [&done](const absl::Status& status) {
    done(status);
    return true;
  };
  auto found_target = target(call, request.collection());
  if (!found_target.ok()) return refuse(found_target.status());
  const Target& to = *found_target;
  std::vector<float> scratch;
  auto vectors = from_proto(request.queries(), to.dimension, scratch);
  if (!vectors.ok()) return refuse(vectors.status());
  const std::size_t queries = vectors->size() / to.dimension;
  call.rows = queries;
  call.k = request.k();
  if (absl::Status status = check_rows(queries); !status.ok()) return refuse(status);
  auto options = search_options(call, request, to, queries);
  if (!options.ok()) return refuse(options.status());

  auto& response = *google::protobuf::Arena::CreateMessage<v1::SearchResponse>(&call.arena);
  const Parts parts = options->parts;
  if (queries > 1 || options->filter) {
    if (!may_scan) return false;
    auto found = to.collection->search(*vectors, *options);
    if (!found.ok()) return refuse(found.status());
    results_to_proto(*found, parts, response);
    done(&response);
    return true;
  }
  if (absl::Status status = check_query(*vectors, to.metric); !status.ok()) return refuse(status);
  MicroBatcher::Query query;
  query.vector.assign(vectors->begin(), vectors->end());
  query.deadline = call.deadline;
  query.cancelled = call.cancelled;
  query.done = [&response, parts, done](absl::StatusOr<std::vector<Hits>> found) {
    if (!found.ok()) return done(found.status());
    results_to_proto(*found, parts, response);
    done(&response);
  };
  options->control = {};
  if (!batcher_.search(to.collection, *options, std::move(query))) {
    done(make_error(absl::StatusCode::kResourceExhausted, "SERVER_BUSY",
                    "too many searches are waiting; try again a little later"));
  }
  return true;
}

absl::Status Api::range_search(Call& call, const v1::RangeSearchRequest& request,
                               v1::RangeSearchResponse& response) {
  auto to = target(call, request.collection());
  if (!to.ok()) return to.status();
  std::vector<float> scratch;
  auto vectors = from_proto(request.queries(), to->dimension, scratch);
  if (!vectors.ok()) return vectors.status();
  call.rows = vectors->size() / to->dimension;
  if (absl::Status status = check_rows(call.rows); !status.ok()) return status;
  RangeOptions options;
  if (!std::isfinite(request.radius())) return invalid("BAD_OPTION", "the radius is not finite");
  options.radius = request.radius();
  if (request.max_hits() > limits_.max_results) {
    return invalid("TOO_MANY_RESULTS", absl::StrCat("max_hits is above ", limits_.max_results));
  }
  options.max_hits = request.max_hits() == 0 ? limits_.max_results : request.max_hits();
  auto filter = optional_filter(request.has_filter(), request.filter(), call);
  if (!filter.ok()) return filter.status();
  options.filter = *std::move(filter);
  options.parts = from_proto(request.parts());
  if (options.parts.vector) {
    options.max_hits =
        std::min<std::size_t>(options.max_hits, limits_.max_message_bytes / 4 / to->dimension);
  }
  options.control = call.control();
  auto found = to->collection->range_search(*vectors, options);
  if (!found.ok()) return found.status();
  results_to_proto(*found, options.parts, response);
  return absl::OkStatus();
}

absl::Status Api::get(Call& call, const v1::GetRequest& request, v1::GetResponse& response) {
  auto to = target(call, request.collection());
  if (!to.ok()) return to.status();
  call.rows = static_cast<std::uint64_t>(request.ids_size());
  if (absl::Status status = check_rows(call.rows); !status.ok()) return status;
  auto ids = from_proto(request.ids());
  if (!ids.ok()) return ids.status();
  const Parts parts = from_proto(request.parts());
  if (parts.vector && ids->size() > limits_.max_message_bytes / 4 / to->dimension) {
    return invalid("TOO_MANY_RESULTS", "so many vectors do not fit in one answer");
  }
  auto records = to->collection->get(*ids, parts);
  if (!records.ok()) return records.status();
  for (std::size_t i = 0; i < records->size(); ++i) {
    if ((*records)[i]) {
      to_proto(*(*records)[i], parts, response.add_records());
    } else {
      to_proto((*ids)[i], response.add_missing());
    }
  }
  return absl::OkStatus();
}

absl::Status Api::scroll(Call& call, const v1::ScrollRequest& request,
                         v1::ScrollResponse& response) {
  auto to = target(call, request.collection());
  if (!to.ok()) return to.status();
  ScrollOptions options;
  options.cursor = request.cursor();
  options.limit = request.limit() == 0 ? kScrollDefault : request.limit();
  call.rows = options.limit;
  if (absl::Status status = check_rows(options.limit); !status.ok()) return status;
  auto filter = optional_filter(request.has_filter(), request.filter(), call);
  if (!filter.ok()) return filter.status();
  options.filter = *std::move(filter);
  if (request.has_parts()) options.parts = from_proto(request.parts());
  if (options.parts.vector) {
    options.limit =
        std::clamp<std::size_t>(limits_.max_message_bytes / 8 / to->dimension, 1, options.limit);
  }
  options.control = call.control();
  auto page = to->collection->scroll(options);
  if (!page.ok()) return page.status();
  for (const Record& record : page->records) {
    to_proto(record, options.parts, response.add_records());
  }
  response.set_cursor(std::move(page->cursor));
  return absl::OkStatus();
}

absl::Status Api::count(Call& call, const v1::CountRequest& request, v1::CountResponse& response) {
  auto to = target(call, request.collection());
  if (!to.ok()) return to.status();
  auto filter = optional_filter(request.has_filter(), request.filter(), call);
  if (!filter.ok()) return filter.status();
  auto count = to->collection->count(*filter);
  if (!count.ok()) return count.status();
  response.set_count(*count);
  return absl::OkStatus();
}

absl::StatusOr<WriteResult> Api::write(Call& call, const std::string& name,
                                       const v1::RecordBatch& batch,
                                       const v1::WriteOptions& options, bool replace) {
  auto to = target(call, name);
  if (!to.ok()) return to.status();
  const auto rows = static_cast<std::size_t>(batch.ids_size());
  call.rows = rows;
  if (rows == 0) return invalid("BAD_REQUEST", "the batch has no ids");
  if (absl::Status status = check_rows(rows); !status.ok()) return status;
  auto write_options = from_proto(options);
  if (!write_options.ok()) return write_options.status();
  RecordBatch records;
  auto ids = from_proto(batch.ids());
  if (!ids.ok()) return ids.status();
  records.ids = *std::move(ids);
  std::vector<float> scratch;
  auto vectors = from_proto(batch.vectors(), to->dimension, scratch);
  if (!vectors.ok()) return vectors.status();
  records.vectors = *vectors;
  if (records.vectors.size() / to->dimension != rows) {
    return invalid("BAD_VECTOR",
                   absl::StrCat(records.vectors.size() / to->dimension, " vectors of dimension ",
                                to->dimension, " for ", rows, " ids"));
  }
  for (const v1::Metadata& metadata : batch.metadata()) {
    auto converted = from_proto(metadata);
    if (!converted.ok()) {
      return invalid("BAD_METADATA", absl::StrCat("row ", records.metadata.size(), ": ",
                                                  converted.status().message()));
    }
    records.metadata.push_back(*std::move(converted));
  }
  if (!records.metadata.empty() && records.metadata.size() != rows) {
    return invalid("BAD_METADATA",
                   absl::StrCat(records.metadata.size(), " metadata for ", rows, " ids"));
  }
  return replace ? to->collection->upsert(records, *write_options)
                 : to->collection->insert(records, *write_options);
}

absl::Status Api::upsert(Call& call, const v1::UpsertRequest& request,
                         v1::UpsertResponse& response) {
  auto result = write(call, request.collection(), request.batch(), request.options(), true);
  if (result.ok()) to_proto(*result, response.mutable_result());
  return result.status();
}

absl::Status Api::insert(Call& call, const v1::InsertRequest& request,
                         v1::InsertResponse& response) {
  auto result = write(call, request.collection(), request.batch(), request.options(), false);
  if (result.ok()) to_proto(*result, response.mutable_result());
  return result.status();
}

absl::Status Api::bulk_add(Call& call, const v1::BulkAddRequest& request,
                           v1::BulkAddResponse& response) {
  response.set_sequence(request.sequence());
  absl::StatusOr<WriteResult> result =
      request.mode() >= 0 && request.mode() <= v1::BULK_MODE_INSERT
          ? write(call, request.collection(), request.batch(), request.options(),
                  request.mode() != v1::BULK_MODE_INSERT)
          : invalid("BAD_OPTION", "mode is not one of UPSERT, INSERT");
  if (result.ok()) {
    to_proto(*result, response.mutable_result());
  } else {
    response.mutable_error()->set_code(static_cast<int>(result.status().code()));
    response.mutable_error()->set_reason(error_reason(result.status()));
    response.mutable_error()->set_message(std::string(result.status().message()));
  }
  return absl::OkStatus();  // the stream goes on
}

absl::Status Api::remove(Call& call, const v1::DeleteRequest& request,
                         v1::DeleteResponse& response) {
  auto to = target(call, request.collection());
  if (!to.ok()) return to.status();
  call.rows = static_cast<std::uint64_t>(request.ids_size());
  if ((request.ids_size() > 0) == request.has_filter()) {
    return invalid("BAD_REQUEST", "give either ids or a filter");
  }
  if (absl::Status status = check_rows(call.rows); !status.ok()) return status;
  auto options = from_proto(request.options());
  if (!options.ok()) return options.status();
  absl::StatusOr<WriteResult> result = WriteResult();
  if (request.has_filter()) {
    call.filtered = true;
    auto filter = from_proto(request.filter());
    if (!filter.ok()) return filter.status();
    result = to->collection->remove_if(*filter, *options);
  } else {
    auto ids = from_proto(request.ids());
    if (!ids.ok()) return ids.status();
    result = to->collection->remove(*ids, *options);
  }
  if (result.ok()) to_proto(*result, response.mutable_result());
  return result.status();
}

absl::Status Api::info(Call&, const v1::GetInfoRequest&, v1::GetInfoResponse& response) {
  response.set_version(kVersion);
  response.set_max_message_bytes(limits_.max_message_bytes);
  response.set_max_rows(limits_.max_rows);
  response.set_max_k(limits_.max_k);
  response.set_max_results(limits_.max_results);
  response.set_max_dimension(limits_.max_dimension);
  response.set_max_collections(limits_.max_collections);
  response.set_memory_limit_bytes(limits_.memory_limit_bytes);
  response.set_backend(kernels::active().name);
  return absl::OkStatus();
}

void Api::add_search_methods(std::vector<Method>& methods) {
  Method searching;
  searching.path = "/turboquant.v1.SearchService/Search";
  searching.request = &v1::SearchRequest::default_instance();
  searching.handle = [this](Call& call, const Message& request, const Done& done) {
    (void)search(call, static_cast<const v1::SearchRequest&>(request), done, true);
  };
  searching.quick = [this](Call& call, const Message& request, const Done& done) {
    return search(call, static_cast<const v1::SearchRequest&>(request), done, false);
  };
  methods.push_back(std::move(searching));
  const auto path = [](const char* name) {
    return absl::StrCat("/turboquant.v1.SearchService/", name);
  };
  const auto read = [&](const char* name, auto handler) {
    methods.push_back(method(path(name).c_str(), Role::kRead, Workers::kCompute, handler));
  };
  const auto write = [&](const char* name, auto handler) {
    methods.push_back(method(path(name).c_str(), Role::kWrite, Workers::kWrites, handler));
  };
  read("RangeSearch", &Api::range_search);
  read("Get", &Api::get);
  read("Scroll", &Api::scroll);
  read("Count", &Api::count);
  write("Upsert", &Api::upsert);
  write("Insert", &Api::insert);
  write("Delete", &Api::remove);
  write("BulkAdd", &Api::bulk_add);
  methods.back().stream = true;
  read("GetInfo", &Api::info);
}

std::vector<Method> Api::methods() {
  std::vector<Method> methods;
  add_search_methods(methods);
  add_admin_methods(methods);
  return methods;
}

}  // namespace turboquant::service
