/* SPDX-License-Identifier: BSD-3-Clause */

/* Which writes leave a file's blocks where they are.
 *
 * ext4 without a journal, as the driver of ext2, writes the blocks that map
 * a file in the file's syncs.  A sync that comes while another writes them
 * finds none to write, and returns before they are durable
 * (sync_mapping_buffers in the kernel's fs/buffer.c); so with the inode and
 * the file's length.  Syncs may go side by side there only if none of them
 * needs any of that: if all that was written since the last sync alone went
 * to blocks that the file had already, written before and inside its length,
 * which FIEMAP tells (the kernel's Documentation/filesystems/fiemap.rst).
 *
 *                places_begin_change      places_end_change
 *     KNOWN ----------------------> CHANGING -----------------> NEW
 *       ^                                                        |
 *       +------------------ places_sync, alone ------------------+
 *
 * Most guests write much between two flushes, and then it matters little
 * how those are made: only the first few writes after a sync are looked up,
 * any more take their places for new.  So do nearly all while no sync is made
 * beside others, whatever the looks tell: while clusters are allocated, say.
 *
 * Invariants
 *
 * P1. While a change is at work, and from its end until a sync alone begins,
 *     places_are_new says so.  Who finds a block mapped, and asks that
 *     question afterwards, knows whether its place is new: what mapped it
 *     is at work, or has ended.
 * P2. That is asked at the start of a flush that is to go beside others, and
 *     of a durable write, after the look at the mapping.  Where no is the
 *     answer because of a sync alone that is at work, the lock that makes it
 *     alone has them wait for its end.
 *
 * Locks: none.
 */

#include <config.h>

#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>

#include <linux/fiemap.h>
#include <linux/fs.h>

#include "per-thread.h"
#include "storage-places.h"

/* So many writes after a sync are looked up. */
#define LOOK_UPS 16u

/* After so many syncs alone in a row only what follows one in so many is. */
#define FUTILE 4u
#define TRIAL  16u

/* A write to more extents than that is not looked up any further. */
#define MAX_EXTENTS 8u

/* That a block is there, and nothing else to be said of it. */
#define HARMLESS ((uint32_t) FIEMAP_EXTENT_LAST | FIEMAP_EXTENT_MERGED)

void
places_keep (struct places *p)
{
  p->kept = true;
  atomic_store (&p->are_new, true);
}

void
places_begin_change (struct places *p)
{
  if (p->kept)
    atomic_fetch_add (&p->changes[thread_number () % CHANGES].at_work, 1);
}

/* In this order: places_are_new looks at them in the other.  Nearly always
 * are_new is set already, and to store it anew would take the cache line from
 * all others; if so, then a sync alone that takes it away has yet to begin.
 */
void
places_end_change (struct places *p)
{
  if (!p->kept)
    return;
  if (!atomic_load (&p->are_new))
    atomic_store (&p->are_new, true);
  atomic_fetch_sub (&p->changes[thread_number () % CHANGES].at_work, 1);
}

void
places_sync (struct places *p, bool alone)
{
  if (!p->kept)
    return;
  atomic_store_explicit (&p->asked, 0, memory_order_relaxed);
  if (alone) {
    atomic_store (&p->are_new, false);
    atomic_fetch_add_explicit (&p->alone, 1, memory_order_relaxed);
  }
  else
    atomic_store_explicit (&p->alone, 0, memory_order_relaxed);
}

bool
places_are_new (const struct places *p)
{
  unsigned i;

  for (i = 0; i < CHANGES; i++)
    if (atomic_load (&p->changes[i].at_work) > 0)
      return true;
  return atomic_load (&p->are_new);
}

/* Do the extents cover the range, without a gap, as written blocks? */
static bool
all_mapped (const struct fiemap *map, uint64_t offset, uint64_t end)
{
  uint32_t i;

  for (i = 0; i < map->fm_mapped_extents && offset < end; i++) {
    const struct fiemap_extent *e = &map->fm_extents[i];

    if (e->fe_logical > offset || (e->fe_flags & ~HARMLESS) != 0)
      return false;
    offset = e->fe_logical + e->fe_length;
  }
  return offset >= end;
}

/* The length is not asked of fstat: a time that somebody has seen must
 * change with the next write, and then the inode has to be synced, too.
 */
static bool
is_mapped (int fd, uint64_t offset, uint64_t len)
{
  union {
    struct fiemap map;
    char room[sizeof (struct fiemap)
              + MAX_EXTENTS * sizeof (struct fiemap_extent)];
  } u;
  const off_t size = lseek (fd, 0, SEEK_END);

  memset (&u, 0, sizeof u);     /* valgrind does not know what it fills */
  u.map.fm_start = offset;
  u.map.fm_length = len;
  u.map.fm_extent_count = MAX_EXTENTS;
  return size != -1 && offset + len <= (uint64_t) size
    && ioctl (fd, FS_IOC_FIEMAP, &u.map) == 0
    && all_mapped (&u.map, offset, offset + len);
}

bool
places_known (struct places *p, int fd, uint64_t offset, uint64_t len)
{
  return !p->kept
    || (!atomic_load (&p->are_new) && is_mapped (fd, offset, len)
        && !places_are_new (p));
}

/* May a look at where a write goes save a sync alone? */
static bool
worth_a_look (struct places *p)
{
  const unsigned alone = atomic_load_explicit (&p->alone,
                                               memory_order_relaxed);

  return (alone < FUTILE || alone % TRIAL == 0)
    && atomic_fetch_add_explicit (&p->asked, 1, memory_order_relaxed)
    < LOOK_UPS;
}

bool
places_stay (struct places *p, int fd, uint64_t offset, uint64_t len)
{
  return !p->kept
    || (!atomic_load (&p->are_new) && worth_a_look (p)
        && is_mapped (fd, offset, len));
}
