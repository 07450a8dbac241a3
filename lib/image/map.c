/* SPDX-License-Identifier: BSD-3-Clause */

/* The map of the active disk: opening it and looking up (qcow2
 * specification, "Cluster mapping").
 *
 * The L1 table is held whole, as atomics: who looks up a guest cluster
 * reads its entry without a lock.  L2 entries are in slices (l2cache.c).
 * Changes are made in map-change.c, tables in map-tables.c; map-commit.c
 * writes the L1 table.
 *
 * A writer may use a host cluster in place if L1 and L2 entry are COPIED
 * and its count is one.  The flag alone is not believed: the count is
 * looked up at the first write after the slice was loaded, and remembered
 * with the slice; those of its neighbours that are in memory, too.
 *
 * What was found for a single cluster with data is kept in a lookaside
 * buffer (tlb.c), which answers most requests before any lock is taken.
 *
 * Invariants
 *
 * M1. An L1 entry with COPIED leads to a table that only it leads to; an
 *     entry changes from none or shared to its own table once, and then
 *     never again.  So a dirty slice knows its place.
 * M2. An entry changes only under the exclusive range lock of its guest
 *     cluster.  (Dropping a wrong COPIED flag is the exception: it needs
 *     the shard's lock only.)
 * M3. A count of one is remembered for an entry as it is now, not for the
 *     place: the shard's lock is let go while counts are looked up, so
 *     neighbours, whose range locks nobody holds, are noted only if their
 *     entries are still those that were read.  One that changed, and is the
 *     same again, was linked by the engine, to a cluster of count one.
 *
 * Locks: a shard's lock, by way of l2cache.c; refcounts.lock after it
 * was let go.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "corrupt.h"
#include "entries.h"
#include "image-internal.h"
#include "l2cache-internal.h"
#include "map-internal.h"
#include "report.h"

static int
read_l1 (struct image *img)
{
  struct map *m = &img->map;
  const uint64_t offset = img->header.l1_table_offset;
  struct entries e;
  uint64_t i, entry;
  int r;

  m->l1 = calloc (m->l1_size + 1, sizeof m->l1[0]);
  if (!m->l1)
    return -ENOMEM;
  entries_init (&e, img->storage, offset, img->header.l1_size);
  while ((r = entries_next (&e, &i, &entry)) > 0)
    atomic_init (&m->l1[i], entry);
  if (r < 0)
    report_error ("%s: reading the L1 table at host offset %" PRIu64 ": %s",
                  img->config.filename, offset, strerror (-r));
  return r;
}

/* Of others there may be many, and views come and go. */
static bool
is_for_tlb (const struct image *img)
{
  return img->is_top && !img->map.layout.extended
    && !img->map.layout.data_file;
}

int
map_open (struct image *img)
{
  struct map *m = &img->map;
  int i;

  m->layout.cluster_size = img->cluster_size;
  m->layout.version = img->header.version;
  m->layout.extended = img->header.incompatible & INCOMPAT_EXTL2;
  m->layout.data_file = img->header.incompatible & INCOMPAT_DATA_FILE;
  m->l2_bits = img->cluster_bits - l2_entry_bits (&m->layout);
  m->slice_bits = MIN (m->l2_bits, 12 - l2_entry_bits (&m->layout));
  img->subcluster_bits = img->cluster_bits - l2_subcluster_bits (&m->layout);
  img->subcluster_size = UINT64_C (1) << img->subcluster_bits;
  /* A snapshot's table may end before its disk does; the rest is not
   * allocated.
   */
  m->l1_size = MAX ((uint64_t) img->header.l1_size,
                    header_l1_entries (img->cluster_bits,
                                       m->layout.extended, img->size));
  for (i = 0; i < MAP_TABLE_LOCKS; ++i)
    pthread_mutex_init (&m->table_locks[i], NULL);
  if (is_for_tlb (img) && tlb_open (&m->tlb, div_up (img->size,
                                                     img->cluster_size)) < 0)
    return -ENOMEM;
  m->table_ok = calloc (map_bitmap_words (img), sizeof m->table_ok[0]);
  m->l1_dirty[0] = calloc (map_bitmap_words (img), sizeof m->l1_dirty[0][0]);
  m->l1_dirty[1] = calloc (map_bitmap_words (img), sizeof m->l1_dirty[1][0]);
  if (!m->table_ok || !m->l1_dirty[0] || !m->l1_dirty[1])
    return -ENOMEM;
  return read_l1 (img);
}

