/* SPDX-License-Identifier: BSD-3-Clause */

/* Checking an image (qcow2 specification, "Host cluster management" and
 * "Cluster mapping"); see fsck.h.
 *
 * All pointers are followed and counted.  Each cluster then has a use,
 * and a number of pointers that its count must not be below.  Uses do
 * not mix: metadata has one owner, but L2 tables may be shared by the
 * active disk and snapshots, and a cluster of data or of compressed data
 * may be found by many pointers of snapshots, but by one of the active
 * disk.  COPIED stands in the active tables exactly where the count is
 * one.  Bitmaps are followed if they count, also those in use.
 */

#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "byteorder.h"
#include "fsck.h"
#include "header.h"
#include "l2.h"
#include "refcount.h"
#include "snapshot.h"

enum use { USE_NONE, USE_METADATA, USE_L2, USE_DATA, USE_COMPRESSED };

struct check {
  const struct disk *disk;
  struct fsck_result *result;
  struct header h;
  uint64_t clusters;            /* of the file, rounded up */
  uint32_t *refs;               /* pointers to each */
  uint8_t *use;
  uint8_t *active;              /* pointers of the active disk's data */
  uint64_t *counts;
};

static void __attribute__ ((format (printf, 2, 3)))
problem (struct check *c, const char *fs, ...)
{
  va_list args;

  if (c->result->problem[0])
    return;
  va_start (args, fs);
  vsnprintf (c->result->problem, sizeof c->result->problem, fs, args);
  va_end (args);
}

static bool
sound (const struct check *c)
{
  return c->result->problem[0] == '\0';
}

/* LEN bytes at OFFSET are pointed to. */
static void
refer (struct check *c, enum use use, uint64_t offset, uint64_t len,
       const char *what)
{
  uint64_t i, last;

  if (offset >= disk_size (c->disk) || len == 0) {
    problem (c, "%s at 0x%" PRIx64 " is past the end of the file", what,
             offset);
    return;
  }
  if (use != USE_COMPRESSED && offset & (c->h.cluster_size - 1)) {
    problem (c, "%s at 0x%" PRIx64 " is not aligned", what, offset);
    return;
  }
  last = (offset + len - 1) >> c->h.cluster_bits;
  for (i = offset >> c->h.cluster_bits; i <= last && i < c->clusters; i++) {
    if (c->use[i] != USE_NONE
        && (c->use[i] != use || use == USE_METADATA))
      problem (c, "%s at 0x%" PRIx64 ": the cluster has another use, too "
               "(%d, %d)", what, offset, c->use[i], (int) use);
    c->use[i] = (uint8_t) use;
    c->refs[i]++;
  }
}

static uint64_t *
read_table (const struct check *c, uint64_t offset, uint64_t entries)
{
  uint64_t *table = malloc ((entries + 1) * sizeof *table), i;

  if (table == NULL)
    abort ();
  disk_read (c->disk, table, entries * sizeof *table, offset);
  for (i = 0; i < entries; i++)
    table[i] = be64toh (table[i]);
  return table;
}

/* The counts first: what points is judged by them at once. */
static void
read_counts (struct check *c)
{
  const uint64_t entries = (uint64_t) c->h.refcount_table_clusters
    << (c->h.cluster_bits - 3);
  const uint64_t per_block
    = refcount_block_entries (c->h.cluster_size, c->h.refcount_order);
  uint64_t *table = read_table (c, c->h.refcount_table_offset, entries);
  char *block = malloc (c->h.cluster_size);
  uint64_t i, j;

  if (block == NULL)
    abort ();
  refer (c, USE_METADATA, c->h.refcount_table_offset, entries * 8,
         "the refcount table");
  for (i = 0; i < entries && sound (c); i++) {
    if (table[i] == 0)
      continue;
    refer (c, USE_METADATA, table[i], c->h.cluster_size, "a refcount block");
    c->result->blocks++;
    disk_read (c->disk, block, c->h.cluster_size, table[i]);
    for (j = 0; j < per_block && i * per_block + j < c->clusters; j++)
      c->counts[i * per_block + j]
        = refcount_get (block, c->h.refcount_order, j);
  }
  free (block);
  free (table);
}

/* COPIED in an active table, of a cluster inside the file. */
static void
check_copied (struct check *c, uint64_t entry, const char *what)
{
  const uint64_t i = (entry & ENTRY_OFFSET) >> c->h.cluster_bits;

  if (i < c->clusters && (c->counts[i] == 1) != !!(entry & ENTRY_COPIED))
    problem (c, "%s 0x%" PRIx64 ": COPIED is wrong, the count is %" PRIu64,
             what, entry, c->counts[i]);
}

