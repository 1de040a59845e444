/* A C program over the C API: the common path, and misuse, which gives a code and a sentence. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "turboquant/kvcache.h"

static int failures = 0;

#define EXPECT(condition)                                                                         \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      printf("line %d: %s is false; last error: %s\n", __LINE__, #condition, tq_kv_last_error()); \
      ++failures;                                                                                 \
    }                                                                                             \
  } while (0)

#define EXPECT_ERROR(call, code)             \
  do {                                       \
    EXPECT((call) == (code));                \
    EXPECT(strlen(tq_kv_last_error()) > 10); \
  } while (0)

enum { kHeads = 2, kQueryHeads = 4, kDim = 64, kTokens = 200 };

static float keys[kTokens * kHeads * kDim];
static float values[kTokens * kHeads * kDim];
static float q[kQueryHeads * kDim];
static float out[kQueryHeads * kDim];
static float again[kQueryHeads * kDim];
static float lse[kQueryHeads];

static void common_path(void) {
  tq_kv_config config;
  tq_kv_cache* cache = NULL;
  tq_kv_attention attention;
  tq_kv_memory memory;
  uint32_t sequence = 9, copy = 9, restored = 9, one = 1;
  size_t length = 0, needed = 0, i;
  void* bytes;
  EXPECT(tq_kv_config_init(&config) == TQ_KV_OK);
  config.layers = 2;
  config.query_heads = kQueryHeads;
  config.kv_heads = kHeads;
  config.key_dim = config.value_dim = kDim;
  config.max_sequences = 3;
  EXPECT(tq_kv_create(&config, &cache) == TQ_KV_OK);
  EXPECT(tq_kv_sequence_create(cache, &sequence) == TQ_KV_OK);
  for (i = 0; i < 2; ++i) {
    EXPECT(tq_kv_append(cache, (uint32_t)i, sequence, 0, kTokens, keys, values) == TQ_KV_OK);
  }
  EXPECT(tq_kv_attention_init(&attention) == TQ_KV_OK);
  attention.layer = 1;
  attention.sequences = 1;
  attention.sequence = &sequence;
  attention.queries = &one;
  attention.q = q;
  attention.out = out;
  attention.lse = lse;
  EXPECT(tq_kv_attend(cache, &attention) == TQ_KV_OK);
  EXPECT(isfinite(lse[0]) && out[0] != 0);
  EXPECT(tq_kv_sequence_copy(cache, sequence, &copy) == TQ_KV_OK);
  EXPECT(tq_kv_sequence_length(cache, 1, copy, &length) == TQ_KV_OK && length == kTokens);
  EXPECT_ERROR(tq_kv_sequence_save(cache, copy, NULL, 0, &needed), TQ_KV_OUT_OF_RANGE);
  bytes = malloc(needed);
  EXPECT(tq_kv_sequence_save(cache, copy, bytes, needed, &needed) == TQ_KV_OK);
  EXPECT(tq_kv_sequence_restore(cache, bytes, needed, &restored) == TQ_KV_OK);
  free(bytes);
  attention.sequence = &restored;
  attention.out = again;
  EXPECT(tq_kv_attend(cache, &attention) == TQ_KV_OK);
  EXPECT(memcmp(out, again, sizeof out) == 0);
  EXPECT(tq_kv_get_memory(cache, &memory) == TQ_KV_OK && memory.allocated > 0 && memory.half > 0);
  EXPECT(tq_kv_sequence_truncate(cache, restored, 10) == TQ_KV_OK);
  EXPECT(tq_kv_sequence_free(cache, restored) == TQ_KV_OK);
  EXPECT_ERROR(tq_kv_sequence_free(cache, restored), TQ_KV_OUT_OF_RANGE);

  EXPECT_ERROR(tq_kv_append(cache, 0, sequence, 3, 1, keys, values), TQ_KV_INVALID_ARGUMENT);
  EXPECT_ERROR(tq_kv_append(cache, 0, sequence, kTokens, 1, NULL, values), TQ_KV_INVALID_ARGUMENT);
  EXPECT_ERROR(tq_kv_append(cache, 7, sequence, 0, 1, keys, values), TQ_KV_OUT_OF_RANGE);
  EXPECT_ERROR(tq_kv_append(NULL, 0, sequence, 0, 1, keys, values), TQ_KV_INVALID_ARGUMENT);
  attention.q = NULL;
  EXPECT_ERROR(tq_kv_attend(cache, &attention), TQ_KV_INVALID_ARGUMENT);
  /* The structure of a header that this library does not know, older or newer. */
  attention.q = q;
  attention.struct_size = 3;
  EXPECT_ERROR(tq_kv_attend(cache, &attention), TQ_KV_INVALID_ARGUMENT);
  EXPECT(strstr(tq_kv_last_error(), "version") != NULL);
  attention.struct_size = sizeof attention + sizeof(void*);
  EXPECT_ERROR(tq_kv_attend(cache, &attention), TQ_KV_INVALID_ARGUMENT);
  EXPECT(strstr(tq_kv_last_error(), "version") != NULL);
  attention.struct_size = sizeof attention; /* now it is looked at: its sequence was freed above */
  EXPECT_ERROR(tq_kv_attend(cache, &attention), TQ_KV_OUT_OF_RANGE);
  tq_kv_destroy(cache);
  tq_kv_destroy(NULL);
}

static void refused_configurations(void) {
  tq_kv_config good, config;
  tq_kv_cache* cache = NULL;
  EXPECT(tq_kv_config_init(&good) == TQ_KV_OK);
  good.layers = 1;
  good.query_heads = good.kv_heads = 1;
  good.key_dim = good.value_dim = 64;
#define EXPECT_REFUSED(change)                                           \
  do {                                                                   \
    config = good;                                                       \
    change;                                                              \
    EXPECT_ERROR(tq_kv_create(&config, &cache), TQ_KV_INVALID_ARGUMENT); \
  } while (0)
  EXPECT_REFUSED(config.layer.keys.bits = 7);
  EXPECT_REFUSED(config.layer.keys.bits = 4000000000u);
  EXPECT_REFUSED(config.layer.values.centre = 1);
  EXPECT_REFUSED(config.layer.values.centre = 2);
  EXPECT_REFUSED(config.layers = 0);
  EXPECT_REFUSED(config.kv_heads = 3);
  EXPECT_REFUSED(config.struct_size = 0);
  EXPECT_REFUSED(config.struct_size = sizeof config - sizeof(void*));
  EXPECT_REFUSED(config.struct_size = sizeof config + sizeof(void*));
  EXPECT_REFUSED(config.page_tokens = 100);
  EXPECT_REFUSED(config.max_sequences = 0);
  EXPECT_ERROR(tq_kv_create(NULL, &cache), TQ_KV_INVALID_ARGUMENT);
  EXPECT_ERROR(tq_kv_create(&good, NULL), TQ_KV_INVALID_ARGUMENT);
  EXPECT_ERROR(tq_kv_config_init(NULL), TQ_KV_INVALID_ARGUMENT);
}

int main(void) {
  size_t i;
  for (i = 0; i < sizeof keys / sizeof keys[0]; ++i) {
    keys[i] = (float)((i * 2654435761u) % 2001) / 1000.0f - 1;
    values[i] = (float)((i * 40503u) % 2001) / 1000.0f - 1;
  }
  for (i = 0; i < sizeof q / sizeof q[0]; ++i) q[i] = (float)(i % 13) / 6.0f - 1;
  common_path();
  refused_configurations();
  if (failures == 0) printf("all right\n");
  return failures == 0 ? 0 : 1;
}
