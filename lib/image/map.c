/* SPDX-License-Identifier: BSD-3-Clause */

/* The map of the active disk (qcow2 specification, "Cluster mapping").
 *
 * The L1 table is held whole, as atomics: who looks up a guest cluster
 * reads its entry without a lock.  L2 entries are in slices (l2cache.c).
 *
 * A change is made in memory only, in one step under the epoch lock:
 * the new entries, the references they drop (freed.c) and the mark that
 * the slice is dirty belong to the same epoch.  Before that step
 * everything that can fail is done: the table exists and is ours alone,
 * its space is reserved, the clusters to be freed are not metadata,
 * the slice is in memory.
 *
 * A table that is shared with a snapshot is copied before its first
 * change.  The copy is written at once: nothing leads to it before the
 * commit's first sync made it durable.  Slices in the cache stay as they
 * are, because a shared table has no dirty ones.
 *
 * Invariants
 *
 * M1. An L1 entry with COPIED leads to a table that only it leads to; an
 *     entry changes from none or shared to its own table once, and then
 *     never again.  So a dirty slice knows its place.
 * M2. An entry changes only under the exclusive range lock of its guest
 *     cluster.  (Dropping a wrong COPIED flag is the exception: it needs
 *     the shard's lock only.)
 *
 * Locks: table_lock while a table is made, across I/O; then epoch_lock
 * (read), a shard's lock, freed.lock.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "corrupt.h"
#include "image-internal.h"
#include "report.h"

static size_t
bitmap_words (const struct image *img)
{
  return (size_t) div_up (img->map.l1_size, 64) + 1;
}

static int
read_l1 (struct image *img)
{
  struct map *m = &img->map;
  CLEANUP_FREE uint64_t *buf = NULL;
  uint64_t i;
  int r;

  m->l1 = calloc (m->l1_size + 1, sizeof m->l1[0]);
  buf = calloc (m->l1_size + 1, sizeof buf[0]);
  if (!m->l1 || !buf)
    return -ENOMEM;
  r = storage_read (img->storage, buf, m->l1_size * sizeof buf[0],
                    img->header.l1_table_offset);
  if (r < 0) {
    report_error ("%s: reading the L1 table at host offset %" PRIu64 ": %s",
                  img->config.filename, img->header.l1_table_offset,
                  strerror (-r));
    return r;
  }
  for (i = 0; i < m->l1_size; ++i)
    atomic_init (&m->l1[i], be64toh (buf[i]));
  return 0;
}

int
map_open (struct image *img)
{
  struct map *m = &img->map;
  int i;

  m->l1_size = img->header.l1_size;
  m->l2_bits = img->cluster_bits - 3;
  m->slice_bits = MIN (m->l2_bits, 9u);
  for (i = 0; i < MAP_TABLE_LOCKS; ++i)
    pthread_mutex_init (&m->table_locks[i], NULL);
  m->table_ok = calloc (bitmap_words (img), sizeof (uint64_t));
  m->l1_dirty[0] = calloc (bitmap_words (img), sizeof (uint64_t));
  m->l1_dirty[1] = calloc (bitmap_words (img), sizeof (uint64_t));
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
  for (i = 0; i < MAP_TABLE_LOCKS; ++i)
    pthread_mutex_destroy (&m->table_locks[i]);
}

static bool
bit_is_set (_Atomic uint64_t *bitmap, uint64_t i)
{
  return atomic_load (&bitmap[i / 64]) >> (i % 64) & 1;
}

static void
set_bit (_Atomic uint64_t *bitmap, uint64_t i)
{
  atomic_fetch_or (&bitmap[i / 64], UINT64_C (1) << (i % 64));
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

/* Does entry I of the slice continue the extent that began at FIRST? */
static bool
continues (struct image *img, const struct slice *s, unsigned first,
           unsigned i, const struct map_extent *e)
{
  uint64_t a = be64toh (s->entries[first]), b = be64toh (s->entries[i]);

  if (l2_kind_of (b, img->header.version, img->cluster_size) != e->kind)
    return false;
  switch (e->kind) {
  case L2_NORMAL:
  case L2_ZERO_ALLOC:
    return (b & ENTRY_OFFSET) == (a & ENTRY_OFFSET)
      + ((uint64_t) (i - first) << img->cluster_bits)
      && !((a ^ b) & ENTRY_COPIED);
  case L2_COMPRESSED:
    return false;
  default:
    return true;
  }
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
  uint64_t entry = be64toh (s->entries[first]);
  uint64_t skip = offset_in_cluster (img, offset), covered;
  unsigned i = first;

  e->kind = l2_kind_of (entry, img->header.version, img->cluster_size);
  e->entry = entry;
  covered = img->cluster_size - skip;
  while (covered < len && i < mask && continues (img, s, first, i + 1, e)) {
    ++i;
    covered += img->cluster_size;
  }
  e->len = MIN (covered, len);
  e->durable = s->dirty_epoch == 0 && atomic_load (&img->map.l1_changed[0]) == 0
    && atomic_load (&img->map.l1_changed[1]) == 0;
  if (e->kind == L2_NORMAL || e->kind == L2_ZERO_ALLOC) {
    e->host = (entry & ENTRY_OFFSET) + skip;
    e->copied = (entry & ENTRY_COPIED)
      && (atomic_load (&img->map.l1[cluster >> img->map.l2_bits])
          & ENTRY_COPIED);
    e->counted = all_counted (s, first, i);
  }
}

