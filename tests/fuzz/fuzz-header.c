/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: all decoders of lib/format on a file that the fuzzer
 * chose.  Besides not crashing, what they accept must lie within the
 * file, and what they refuse must be explained on one printable line.
 *
 * Linked with clang -fsanitize=fuzzer,address,undefined (and the sources
 * of lib/format, and lib/base/cleanup.c) it is a fuzzer that takes the
 * folder corpus-header as its argument.  "make check" links replay.c.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "checked.h"
#include "header.h"
#include "l2.h"
#include "refcount.h"
#include "snapshot.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

static void
check_text (const struct format_error *e)
{
  const char *p;

  MUST (e->text[0] != '\0');
  MUST (memchr (e->text, '\0', sizeof e->text) != NULL);
  for (p = e->text; *p; p++)
    MUST ((unsigned char) *p >= 0x20 && *p != 0x7f);
}

/* A table lies behind the header and within the file, whose last cluster
 * may be short.
 */
static void
check_inside (uint64_t offset, uint64_t bytes, uint64_t cluster_size,
              uint64_t size)
{
  MUST (is_aligned (offset, cluster_size));
  MUST (offset > 0 && offset < size);
  MUST (bytes <= round_up (size, cluster_size) - offset);
}

static void
check_header (const struct header *h, uint64_t size)
{
  MUST (h->version == 2 || h->version == 3);
  MUST (h->cluster_bits >= MIN_CLUSTER_BITS);
  MUST (h->cluster_bits <= MAX_CLUSTER_BITS);
  MUST (h->cluster_size == UINT64_C (1) << h->cluster_bits);
  MUST ((h->incompatible & ~INCOMPAT_KNOWN) == 0);
  MUST (h->refcount_order <= 6);
  MUST (h->crypt_method <= CRYPT_LUKS);
  MUST (h->compression_type <= COMPRESSION_ZSTD);
  MUST (h->l1_size >= header_l1_entries (h->cluster_bits,
                                         h->incompatible & INCOMPAT_EXTL2,
                                         h->size));
  MUST (h->l1_size <= MAX_L1_BYTES / 8);
  if (h->l1_size)
    check_inside (h->l1_table_offset, h->l1_size * 8, h->cluster_size, size);
  MUST (h->refcount_table_clusters > 0);
  MUST (h->refcount_table_clusters * h->cluster_size
        <= MAX_REFCOUNT_TABLE_BYTES);
  check_inside (h->refcount_table_offset,
                h->refcount_table_clusters * h->cluster_size,
                h->cluster_size, size);
  MUST (h->nb_snapshots <= MAX_SNAPSHOTS);
  if (h->nb_snapshots)
    check_inside (h->snapshots_offset, 40, h->cluster_size, size);
  MUST (strlen (h->backing_file) <= 1023);
  MUST (strlen (h->backing_format) <= 15);
  MUST (strlen (h->data_file) <= 1023);
  if (h->has_crypto)
    check_inside (h->crypto_offset, h->crypto_length, h->cluster_size, size);
  if (h->nb_bitmaps)
    check_inside (h->bitmap_directory_offset, h->bitmap_directory_size,
                  h->cluster_size, size);
}

static void
try_snapshots (const uint8_t *data, size_t size, const struct header *h)
{
  struct snapshot_table t;
  struct format_error e;
  uint32_t i;

  if (snapshot_table_decode (data + h->snapshots_offset,
                             size - h->snapshots_offset, h->nb_snapshots,
                             h->cluster_size, size, &t, &e) < 0) {
    check_text (&e);
    MUST (t.v == NULL && t.count == 0);
    return;
  }
  MUST (t.count == h->nb_snapshots);
  for (i = 0; i < t.count; i++) {
    if (t.v[i].l1_size)
      check_inside (t.v[i].l1_table_offset, t.v[i].l1_size * UINT64_C (8),
                    h->cluster_size, size);
    MUST (strlen (t.v[i].id) <= UINT16_MAX);
    MUST (strlen (t.v[i].name) <= UINT16_MAX);
    MUST ((t.v[i].extra != NULL) == (t.v[i].extra_size > 0));
  }
  snapshot_table_free (&t);
}

static void
try_bitmaps (const uint8_t *data, size_t size, const struct header *h)
{
  struct bitmap_directory d;
  struct format_error e;
  uint32_t i;

  if (h->bitmap_directory_size > size - h->bitmap_directory_offset)
    return;                     /* in the missing part of a cluster */
  if (bitmap_directory_decode (data + h->bitmap_directory_offset,
                               h->bitmap_directory_size, h->nb_bitmaps,
                               h->cluster_size, size, &d, &e) < 0) {
    check_text (&e);
    MUST (d.v == NULL && d.count == 0);
    return;
  }
  MUST (d.count == h->nb_bitmaps);
  for (i = 0; i < d.count; i++) {
    check_inside (d.v[i].table_offset, d.v[i].table_size * UINT64_C (8),
                  h->cluster_size, size);
    MUST (strlen (d.v[i].name) >= 1 && strlen (d.v[i].name) <= 1023);
  }
  bitmap_directory_free (&d);
}

