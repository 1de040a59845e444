#include "python/src/names.h"

#include <nanobind/stl/string.h>

#include <stdexcept>

namespace turboquant::python {

namespace nb = nanobind;

MetricName parse_metric(nb::handle metric) {
  if (nb::isinstance<nb::int_>(metric)) {
    const int number = nb::cast<int>(metric);
    if (number == faiss::METRIC_INNER_PRODUCT) return {faiss::METRIC_INNER_PRODUCT, false};
    if (number == faiss::METRIC_L2) return {faiss::METRIC_L2, false};
  } else if (nb::isinstance<nb::str>(metric)) {
    const auto name = nb::cast<std::string>(metric);
    if (name == "ip") return {faiss::METRIC_INNER_PRODUCT, false};
    if (name == "l2") return {faiss::METRIC_L2, false};
    if (name == "cosine") return {faiss::METRIC_INNER_PRODUCT, true};
  }
  throw std::invalid_argument("the metric must be \"ip\", \"l2\" or \"cosine\", not " +
                              nb::cast<std::string>(nb::repr(metric)));
}

std::string metric_name(faiss::MetricType metric, bool normalize) {
  if (normalize) return metric == faiss::METRIC_L2 ? "l2 (normalized)" : "cosine";
  return metric == faiss::METRIC_L2 ? "l2" : "ip";
}

void parse_estimator(const std::string& name, Estimator& estimator, Projection& projection) {
  projection = Projection::kOrthogonal;
  if (name == "tq") {
    estimator = Estimator::kTurboQuant;
  } else if (name == "qjl" || name == "qjlg") {
    estimator = Estimator::kQjl;
    if (name == "qjlg") projection = Projection::kGaussian;
  } else if (name == "mse") {
    estimator = Estimator::kMse;
  } else if (name == "t") {
    estimator = Estimator::kTrellis;
  } else {
    throw std::invalid_argument(
        "the estimator must be \"tq\", \"t\", \"qjl\", \"qjlg\" or \"mse\", not \"" + name + "\"");
  }
}

std::string estimator_name(Estimator estimator, Projection projection) {
  if (estimator == Estimator::kMse) return "mse";
  if (estimator == Estimator::kTrellis) return "t";
  if (estimator == Estimator::kTurboQuant) return "tq";
  return projection == Projection::kGaussian ? "qjlg" : "qjl";
}

}  // namespace turboquant::python