static int
bad_entry (struct image *img, uint64_t offset, uint64_t entry,
           const char *what)
{
  return image_corrupt (img, 0, 0, "L2 entry 0x%016" PRIx64 " of guest "
                        "offset %" PRIu64 " %s", entry, offset, what);
}

int
map_lookup (struct image *img, uint64_t offset, uint64_t len,
            struct map_extent *e)
{
  struct slice *s;
  uint64_t end;
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
  l2cache_put (img, s);

  if (e->kind == L2_INVALID)
    return bad_entry (img, offset, e->entry, "is invalid (host offset not "
                      "a multiple of the cluster size, zero flag in version "
                      "2, or COPIED without an offset)");
  if (e->kind == L2_NORMAL) {
    end = e->host + e->len - 1;
    if (round_down (end, img->cluster_size)
        >= atomic_load (&img->guard.end))
      return bad_entry (img, offset, e->entry, "points past the end of "
                        "the file");
  }
  return 0;
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
  if (drop)
    s->entries[cluster & mask] &= htobe64 (~ENTRY_COPIED);
  else
    for (; cluster <= last; ++cluster)
      s->one[(cluster & mask) / 64]
        |= UINT64_C (1) << ((cluster & mask) % 64);
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
    *in_place = e->copied && (e->kind == L2_NORMAL
                              || e->kind == L2_ZERO_ALLOC);
    if (!*in_place || e->counted)
      return 0;
    r = check_copied (img, offset, e);
  } while (r == 0);
  return r < 0 ? r : 0;
}

/*----------------------------------------------------------------------
 * Tables.
 */

/* Switch an L1 entry to the table at OFFSET; OLD takes effect with it. */
static void
switch_table (struct image *img, uint64_t i, uint64_t offset,
              struct freed_list *old)
{
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&img->commit.epoch_lock);
  const unsigned list = img->commit.epoch & 1;

  atomic_store (&img->map.l1[i], offset | ENTRY_COPIED);
  set_bit (img->map.l1_dirty[list], i);
  atomic_fetch_add (&img->map.l1_changed[list], 1);
  set_bit (img->map.table_ok, i);
  freed_join (&img->freed, old);
  commit_needs_barrier (img);
}

static int
copy_table (struct image *img, uint64_t from, uint64_t to)
{
  CLEANUP_FREE uint8_t *buf = malloc (img->cluster_size);
  int r;

  if (!buf)
    return -ENOMEM;
  r = storage_read (img->storage, buf, img->cluster_size, from);
  if (r == 0)
    r = guard_write_buf (img, OVERLAP_ACTIVE_L2, buf, img->cluster_size,
                         to);
  if (r < 0)
    report_error ("%s: copying the L2 table at host offset %" PRIu64
                  " to %" PRIu64 ": %s", img->config.filename, from, to,
                  strerror (-r));
  return r;
}

