#include "service/auth.h"

#include <absl/strings/ascii.h>
#include <absl/strings/escaping.h>
#include <absl/strings/match.h>
#include <absl/strings/numbers.h>
#include <absl/strings/str_cat.h>
#include <absl/strings/str_split.h>
#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <utility>

#include "service/errors.h"

namespace turboquant::service {
namespace {

constexpr std::size_t kMaxToken = 1024;

std::array<unsigned char, 32> sha256(std::string_view text) {
  std::array<unsigned char, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

bool parse_role(const std::string& name, Role& role) {
  if (name != "read" && name != "write" && name != "admin") return false;
  role = name == "read" ? Role::kRead : name == "write" ? Role::kWrite : Role::kAdmin;
  return true;
}

absl::StatusOr<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file.bad() || !file.is_open()) {
    return absl::NotFoundError(absl::StrCat("cannot read the token file ", path));
  }
  return text;
}

}  // namespace

absl::Duration RateLimit::take(absl::Time now) {
  if (per_second_ <= 0) return absl::ZeroDuration();
  const std::lock_guard lock(mutex_);
  const double burst = std::max(per_second_, 1.0);
  if (last_ != absl::InfinitePast()) {
    const double earned = absl::ToDoubleSeconds(now - last_) * per_second_;
    tokens_ = std::min(burst, tokens_ + std::max(earned, 0.0));
  } else {
    tokens_ = burst;
  }
  last_ = now;
  if (tokens_ < 1) return absl::Seconds((1 - tokens_) / per_second_);
  tokens_ -= 1;
  return absl::ZeroDuration();
}

bool Caller::may_use(std::string_view collection) const {
  return all_collections ||
         std::find(collections.begin(), collections.end(), collection) != collections.end();
}

absl::StatusOr<std::unique_ptr<Authenticator>> Authenticator::create(
    const std::string& token_file) {
  auto made = std::make_unique<Authenticator>();
  if (token_file.empty()) return made;
  made->path_ = token_file;
  if (absl::Status status = made->reload(); !status.ok()) return status;
  return made;
}

absl::Status Authenticator::reload() {
  if (path_.empty()) return absl::OkStatus();
  auto text = read_text(path_);
  if (!text.ok()) return text.status();
  {
    const std::lock_guard lock(mutex_);
    if (entries_ != nullptr && text_ == *text) return absl::OkStatus();
  }
  auto parsed = parse(path_, *text);
  if (!parsed.ok()) return parsed.status();
  auto shared = std::make_shared<const Entries>(*std::move(parsed));
  const std::lock_guard lock(mutex_);
  entries_ = std::move(shared);
  text_ = *std::move(text);
  return absl::OkStatus();
}

absl::StatusOr<Authenticator::Entries> Authenticator::parse(const std::string& path,
                                                            const std::string& text) {
  Entries entries;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = line.substr(0, line.find('#'));
    const std::vector<std::string> words =
        absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
    if (words.empty()) continue;
    const auto bad = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", what));
    };
    if (words.size() != 4 && words.size() != 5) {
      return bad("a line has a name, a role, a digest, collections and perhaps a rate");
    }
    auto caller = std::make_shared<Caller>();
    caller->name = words[0];
    if (!parse_role(words[1], caller->role)) return bad("the role is not read, write or admin");
    if (words[2].size() != 64 ||
        words[2].find_first_not_of("0123456789abcdefABCDEF") != std::string::npos) {
      return bad("the digest does not have 64 hexadecimal digits");
    }
    caller->all_collections = words[3] == "*";
    if (!caller->all_collections) {
      caller->collections = absl::StrSplit(words[3], ',', absl::SkipEmpty());
    }
    double rate = 0;
    if (words.size() == 5 &&
        (!absl::SimpleAtod(words[4], &rate) || !std::isfinite(rate) || rate < 0)) {
      return bad("the rate is not a number of requests a second");
    }
    if (rate > 0) caller->rate = std::make_shared<RateLimit>(rate);
    Entry entry;
    const std::string bytes = absl::HexStringToBytes(words[2]);
    std::copy(bytes.begin(), bytes.end(), entry.digest.begin());
    entry.caller = std::move(caller);
    entries.push_back(std::move(entry));
  }
  if (entries.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no tokens"));
  return entries;
}

std::shared_ptr<const Authenticator::Entries> Authenticator::entries() const {
  const std::lock_guard lock(mutex_);
  return entries_;
}

std::size_t Authenticator::size() const {
  const auto list = entries();
  return list == nullptr ? 0 : list->size();
}

absl::StatusOr<std::shared_ptr<const Caller>> Authenticator::authenticate(
    std::string_view authorization) const {
  static const auto anonymous = std::make_shared<const Caller>();
  const auto list = entries();
  if (list == nullptr) return anonymous;
  constexpr std::string_view kBearer = "bearer ";
  const absl::string_view header(authorization.data(), authorization.size());
  std::shared_ptr<const Caller> found;
  if (authorization.size() <= kBearer.size() + kMaxToken &&
      absl::StartsWithIgnoreCase(header, absl::string_view(kBearer.data(), kBearer.size()))) {
    const Digest digest = sha256(authorization.substr(kBearer.size()));
    for (const Entry& entry : *list) {  // all of them, whichever it is
      if (CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) {
        found = entry.caller;
      }
    }
  }
  if (found != nullptr) return found;
  return make_error(absl::StatusCode::kUnauthenticated, "BAD_TOKEN",
                    authorization.empty() ? "no token is given: send `authorization: Bearer TOKEN`"
                                          : "the token is not known to this server");
}

std::string make_token() {
  std::array<unsigned char, 32> bytes{};
  if (RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) != 1) {
    throw std::runtime_error("the system gives no random numbers");
  }
  return absl::WebSafeBase64Escape(
      absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

std::string hash_token(std::string_view token) {
  const auto digest = sha256(token);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace turboquant::service