static struct l2_layout
entry_layout (const struct check *c)
{
  return (struct l2_layout) {
    .cluster_size = c->h.cluster_size, .version = c->h.version,
    .extended = (c->h.incompatible & INCOMPAT_EXTL2) != 0,
    .data_file = (c->h.incompatible & INCOMPAT_DATA_FILE) != 0
  };
}

/* An entry that leads to a data file, which has no counts. */
static void
check_external (struct check *c, uint64_t entry, uint64_t guest)
{
  if ((entry & ENTRY_OFFSET) != guest)
    problem (c, "L2 entry 0x%" PRIx64 " of guest offset 0x%" PRIx64
             " leads elsewhere in the data file", entry, guest);
  if (!(entry & ENTRY_COPIED))
    problem (c, "L2 entry 0x%" PRIx64 " leads to the data file, but is not "
             "COPIED", entry);
}

/* Of the cluster at GUEST. */
static void
follow_entry (struct check *c, struct l2_entry e, uint64_t guest, bool active)
{
  const struct l2_layout layout = entry_layout (c);
  const uint64_t entry = e.word;
  struct compressed_place place;
  uint64_t i, len;

  switch (l2_kind (&layout, e, 0)) {
  case L2_NORMAL: case L2_ZERO_ALLOC: case L2_UNALLOC_KEPT:
    if (layout.data_file) {
      check_external (c, entry, guest);
      break;
    }
    refer (c, USE_DATA, entry & ENTRY_OFFSET, 1, "a data cluster");
    i = (entry & ENTRY_OFFSET) >> c->h.cluster_bits;
    if (active && i < c->clusters && ++c->active[i] > 1)
      problem (c, "two guest clusters have host cluster %" PRIu64, i);
    if (active)
      check_copied (c, entry, "L2 entry");
    break;
  case L2_COMPRESSED:
    if (!l2_compressed_place (entry, c->h.cluster_bits, &place)
        || place.offset >= disk_size (c->disk)) {
      problem (c, "compressed entry 0x%" PRIx64, entry);
      break;
    }
    len = disk_size (c->disk) - place.offset;
    refer (c, USE_COMPRESSED, place.offset,
           place.length < len ? place.length : len, "compressed data");
    break;
  case L2_INVALID:
    problem (c, "L2 entry 0x%" PRIx64 ", bitmap 0x%" PRIx64 " is invalid",
             entry, e.bitmap);
    break;
  case L2_UNALLOCATED: case L2_ZERO_PLAIN:
  default:
    break;
  }
}

static void
follow_l1 (struct check *c, uint64_t offset, uint64_t entries, bool active)
{
  const struct l2_layout layout = entry_layout (c);
  const uint64_t words = c->h.cluster_size / sizeof (uint64_t);
  const unsigned size = layout.extended ? 2 : 1;
  struct l2_entry entry = { 0, 0 };
  uint64_t *l1, *l2, i, j;

  if (entries == 0)
    return;
  refer (c, USE_METADATA, offset, entries * sizeof (uint64_t),
         "an L1 table");
  l1 = read_table (c, offset, entries);
  for (i = 0; i < entries && sound (c); i++) {
    if ((l1[i] & ENTRY_OFFSET) == 0)
      continue;
    refer (c, USE_L2, l1[i] & ENTRY_OFFSET, c->h.cluster_size,
           "an L2 table");
    if (active)
      check_copied (c, l1[i], "L1 entry");
    l2 = read_table (c, l1[i] & ENTRY_OFFSET, words);
    for (j = 0; j < words && sound (c); j += size) {
      entry.word = l2[j];
      if (layout.extended)
        entry.bitmap = l2[j + 1];
      if (entry.word || entry.bitmap)
        follow_entry (c, entry, (i * words + j) / size
                      << c->h.cluster_bits, active);
    }
    free (l2);
  }
  free (l1);
}

static void
follow_snapshots (struct check *c)
{
  struct snapshot_table t;
  struct format_error e;
  uint64_t len;
  uint8_t *buf;
  uint32_t i;

  if (c->h.nb_snapshots == 0)
    return;
  len = disk_size (c->disk) - c->h.snapshots_offset;
  len = len < 65536 ? len : 65536;
  buf = malloc (len);
  if (buf == NULL)
    abort ();
  disk_read (c->disk, buf, len, c->h.snapshots_offset);
  if (snapshot_table_decode (buf, len, c->h.nb_snapshots, c->h.cluster_size,
                             disk_size (c->disk), &t, &e) < 0)
    problem (c, "%s", e.text);
  else {
    refer (c, USE_METADATA, c->h.snapshots_offset, t.bytes,
           "the snapshot table");
    for (i = 0; i < t.count && sound (c); i++)
      follow_l1 (c, t.v[i].l1_table_offset, t.v[i].l1_size, false);
    snapshot_table_free (&t);
  }
  free (buf);
}

bool
fsck_bitmaps (const struct disk *d, const struct header *h,
              struct bitmap_directory *dir, struct format_error *e)
{
  uint8_t *buf;
  int r;

