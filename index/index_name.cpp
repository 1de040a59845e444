// Factory names of what an index stores: TQ3, TQ4cos, TQ3qjlg.
#include <string>

#include "index/checks.h"
#include "turboquant/index_turboquant.h"

namespace turboquant {
namespace {

bool take(std::string& text, const char* suffix) {
  const std::string s(suffix);
  if (text.size() < s.size() || text.compare(text.size() - s.size(), s.size(), s) != 0) {
    return false;
  }
  text.resize(text.size() - s.size());
  return true;
}

}  // namespace

IndexOptions parse_index_name(const std::string& name) {
  IndexOptions options;
  std::string rest = name;
  options.normalize = take(rest, "cos");
  options.centre = take(rest, "c");
  if (take(rest, "mse")) {
    options.estimator = Estimator::kMse;
  } else if (take(rest, "qjlg")) {
    options.estimator = Estimator::kQjl;
    options.projection = Projection::kGaussian;
  } else if (take(rest, "qjl")) {
    options.estimator = Estimator::kQjl;
  } else if (take(rest, "t")) {
    options.estimator = Estimator::kTrellis;
  }
  if (rest.size() != 3 || rest.compare(0, 2, "TQ") != 0 || rest[2] < '1' || rest[2] > '4') {
    fail("\"" + name +
         "\" is no TurboQuant index: expected TQ1, TQ2, TQ3 or TQ4, then nothing, t, qjl, qjlg or "
         "mse, then nothing, c, cos or ccos");
  }
  options.bits = rest[2] - '0';
  return options;
}

std::string index_name(const IndexOptions& options) {
  std::string name = (options.residual ? "+TQ" : "TQ") + std::to_string(options.bits);
  if (options.estimator == Estimator::kTrellis) name += "t";
  if (options.estimator == Estimator::kMse) name += "mse";
  if (options.estimator == Estimator::kQjl) {
    name += options.projection == Projection::kGaussian ? "qjlg" : "qjl";
  }
  if (options.centre) name += "c";
  return options.normalize ? name + "cos" : name;
}

}  // namespace turboquant
