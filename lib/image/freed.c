/* SPDX-License-Identifier: BSD-3-Clause */

/* The quarantine of freed clusters.
 *
 * When a guest cluster is unlinked from a host cluster the durable L2
 * table still points to it.  So the count is not lowered then: the
 * dropped reference is only noted here, which keeps the cluster from
 * being handed out, punched or reused.  The commit takes the notes at
 * its cut, and lowers the counts once the pointers are durably gone:
 *
 *     map_set ----> freed.list ----> freed.cut ----> released
 *         freed_join       freed_take  |    freed_release
 *                   ^                  |
 *                   +------------------+ freed_put_back: it failed
 *
 * Parts of a cluster that stays (subclusters without data) take the same
 * way to the file system; what is said of them is in holes.c.
 *
 * Every dropped reference passes through here, also one that leaves
 * others (2 to 1), also clusters that were allocated and never linked.
 *
 * Invariants
 *
 * F1. A note is made in the same step under the epoch lock as the
 *     unlinking, so a cut has both or neither.
 * F2. A cluster whose count falls to zero is unmarked, forgotten by the
 *     cache of what was compressed in it, then punched, and only then
 *     lowered: until the punch has returned it cannot be allocated.
 * F3. No request uses a cluster that is noted: it was unlinked under the
 *     exclusive lock of the guest clusters that led to it (rangelock.c).
 *     Readers of L2 tables hold no such lock; they look at the L1 entry
 *     again after the reading (l2cache.c).
 * F4. A table is noted here before the last pointer to it goes, and is
 *     taken off before its mark: a walk (freed_walk) that looked at the
 *     pointers first misses none (claims.c, K2).
 *
 * Locks: freed.lock, held without I/O.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "holes.h"
#include "image-internal.h"
#include "report.h"
#include "sabotage.h"

void
freed_init (struct freed *f)
{
  pthread_mutex_init (&f->lock, NULL);
}

void
freed_list_free (struct freed_list *list)
{
  struct freed_chunk *c, *next;

  for (c = list->first; c; c = next) {
    next = c->next;
    free (c);
  }
  memset (list, 0, sizeof *list);
}

void
freed_destroy (struct freed *f)
{
  freed_list_free (&f->list);
  freed_list_free (&f->cut);
  pthread_mutex_destroy (&f->lock);
}

/* The last of a list, or NULL. */
static struct freed_run *
last_run (struct freed_list *list)
{
  struct freed_chunk *c = list->last;

  return c && c->used > 0 ? &c->runs[c->used - 1] : NULL;
}

static int
append_run (struct freed_list *list, int owner, uint64_t first,
            uint64_t count)
{
  struct freed_chunk *c = list->last;

  if (!c || c->used == FREED_CHUNK_RUNS) {
    c = malloc (sizeof *c);
    if (!c)
      return -ENOMEM;
    c->next = NULL;
    c->used = 0;
    if (list->last)
      list->last->next = c;
    else
      list->first = c;
    list->last = c;
    list->chunks++;
  }
  c->runs[c->used++] = (struct freed_run) {
    .first = first, .count = count, .owner = owner
  };
  return 0;
}

int
freed_list_add (struct freed_list *list, int owner, uint64_t first,
                uint64_t count)
{
  struct freed_run *run = last_run (list);
  int r;

  if (owner != GUARD_DATA)
    list->metadata = true;
  if (run && run->owner == owner && run->first + run->count == first) {
    run->count += count;
    list->clusters += count;
    return 0;
  }
  r = append_run (list, owner, first, count);
  if (r == 0)
    list->clusters += count;
  return r;
}

int
freed_list_add_parts (struct freed_list *list, uint64_t guest_cluster,
                      uint32_t mask)
{
  struct freed_run *run = last_run (list);

  if (run && run->owner == FREED_PARTS && run->first == guest_cluster) {
    run->count |= mask;
    return 0;
  }
  return append_run (list, FREED_PARTS, guest_cluster, mask);
}

/* A short list is copied into the last chunk of the other, so that many
 * small ones do not cost a chunk each.
 */
static bool
absorb (struct freed_list *to, struct freed_list *from)
{
  struct freed_chunk *last = to->last, *c = from->first;

  if (!last || from->chunks != 1 || last->used + c->used > FREED_CHUNK_RUNS)
    return false;
  memcpy (&last->runs[last->used], c->runs, c->used * sizeof c->runs[0]);
  last->used += c->used;
  to->metadata |= from->metadata;
  freed_list_free (from);
  return true;
}

void
freed_join (struct freed *f, struct freed_list *list)
{
  if (!list->first)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  atomic_fetch_add_explicit (&f->quarantined, list->clusters,
                             memory_order_relaxed);
  if (absorb (&f->list, list))
    return;
  if (f->list.last)
    f->list.last->next = list->first;
  else
    f->list.first = list->first;
  f->list.last = list->last;
  f->list.chunks += list->chunks;
  f->list.metadata |= list->metadata;
  atomic_store (&f->chunks, f->list.chunks);
  memset (list, 0, sizeof *list);
}

