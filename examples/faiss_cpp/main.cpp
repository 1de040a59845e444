// An ordinary FAISS program. Linking turboquant::index is what makes "TQ3" a factory string.
#include <faiss/Index.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

int main(int argc, char** argv) {
  const int d = 128, n = 10000, k = 5;
  const char* file = argc > 1 ? argv[1] : "example.faiss";
  std::mt19937 random(42);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(d) * n);
  for (float& value : x) value = normal(random);

  std::unique_ptr<faiss::Index> index(faiss::index_factory(d, "TQ3"));  // no train() needed
  index->add(n, x.data());
  faiss::write_index(index.get(), file);
  std::unique_ptr<faiss::Index> loaded(faiss::read_index(file));

  std::vector<float> distances(k), distances_again(k);
  std::vector<std::int64_t> ids(k), ids_again(k);
  const float* query = x.data() + static_cast<size_t>(d) * 1234;
  index->search(1, query, k, distances.data(), ids.data());
  loaded->search(1, query, k, distances_again.data(), ids_again.data());
  for (int i = 0; i < k; i++) {
    std::printf("id %lld, squared distance %.2f\n", static_cast<long long>(ids[i]), distances[i]);
  }
  return ids[0] == 1234 && ids == ids_again && distances == distances_again ? 0 : 1;
}
