/* Compressed key-value cache of a transformer, with attention computed on the codes.
 *
 * Keys and values are rotated, quantized to 1 to 4 bits per coordinate in pages of 64 or 128
 * tokens, and never expanded again: attend() multiplies integers (TurboQuant, arXiv 2504.19874; the
 * mean of each page of keys is taken out first). The first tokens (sinks) and the last ones (tail)
 * stay in half precision.
 *
 *   tq_kv_config config;
 *   tq_kv_config_init(&config);
 *   config.layers = 32; config.query_heads = 32; config.kv_heads = 8;
 *   config.key_dim = config.value_dim = 128;
 *   tq_kv_cache* cache;
 *   tq_kv_create(&config, &cache);
 *   tq_kv_sequence_create(cache, &sequence);
 *   tq_kv_append(cache, layer, sequence, position, n, keys, values);   // after RoPE
 *   tq_kv_attend(cache, &attention);
 *   tq_kv_destroy(cache);
 *
 * Every function returns TQ_KV_OK or a code, and then tq_kv_last_error() says why; a failed call
 * has changed nothing. Null where a pointer is needed is an error, never a crash.
 *
 * Threads: calls on one cache may run at once as long as a sequence that one of them changes
 * (append, truncate, free) is used by that call alone.
 *
 * Arrays are row-major, floats IEEE single precision and finite; above 65,504 in size they are
 * clipped. */
#ifndef TURBOQUANT_KVCACHE_H
#define TURBOQUANT_KVCACHE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum tq_kv_status {
  TQ_KV_OK = 0,
  TQ_KV_INVALID_ARGUMENT = 1, /* an argument is wrong by itself */
  TQ_KV_OUT_OF_RANGE = 2,     /* no such layer, sequence or position; no sequence left */
  TQ_KV_NO_MEMORY = 3,
  TQ_KV_INTERNAL = 4 /* a defect here */
} tq_kv_status;

/* Bits of a side that is not quantized. */
#define TQ_KV_RAW_BITS 16

/* How keys or values of one layer are stored. */
typedef struct tq_kv_side {
  uint32_t bits;     /* 1 to 4, or TQ_KV_RAW_BITS */
  uint32_t outliers; /* channels per head that get one bit more, 0 to head size - 1; bits 1 to 3.
                        Chosen once, by the first page: those with the largest variance. */
  uint32_t centre;   /* 1: keys alone, a mean per page and head is stored beside the codes */
} tq_kv_side;

typedef struct tq_kv_layer {
  tq_kv_side keys;
  tq_kv_side values;
} tq_kv_layer;

/* Geometry and policy, fixed from creation. */
typedef struct tq_kv_config {
  size_t struct_size; /* set by tq_kv_config_init */
  uint32_t layers;
  uint32_t query_heads; /* a multiple of kv_heads */
  uint32_t kv_heads;
  uint32_t key_dim; /* head sizes, 1 to 1,024 */
  uint32_t value_dim;
  uint32_t max_sequences;
  uint32_t page_tokens; /* 64 or 128 */
  uint32_t sink_tokens; /* first tokens of a sequence, in half precision */
  uint32_t tail_tokens; /* last ones; up to page_tokens more wait there until they fill a page */
  uint64_t seed;        /* of the rotation */
  tq_kv_layer layer;    /* of every layer, unless per_layer is set */
  const tq_kv_layer* per_layer; /* [layers], read during tq_kv_create; may be null */
} tq_kv_config;

typedef struct tq_kv_cache tq_kv_cache;

/* 4 bits for keys and values, centred keys, pages of 64, 4 sinks, a tail of 64, one sequence. */
tq_kv_status tq_kv_config_init(tq_kv_config* config);

/* *cache belongs to the caller, who ends it with tq_kv_destroy. */
tq_kv_status tq_kv_create(const tq_kv_config* config, tq_kv_cache** cache);
void tq_kv_destroy(tq_kv_cache* cache); /* null is allowed */