void
freed_give_back (struct image *img, uint64_t first, uint64_t count)
{
  struct freed_list list = { 0 };

  if (freed_list_add (&list, GUARD_DATA, first, count) == 0)
    freed_join (&img->freed, &list);
  else
    report_warning ("%s: %" PRIu64 " clusters at host offset %" PRIu64
                    " are leaked for want of memory", img->config.filename,
                    count, first << img->cluster_bits);
}

void
freed_take (struct freed *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  f->cut = f->list;
  memset (&f->list, 0, sizeof f->list);
  atomic_store (&f->chunks, 0);
}

void
freed_put_back (struct freed *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  struct freed_list *from = &f->cut;

  if (!from->first)
    return;
  from->last->next = f->list.first;
  if (!f->list.last)
    f->list.last = from->last;
  f->list.first = from->first;
  f->list.chunks += from->chunks;
  f->list.metadata |= from->metadata;
  atomic_store (&f->chunks, f->list.chunks);
  memset (from, 0, sizeof *from);
}

/* Give clusters that nobody points to any more back to the file system.
 * A failure costs space, nothing else.
 */
static void
punch (struct image *img, uint64_t first, uint64_t count)
{
  /* Punching less than the file system's block writes zeroes. */
  const uint64_t grain = 4096;
  uint64_t begin = round_up (first << img->cluster_bits, grain);
  uint64_t end = round_down ((first + count) << img->cluster_bits, grain);

  if (!img->config.discard || begin >= end)
    return;
  guard_punch (img, GUARD_DATA, begin, end - begin);
}

/* Take COUNT clusters off the beginning of a run (F4). */
static void
take_off (struct freed *f, struct freed_run *run, uint64_t count)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  run->first += count;
  run->count -= count;
  atomic_fetch_sub_explicit (&f->quarantined, count, memory_order_relaxed);
}

/* The first part of a run whose counts all fall to zero, or all do not.
 */
static int
release_part (struct image *img, struct freed_run *run, uint64_t *count)
{
  const uint64_t cluster = run->first;
  bool last_reference = false;
  int r;

  r = refcounts_probe_last (img, cluster, count, &last_reference);
  take_off (&img->freed, run, *count);
  if (run->owner != GUARD_DATA)
    guard_unclaim (img, (enum overlap_type) run->owner,
                   cluster << img->cluster_bits,
                   *count << img->cluster_bits);
  if ((r < 0 || last_reference) && !SABOTAGED (SABOTAGE_UNPACKED))
    unpacked_forget (img->unpacked, cluster, *count);
  if (r < 0)
    return r;
  if (last_reference)
    punch (img, cluster, *count);
  return refcounts_lower (img, cluster, *count);
}

static void
release_run (struct image *img, struct freed_run *run)
{
  while (run->count > 0) {
    uint64_t cluster = run->first, count = run->count;

    if (release_part (img, run, &count) < 0)
      report_warning ("%s: %" PRIu64 " clusters at host offset %" PRIu64
                      " are leaked, because their reference counts could "
                      "not be lowered", img->config.filename, count,
                      cluster << img->cluster_bits);
  }
}

/* The next commit tries again if somebody is using the cluster.  Without
 * the memory to note that it costs space, nothing else.
 */
static void
release_parts (struct image *img, const struct freed_run *run)
{
  const uint32_t mask = (uint32_t) run->count;
  struct freed_list again = { 0 };

  if (!holes_make (img, run->first, mask)
      && freed_list_add_parts (&again, run->first, mask) == 0)
    freed_join (&img->freed, &again);
}

void
freed_release (struct image *img)
{
  struct freed *f = &img->freed;
  struct freed_list done;
  struct freed_chunk *c;
  unsigned i;

  for (c = f->cut.first; c; c = c->next)
    for (i = 0; i < c->used; ++i)
      if (c->runs[i].owner == FREED_PARTS)
        release_parts (img, &c->runs[i]);
      else
        release_run (img, &c->runs[i]);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
    done = f->cut;
    memset (&f->cut, 0, sizeof f->cut);
  }
  freed_list_free (&done);
}

int
freed_list_walk (struct image *img, const struct freed_list *list,
                 overlap_set types, walk_fn *fn, void *opaque)
{
  const struct freed_chunk *c;
  unsigned i;
  int r = 0;

  if (!list->metadata)
    return 0;
  for (c = list->first; c; c = c->next)
    for (i = 0; i < c->used && r == 0; ++i) {
      const struct freed_run *run = &c->runs[i];

      if (run->owner >= 0 && run->count > 0
          && (types & OVERLAP_BIT ((unsigned) run->owner)))
        r = fn (opaque, img, (enum overlap_type) run->owner,
                run->first << img->cluster_bits,
                run->count << img->cluster_bits);
    }
  return r;
}

/* Under one lock, for what a failed commit puts back goes against the
 * current.
 */
int
freed_walk (struct image *img, overlap_set types, walk_fn *fn,
            void *opaque)
{
  struct freed *f = &img->freed;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  int r;

  r = freed_list_walk (img, &f->list, types, fn, opaque);
  if (r == 0)
    r = freed_list_walk (img, &f->cut, types, fn, opaque);
  return r;
}
