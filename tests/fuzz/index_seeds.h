// The index files in tests/fuzz/corpus/index_file: seeds of the fuzz target and, because they are
// kept, proof that today's program still reads and writes format 1 (docs/index_format.md).
#pragma once

#include <faiss/IndexFlat.h>
#include <faiss/impl/io.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "index/payload.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_refine_residual.h"
#include "turboquant/index_two_level.h"

namespace turboquant::test {

using SeedFiles = std::map<std::string, std::vector<std::uint8_t>>;

/// n rows of d multiples of 1/128, the same everywhere.
inline std::vector<float> seed_rows(std::size_t n, std::size_t d) {
  std::vector<float> x(n * d);
  std::uint32_t state = 1;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<std::int32_t>(state >> 24) - 128) / 128.0F;
  }
  return x;
}

inline std::vector<std::uint8_t> written(const faiss::Index& index, bool pack = false) {
  faiss::VectorIOWriter writer;
  turboquant::write_index(index, &writer, {pack});
  return writer.data;
}

/// The payload alone, without the carrier around it.
inline std::vector<std::uint8_t> payload_of(const std::vector<std::uint8_t>& file) {
  return {std::search(file.begin(), file.end(), kPayloadMagic, kPayloadMagic + 8), file.end()};
}

/// Of which there is a flat file for each metric.
inline constexpr const char* kFlatSeeds[] = {"TQ1",     "TQ2",    "TQ3",    "TQ4",     "TQ3qjl",
                                             "TQ2qjlg", "TQ3mse", "TQ4cos", "TQ1t",    "TQ2t",
                                             "TQ3t",    "TQ4t",   "TQ3c",   "TQ2tccos"};

inline SeedFiles make_index_seeds() {
  SeedFiles seeds;
  for (const char* name : kFlatSeeds) {
    for (const bool l2 : {false, true}) {
      IndexTurboQuant index(10, parse_index_name(name),
                            l2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT);
      index.add(3, seed_rows(3, 10).data());
      seeds[std::string("flat_") + name + (l2 ? "_l2" : "_ip")] = written(index);
    }
  }
  seeds["flat_empty"] = written(IndexTurboQuant(3, parse_index_name("TQ3"), faiss::METRIC_L2));
  for (const bool sparse : {false, true}) {
    faiss::IndexFlat coarse(4, faiss::METRIC_L2);
    coarse.add(4, seed_rows(4, 4).data());
    IndexIVFTurboQuant index(&coarse, 4, 4, parse_index_name("TQ3"), faiss::METRIC_L2, !sparse);
    index.add(sparse ? 1 : 4, seed_rows(4, 4).data());
    seeds[sparse ? "payload_ivf_sparse" : "payload_ivf_full"] = payload_of(written(index));
  }
  faiss::IndexFlat coarse(4, faiss::METRIC_INNER_PRODUCT);
  coarse.add(4, seed_rows(4, 4).data());
  IndexIVFTurboQuant trellis(&coarse, 4, 4, parse_index_name("TQ2t"), faiss::METRIC_INNER_PRODUCT);
  trellis.add(4, seed_rows(4, 4).data());
  seeds["payload_ivf_trellis"] = payload_of(written(trellis));
  IndexTwoLevel two_level(10, parse_index_name("TQ4"), 2, faiss::METRIC_L2);
  two_level.add(3, seed_rows(3, 10).data());
  seeds["payload_two_level"] = payload_of(written(two_level));
  for (const bool l2 : {false, true}) {
    const auto metric = l2 ? faiss::METRIC_L2 : faiss::METRIC_INNER_PRODUCT;
    const auto refined = index_factory(10, "TQ4,Refine(+TQ3)", metric);
    refined->add(3, seed_rows(3, 10).data());
    const auto& residuals = dynamic_cast<const IndexRefineResidual&>(*refined).residuals();
    seeds[l2 ? "payload_residual_l2" : "payload_residual_ip"] = payload_of(written(residuals));
  }
  return seeds;
}

/// Files of format 2. Their bytes depend on the version of zstd, what they hold does not.
inline SeedFiles make_packed_seeds() {
  SeedFiles seeds;
  for (const char* name : {"TQ1", "TQ2", "TQ3", "TQ4", "TQ3qjl", "TQ2c", "TQ3t"}) {
    IndexTurboQuant index(10, parse_index_name(name), faiss::METRIC_L2);
    index.add(300, seed_rows(300, 10).data());
    seeds[std::string("packed_") + name] = written(index, true);
  }
  IndexTurboQuant few(70, parse_index_name("TQ3"), faiss::METRIC_INNER_PRODUCT);
  few.add(3, seed_rows(3, 70).data());
  seeds["packed_few"] = written(few, true);
  faiss::IndexFlat coarse(4, faiss::METRIC_L2);
  coarse.add(4, seed_rows(4, 4).data());
  for (const bool trellis : {false, true}) {
    IndexIVFTurboQuant index(&coarse, 4, 4, parse_index_name(trellis ? "TQ4t" : "TQ3"),
                             faiss::METRIC_L2, true);
    index.add(200, seed_rows(200, 4).data());
    const char* name = trellis ? "packed_payload_ivf_trellis" : "packed_payload_ivf";
    seeds[name] = payload_of(written(index, true));
  }
  IndexTwoLevel two_level(10, parse_index_name("TQ3"), 1, faiss::METRIC_INNER_PRODUCT);
  two_level.add(100, seed_rows(100, 10).data());
  seeds["packed_payload_two_level"] = payload_of(written(two_level, true));
  return seeds;
}

}  // namespace turboquant::test