/* A new table for L1 entry I; with FROM, a copy of that one. */
static int
make_table (struct image *img, uint64_t i, uint64_t from)
{
  struct freed_list old = { 0 };
  uint64_t offset;
  int r;

  if (from != 0) {
    r = freed_list_add (&old, OVERLAP_ACTIVE_L2,
                        from >> img->cluster_bits, 1);
    if (r < 0)
      return r;
  }
  r = alloc_metadata (img, OVERLAP_ACTIVE_L2, &offset);
  if (r == 0 && from != 0) {
    r = copy_table (img, from, offset);
    if (r < 0) {
      struct freed_list new = { 0 };

      if (freed_list_add (&new, OVERLAP_ACTIVE_L2,
                          offset >> img->cluster_bits, 1) == 0)
        freed_join (&img->freed, &new);
    }
  }
  if (r < 0) {
    freed_list_free (&old);
    return r;
  }
  switch_table (img, i, offset, &old);
  return 0;
}

/* The L1 entry is COPIED; is its table's count one? */
static int
check_table (struct image *img, uint64_t i, uint64_t table)
{
  uint64_t value;
  int r = refcounts_get (img, table >> img->cluster_bits, &value);

  if (r < 0)
    return r;
  if (value == 1) {
    set_bit (img->map.table_ok, i);
    return 0;
  }
  if (value == 0)
    return image_corrupt (img, table, img->cluster_size, "active L2 table "
                          "has a reference count of 0");
  report_warning ("%s: L1 entry %" PRIu64 " has the COPIED flag but its L2 "
                  "table has a reference count of %" PRIu64 "; the table is "
                  "copied", img->config.filename, i, value);
  return make_table (img, i, table);
}

/* Make sure that the table of CLUSTER exists and may be changed. */
static int
own_table (struct image *img, uint64_t cluster)
{
  struct map *m = &img->map;
  uint64_t i = cluster >> m->l2_bits, entry, table;

  if (bit_is_set (m->table_ok, i))
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->table_locks[i % MAP_TABLE_LOCKS]);
  if (bit_is_set (m->table_ok, i))
    return 0;
  entry = atomic_load (&m->l1[i]);
  table = entry & ENTRY_OFFSET;
  if (table == 0)
    return make_table (img, i, 0);
  if (!(entry & ENTRY_COPIED))
    return make_table (img, i, table);
  return check_table (img, i, table);
}

/*----------------------------------------------------------------------
 * Changing.
 */

/* What entry I of a change becomes, and whether the host clusters of
 * OLD are freed.
 */
static uint64_t
changed_entry (struct image *img, uint64_t old, uint64_t i,
               enum map_change change, uint64_t host, bool *free_old)
{
  enum l2_kind kind = l2_kind_of (old, img->header.version,
                                  img->cluster_size);
  bool has_host = kind == L2_NORMAL || kind == L2_ZERO_ALLOC;

  *free_old = has_host || kind == L2_COMPRESSED;
  switch (change) {
  case MAP_LINK:
    return (host + (i << img->cluster_bits)) | ENTRY_COPIED;
  case MAP_FILL:
    *free_old = false;
    return old & ~ENTRY_ZERO;
  default:
    break;
  }
  /* What no layer has reads as zeroes already. */
  if (kind == L2_UNALLOCATED && !img->backing)
    return old;
  switch (change) {
  case MAP_ZERO_KEEP:
    if (has_host) {
      *free_old = false;
      return old | ENTRY_ZERO;
    }
    return ENTRY_ZERO;
  case MAP_ZERO_DROP:
    return ENTRY_ZERO;
  case MAP_UNMAP:
    return 0;
  default:
    abort ();
  }
}

