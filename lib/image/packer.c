/* SPDX-License-Identifier: BSD-3-Clause */

/* Room for compressed clusters.
 *
 * They lie one behind another in host clusters that hold nothing else,
 * and each adds one to the count of every host cluster that it touches:
 *
 *       cluster c                   cluster c + 1
 *     | A     | B       | C       . C   | D    | (next: room for more) |
 *                                 .
 *       count 3 (A, B, C)           count 2 (C, D)
 *
 * One that does not fit any more goes on in the next host cluster if the
 * allocator has that one free; else it begins a new host cluster, and
 * what is left of the old one stays unused.  (A stream is always shorter
 * than a cluster, so it touches two at most.)
 *
 * Invariants
 *
 * P1. Bytes are given out once: the packer only goes forward.  What a
 *     durable pointer may lead to is never written again.
 * P2. Every stream begins at a sector.  The specification allows any
 *     byte, but then two clusters would share a sector, and a power loss
 *     while the second is written could harm the first, which may have
 *     been durable for long.  It costs half a sector for each cluster.
 * P3. The packer holds no count of its own.  When the last count of its
 *     host cluster is about to go it leaves that cluster: it is told
 *     when the release finds that out (refcounts_probe_last), before a
 *     hole is punched.  After that the count can only fall.
 * P4. No count is raised above what its width can hold: then a new host
 *     cluster is begun.  With counts of one bit each stream has host
 *     clusters of its own.
 *
 * After the end of the server what is left of a host cluster stays
 * unused: nothing in the file says where the packer was.
 *
 * Locks: refcounts.lock.
 */

#include <config.h>

#include <errno.h>

#include "cleanup.h"
#include "image-internal.h"
#include "refcount.h"
#include "sabotage.h"

/* P3. */
void
packer_leave (struct image *img, uint64_t first, uint64_t count)
{
  struct packer *p = &img->refcounts.packer;

  if (p->cluster >= first && p->cluster - first < count
      && !SABOTAGED (SABOTAGE_PACKER))
    p->cluster = 0;
}

/* One more stream in the packer's host cluster.  1: its count is at the
 * maximum.
 */
static int
raise_count (struct image *img)
{
  struct refcounts *rc = &img->refcounts;
  const uint64_t cluster = rc->packer.cluster;
  const uint64_t entry = cluster & ((UINT64_C (1) << rc->block_bits) - 1);
  struct refblock *block;
  uint64_t value;
  int r;

  r = refcounts_block_of (img, cluster, &block);
  if (r < 0)
    return r;
  value = refcount_get (block->data, rc->order, entry);
  if (value == refcount_max (rc->order))
    return 1;
  return refcounts_set_run (img, block, entry, 1, value + 1);
}

/* Go on in host cluster FIRST, which is new. */
static void
begin_cluster (struct image *img, uint64_t first, uint64_t len,
               uint64_t *offset)
{
  struct packer *p = &img->refcounts.packer;
  const uint64_t begin = first << img->cluster_bits;
  int r = 1;

  /* With a part of the stream in the one before?  If its count cannot be
   * raised, for whatever reason, there is still the new one.
   */
  if (p->cluster != 0 && p->cluster + 1 == first && p->next < begin)
    r = raise_count (img);
  *offset = r == 0 ? p->next : begin;
  p->cluster = first;
  p->next = *offset + len;
}

int
alloc_packed (struct image *img, uint64_t len, uint64_t *offset)
{
  struct refcounts *rc = &img->refcounts;
  struct packer *p = &rc->packer;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rc->lock);
  uint64_t first, count;
  bool zeroes;
  int r;

  if (p->cluster != 0
      && p->next + len <= (p->cluster + 1) << img->cluster_bits) {
    r = raise_count (img);
    if (r < 0)
      return r;
    if (r == 0) {
      *offset = p->next;
      p->next += len;
      return 0;
    }
    p->cluster = 0;
  }
  r = refcounts_take (img, 1, &first, &count, &zeroes);
  if (r < 0)
    return r;
  begin_cluster (img, first, len, offset);
  return 0;
}
