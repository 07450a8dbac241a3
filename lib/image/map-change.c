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
#include "l2cache-internal.h"
#include "map-entry.h"
#include "map-internal.h"
#include "report.h"
#include "sabotage.h"

/* A change of guest bytes in one slice. */
struct change {
  uint64_t offset, len;         /* guest bytes */
  uint64_t first, count;        /* guest clusters */
  enum map_change kind;
  uint64_t host;
};

/* Which subclusters of cluster I of the change does it touch? */
static uint32_t
mask_of (const struct image *img, const struct change *c, uint64_t i)
{
  const uint64_t cluster = (c->first + i) << img->cluster_bits;
  const uint64_t from = MAX (c->offset, cluster) - cluster;
  const uint64_t to = MIN (c->offset + c->len - cluster, img->cluster_size);
  unsigned first, last;

  if (to - from == img->cluster_size || !img->map.layout.extended)
    return l2_all_subclusters (&img->map.layout);
  first = (unsigned) (from >> img->subcluster_bits);
  last = (unsigned) ((to - 1) >> img->subcluster_bits);
  return UINT32_MAX >> (31 - last) & UINT32_MAX << first;
}

/* What entry I of a change becomes, and whether the host clusters of
 * OLD are freed.
 */
static struct l2_entry
changed_entry (struct image *img, const struct change *c, uint64_t i,
               struct l2_entry old, bool *free_old)
{
  return map_changed_entry (&img->map.layout, img->backing != NULL, old,
                            mask_of (img, c, i), c->kind,
                            c->host + (i << img->cluster_bits), free_old);
}

/* The host clusters that an old entry refers to. */
static int
old_clusters (struct image *img, uint64_t guest, struct l2_entry old,
              uint64_t *first, uint64_t *count)
{
  struct compressed_place place;
  uint64_t last;

  if (old.word & ENTRY_COMPRESSED) {
    if (!l2_compressed_place (old.word, img->cluster_bits, &place))
      return map_bad_entry (img, guest, old,
                            "is an invalid compressed cluster");
    *first = place.offset >> img->cluster_bits;
    last = (place.offset + place.length - 1) >> img->cluster_bits;
  }
  else {
    *first = (old.word & ENTRY_OFFSET) >> img->cluster_bits;
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

/* Subclusters that were data and are not, in a host cluster that stays:
 * their space is given back.
 */
static int
note_parts (struct image *img, const struct change *c, uint64_t cluster,
            struct l2_entry old, struct l2_entry new, struct preview *p)
{
  const uint32_t lost = (uint32_t) (old.bitmap & ~new.bitmap);

  if (c->kind != MAP_ZERO_DROP || !img->map.layout.extended || lost == 0)
    return 0;
  return freed_list_add_parts (&p->freed, cluster, lost);
}

/* What becomes of entry I, and note what it drops. */
static int
preview_entry (struct image *img, const struct change *c, uint64_t i,
               struct l2_entry old, struct preview *p)
{
  const uint64_t cluster = c->first + i;
  uint64_t first = 0, count = 0;
  struct l2_entry new;
  bool free_old;
  int r;

  if (l2_kind (&img->map.layout, old, 0) == L2_INVALID)
    return map_bad_entry (img, cluster << img->cluster_bits, old, "is invalid");
  if (!map_entry_can_change (&img->map.layout, old, mask_of (img, c, i),
                             c->kind))
    return -ENOTSUP;
  new = changed_entry (img, c, i, old, &free_old);
  if (new.word != old.word || new.bitmap != old.bitmap)
    p->differs = true;
  /* A data file's clusters are not handed out, and so not freed. */
  if (img->map.layout.data_file)
    return 0;
  if (!free_old)
    return note_parts (img, c, cluster, old, new, p);
  r = old_clusters (img, cluster << img->cluster_bits, old, &first, &count);
  if (r < 0)
    return r;
  return freed_list_add (&p->freed, GUARD_DATA, first, count);
}

/* The entries are copied out of the slice first: looking closer may
 * need I/O, which a shard's lock must not wait for.
 */
static int
preview_change (struct image *img, const struct change *c,
                struct preview *p)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  struct l2_entry old[512];
  struct slice *s;
  uint64_t i;
  int r;

  r = l2cache_get (img, c->first >> img->map.slice_bits, &s);
  if (r != 0)
    return r < 0 ? r : -EIO;
  for (i = 0; i < c->count; ++i)
    old[i] = slice_entry (img, s, (c->first & mask) + i);
  p->reserved = s->reserved;
  l2cache_put (img, s);

  for (i = 0; i < c->count && r == 0; ++i)
    r = preview_entry (img, c, i, old[i], p);
  return r;
}

/* Reserve the slice's place on disk, before its first change. */
static int
reserve_slice (struct image *img, uint64_t cluster)
{
  const uint64_t index = cluster >> img->map.slice_bits;

  return guard_reserve (img, OVERLAP_ACTIVE_L2,
                        slice_offset (img, index, l1_entry_of (img, index)),
                        slice_bytes (img), false);
}

/* The entries of a slice that is in memory and may change. */
static void
change_entries (struct image *img, const struct change *c, struct slice *s)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  struct l2_entry new;
  uint64_t i, e;
  bool free_old;

  s->reserved = true;
  for (i = 0; i < c->count; ++i) {
    e = (c->first & mask) + i;
    new = changed_entry (img, c, i, slice_entry (img, s, e), &free_old);
    slice_set_entry (img, s, e, new);
    tlb_forget (&img->map.tlb, c->first + i);
    if (c->kind == MAP_LINK)
      s->one[e / 64] |= UINT64_C (1) << (e % 64);
    else if ((new.word & ENTRY_OFFSET) == 0
             || (new.word & ENTRY_COMPRESSED))
      s->one[e / 64] &= ~(UINT64_C (1) << (e % 64));
  }
}

/* The step itself.  False if the slice was not in memory. */
static bool
apply (struct image *img, const struct change *c, struct freed_list *freed,
       int *r)
{
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&img->commit.epoch_lock);
  struct slice *s = l2cache_peek (img, c->first >> img->map.slice_bits);

  if (!s)
    return false;
  *r = l2cache_change (img, s);
  if (*r == 0) {
    change_entries (img, c, s);
    freed_join (&img->freed, freed);
    if (c->kind == MAP_LINK || c->kind == MAP_LINK_COMPRESSED
        || c->kind == MAP_FILL)
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
map_set (struct image *img, uint64_t offset, uint64_t len,
         enum map_change kind, uint64_t host)
{
  const uint64_t first = offset >> img->cluster_bits;
  const struct change c = {
    .offset = offset, .len = len, .first = first,
    .count = ((offset + len - 1) >> img->cluster_bits) - first + 1,
    .kind = kind, .host = host,
  };
  struct preview p = { .freed = { 0 } };
  int r, applied = 0;

  if (kind == MAP_UNMAP && !map_has_table (img, first))
    return 0;
  r = map_own_table (img, first);
  if (r == 0)
    r = preview_change (img, &c, &p);
  if (r == 0 && p.differs && !p.reserved)
    r = reserve_slice (img, first);
  while (r == 0 && p.differs && !applied) {
    applied = apply (img, &c, &p.freed, &r);
    if (!applied)
      r = fetch (img, first);
  }
  freed_list_free (&p.freed);
  if (SABOTAGED (SABOTAGE_QUARANTINE)) {
    freed_take (&img->freed);
    freed_release (img);
  }
  return r;
}