/* The host clusters that an old entry refers to. */
static int
old_clusters (struct image *img, uint64_t guest, uint64_t old,
              uint64_t *first, uint64_t *count)
{
  struct compressed_place place;
  uint64_t last;

  if (old & ENTRY_COMPRESSED) {
    if (!l2_compressed_place (old, img->cluster_bits, &place))
      return bad_entry (img, guest, old, "is an invalid compressed cluster");
    *first = place.offset >> img->cluster_bits;
    last = (place.offset + place.length - 1) >> img->cluster_bits;
  }
  else {
    *first = (old & ENTRY_OFFSET) >> img->cluster_bits;
    last = *first;
  }
  *count = last - *first + 1;
  if (*first << img->cluster_bits >= atomic_load (&img->guard.end))
    return bad_entry (img, guest, old, "points past the end of the file");
  return guard_check (img, GUARD_DATA, *first << img->cluster_bits,
                      *count << img->cluster_bits);
}

/* What a change will need, found out before anything is changed. */
struct preview {
  struct freed_list freed;
  bool differs;                 /* some entry changes */
  bool reserved;                /* the slice's space is certain */
};

/* Note what one old entry drops. */
static int
preview_entry (struct image *img, uint64_t cluster, uint64_t old,
               struct preview *p)
{
  uint64_t first = 0, count = 0;
  int r;

  if (l2_kind_of (old, img->header.version, img->cluster_size)
      == L2_INVALID)
    return bad_entry (img, cluster << img->cluster_bits, old, "is invalid");
  r = old_clusters (img, cluster << img->cluster_bits, old, &first, &count);
  if (r < 0)
    return r;
  return freed_list_add (&p->freed, GUARD_DATA, first, count);
}

/* The entries are copied out of the slice first: looking closer may
 * need I/O, which a shard's lock must not wait for.
 */
static int
preview_change (struct image *img, uint64_t cluster, uint64_t count,
                enum map_change change, uint64_t host, struct preview *p)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  uint64_t old[512], i, new;
  struct slice *s;
  bool free_old;
  int r;

  r = l2cache_get (img, cluster >> img->map.slice_bits, &s);
  if (r != 0)
    return r < 0 ? r : -EIO;
  for (i = 0; i < count; ++i)
    old[i] = be64toh (s->entries[(cluster & mask) + i]);
  p->reserved = s->reserved;
  l2cache_put (img, s);

  for (i = 0; i < count; ++i) {
    new = changed_entry (img, old[i], i, change, host, &free_old);
    if (new != old[i])
      p->differs = true;
    if (free_old || l2_kind_of (old[i], img->header.version,
                                img->cluster_size) == L2_INVALID) {
      r = preview_entry (img, cluster + i, old[i], p);
      if (r < 0)
        return r;
    }
  }
  return 0;
}

/* Reserve the slice's place on disk, before its first change. */
static int
reserve_slice (struct image *img, uint64_t cluster)
{
  const unsigned in_table = img->map.l2_bits;
  const uint64_t bytes = sizeof (uint64_t) << img->map.slice_bits;
  uint64_t table = atomic_load (&img->map.l1[cluster >> in_table])
    & ENTRY_OFFSET;
  uint64_t entry = cluster & ((UINT64_C (1) << in_table) - 1);

  return guard_reserve (img, OVERLAP_ACTIVE_L2,
                        table + round_down (entry * sizeof (uint64_t),
                                            bytes),
                        bytes, false);
}

/* The step itself.  False if the slice was not in memory. */
static bool
apply (struct image *img, uint64_t cluster, uint64_t count,
       enum map_change change, uint64_t host, struct freed_list *freed,
       int *r)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&img->commit.epoch_lock);
  struct slice *s = l2cache_peek (img, cluster >> img->map.slice_bits);
  uint64_t i, e, old;
  bool free_old;

  if (!s)
    return false;
  *r = l2cache_change (img, s);
  if (*r == 0) {
    s->reserved = true;
    for (i = 0; i < count; ++i) {
      e = (cluster & mask) + i;
      old = be64toh (s->entries[e]);
      s->entries[e] = htobe64 (changed_entry (img, old, i, change, host,
                                              &free_old));
      if (change == MAP_LINK)
        s->one[e / 64] |= UINT64_C (1) << (e % 64);
      else if (change != MAP_FILL && change != MAP_ZERO_KEEP)
        s->one[e / 64] &= ~(UINT64_C (1) << (e % 64));
    }
    freed_join (&img->freed, freed);
    if (change == MAP_LINK || change == MAP_FILL)
      commit_needs_barrier (img);
  }
  l2cache_put (img, s);
  return true;
}

