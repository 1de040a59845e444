// The factory by placeholder: TurboQuant names become scalar quantizers that the description does
// not use, FAISS parses and builds, and their indexes are then replaced by ours. FAISS's grammar is
// thus never repeated here.
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/index_factory.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "index/checks.h"
#include "index/glue.h"
#include "index/index_tree.h"
#include "index/refining.h"
#include "index/selecting_id_map.h"
#include "turboquant/faiss_io.h"
#include "turboquant/index_ivf_turboquant.h"
#include "turboquant/index_two_level.h"

namespace turboquant {
namespace {

using ScalarType = faiss::ScalarQuantizer::QuantizerType;

struct Placeholder {
  const char* name;
  ScalarType type;
};

constexpr std::array<Placeholder, 4> kPlaceholders = {{
    {"SQfp16", ScalarType::QT_fp16},
    {"SQ8", ScalarType::QT_8bit},
    {"SQ6", ScalarType::QT_6bit},
    {"SQ4", ScalarType::QT_4bit},
}};

// Of codes of residuals, which must not turn like those that left them over.
constexpr std::uint64_t kResidualSeed = 0x526573696475616c;

struct Substitution {
  std::string name;  // TQ3, or +TQ3 of residuals
  IndexOptions options;
  int first_bits = 0;  // of a two-level index
  Placeholder placeholder;
};

struct Rewritten {
  std::string text;
  std::vector<Substitution> substitutions;
};

const Substitution& substitution_for(const std::string& name, const std::string& description,
                                     std::vector<Substitution>& known) {
  for (const Substitution& s : known) {
    if (s.name == name) return s;
  }
  for (const Placeholder& p : kPlaceholders) {
    bool used = description.find(p.name) != std::string::npos;
    for (const Substitution& s : known) used = used || s.placeholder.type == p.type;
    if (!used) {
      int first_bits = 0;
      const bool residual = name[0] == '+';
      IndexOptions options = parse_two_level_name(name.substr(residual ? 1 : 0), &first_bits);
      if (residual) {
        if (first_bits > 0) fail(name + ": codes of residuals have one level");
        options.residual = true;
        options.seed = kResidualSeed;
      }
      known.push_back({name, options, first_bits, p});
      return known.back();
    }
  }
  fail("\"" + description + "\" has more different TurboQuant and SQ names than FAISS can parse");
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Perhaps a +, TQ, a digit, then digits and small letters: ours, if only to say what is wrong with
// it.
bool looks_like_ours(const std::string& word) {
  const auto rest = [](char c) { return is_digit(c) || (c >= 'a' && c <= 'z'); };
  const std::size_t at = word.compare(0, 1, "+") == 0 ? 1 : 0;
  return word.size() >= at + 3 && word.compare(at, 2, "TQ") == 0 && is_digit(word[at + 2]) &&
         std::all_of(word.begin() + static_cast<std::ptrdiff_t>(at) + 3, word.end(), rest);
}

// Whether "Refine(" stands before `at` and ")" at `end`.
bool is_refining(const std::string& text, std::size_t at, std::size_t end) {
  const std::string opening = "Refine(";
  return at >= opening.size() && end < text.size() && text[end] == ')' &&
         text.compare(at - opening.size(), opening.size(), opening) == 0;
}

// Names stand between separators of FAISS's grammar: "IVF16(TQ3),Flat", "HNSW32_TQ4".
Rewritten rewrite(const std::string& description) {
  Rewritten result;
  for (std::size_t at = 0; at <= description.size();) {
    const std::size_t end = std::min(description.find_first_of(",()_", at), description.size());
    const std::string word = description.substr(at, end - at);
    const bool ours = looks_like_ours(word);
    if (ours && word[0] == '+' && !is_refining(description, at, end)) {
      fail("\"" + description + "\": " + word + " can only stand in Refine(" + word + ")");
    }
    result.text +=
        ours ? substitution_for(word, description, result.substitutions).placeholder.name : word;
    if (end < description.size()) result.text += description[end];
    at = end + 1;
  }
  return result;
}

const Substitution* find_type(const std::vector<Substitution>& all, ScalarType type) {
  for (const Substitution& s : all) {
    if (s.placeholder.type == type) return &s;
  }
  return nullptr;
}

std::unique_ptr<faiss::Index> replace_ivf(faiss::IndexIVFScalarQuantizer& old,
                                          const IndexOptions& options) {
  auto ivf = std::make_unique<IndexIVFTurboQuant>(old.quantizer, static_cast<std::size_t>(old.d),
                                                  old.nlist, options, old.metric_type);
  ivf->own_fields = std::exchange(old.own_fields, false);
  ivf->quantizer_trains_alone = old.quantizer_trains_alone;
  ivf->cp = old.cp;
  ivf->clustering_index = old.clustering_index;
  if (old.invlists == nullptr) ivf->replace_invlists(nullptr);
  return ivf;
}

bool is_graph(const faiss::Index* index) {
  return dynamic_cast<const faiss::IndexHNSW*>(index) != nullptr ||
         dynamic_cast<const faiss::IndexNSG*>(index) != nullptr ||
         dynamic_cast<const faiss::IndexNNDescent*>(index) != nullptr;
}

// What a wrapper is once all inside it is in place.
std::unique_ptr<faiss::Index> finish(std::unique_ptr<faiss::Index> index) {
  update_is_trained(index.get());
  return with_refining(with_selectors(std::move(index)));
}

// What FAISS parsed as a refinement of maps of ids and transforms becomes maps and transforms of a
// refinement: residuals are of what the codes get to see. `refine` owns what is inside.
std::unique_ptr<faiss::Index> move_inside(std::unique_ptr<faiss::Index> index,
                                          faiss::IndexRefine& refine) {
  faiss::Index* wrapper = refine.base_index;
  const bool moves = dynamic_cast<faiss::IndexIDMap*>(wrapper) != nullptr ||
                     dynamic_cast<faiss::IndexPreTransform*>(wrapper) != nullptr;
  if (!moves) return finish(std::move(index));
  std::unique_ptr<faiss::Index> outer(std::exchange(refine.base_index, nullptr));
  faiss::Index** slot = children(wrapper)[0];
  refine.base_index = std::exchange(*slot, nullptr);
  refine.d = refine.base_index->d;
  const IndexOptions options = static_cast<IndexTurboQuant&>(*refine.refine_index).options();
  delete std::exchange(refine.refine_index, nullptr);
  refine.refine_index = new IndexTurboQuant(refine.d, options, refine.metric_type);
  *slot = move_inside(std::move(index), refine).release();
  update_is_trained(outer.get());
  return outer;
}

// Replaces the placeholders in a tree. Takes the tree, returns what stands in its place.
std::unique_ptr<faiss::Index> substitute(std::unique_ptr<faiss::Index> index,
                                         const std::vector<Substitution>& all) {
  for (faiss::Index** slot : children(index.get())) {
    std::unique_ptr<faiss::Index> child(std::exchange(*slot, nullptr));
    *slot = substitute(std::move(child), all).release();
    if (is_graph(index.get()) && dynamic_cast<IndexTwoLevel*>(*slot) != nullptr) {
      fail("a two-level index cannot be the storage of a graph");
    }
  }
  if (auto* flat = dynamic_cast<faiss::IndexScalarQuantizer*>(index.get())) {
    if (const auto* s = find_type(all, flat->sq.qtype)) {
      if (s->first_bits > 0) {
        return std::make_unique<IndexTwoLevel>(flat->d, s->options, s->first_bits,
                                               flat->metric_type);
      }
      return std::make_unique<IndexTurboQuant>(flat->d, s->options, flat->metric_type);
    }
  }
  if (auto* ivf = dynamic_cast<faiss::IndexIVFScalarQuantizer*>(index.get())) {
    if (const auto* s = find_type(all, ivf->sq.qtype)) {
      if (s->first_bits > 0) fail(s->name + " is a flat index and cannot be an inverted file");
      index = replace_ivf(*ivf, s->options);
    }
  }
  auto* refine = dynamic_cast<faiss::IndexRefine*>(index.get());
  if (refine != nullptr && is_residual(refine->refine_index)) {
    return move_inside(std::move(index), *refine);
  }
  return finish(std::move(index));
}

std::string with_names_of_user(std::string message, const std::vector<Substitution>& all) {
  for (const Substitution& s : all) {
    const std::string placeholder = s.placeholder.name;
    for (auto at = message.find(placeholder); at != std::string::npos;
         at = message.find(placeholder, at + s.name.size())) {
      message.replace(at, placeholder.size(), s.name);
    }
  }
  return message;
}

}  // namespace

namespace glue {

std::unique_ptr<faiss::Index> build(const std::string& description, const Factory& faiss_factory) {
  const Rewritten rewritten = rewrite(description);
  if (rewritten.substitutions.empty()) return faiss_factory(description);
  std::unique_ptr<faiss::Index> index;
  try {
    index = faiss_factory(rewritten.text);
  } catch (const faiss::FaissException& error) {
    fail(with_names_of_user(error.msg, rewritten.substitutions));
  }
  return substitute(std::move(index), rewritten.substitutions);
}

}  // namespace glue
}  // namespace turboquant
