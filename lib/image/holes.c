/* SPDX-License-Identifier: BSD-3-Clause */

/* Holes in host clusters that stay.
 *
 * With extended L2 entries a trim can take the data out of some
 * subclusters and leave the others, and with them the host cluster.  The
 * file system can have the space of those that are gone, but a host
 * subcluster, in contrast to a whole cluster, has no count that would
 * keep writers away: the next write to the same guest subcluster fills
 * it again, in place.  So the notes of freed.c name the guest cluster,
 * and what is punched is decided after the commit, from what is true
 * then:
 *
 *     note (map_set) ... commit: pointers durable -> lock -> look -> punch
 *
 * A subcluster is punched only if
 *
 * P1. no request uses the cluster: its range lock is had, exclusive, and
 *     without waiting, since the commit may run in a thread that has it;
 * P2. the entry in memory has no data in it (it was not filled again);
 * P3. nor has the entry on disk, so no crash brings it back.  Commits
 *     run one at a time, so the entry on disk stays what it is;
 * P4. both lead to the same host cluster, and its count is one: no
 *     snapshot has data there.
 *
 * The file system takes whole blocks only.  A subcluster may be smaller
 * (512 bytes in a cluster of 16 KiB), so neighbours that lost their data
 * before are taken along as far as the block reaches.
 *
 * An external data file has no host clusters that could be shared or used
 * again, and is punched at once (data-file.c).
 *
 * Locks: the range lock, a shard's lock, that of the refcounts; none of
 * the last two across I/O.
 */

#include <config.h>

#include <errno.h>

#include "checked.h"
#include "holes.h"
#include "image-internal.h"
#include "l2cache-internal.h"
#include "sabotage.h"

/* Punching less than the file system's block writes zeroes. */
#define BLOCK_BITS 12

static int
entry_on_disk (struct image *img, uint64_t cluster, struct l2_entry *e)
{
  const uint64_t index = cluster >> img->map.slice_bits;
  const uint64_t l1_entry = l1_entry_of (img, index);
  uint64_t words[2];
  int r;

  if ((l1_entry & ENTRY_OFFSET) == 0)
    return -ENOENT;
  r = storage_read (img->storage, words, sizeof words,
                    slice_offset (img, index, l1_entry)
                    + ((cluster & (slice_entries (img) - 1))
                       << l2_entry_bits (&img->map.layout)));
  if (r == 0)
    *e = l2_load (&img->map.layout, words, 0);
  return r;
}

/* The entry in memory: E, that of the disk, if the slice is not there,
 * for one that was changed would be.
 */
static struct l2_entry
entry_in_memory (struct image *img, uint64_t cluster, struct l2_entry e)
{
  struct slice *s = l2cache_peek (img, cluster >> img->map.slice_bits);

  if (s) {
    e = slice_entry (img, s, cluster & (slice_entries (img) - 1));
    l2cache_put (img, s);
  }
  return e;
}

static bool
has_own_host (struct l2_entry e)
{
  return !(e.word & ENTRY_COMPRESSED) && (e.word & ENTRY_OFFSET) != 0;
}

/* P2 to P4: the subclusters that hold nothing, and where their cluster
 * is.  0 if there are none, or one of the entries cannot be read.
 */
static uint32_t
without_data (struct image *img, uint64_t cluster, uint64_t *host)
{
  struct l2_entry disk = { 0, 0 }, memory;
  uint64_t count;

  if (entry_on_disk (img, cluster, &disk) < 0)
    return 0;
  memory = entry_in_memory (img, cluster, disk);
  if (!has_own_host (disk) || !has_own_host (memory)
      || ((disk.word ^ memory.word) & ENTRY_OFFSET) != 0)
    return 0;
  *host = memory.word & ENTRY_OFFSET;
  if (refcounts_get (img, *host >> img->cluster_bits, &count) < 0
      || count != 1)
    return 0;
  return (uint32_t) ~(disk.bitmap | memory.bitmap);
}

/* MASK and what is in the same blocks, without the blocks that are not
 * free as a whole.
 */
static uint32_t
whole_blocks (const struct image *img, uint32_t mask, uint32_t free)
{
  const unsigned bits = img->subcluster_bits;
  const unsigned n = bits < BLOCK_BITS ? 1u << (BLOCK_BITS - bits) : 1;
  uint32_t block, result = 0;
  unsigned i;

  for (i = 0; i < 32; i += n) {
    block = ((1u << n) - 1) << i;
    if ((mask & block) && (free & block) == block)
      result |= block;
  }
  return result;
}

static void
punch_subclusters (struct image *img, uint64_t host, uint32_t mask)
{
  unsigned first, last;

  for (first = 0; first < 32; first = last + 1) {
    for (last = first; last < 32 && mask >> last & 1; ++last)
      ;
    if (last > first)
      guard_punch (img, GUARD_DATA,
                   host + ((uint64_t) first << img->subcluster_bits),
                   (uint64_t) (last - first) << img->subcluster_bits);
  }
}

bool
holes_make (struct image *img, uint64_t cluster, uint32_t mask)
{
  struct range_hold hold;
  uint64_t host = 0;
  uint32_t free;

  if (!rangelock_try (&img->ranges, &hold, cluster, cluster + 1, true))
    return false;
  free = without_data (img, cluster, &host);
  if (SABOTAGED (SABOTAGE_HOLES) && host != 0)
    free |= mask;
  punch_subclusters (img, host, whole_blocks (img, mask & free, free));
  rangelock_unlock (&img->ranges, &hold);
  return true;
}
