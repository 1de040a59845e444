// Who may do what. Tokens are kept as SHA-256 digests in a text file, a line each:
//
//   # name  role   sha256 of the token (64 hexadecimal digits)  collections  requests a second
//   app     write  9f86d0...                                    words,texts  200
//   ops     admin  60303a...                                    *            0
//
// role: read, write (includes read) or admin (includes both). collections: names, separated by
// commas, or * for all and for what concerns the whole server. Rate 0: no limit. `#` starts a
// comment. Tokens are random and long, so one round of SHA-256 keeps them.
#pragma once

#include <absl/status/status.h>
#include <absl/status/statusor.h>
#include <absl/time/time.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace turboquant::service {

enum class Role : std::uint8_t { kRead, kWrite, kAdmin };

/// Requests a second, with bursts of one second's worth.
class RateLimit {
 public:
  explicit RateLimit(double per_second) : per_second_(per_second), tokens_(per_second) {}
  /// Zero when the request may go on, else after how long to try again.
  absl::Duration take(absl::Time now);

 private:
  const double per_second_;  // 0: no limit
  std::mutex mutex_;
  double tokens_;
  absl::Time last_ = absl::InfinitePast();
};

struct Caller {
  std::string name = "anonymous";
  Role role = Role::kAdmin;
  bool all_collections = true;
  std::vector<std::string> collections;  ///< unless all_collections
  std::shared_ptr<RateLimit> rate;       ///< null: no limit

  bool may_use(std::string_view collection) const;
};

class Authenticator {
 public:
  /// An empty path: no tokens, every caller is admin.
  static absl::StatusOr<std::unique_ptr<Authenticator>> create(const std::string& token_file);

  /// authorization: the value of that header, "Bearer TOKEN", or empty. UNAUTHENTICATED (BAD_TOKEN)
  /// unless one of the tokens is it. Takes the same time whichever it is.
  absl::StatusOr<std::shared_ptr<const Caller>> authenticate(std::string_view authorization) const;

  /// Reads the file again if it changed. On an error the tokens stay as they were. Rates start
  /// anew.
  absl::Status reload();
  std::size_t size() const;

 private:
  using Digest = std::array<unsigned char, 32>;
  struct Entry {
    Digest digest;
    std::shared_ptr<const Caller> caller;
  };
  using Entries = std::vector<Entry>;

  static absl::StatusOr<Entries> parse(const std::string& path, const std::string& text);
  std::shared_ptr<const Entries> entries() const;

  std::string path_;
  mutable std::mutex mutex_;
  std::shared_ptr<const Entries> entries_;  // null: no authentication
  std::string text_;
};

/// A new random token, printable.
std::string make_token();
/// Its SHA-256 as hexadecimal digits.
std::string hash_token(std::string_view token);

}  // namespace turboquant::service
