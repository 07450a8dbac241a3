/* SPDX-License-Identifier: BSD-3-Clause */

/* Bringing back what left the tracker for want of memory: all metadata is
 * walked, and the tracker takes what lies in the range that it wants to
 * rebuild (overlap-restore.c).  Tables are made and released meanwhile,
 * by other threads; the order in which the walk looks, and that in which
 * notes and marks are made and taken back (claims.c, K1 and K2), see to
 * it that none is missed and none that is gone stays marked.
 *
 * Where corruption was met the tables are not believed any more, and
 * what is outside stays there.
 *
 * Locks: those of the walk.
 */

#include <config.h>

#include "checked.h"
#include "image-internal.h"
#include "restore.h"
#include "walk.h"

static int
enter (void *opaque, struct image *img, enum overlap_type type,
       uint64_t offset, uint64_t len)
{
  const uint64_t first = offset >> img->cluster_bits;

  (void) opaque;
  overlap_restore_enter (img->guard.overlap, type, first,
                         ((offset + len - 1) >> img->cluster_bits)
                         - first + 1);
  return 0;
}

void
restore_tracker (struct image *img)
{
  struct overlap *o = img->guard.overlap;

  if (atomic_load (&img->guard.corrupt) || !overlap_restore_begin (o))
    return;
  overlap_restore_end (o, walk_metadata (img, OVERLAP_ALL, enter, NULL)
                       == 0);
}
