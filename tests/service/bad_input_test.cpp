// Bad requests of every method: each gets its code, a stable reason and a sentence, the server
// stays up, and nothing is written.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>
#include <turboquant/v1/admin_service.pb.h>
#include <turboquant/v1/search_service.pb.h>

#include <cmath>
#include <functional>
#include <limits>

#include "service/errors.h"
#include "tests/service/raw_client.h"
#include "tests/service/server_fixture.h"

namespace turboquant::service_test {
namespace {

using absl::StatusCode;

struct Case {
  std::string name;
  std::string path;
  std::string request;  // serialized
  StatusCode code;
  std::string reason;
  std::string token = {};
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

std::string search(const char* method) {
  return absl::StrCat("/turboquant.v1.SearchService/", method);
}
std::string admin(const char* method) {
  return absl::StrCat("/turboquant.v1.AdminService/", method);
}

void set_vector(v1::Vectors* vectors, std::size_t n, float value) {
  for (std::size_t i = 0; i < n; ++i) vectors->add_values(value);
}

v1::Filter nested(int depth) {
  v1::Filter filter;
  v1::Filter* inner = &filter;
  for (int i = 1; i < depth; ++i) inner = inner->mutable_negate();
  inner->mutable_exists()->set_field("n");
  return filter;
}

v1::SearchRequest good_search() {
  v1::SearchRequest request;
  request.set_collection("words");
  request.set_k(3);
  set_vector(request.mutable_queries(), kDimension, 1);
  return request;
}

v1::RangeSearchRequest good_range() {
  v1::RangeSearchRequest request;
  request.set_collection("words");
  set_vector(request.mutable_queries(), kDimension, 1);
  return request;
}

template <class Request>
Request good_write() {
  Request request;
  request.set_collection("words");
  request.mutable_batch()->add_ids()->set_name("x");
  set_vector(request.mutable_batch()->mutable_vectors(), kDimension, 1);
  return request;
}

class BadInput : public ServerTest {
 protected:
  using Cases = std::vector<Case>;

  template <class Request>
  void add(const std::string& name, const std::string& path, Request request, StatusCode code,
           const std::string& reason, const std::function<void(Request&)>& spoil) {
    spoil(request);
    cases_.push_back({name, path, request.SerializeAsString(), code, reason});
  }

  template <class Request>
  void add_vectors(const std::string& path, const Request& good,
                   const std::function<v1::Vectors*(Request&)>& vectors) {
    const auto spoil = [&](const char* name, const std::function<void(v1::Vectors&)>& change) {
      add<Request>(name, path, good, StatusCode::kInvalidArgument, "BAD_VECTOR",
                   [&](Request& r) { change(*vectors(r)); });
    };
    spoil("NaN", [](v1::Vectors& v) { v.set_values(1, kNan); });
    spoil("Inf", [](v1::Vectors& v) { v.set_values(0, kInf); });
    spoil("zero under cosine", [](v1::Vectors& v) {
      v.clear_values();
      set_vector(&v, kDimension, 0);
    });
    spoil("wrong dimension", [](v1::Vectors& v) { v.add_values(1); });
    spoil("empty", [](v1::Vectors& v) { v.clear_values(); });
    spoil("values and data", [](v1::Vectors& v) { v.set_data("1234"); });
    spoil("torn data", [](v1::Vectors& v) {
      v.clear_values();
      v.set_data(std::string(4 * kDimension - 1, 'x'));
    });
    spoil("unknown encoding", [](v1::Vectors& v) {
      v.clear_values();
      v.set_data(std::string(4 * kDimension, 0));
      v.set_encoding(static_cast<v1::VectorEncoding>(9));
    });
    spoil("half NaN", [](v1::Vectors& v) {
      v.clear_values();
      v.set_data(std::string(2 * kDimension, '\x7f'));
      v.set_encoding(v1::VECTOR_ENCODING_F16LE);
    });
  }