/* ---- Tokens in the memory of a CUDA device ----
 *
 * A cache made here is used by the functions of this header as any other; what differs:
 *   - keys, values, q, out, lse, mask, sinks and scores are arrays in that device's memory,
 *     q aligned to 16 bytes;
 *   - append and attend return before the work is done. They run in the order of the stream they
 * are given; the caller orders different streams of his. tq_kv_append and tq_kv_attend use the
 *     default stream and single precision;
 *   - keys and values are not searched for NaN and infinity;
 *   - heads of keys and values have one size, 64, 128 or 256, both have 2, 3 or 4 bits, no outlier
 *     channels, pages of 64 tokens. Other configurations are refused;
 *   - the memory is taken at once: too little is TQ_KV_NO_MEMORY, and so is an append for which the
 *     pool has no pages left. Neither changes anything;
 *   - calls on one cache wait for one another, and those that change sequences (all but append and
 *     attend) for the device. */
typedef struct tq_kv_device_config {
  size_t struct_size;       /* set by tq_kv_device_config_init */
  int32_t device;           /* CUDA's number */
  uint64_t sequence_tokens; /* most tokens of a sequence, 1 to 2^24 */
  uint64_t pool_tokens; /* room for tokens in pages, of all sequences; 0: as many as all may have */
} tq_kv_device_config;

/* Device 0, 32,768 tokens a sequence. */
tq_kv_status tq_kv_device_config_init(tq_kv_device_config* device);
tq_kv_status tq_kv_create_on_device(const tq_kv_config* config, const tq_kv_device_config* device,
                                    tq_kv_cache** cache);

typedef enum tq_kv_element { TQ_KV_FLOAT = 0, TQ_KV_HALF = 1, TQ_KV_BFLOAT16 = 2 } tq_kv_element;

/* How a call on such a cache is made. */
typedef struct tq_kv_device_call {
  size_t struct_size; /* set by tq_kv_device_call_init */
  void* stream;       /* a cudaStream_t; null is the default stream */
  uint32_t element;   /* tq_kv_element, of keys, values, q and out */
} tq_kv_device_call;

tq_kv_status tq_kv_device_call_init(tq_kv_device_call* call); /* all 0 */

/* Sequences are numbers below max_sequences. A copy shares its pages with the original. */
tq_kv_status tq_kv_sequence_create(tq_kv_cache* cache, uint32_t* sequence);
tq_kv_status tq_kv_sequence_copy(tq_kv_cache* cache, uint32_t from, uint32_t* sequence);
tq_kv_status tq_kv_sequence_truncate(tq_kv_cache* cache, uint32_t sequence, size_t tokens);
tq_kv_status tq_kv_sequence_free(tq_kv_cache* cache, uint32_t sequence);
tq_kv_status tq_kv_sequence_length(const tq_kv_cache* cache, uint32_t layer, uint32_t sequence,
                                   size_t* tokens);

/* Adds n tokens to one layer. position is that of the first of them and must be the layer's length.
 * keys [n][kv_heads][key_dim], values [n][kv_heads][value_dim]; NaN and infinity are refused with
 * the position. One token at a time and all at once give the same bytes. */
tq_kv_status tq_kv_append(tq_kv_cache* cache, uint32_t layer, uint32_t sequence, size_t position,
                          size_t n, const float* keys, const float* values);

/* The last `queries` tokens of each sequence ask. */
typedef struct tq_kv_attention {
  size_t struct_size; /* set by tq_kv_attention_init */
  uint32_t layer;
  uint32_t sequences;
  const uint32_t* sequence; /* [sequences] */
  const uint32_t* queries;  /* [sequences], each 1 to the sequence's length */
  const float* q;           /* [sum of queries][query_heads][key_dim] */
  float* out;               /* [sum of queries][query_heads][value_dim] */
  float* lse;               /* [sum of queries][query_heads], or null: log of the sum of exp(score),
                               -infinity where all tokens are hidden (out is 0 there) */
  float scale;              /* of a score; 0: 1 / sqrt(key_dim) */
  uint32_t causal;          /* 1: a query sees tokens up to its own position */
  uint32_t window;          /* if not 0, only the last `window` of those */
  float softcap;            /* if not 0, scores become softcap * tanh(score / softcap) */
  const float* mask;        /* [sum of queries][mask_stride], added to scores; or null */
  size_t mask_stride;       /* at least the longest sequence */
  const float* sinks;       /* [query_heads]: learned scores that carry no value; or null */
  uint32_t threads;         /* 0: OpenMP's default */
} tq_kv_attention;

