// Deep copies. FAISS's own Cloner does the parts without TurboQuant indexes and the inverted lists;
// wrappers are copied here, because FAISS 1.7.3 cannot clone IndexRefine or L2norm and turns
// graphs into IndexHNSW, which it cannot write, and 1.15 does not ask subclasses of Cloner about a
// graph's storage.
#include <faiss/IndexHNSW.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/VectorTransform.h>
#include <faiss/clone_index.h>

#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/glue.h"
#include "index/index_tree.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant {
namespace {

class TreeCloner : public faiss::Cloner {
 public:
  faiss::VectorTransform* clone_VectorTransform(const faiss::VectorTransform* step) override {
    if (const auto* s = dynamic_cast<const faiss::NormalizationTransform*>(step)) {
      return new faiss::NormalizationTransform(*s);
    }
    if (const auto* s = dynamic_cast<const faiss::CenteringTransform*>(step)) {
      return new faiss::CenteringTransform(*s);
    }
    return faiss::Cloner::clone_VectorTransform(step);
  }

  faiss::IndexIVF* clone_IndexIVF(const faiss::IndexIVF* ivf) override {
    if (const auto* ours = dynamic_cast<const IndexIVFTurboQuant*>(ivf)) {
      return new IndexIVFTurboQuant(*ours);
    }
    return faiss::Cloner::clone_IndexIVF(ivf);
  }

  faiss::Index* clone_Index(const faiss::Index* index) override {
    if (const auto* flat = dynamic_cast<const IndexTurboQuant*>(index)) {
      return new IndexTurboQuant(*flat);
    }
    if (const auto* two_level = dynamic_cast<const IndexTwoLevel*>(index)) {
      return new IndexTwoLevel(*two_level);
    }
    // FAISS copies the lists and comes back here for the coarse quantizer.
    const bool is_ivf = dynamic_cast<const faiss::IndexIVF*>(index) != nullptr;
    const bool is_graph = dynamic_cast<const faiss::IndexHNSWFlat*>(index) != nullptr;
    if (is_ivf || !(contains_turboquant(*index) || is_graph)) {
      return faiss::Cloner::clone_Index(index);
    }
    return clone_wrapper(*index).release();
  }

 private:
  std::unique_ptr<faiss::Index> clone_wrapper(const faiss::Index& index) {
    std::unique_ptr<faiss::Index> copy = copy_wrapper(index);  // owns nothing yet
    std::vector<std::unique_ptr<faiss::Index>> inside;
    for (faiss::Index** child : children(copy.get())) {
      inside.emplace_back(*child == nullptr ? nullptr : clone_Index(*child));
    }
    std::vector<std::unique_ptr<faiss::VectorTransform>> steps;
    auto* transform = dynamic_cast<faiss::IndexPreTransform*>(copy.get());
    if (transform != nullptr) {
      for (const auto* step : transform->chain) steps.emplace_back(clone_VectorTransform(step));
    }
    if (auto* nsg = dynamic_cast<faiss::IndexNSG*>(copy.get())) {
      auto& graph = nsg->nsg.final_graph;
      if (graph != nullptr) graph = std::make_shared<faiss::nsg::Graph<int>>(*graph);
    }
    // Nothing below throws.
    std::size_t i = 0;
    for (faiss::Index** child : children(copy.get())) *child = inside[i++].release();
    for (i = 0; i < steps.size(); ++i) transform->chain[i] = steps[i].release();
    set_ownership(copy.get(), true);
    return copy;
  }
};

}  // namespace

std::unique_ptr<faiss::Index> glue::clone(const faiss::Index& index) {
  return std::unique_ptr<faiss::Index>(TreeCloner().clone_Index(&index));
}

}  // namespace turboquant
