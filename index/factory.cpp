// The factory by placeholder: TurboQuant names become scalar quantizers that the description does
// not use, FAISS parses and builds, and their indexes are then replaced by ours. FAISS's grammar is
// thus never repeated here.
#include <faiss/IndexHNSW.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexNNDescent.h>
#include <faiss/IndexNSG.h>
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

struct Substitution {
  std::string name;  // TQ3
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
      const IndexOptions options = parse_two_level_name(name, &first_bits);
      known.push_back({name, options, first_bits, p});
      return known.back();
    }
  }
  fail("\"" + description + "\" has more different TurboQuant and SQ names than FAISS can parse");
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// TQ, a digit, then digits and small letters: ours, if only to say what is wrong with it.
bool looks_like_ours(const std::string& word) {
  const auto rest = [](char c) { return is_digit(c) || (c >= 'a' && c <= 'z'); };
  return word.size() >= 3 && word.compare(0, 2, "TQ") == 0 && is_digit(word[2]) &&
         std::all_of(word.begin() + 3, word.end(), rest);
}

// Names stand between separators of FAISS's grammar: "IVF16(TQ3),Flat", "HNSW32_TQ4".
Rewritten rewrite(const std::string& description) {
  Rewritten result;
  for (std::size_t at = 0; at <= description.size();) {
    const std::size_t end = std::min(description.find_first_of(",()_", at), description.size());
    const std::string word = description.substr(at, end - at);
    result.text += looks_like_ours(word)
                       ? substitution_for(word, description, result.substitutions).placeholder.name
                       : word;
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
  update_is_trained(index.get());
  return with_refining(with_selectors(std::move(index)));
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