tq_kv_status tq_kv_attention_init(tq_kv_attention* attention); /* causal, everything else 0 */
tq_kv_status tq_kv_attend(const tq_kv_cache* cache, const tq_kv_attention* attention);

/* The same on a device. tokens of each of the sequences (all different), behind those they have:
 * keys [sequences][tokens][kv_heads][key_dim], values likewise.
 *
 * Both calls can be captured into a CUDA graph. A replay appends behind what is there then, and
 * attends to all of it. Before replays that append, tq_kv_reserve takes pages for so many tokens
 * more of a sequence; after them tq_kv_refresh waits for the device and learns the new lengths, and
 * is TQ_KV_NO_MEMORY if tokens found no reserved page and were dropped. */
tq_kv_status tq_kv_append_on_device(tq_kv_cache* cache, uint32_t layer, uint32_t sequences,
                                    const uint32_t* sequence, size_t tokens, const void* keys,
                                    const void* values, const tq_kv_device_call* call);
/* q and out of `attention` point to elements of the call's type. */
tq_kv_status tq_kv_attend_on_device(tq_kv_cache* cache, const tq_kv_attention* attention,
                                    const tq_kv_device_call* call);
/* The scores alone, in half precision: scores [sum of queries][query_heads][stride], -infinity
 * where a token is hidden. attention's out and lse are not used. */
tq_kv_status tq_kv_scores_on_device(tq_kv_cache* cache, const tq_kv_attention* attention,
                                    uint16_t* scores, size_t stride, const tq_kv_device_call* call);
tq_kv_status tq_kv_reserve(tq_kv_cache* cache, uint32_t sequence, size_t tokens);
tq_kv_status tq_kv_refresh(tq_kv_cache* cache);

/* What attention sees, in the host's memory for every cache: keys [length][kv_heads][key_dim],
 * values [length][kv_heads][value_dim]. */
tq_kv_status tq_kv_dequantize(const tq_kv_cache* cache, uint32_t layer, uint32_t sequence,
                              float* keys, float* values);

typedef struct tq_kv_memory {
  size_t allocated; /* bytes of pages and raw tokens, as allocated now; shared pages once. On a
                       device: of all that the cache took there */
  size_t half;      /* bytes of the same tokens in half precision */
} tq_kv_memory;

tq_kv_status tq_kv_get_memory(const tq_kv_cache* cache, tq_kv_memory* memory);

/* A sequence as bytes. Writes at most `capacity` bytes; *needed is set in any case, and too small a
 * capacity is TQ_KV_OUT_OF_RANGE. Restoring needs a cache of the same configuration. */
tq_kv_status tq_kv_sequence_save(const tq_kv_cache* cache, uint32_t sequence, void* bytes,
                                 size_t capacity, size_t* needed);
/* The same with the codes at about their entropy: at 4 bits some 5% fewer bytes, more time.
 * Restoring takes both forms; a library from before packing refuses these bytes. */
tq_kv_status tq_kv_sequence_save_packed(const tq_kv_cache* cache, uint32_t sequence, void* bytes,
                                        size_t capacity, size_t* needed);
tq_kv_status tq_kv_sequence_restore(tq_kv_cache* cache, const void* bytes, size_t n,
                                    uint32_t* sequence);

/* A sentence about this thread's last call that failed; empty if none has. Valid until its next. */
const char* tq_kv_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