  template <class Request>
  void add_filters(const std::string& path, const Request& good) {
    const auto spoil = [&](const char* name, StatusCode code, const char* reason,
                           const std::function<void(v1::Filter&)>& change) {
      add<Request>(name, path, good, code, reason,
                   [&](Request& r) { change(*r.mutable_filter()); });
    };
    const auto bad = StatusCode::kInvalidArgument;
    spoil("filter not set", bad, "BAD_FILTER", [](v1::Filter& f) { f.Clear(); });
    spoil("filter too deep", bad, "BAD_FILTER", [](v1::Filter& f) { f = nested(17); });
    spoil("filter far too deep", bad, "MALFORMED_REQUEST", [](v1::Filter& f) { f = nested(200); });
    spoil("filter of a field that is not declared", StatusCode::kFailedPrecondition,
          "FIELD_NOT_INDEXED", [](v1::Filter& f) { f.mutable_exists()->set_field("nothing"); });
    spoil("filter of another type", bad, "BAD_FILTER", [](v1::Filter& f) {
      f.mutable_equal()->set_field("n");
      f.mutable_equal()->mutable_value()->set_string_value("1");
    });
    spoil("filter without a value", bad, "BAD_FILTER",
          [](v1::Filter& f) { f.mutable_equal()->set_field("n"); });
    spoil("range without bounds", bad, "BAD_FILTER",
          [](v1::Filter& f) { f.mutable_range()->set_field("n"); });
    spoil("too many conditions", bad, "BAD_FILTER", [](v1::Filter& f) {
      for (int i = 0; i < 2000; ++i) {
        f.mutable_any_of()->add_filters()->mutable_exists()->set_field("n");
      }
    });
  }

  template <class Request>
  void add_writes(const std::string& path, const Request& good) {
    const auto spoil = [&](const char* name, const char* reason,
                           const std::function<void(Request&)>& change) {
      add<Request>(name, path, good, StatusCode::kInvalidArgument, reason, change);
    };
    add_vectors<Request>(path, good,
                         [](Request& r) { return r.mutable_batch()->mutable_vectors(); });
    spoil("no ids", "BAD_REQUEST", [](Request& r) { r.mutable_batch()->clear_ids(); });
    spoil("id not set", "BAD_ID", [](Request& r) { r.mutable_batch()->mutable_ids(0)->Clear(); });
    spoil("empty id", "BAD_ID",
          [](Request& r) { r.mutable_batch()->mutable_ids(0)->set_name(""); });
    spoil("id too long", "BAD_ID",
          [](Request& r) { r.mutable_batch()->mutable_ids(0)->set_name(std::string(513, 'x')); });
    spoil("id is no UTF-8", "MALFORMED_REQUEST",
          [](Request& r) { r.mutable_batch()->mutable_ids(0)->set_name("\xff\xfe"); });
    spoil("duplicate ids", "DUPLICATE_ID", [](Request& r) {
      r.mutable_batch()->add_ids()->set_name("x");
      set_vector(r.mutable_batch()->mutable_vectors(), kDimension, 1);
    });
    spoil("fewer vectors than ids", "BAD_VECTOR",
          [](Request& r) { r.mutable_batch()->add_ids()->set_number(1); });
    spoil("too many rows", "TOO_MANY_ROWS", [](Request& r) {
      for (int i = 0; i < 1000; ++i) {
        r.mutable_batch()->add_ids()->set_number(static_cast<std::uint64_t>(i));
      }
    });
    spoil("metadata for no id", "BAD_METADATA", [](Request& r) {
      r.mutable_batch()->add_metadata();
      r.mutable_batch()->add_metadata();
    });
    spoil("metadata without a value", "BAD_METADATA",
          [](Request& r) { (*r.mutable_batch()->add_metadata()->mutable_fields())["n"]; });
    spoil("metadata of another type", "BAD_METADATA", [](Request& r) {
      (*r.mutable_batch()->add_metadata()->mutable_fields())["n"].set_string_value("1");
    });
    spoil("metadata that is infinite", "BAD_METADATA", [](Request& r) {
      (*r.mutable_batch()->add_metadata()->mutable_fields())["w"].set_double_value(kInf);
    });
    spoil("unknown durability", "BAD_OPTION",
          [](Request& r) { r.mutable_options()->set_durability(static_cast<v1::Durability>(77)); });
    spoil("operation id too long", "BAD_OPTION",
          [](Request& r) { r.mutable_options()->set_operation_id(std::string(129, 'x')); });
  }

