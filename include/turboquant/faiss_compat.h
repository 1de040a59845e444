// What differs between FAISS 1.7.3 and 1.15.0, in one place. Our classes are written once against
// the names below; nothing else in this project tests a FAISS version.
#pragma once

#include <faiss/Index.h>
#include <faiss/index_io.h>

#define TURBOQUANT_FAISS_VERSION \
  (FAISS_VERSION_MAJOR * 10000 + FAISS_VERSION_MINOR * 100 + FAISS_VERSION_PATCH)

#if TURBOQUANT_FAISS_VERSION < 10703
#error "turboquant needs FAISS 1.7.3 or later"
#endif

// 1.7.4: IDSelectorAnd, IDSelectorOr, IDSelectorXOr; IndexIDMap takes search parameters.
#if TURBOQUANT_FAISS_VERSION >= 10704
#define TURBOQUANT_FAISS_HAS_SELECTOR_LOGIC 1
#define TURBOQUANT_FAISS_ID_MAP_SELECTS 1
#endif

// 1.8: IndexIVF has a member by_residual; before, subclasses declare their own. Graphs ask distance
// computers for four distances at a time. IndexRefine takes search parameters.
#if TURBOQUANT_FAISS_VERSION >= 10800
#define TURBOQUANT_FAISS_HAS_REFINE_PARAMETERS 1
#define TURBOQUANT_FAISS_HAS_BY_RESIDUAL 1
#define TURBOQUANT_FAISS_HAS_BATCH_4 1
#endif

// 1.9: write_index takes io_flags.
#if TURBOQUANT_FAISS_VERSION >= 10900
#define TURBOQUANT_FAISS_WRITE_FLAGS_PARAM , int io_flags
#define TURBOQUANT_FAISS_WRITE_FLAGS_ARG , io_flags
#else
#define TURBOQUANT_FAISS_WRITE_FLAGS_PARAM
#define TURBOQUANT_FAISS_WRITE_FLAGS_ARG
#endif

// 1.11: get_InvertedListScanner takes the search parameters. The argument is the default value
// (`= nullptr`) in a declaration, nothing in a definition.
#if TURBOQUANT_FAISS_VERSION >= 11100
#define TURBOQUANT_FAISS_SCANNER_PARAMS(default_value) \
  , const faiss::IVFSearchParameters* /* search parameters */ default_value
#else
#define TURBOQUANT_FAISS_SCANNER_PARAMS(default_value)
#endif

// 1.12: index_factory and IndexIVF take own_invlists; IndexIVF has a virtual decode_vectors.
#if TURBOQUANT_FAISS_VERSION >= 11200
#define TURBOQUANT_FAISS_HAS_DECODE_VECTORS 1
#define TURBOQUANT_FAISS_FACTORY_PARAM , bool own_invlists
#define TURBOQUANT_FAISS_FACTORY_ARG , own_invlists
#else
#define TURBOQUANT_FAISS_FACTORY_PARAM
#define TURBOQUANT_FAISS_FACTORY_ARG
#endif

// 1.14.2: InvertedListScanner::scan_codes asks the selector; before, scanners must.
#if TURBOQUANT_FAISS_VERSION < 11402
#define TURBOQUANT_FAISS_SCANNERS_SELECT 1
#endif

// 1.14: read_index_up returns a unique_ptr.
#if TURBOQUANT_FAISS_VERSION >= 11400
#define TURBOQUANT_FAISS_HAS_READ_INDEX_UP 1
#endif