void
map_close (struct image *img)
{
  struct map *m = &img->map;
  int i;

  free ((void *) m->l1);
  free ((void *) m->table_ok);
  free ((void *) m->l1_dirty[0]);
  free ((void *) m->l1_dirty[1]);
  tlb_close (&m->tlb);
  for (i = 0; i < MAP_TABLE_LOCKS; ++i)
    pthread_mutex_destroy (&m->table_locks[i]);
}

uint64_t
map_left_in_slice (struct image *img, uint64_t cluster)
{
  const uint64_t entries = UINT64_C (1) << img->map.slice_bits;

  return entries - (cluster & (entries - 1));
}

bool
map_has_table (struct image *img, uint64_t cluster)
{
  return (atomic_load (&img->map.l1[cluster >> img->map.l2_bits])
          & ENTRY_OFFSET) != 0;
}

/*----------------------------------------------------------------------
 * Looking up.
 */

/* No L2 table: unallocated up to the next L1 entry that has one. */
static void
lookup_no_table (struct image *img, uint64_t offset, uint64_t len,
                 struct map_extent *e)
{
  const unsigned shift = img->map.l2_bits + img->cluster_bits;
  uint64_t i = offset >> shift, end = offset + len;

  do
    ++i;
  while (i < img->map.l1_size && (i << shift) < end
         && (atomic_load (&img->map.l1[i]) & ENTRY_OFFSET) == 0);
  e->kind = L2_UNALLOCATED;
  e->len = MIN (len, (i << shift) - offset);
}

/* So many subclusters of entry I of the slice continue the extent that
 * began in entry FIRST.
 */
static unsigned
continues (struct image *img, const struct slice *s, unsigned first,
           unsigned i, const struct map_extent *e)
{
  const struct l2_entry entry = slice_entry (img, s, i);
  const uint64_t a = e->entry, b = entry.word;

  if (e->kind == L2_COMPRESSED
      || l2_kind (&img->map.layout, entry, 0) != e->kind)
    return 0;
  if (l2_has_host (e->kind)
      && ((b & ENTRY_OFFSET) != (a & ENTRY_OFFSET)
          + ((uint64_t) (i - first) << img->cluster_bits)
          || ((a ^ b) & ENTRY_COPIED)))
    return 0;
  return l2_run (&img->map.layout, entry, 0, e->kind);
}

/* Is the count of entries FIRST to LAST known to be one? */
static bool
all_counted (const struct slice *s, unsigned first, unsigned last)
{
  unsigned i;

  for (i = first; i <= last; ++i)
    if (!(s->one[i / 64] >> (i % 64) & 1))
      return false;
  return true;
}

static void
fill_extent (struct image *img, const struct slice *s, uint64_t offset,
             uint64_t len, struct map_extent *e)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  const uint64_t cluster = offset >> img->cluster_bits;
  const unsigned first = (unsigned) cluster & mask;
  const struct l2_entry entry = slice_entry (img, s, first);
  const uint64_t skip = offset_in_cluster (img, offset);
  const unsigned sub = (unsigned) (skip >> img->subcluster_bits);
  uint64_t end;                 /* in bytes from the first cluster's begin */
  unsigned i = first, run;

  e->kind = l2_kind (&img->map.layout, entry, sub);
  e->entry = entry.word;
  e->bitmap = entry.bitmap;
  run = sub + l2_run (&img->map.layout, entry, sub, e->kind);
  end = (uint64_t) run << img->subcluster_bits;
  /* On to the next cluster if the run reaches the end of this one. */
  while (end - skip < len && offset_in_cluster (img, end) == 0 && i < mask) {
    run = continues (img, s, first, i + 1, e);
    if (run == 0)
      break;
    ++i;
    end += (uint64_t) run << img->subcluster_bits;
  }
  e->len = MIN (end - skip, len);
  e->durable = s->dirty_epoch == 0 && atomic_load (&img->map.l1_changed[0]) == 0
    && atomic_load (&img->map.l1_changed[1]) == 0;
  if (l2_has_host (e->kind)) {
    e->host = (entry.word & ENTRY_OFFSET) + skip;
    e->copied = (entry.word & ENTRY_COPIED)
      && (atomic_load (&img->map.l1[cluster >> img->map.l2_bits])
          & ENTRY_COPIED);
    /* The clusters of a data file have no counts. */
    e->counted = img->map.layout.data_file || all_counted (s, first, i);
  }
}