  template <class Request>
  void add_unknown_collection(const std::string& path, const Request& good) {
    add<Request>("unknown collection", path, good, StatusCode::kNotFound, "COLLECTION_NOT_FOUND",
                 [](Request& r) { r.set_collection("nothing"); });
    add<Request>("name with a slash", path, good, StatusCode::kNotFound, "COLLECTION_NOT_FOUND",
                 [](Request& r) { r.set_collection("../words"); });
  }

  void run() {
    service::ServerOptions options = usual_options();
    options.limits.max_rows = 500;
    options.limits.max_message_bytes = std::uint64_t{1} << 20;
    options.limits.max_results = 2000;
    options.limits.max_k = 1000;
    start(options);
    fill(20, DistanceMetric::kCosine, Originals::kNone);
    const auto before = client().collection("words");
    ASSERT_TRUE(before.ok());
    for (const Case& one : cases_) {
      const RawAnswer answer = raw_call(address_, one.path, one.request, nullptr);
      EXPECT_EQ(service::code_name(answer.code), absl::StatusCodeToString(one.code))
          << one.path << ", " << one.name << ": " << answer.message;
      EXPECT_EQ(answer.reason, one.reason)
          << one.path << ", " << one.name << ": " << answer.message;
      EXPECT_GT(answer.message.size(), 10U) << one.path << ", " << one.name;
    }
    const auto after = client().collection("words");
    ASSERT_TRUE(after.ok());
    EXPECT_EQ(after->records, before->records);
    EXPECT_EQ(after->version, before->version) << "something was written";
    EXPECT_EQ(client().collections()->size(), 1U);
    EXPECT_TRUE(client().search("words", vector(0), {}).ok());
  }

