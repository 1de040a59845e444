// Metrics and estimators by the names that Python uses.
#pragma once

#include <faiss/MetricType.h>
#include <nanobind/nanobind.h>

#include <string>

#include "turboquant/index_turboquant.h"

namespace turboquant::python {

/// "ip", "l2" and "cosine", or FAISS's numbers of the first two.
struct MetricName {
  faiss::MetricType metric = faiss::METRIC_L2;
  bool normalize = false;
};
MetricName parse_metric(nanobind::handle metric);
std::string metric_name(faiss::MetricType metric, bool normalize);

/// "tq", "t", "qjl", "qjlg" or "mse".
void parse_estimator(const std::string& name, Estimator& estimator, Projection& projection);
std::string estimator_name(Estimator estimator, Projection projection);

}  // namespace turboquant::python