  memset (dir, 0, sizeof *dir);
  if (!h->has_bitmaps || !(h->autoclear & AUTOCLEAR_BITMAPS))
    return true;
  buf = malloc (h->bitmap_directory_size);
  if (buf == NULL)
    abort ();
  disk_read (d, buf, h->bitmap_directory_size, h->bitmap_directory_offset);
  r = bitmap_directory_decode (buf, h->bitmap_directory_size, h->nb_bitmaps,
                               h->cluster_size, disk_size (d), dir, e);
  free (buf);
  return r == 0;
}

static void
follow_bitmap (struct check *c, const struct bitmap *b)
{
  struct format_error e;
  uint64_t *table;
  uint32_t i;

  refer (c, USE_METADATA, b->table_offset, b->table_size * UINT64_C (8),
         "a bitmap table");
  table = read_table (c, b->table_offset, b->table_size);
  for (i = 0; i < b->table_size && sound (c); i++) {
    if (bitmap_table_entry_check (table[i], i, c->h.cluster_size,
                                  disk_size (c->disk), &e) < 0)
      problem (c, "bitmap '%s': %s", b->name, e.text);
    else if (bitmap_entry_offset (table[i]) != 0)
      refer (c, USE_METADATA, bitmap_entry_offset (table[i]),
             c->h.cluster_size, "bitmap data");
  }
  free (table);
}

static void
follow_bitmaps (struct check *c)
{
  struct bitmap_directory dir;
  struct format_error e;
  uint32_t i;

  if (!fsck_bitmaps (c->disk, &c->h, &dir, &e)) {
    problem (c, "%s", e.text);
    return;
  }
  if (dir.count > 0)
    refer (c, USE_METADATA, c->h.bitmap_directory_offset,
           c->h.bitmap_directory_size, "the bitmap directory");
  for (i = 0; i < dir.count && sound (c); i++)
    follow_bitmap (c, &dir.v[i]);
  bitmap_directory_free (&dir);
}

static void
compare (struct check *c)
{
  uint64_t i;

  for (i = 0; i < c->clusters && sound (c); i++) {
    if (c->counts[i] < c->refs[i])
      problem (c, "cluster %" PRIu64 " has the count %" PRIu64 " and %"
               PRIu32 " pointers (use %d)", i, c->counts[i], c->refs[i],
               c->use[i]);
    if (c->counts[i] > c->refs[i])
      c->result->leaks++;
  }
}

/* What is read is one cluster: reading 2 MiB of each image, whatever its
 * clusters, took a fifth of the explorer's time.
 */
static bool
read_header (struct check *c)
{
  const uint64_t size = disk_size (c->disk);
  uint8_t begin[512], *buf;
  struct format_error e;
  uint64_t cluster, len;

  disk_read (c->disk, begin, sizeof begin, 0);
  if (header_probe (begin, size < sizeof begin ? size : sizeof begin,
                    &cluster, &e) < 0) {
    problem (c, "%s", e.text);
    return false;
  }
  len = size < cluster ? size : cluster;
  buf = malloc (len + 1);
  if (buf == NULL)
    abort ();
  disk_read (c->disk, buf, len, 0);
  if (header_decode (buf, len, size, &c->h, &e) < 0)
    problem (c, "%s", e.text);
  free (buf);
  return sound (c);
}

bool
fsck (const struct disk *d, struct fsck_result *result)
{
  struct check c = { .disk = d, .result = result };

  memset (result, 0, sizeof *result);
  if (!read_header (&c))
    return false;
  if (c.h.incompatible & INCOMPAT_CORRUPT)
    problem (&c, "the corrupt bit is set");
  c.clusters = (disk_size (d) + c.h.cluster_size - 1) >> c.h.cluster_bits;
  result->clusters = c.clusters;
  result->table_clusters = c.h.refcount_table_clusters;
  c.refs = calloc (c.clusters + 1, sizeof *c.refs);
  c.use = calloc (c.clusters + 1, sizeof *c.use);
  c.active = calloc (c.clusters + 1, sizeof *c.active);
  c.counts = calloc (c.clusters + 1, sizeof *c.counts);
  if (!c.refs || !c.use || !c.active || !c.counts)
    abort ();
  refer (&c, USE_METADATA, 0, c.h.cluster_size, "the header");
  if (c.h.has_crypto)
    refer (&c, USE_METADATA, c.h.crypto_offset, c.h.crypto_length,
           "the encryption header");
  read_counts (&c);
  follow_l1 (&c, c.h.l1_table_offset, c.h.l1_size, true);
  follow_snapshots (&c);
  follow_bitmaps (&c);
  compare (&c);
  free (c.refs);
  free (c.use);
  free (c.active);
  free (c.counts);
  result->header = c.h;
  return sound (&c);
}