  Cases cases_;
};

TEST_F(BadInput, Search) {
  const std::string path = search("Search");
  using Request = v1::SearchRequest;
  const Request good = good_search();
  add_vectors<Request>(path, good, [](Request& r) { return r.mutable_queries(); });
  add_filters(path, good);
  add_unknown_collection(path, good);
  const auto spoil = [&](const char* name, const char* reason,
                         const std::function<void(Request&)>& change) {
    add<Request>(name, path, good, StatusCode::kInvalidArgument, reason, change);
  };
  spoil("k is 0", "BAD_OPTION", [](Request& r) { r.set_k(0); });
  spoil("k is huge", "BAD_OPTION", [](Request& r) { r.set_k(4'000'000'000U); });
  spoil("oversampling below 1", "BAD_OPTION", [](Request& r) { r.set_oversampling(0.5); });
  spoil("oversampling is NaN", "BAD_OPTION", [](Request& r) { r.set_oversampling(std::nan("")); });
  spoil("too many results", "TOO_MANY_RESULTS", [](Request& r) {
    r.set_k(1000);
    set_vector(r.mutable_queries(), 2 * kDimension, 1);
  });
  spoil("too many queries", "TOO_MANY_ROWS",
        [](Request& r) { set_vector(r.mutable_queries(), 500 * kDimension, 1); });
  add<Request>("no originals to rescore", path, good, StatusCode::kFailedPrecondition,
               "NO_ORIGINALS", [](Request& r) { r.set_rescore(true); });
  add<Request>("no originals to search", path, good, StatusCode::kFailedPrecondition,
               "NO_ORIGINALS", [](Request& r) { r.set_exact(true); });
  cases_.push_back(
      {"no message", path, "\xff\xff\xff", StatusCode::kInvalidArgument, "MALFORMED_REQUEST"});
  cases_.push_back({"too large", path, std::string((1 << 20) + 1, 'x'),
                    StatusCode::kResourceExhausted, "MESSAGE_TOO_LARGE"});
  run();
}

TEST_F(BadInput, RangeSearch) {
  using Request = v1::RangeSearchRequest;
  const std::string path = search("RangeSearch");
  add_vectors<Request>(path, good_range(), [](Request& r) { return r.mutable_queries(); });
  add_filters(path, good_range());
  add_unknown_collection(path, good_range());
  const auto spoil = [&](const char* name, const char* reason,
                         const std::function<void(Request&)>& change) {
    add<Request>(name, path, good_range(), StatusCode::kInvalidArgument, reason, change);
  };
  spoil("radius is NaN", "BAD_OPTION", [](Request& r) { r.set_radius(kNan); });
  spoil("max_hits is huge", "TOO_MANY_RESULTS", [](Request& r) { r.set_max_hits(~0ULL); });
  run();
}

TEST_F(BadInput, Upsert) {
  add_writes(search("Upsert"), good_write<v1::UpsertRequest>());
  add_unknown_collection(search("Upsert"), good_write<v1::UpsertRequest>());
  run();
}

TEST_F(BadInput, Insert) {
  add_writes(search("Insert"), good_write<v1::InsertRequest>());
  add_unknown_collection(search("Insert"), good_write<v1::InsertRequest>());
  run();
}

TEST_F(BadInput, DeleteGetScrollCount) {
  const auto bad = StatusCode::kInvalidArgument;
  v1::DeleteRequest remove;
  remove.set_collection("words");
  cases_.push_back(
      {"neither ids nor filter", search("Delete"), remove.SerializeAsString(), bad, "BAD_REQUEST"});
  add_filters(search("Delete"), remove);
  remove.add_ids()->set_name("x");
  add_unknown_collection(search("Delete"), remove);
  add<v1::DeleteRequest>("ids and filter", search("Delete"), remove, bad, "BAD_REQUEST",
                         [](auto& r) { *r.mutable_filter() = nested(1); });
  add<v1::DeleteRequest>("empty id", search("Delete"), remove, bad, "BAD_ID",
                         [](auto& r) { r.add_ids()->set_name(""); });
  add<v1::DeleteRequest>("too many", search("Delete"), remove, bad, "TOO_MANY_ROWS", [](auto& r) {
    for (std::uint64_t i = 0; i < 500; ++i) r.add_ids()->set_number(i);
  });
  v1::GetRequest get;
  get.set_collection("words");
  get.add_ids()->set_number(1);
  add_unknown_collection(search("Get"), get);
  add<v1::GetRequest>("id not set", search("Get"), get, bad, "BAD_ID",
                      [](auto& r) { r.add_ids(); });
  add<v1::GetRequest>("too many", search("Get"), get, bad, "TOO_MANY_ROWS", [](auto& r) {
    for (std::uint64_t i = 0; i < 500; ++i) r.add_ids()->set_number(i);
  });
  v1::ScrollRequest scroll;
  scroll.set_collection("words");
  add_unknown_collection(search("Scroll"), scroll);
  add_filters(search("Scroll"), scroll);
  add<v1::ScrollRequest>("bad cursor", search("Scroll"), scroll, bad, "BAD_CURSOR",
                         [](auto& r) { r.set_cursor("nonsense"); });
  add<v1::ScrollRequest>("page too large", search("Scroll"), scroll, bad, "TOO_MANY_ROWS",
                         [](auto& r) { r.set_limit(501); });
  v1::CountRequest count;
  count.set_collection("words");
  add_unknown_collection(search("Count"), count);
  add_filters(search("Count"), count);
  run();
}

TEST_F(BadInput, Collections) {
  const auto bad = StatusCode::kInvalidArgument;
  using Create = v1::CreateCollectionRequest;
  Create good;
  good.set_name("new");
  good.mutable_options()->set_dimension(4);
  good.mutable_options()->set_metric(v1::METRIC_L2);
  const std::string create = admin("CreateCollection");
  const auto spoil = [&](const char* name, const char* reason,
                         const std::function<void(Create&)>& change) {
    add<Create>(name, create, good, bad, reason, change);
  };
  spoil("no name", "BAD_NAME", [](Create& r) { r.set_name(""); });
  spoil("path as name", "BAD_NAME", [](Create& r) { r.set_name("../x"); });
  spoil("long name", "BAD_NAME", [](Create& r) { r.set_name(std::string(129, 'x')); });
  spoil("no dimension", "BAD_OPTION", [](Create& r) { r.mutable_options()->set_dimension(0); });
  spoil("huge dimension", "BAD_OPTION", [](Create& r) { r.mutable_options()->set_dimension(~0U); });
  spoil("no metric", "BAD_OPTION", [](Create& r) { r.mutable_options()->clear_metric(); });
  spoil("unknown originals", "BAD_OPTION",
        [](Create& r) { r.mutable_options()->set_originals(static_cast<v1::Originals>(9)); });
  spoil("unknown factory", "BAD_FACTORY",
        [](Create& r) { r.mutable_options()->set_factory("PQ8"); });
  spoil("field without type", "BAD_OPTION",
        [](Create& r) { r.mutable_options()->add_fields()->set_name("x"); });
  spoil("field without name", "BAD_OPTION",
        [](Create& r) { r.mutable_options()->add_fields()->set_type(v1::FIELD_TYPE_BOOL); });
  add<Create>("name taken", create, good, StatusCode::kAlreadyExists, "COLLECTION_EXISTS",
              [](Create& r) { r.set_name("words"); });
  const auto missing = [&](const char* method, auto request) {
    request.set_name("nothing");
    cases_.push_back({"unknown collection", admin(method), request.SerializeAsString(),
                      StatusCode::kNotFound, "COLLECTION_NOT_FOUND"});
  };
  missing("DropCollection", v1::DropCollectionRequest());
  missing("GetCollection", v1::GetCollectionRequest());
  missing("CompactCollection", v1::CompactCollectionRequest());
  v1::SetAliasRequest alias;
  alias.set_alias("a/b");
  alias.set_collection("words");
  cases_.push_back({"bad alias", admin("SetAlias"), alias.SerializeAsString(), bad, "BAD_NAME"});
  alias.set_alias("a");
  alias.set_collection("nothing");
  cases_.push_back({"alias of nothing", admin("SetAlias"), alias.SerializeAsString(),
                    StatusCode::kNotFound, "COLLECTION_NOT_FOUND"});
  v1::DropAliasRequest drop;
  drop.set_alias("a");
  cases_.push_back({"unknown alias", admin("DropAlias"), drop.SerializeAsString(),
                    StatusCode::kNotFound, "ALIAS_NOT_FOUND"});
  run();
}

TEST_F(BadInput, Snapshots) {
  const auto missing = [&](const char* method, auto request) {
    request.set_name("../backup-1");
    cases_.push_back({"unknown snapshot", admin(method), request.SerializeAsString(),
                      StatusCode::kNotFound, "SNAPSHOT_NOT_FOUND"});
  };
  missing("VerifySnapshot", v1::VerifySnapshotRequest());
  missing("DeleteSnapshot", v1::DeleteSnapshotRequest());
  missing("RestoreSnapshot", v1::RestoreSnapshotRequest());
  v1::CreateSnapshotRequest create;
  create.set_kind(static_cast<v1::SnapshotKind>(50));
  cases_.push_back({"unknown kind", admin("CreateSnapshot"), create.SerializeAsString(),
                    StatusCode::kInvalidArgument, "BAD_OPTION"});
  for (const char* method : {"ListCollections", "ListAliases", "ListSnapshots", "VerifyStore"}) {
    cases_.push_back(
        {"no message", admin(method), "\xff", StatusCode::kInvalidArgument, "MALFORMED_REQUEST"});
  }
  cases_.push_back(
      {"no message", search("GetInfo"), "\xff", StatusCode::kInvalidArgument, "MALFORMED_REQUEST"});
  run();
}

TEST_F(BadInput, UnknownMethod) {
  start();
  EXPECT_EQ(raw_call(address_, search("Nothing"), "", nullptr).code,
            static_cast<int>(StatusCode::kUnimplemented));
}

}  // namespace
}  // namespace turboquant::service_test