int
map_bad_entry (struct image *img, uint64_t offset, struct l2_entry entry,
               const char *what)
{
  if (img->map.layout.extended)
    return image_corrupt (img, 0, 0, "L2 entry 0x%016" PRIx64 ", bitmap "
                          "0x%016" PRIx64 ", of guest offset %" PRIu64 " %s",
                          entry.word, entry.bitmap, offset, what);
  return image_corrupt (img, 0, 0, "L2 entry 0x%016" PRIx64 " of guest "
                        "offset %" PRIu64 " %s", entry.word, offset, what);
}

/* In a data file everything is where the guest sees it; what is past its
 * end reads as zeroes, since the file may be sparse to its end.
 */
static int
check_data_file_extent (struct image *img, uint64_t offset,
                        const struct map_extent *e)
{
  const struct l2_entry entry = { .word = e->entry, .bitmap = e->bitmap };

  if (l2_has_host (e->kind) && e->host != offset)
    return map_bad_entry (img, offset, entry, "leads to another offset of "
                          "the data file, which must be the guest's");
  return 0;
}

static const char *
why_invalid (const struct l2_layout *l)
{
  if (l->data_file)
    return "is invalid (compressed, host offset not a multiple of the "
      "cluster size, or a wrong bitmap of subclusters)";
  if (l->extended)
    return "is invalid (host offset not a multiple of the cluster size, "
      "COPIED or allocated subclusters without an offset, a subcluster both "
      "allocated and zero, or a bitmap with a compressed cluster)";
  return "is invalid (host offset not a multiple of the cluster size, zero "
    "flag in version 2, or COPIED without an offset)";
}

/* Is the entry of an extent's beginning sound?  A later cluster that
 * lies past the end of the file is met when it comes.
 */
static int
check_extent (struct image *img, uint64_t offset, struct map_extent *e)
{
  const uint64_t end = atomic_load (&img->guard.end);
  const struct l2_entry entry = { .word = e->entry, .bitmap = e->bitmap };

  if (e->kind == L2_INVALID)
    return map_bad_entry (img, offset, entry,
                          why_invalid (&img->map.layout));
  if (img->map.layout.data_file)
    return check_data_file_extent (img, offset, e);
  if (e->kind != L2_NORMAL)
    return 0;
  if (round_down (e->host, img->cluster_size) >= end)
    return map_bad_entry (img, offset, entry, "points past the end of the "
                          "file");
  e->len = MIN (e->len, round_up (end, img->cluster_size) - e->host);
  return 0;
}

/* Keep the answer for a cluster with data, with the shard's lock held.  Not
 * if it lies past the end of the file (check_extent).
 */
static void
note_host (struct image *img, uint64_t guest, uint64_t host, bool writable)
{
  if (host << img->cluster_bits
      < atomic_load_explicit (&img->guard.end, memory_order_relaxed))
    tlb_note (&img->map.tlb, guest, host, writable);
}

bool
map_lookup_quickly (struct image *img, uint64_t offset, uint64_t len,
                    bool writable, struct map_extent *e)
{
  const uint64_t cluster = offset >> img->cluster_bits;
  uint64_t host;

  if ((offset + len - 1) >> img->cluster_bits != cluster
      || !tlb_find (&img->map.tlb, cluster, writable, &host))
    return false;
  e->kind = L2_NORMAL;
  e->len = len;
  e->host = host << img->cluster_bits | offset_in_cluster (img, offset);
  e->durable = false;
  return true;
}

int
map_lookup (struct image *img, uint64_t offset, uint64_t len,
            struct map_extent *e)
{
  struct slice *s;
  int r;

  memset (e, 0, sizeof *e);
  r = l2cache_get (img, offset >> img->cluster_bits >> img->map.slice_bits,
                   &s);
  if (r < 0)
    return r;
  if (r == 1) {
    lookup_no_table (img, offset, len, e);
    return 0;
  }
  fill_extent (img, s, offset, len, e);
  if (e->kind == L2_NORMAL)
    note_host (img, offset >> img->cluster_bits, e->host >> img->cluster_bits,
               e->copied && e->counted);
  l2cache_put (img, s);
  return check_extent (img, offset, e);
}

/* Remember that the counts of an extent's clusters are one; or, with
 * DROP, forget the COPIED flag of its first cluster.
 */
