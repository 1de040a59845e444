// The normal distribution.
#pragma once

namespace turboquant {

/// x with P(N(0, 1) < x) = confidence, for confidence above 1/2 and below 1.
double normal_quantile(double confidence);

}  // namespace turboquant
