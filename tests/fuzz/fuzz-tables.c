/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: the decoders of single tables, each on bytes that need no
 * header before them, so that the fuzzer reaches all of it: the snapshot
 * table, the bitmap directory, entries of L2 tables, refcount blocks.
 *
 * The first byte says which, the next ones what the header would say.
 */

#include <config.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "byteorder.h"
#include "checked.h"
#include "header.h"
#include "l2.h"
#include "refcount.h"
#include "snapshot.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

/* What the header says. */
struct setting {
  unsigned cluster_bits;
  uint64_t cluster_size, file_size;
  uint32_t count;
};

static void
check_text (const struct format_error *e)
{
  const char *p;

  MUST (e->text[0] != '\0');
  MUST (memchr (e->text, '\0', sizeof e->text) != NULL);
  for (p = e->text; *p; p++)
    MUST ((unsigned char) *p >= 0x20 && *p != 0x7f);
}

static void
check_inside (uint64_t offset, uint64_t bytes, const struct setting *s)
{
  MUST (is_aligned (offset, s->cluster_size));
  MUST (offset > 0 && offset < s->file_size);
  MUST (bytes <= round_up (s->file_size, s->cluster_size) - offset);
}

/* A longer buffer does not change the answer, unless it was asked for. */
static void
try_snapshots (const uint8_t *data, size_t size, const struct setting *s)
{
  struct snapshot_table t, half;
  struct format_error e;
  int r = snapshot_table_decode (data, size, s->count, s->cluster_size,
                                 s->file_size, &t, &e);
  uint32_t i;

  if (r < 0) {
    MUST (r == -EMSGSIZE || r == -EINVAL || r == -EFBIG || r == -ENOMEM);
    check_text (&e);
    MUST (t.v == NULL && t.count == 0);
    return;
  }
  /* The padding of the last entry may be missing. */
  MUST (t.count == s->count && t.bytes <= round_up (size, 8));
  for (i = 0; i < t.count; i++) {
    if (t.v[i].l1_size)
      check_inside (t.v[i].l1_table_offset, t.v[i].l1_size * UINT64_C (8),
                    s);
    MUST (t.v[i].l1_size <= MAX_L1_BYTES / 8);
    MUST (strlen (t.v[i].id) <= UINT16_MAX);
    MUST (strlen (t.v[i].name) <= UINT16_MAX);
    MUST ((t.v[i].extra != NULL) == (t.v[i].extra_size > 0));
    MUST (t.v[i].extra_size <= 1024);
  }
  if (t.bytes > 0) {
    r = snapshot_table_decode (data, MIN (size, t.bytes - 1), s->count,
                               s->cluster_size, s->file_size, &half, &e);
    MUST (r == 0 || r == -EMSGSIZE);
    snapshot_table_free (&half);
  }
  snapshot_table_free (&t);
}

static void
try_bitmaps (const uint8_t *data, size_t size, const struct setting *s)
{
  struct bitmap_directory d;
  struct format_error e;
  int r = bitmap_directory_decode (data, size, s->count, s->cluster_size,
                                   s->file_size, &d, &e);
  uint32_t i;

  if (r < 0) {
    MUST (r == -EINVAL || r == -ENOMEM);
    check_text (&e);
    MUST (d.v == NULL && d.count == 0);
    return;
  }
  MUST (d.count == s->count);
  for (i = 0; i < d.count; i++) {
    check_inside (d.v[i].table_offset, d.v[i].table_size * UINT64_C (8), s);
    MUST (strlen (d.v[i].name) >= 1 && strlen (d.v[i].name) <= 1023);
  }
  bitmap_directory_free (&d);
}

static void
try_entries (const uint8_t *data, size_t size, const struct setting *s)
{
  size_t i;

  for (i = 0; i + 8 <= size; i += 8) {
    const uint64_t entry = load_be64 (data + i);
    uint64_t again;
    struct compressed_place place;
    const enum l2_kind kind = l2_kind_of (entry, s->count & 1 ? 3 : 2,
                                          s->cluster_size);

    MUST ((kind == L2_COMPRESSED) == !!(entry & ENTRY_COMPRESSED));
    if (kind == L2_NORMAL || kind == L2_ZERO_ALLOC)
      MUST (is_aligned (entry & ENTRY_OFFSET, s->cluster_size)
            && (entry & ENTRY_OFFSET) > 0);
    if (kind == L2_COMPRESSED
        && l2_compressed_place (entry, s->cluster_bits, &place)) {
      MUST (place.offset <= MAX_HOST_OFFSET);
      MUST (place.length > 0 && place.length <= 2 * s->cluster_size);
      MUST ((place.offset + place.length) % 512 == 0);
      MUST (l2_compressed_entry (place.offset, place.length,
                                 s->cluster_bits, &again));
      MUST (again == (entry & ~ENTRY_COPIED));
    }
  }
}

/* One entry at a time, as the specification has it. */
static uint64_t
slow_get (const uint8_t *block, uint32_t order, uint64_t index)
{
  const unsigned bits = 1u << order;
  uint64_t value = 0, i;

  if (bits < 8)
    return block[index * bits / 8] >> index * bits % 8
      & ((1u << bits) - 1);
  for (i = 0; i < bits / 8; ++i)
    value = value << 8 | block[index * bits / 8 + i];
  return value;
}

static void
try_refcounts (const uint8_t *data, size_t size, const struct setting *s)
{
  const uint32_t order = s->count % 7;
  const uint64_t n = (uint64_t) (size & ~(size_t) 7) * 8 >> order;
  uint8_t *block = malloc (size + 1);
  uint64_t from, end, zero, used, i;

  if (block == NULL || n == 0) {
    free (block);
    return;
  }
  memcpy (block, data, size);
  end = MIN (s->file_size, n);
  from = MIN (s->file_size >> 16, end);
  for (zero = from; zero < end && slow_get (data, order, zero); ++zero)
    ;
  for (used = from; used < end && !slow_get (data, order, used); ++used)
    ;
  MUST (refcount_find_zero (block, order, from, end) == zero);
  MUST (refcount_find_used (block, order, from, end) == used);

  /* Setting one leaves the others. */
  i = s->file_size % n;
  MUST (refcount_get (block, order, i) == slow_get (data, order, i));
  refcount_set (block, order, i,
                refcount_get (block, order, i) ^ refcount_max (order));
  MUST (slow_get (block, order, i)
        == (slow_get (data, order, i) ^ refcount_max (order)));
  refcount_set (block, order, i, slow_get (data, order, i));
  MUST (memcmp (block, data, size) == 0);
  free (block);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct setting s;

  if (size < 8)
    return 0;
  s.cluster_bits = MIN_CLUSTER_BITS + data[1] % 13;
  s.cluster_size = UINT64_C (1) << s.cluster_bits;
  s.count = load_be16 (data + 2);
  s.file_size = load_be32 (data + 4);
  if (data[0] & 0x80)
    s.file_size <<= 24;
  switch (data[0] & 3) {
  case 0: try_snapshots (data + 8, size - 8, &s); break;
  case 1: try_bitmaps (data + 8, size - 8, &s); break;
  case 2: try_entries (data + 8, size - 8, &s); break;
  case 3: try_refcounts (data + 8, size - 8, &s); break;
  }
  return 0;
}