static void
note_counts (struct image *img, uint64_t offset, uint64_t len, bool drop)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  uint64_t cluster = offset >> img->cluster_bits;
  uint64_t last = (offset + len - 1) >> img->cluster_bits;
  struct slice *s = l2cache_peek (img, cluster >> img->map.slice_bits);

  if (!s)
    return;                     /* evicted; it is looked up again */
  if (drop) {
    struct l2_entry e = slice_entry (img, s, cluster & mask);

    e.word &= ~ENTRY_COPIED;
    slice_set_entry (img, s, cluster & mask, e);
    tlb_forget (&img->map.tlb, cluster);
  }
  else
    for (; cluster <= last; ++cluster)
      s->one[(cluster & mask) / 64]
        |= UINT64_C (1) << ((cluster & mask) % 64);
  l2cache_put (img, s);
}

/* Guest clusters whose counts are looked up together. */
#define NEIGHBOURS 16u

/* The first write to a cluster looks up its count; its neighbours will
 * mostly be written to as well, and their counts lie beside it.  So those
 * that are in memory are noted in the same go.
 *
 * Entries may change meanwhile: invariant M3.  Their table is that of a
 * cluster which is COPIED in L1, too, and stays so (M1).
 */
static void
note_neighbours (struct image *img, uint64_t offset)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  const uint64_t cluster = offset >> img->cluster_bits;
  const unsigned base = (unsigned) cluster & mask & ~(NEIGHBOURS - 1);
  const unsigned n = MIN (NEIGHBOURS, mask + 1 - base);
  const uint64_t first = (cluster & ~(uint64_t) mask) + base;
  uint64_t word[NEIGHBOURS], host[NEIGHBOURS];
  struct slice *s = l2cache_peek (img, cluster >> img->map.slice_bits);
  uint32_t ones;
  unsigned i;

  if (!s)
    return;
  for (i = 0; i < n; ++i) {
    const struct l2_entry e = slice_entry (img, s, base + i);
    const bool own = (e.word & ENTRY_COPIED)
      && l2_has_host (l2_kind (&img->map.layout, e, 0));

    word[i] = own ? e.word : 0;
    host[i] = (word[i] & ENTRY_OFFSET) >> img->cluster_bits;
  }
  l2cache_put (img, s);

  ones = refcounts_known_one (img, host, n);
  s = l2cache_peek (img, cluster >> img->map.slice_bits);
  if (!s)
    return;
  for (i = 0; i < n; ++i)
    if (word[i] && (ones >> i & 1)
        && slice_entry (img, s, base + i).word == word[i]) {
      s->one[(base + i) / 64] |= UINT64_C (1) << ((base + i) % 64);
      if (l2_kind (&img->map.layout, slice_entry (img, s, base + i), 0)
          == L2_NORMAL)
        note_host (img, first + i, host[i], true);
    }
  l2cache_put (img, s);
}

/* The extent is COPIED; is that true?  1: yes; 0: no, the flag was
 * dropped where it is wrong, look up again.
 */
static int
check_copied (struct image *img, uint64_t offset,
              const struct map_extent *e)
{
  uint64_t first = e->host >> img->cluster_bits;
  uint64_t count = ((e->host + e->len - 1) >> img->cluster_bits) - first + 1;
  uint64_t where = 0, value = 0, guest;
  bool yes;
  int r;

  r = refcounts_all_one (img, first, count, &yes, &where, &value);
  if (r < 0)
    return r;
  if (yes) {
    note_counts (img, offset, e->len, false);
    note_neighbours (img, offset);
    return 1;
  }
  if (value == 0)
    return image_corrupt (img, where << img->cluster_bits,
                          img->cluster_size, "data cluster in use has a "
                          "reference count of 0");
  guest = round_down (offset, img->cluster_size)
    + ((where - first) << img->cluster_bits);
  report_warning ("%s: the cluster of guest offset %" PRIu64 " has the "
                  "COPIED flag but a reference count of %" PRIu64 "; it will "
                  "not be written in place", img->config.filename, guest,
                  value);
  note_counts (img, guest, 1, true);
  return 0;
}

int
map_lookup_for_write (struct image *img, uint64_t offset, uint64_t len,
                      struct map_extent *e, bool *in_place)
{
  int r;

  do {
    r = map_lookup (img, offset, len, e);
    if (r < 0)
      return r;
    *in_place = e->copied;
    if (!*in_place || e->counted)
      return 0;
    r = check_copied (img, offset, e);
  } while (r == 0);
  return r < 0 ? r : 0;
}