/* Bring the slice into memory again: it was evicted since. */
static int
fetch (struct image *img, uint64_t cluster)
{
  struct slice *s;
  int r = l2cache_get (img, cluster >> img->map.slice_bits, &s);

  if (r != 0)
    return r < 0 ? r : -EIO;
  l2cache_put (img, s);
  return 0;
}

int
map_set (struct image *img, uint64_t cluster, uint64_t count,
         enum map_change change, uint64_t host)
{
  struct preview p = { .freed = { 0 } };
  int r, applied = 0;

  if (change == MAP_UNMAP && !map_has_table (img, cluster))
    return 0;
  r = own_table (img, cluster);
  if (r == 0)
    r = preview_change (img, cluster, count, change, host, &p);
  if (r == 0 && p.differs && !p.reserved)
    r = reserve_slice (img, cluster);
  while (r == 0 && p.differs && !applied) {
    applied = apply (img, cluster, count, change, host, &p.freed, &r);
    if (!applied)
      r = fetch (img, cluster);
  }
  freed_list_free (&p.freed);
  return r;
}

/*----------------------------------------------------------------------
 * The commit's part.
 */

bool
map_l1_cut_is_empty (struct image *img, uint64_t epoch)
{
  return atomic_load (&img->map.l1_changed[epoch & 1]) == 0;
}

/* Write entries FIRST to LAST, which were all changed. */
static int
write_l1_run (struct image *img, uint64_t first, uint64_t last)
{
  uint64_t offset = img->header.l1_table_offset + first * sizeof (uint64_t);
  size_t n = (size_t) (last - first + 1), i;
  uint64_t buf[64];
  int r;

  for (i = 0; i < n; ++i)
    buf[i] = htobe64 (atomic_load (&img->map.l1[first + i]));
  r = guard_write_buf (img, OVERLAP_ACTIVE_L1, buf, n * sizeof buf[0],
                       offset);
  if (r < 0)
    report_error ("%s: writing the L1 table at host offset %" PRIu64 ": %s",
                  img->config.filename, offset, strerror (-r));
  return r;
}

int
map_write_l1_cut (struct image *img, uint64_t epoch)
{
  _Atomic uint64_t *dirty = img->map.l1_dirty[epoch & 1];
  uint64_t i, first;
  int r;

  if (map_l1_cut_is_empty (img, epoch))
    return 0;
  for (i = 0; i < img->map.l1_size; ++i) {
    if (i % 64 == 0 && atomic_load (&dirty[i / 64]) == 0) {
      i += 63;
      continue;
    }
    if (!bit_is_set (dirty, i))
      continue;
    first = i;
    while (i + 1 < img->map.l1_size && i + 1 - first < 64
           && bit_is_set (dirty, i + 1))
      ++i;
    r = write_l1_run (img, first, i);
    if (r < 0)
      return r;
  }
  return 0;
}

void
map_l1_cut_end (struct image *img, uint64_t epoch, bool success)
{
  struct map *m = &img->map;
  const unsigned list = epoch & 1, other = list ^ 1;
  const size_t words = bitmap_words (img);
  size_t i;

  if (map_l1_cut_is_empty (img, epoch))
    return;
  for (i = 0; i < words; ++i) {
    uint64_t bits = atomic_exchange (&m->l1_dirty[list][i], 0);

    if (bits && !success)
      atomic_fetch_or (&m->l1_dirty[other][i], bits);
  }
  if (!success)
    atomic_fetch_add (&m->l1_changed[other],
                      atomic_load (&m->l1_changed[list]));
  atomic_store (&m->l1_changed[list], 0);
}