/* Every word of the file as a compressed entry. */
static void
try_entries (const uint8_t *data, size_t size, const struct header *h)
{
  struct compressed_place place;
  uint64_t entry;
  size_t i;

  for (i = 0; i + 8 <= size && i < 4096; i += 8) {
    memcpy (&entry, data + i, sizeof entry);
    if (l2_compressed_place (entry, h->cluster_bits, &place)) {
      MUST (place.offset <= MAX_HOST_OFFSET);
      MUST (place.length > 0 && place.length <= 2 * h->cluster_size);
    }
  }
}

/* As a check reads it, which bears more, but no table that is larger than
 * one can be, or at a place that no file has.
 */
static void
try_damaged (const uint8_t *data, size_t size, uint64_t cluster_size,
             bool sound)
{
  uint8_t *buf = calloc (1, cluster_size);
  struct header_damage damage = { .missing = false };
  struct format_error e;
  struct header h;
  int i, r;

  MUST (buf != NULL);
  memcpy (buf, data, (size_t) MIN ((uint64_t) size, cluster_size));
  r = header_decode_damaged (buf, (size_t) cluster_size, size, &h, &damage,
                             &e);
  free (buf);
  MUST (r == 0 || !sound);
  if (r < 0) {
    check_text (&e);
    return;
  }
  for (i = 0; i < HEADER_TABLES; i++) {
    MUST (!damage.broken[i] || !sound);
    if (damage.broken[i])
      check_text (&damage.why[i]);
  }
  MUST (damage.faults == 0 || !sound);
  for (i = 0; i < (int) MIN (damage.faults, MAX_HEADER_FAULTS); i++)
    check_text (&damage.fault[i]);
  MUST (h.l1_size <= MAX_L1_BYTES / 8);
  MUST (h.l1_table_offset % h.cluster_size == 0
        && h.l1_table_offset <= INT64_MAX);
  MUST (h.refcount_table_clusters * h.cluster_size
        <= MAX_REFCOUNT_TABLE_BYTES);
  MUST (h.refcount_table_clusters || damage.missing);
  if (h.l1_size && !damage.broken[TABLE_L1])
    check_inside (h.l1_table_offset, h.l1_size * UINT64_C (8),
                  h.cluster_size, size);
  if (!damage.broken[TABLE_REFCOUNTS])
    check_inside (h.refcount_table_offset,
                  h.refcount_table_clusters * h.cluster_size, h.cluster_size,
                  size);
  MUST (!damage.missing || damage.broken[TABLE_REFCOUNTS]);
}

/* The fixed part of what may be an entry; behind the end there are zeroes. */
static const uint8_t *
entry_at (const uint8_t *table, size_t len, uint64_t at,
          uint8_t buf[SNAPSHOT_MIN_ENTRY])
{
  memset (buf, 0, SNAPSHOT_MIN_ENTRY);
  if (at < len)
    memcpy (buf, table + at, MIN ((size_t) SNAPSHOT_MIN_ENTRY,
                                  (size_t) (len - at)));
  return buf;
}

/* What can be made out of a table that may be broken. */
static void
walk_snapshots (const uint8_t *table, size_t len, size_t size,
                const struct header *h)
{
  struct snapshot_walk w = { .at = 0 };
  uint8_t buf[SNAPSHOT_MIN_ENTRY];
  struct snapshot s;
  uint64_t at = 0;

  while (w.index < h->nb_snapshots
         && snapshot_walk (&w, entry_at (table, len, w.at, buf),
                           h->cluster_size, size, &s)) {
    MUST (w.at >= at + SNAPSHOT_MIN_ENTRY
          && w.at <= MAX_SNAPSHOT_TABLE_BYTES);
    at = w.at;
    if (!w.sound)
      check_text (&w.why);
    else if (s.l1_size)
      check_inside (s.l1_table_offset, s.l1_size * UINT64_C (8),
                    h->cluster_size, size);
    MUST (!s.id && !s.name && !s.extra);
  }
  if (w.index < h->nb_snapshots)
    check_text (&w.why);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct format_error e;
  struct header h;
  uint64_t cluster_size;

  if (header_probe (data, MIN (size, (size_t) 512), &cluster_size, &e) < 0) {
    check_text (&e);
    return 0;
  }
  if (header_decode (data, (size_t) MIN ((uint64_t) size, cluster_size),
                     size, &h, &e) < 0) {
    check_text (&e);
    try_damaged (data, size, cluster_size, false);
    return 0;
  }
  check_header (&h, size);
  try_damaged (data, size, cluster_size, true);
  if (h.nb_snapshots) {
    try_snapshots (data, size, &h);
    walk_snapshots (data + h.snapshots_offset,
                    size - (size_t) h.snapshots_offset, size, &h);
  }
  if (h.nb_bitmaps)
    try_bitmaps (data, size, &h);
  try_entries (data, size, &h);
  return 0;
}
