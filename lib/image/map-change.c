/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing the map.
 *
 * A change is made in memory only, in one step under the epoch lock:
 * the new entries, the references they drop (freed.c) and the mark that
 * the slice is dirty belong to the same epoch.  Before that step
 * everything that can fail is done: the table exists and is ours alone,
 * its space is reserved, the clusters to be freed are not metadata,
 * the slice is in memory.
 *
 *     map_set: map_own_table -> preview_change -> reserve_slice -> apply
 *
 * The caller's exclusive range lock keeps the entries as the preview saw
 * them until they are changed.
 *
 * Locks: epoch_lock (read), a shard's lock, freed.lock; none across I/O.
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
#include "map-internal.h"
#include "report.h"
#include "sabotage.h"

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
      return map_bad_entry (img, guest, old,
                            "is an invalid compressed cluster");
    *first = place.offset >> img->cluster_bits;
    last = (place.offset + place.length - 1) >> img->cluster_bits;
  }
  else {
    *first = (old & ENTRY_OFFSET) >> img->cluster_bits;
    last = *first;
  }
  *count = last - *first + 1;
  if (*first << img->cluster_bits >= atomic_load (&img->guard.end))
    return map_bad_entry (img, guest, old, "points past the end of the file");
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
    return map_bad_entry (img, cluster << img->cluster_bits, old, "is invalid");
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
  r = map_own_table (img, cluster);
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
  if (SABOTAGED (SABOTAGE_QUARANTINE)) {
    freed_take (&img->freed);
    freed_release (img);
  }
  return r;
}
