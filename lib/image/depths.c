/* SPDX-License-Identifier: BSD-3-Clause */

/* Long chains of backing files.
 *
 * What the first layer does not have is looked for in the next, and so on
 * down: with a hundred of them a read is a hundred lookups and one pread,
 * each time.  But layers never change (layer.c), so which of them has a
 * block of guest data is found once, and kept in a lookaside buffer: block
 * to the number of its layer, where reading begins.
 *
 *     block 7 of the guest     layer 0   layer 1   layer 2   layer 3
 *                              -         -         some      all
 *                                                  ^ depth of block 7: 2
 *
 * D1. No layer above the depth of a block has any of it: each is unallocated
 *     over all of the block, and reaches to its end.
 *
 * So the depth is where to begin, not where all of the block is: the layer
 * there reads what it lacks from those below it, as ever.  A block has the
 * same size whatever clusters the layers have.
 *
 * Nothing ever makes a depth untrue: a write to the image on top, which is
 * looked at first, does not touch it.
 *
 * Locks: none, for the buffer's words are atomic, and two threads that look
 * for the same block find the same.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "depths.h"
#include "image-internal.h"

#define BLOCK_BITS 16u
#define BLOCK (UINT64_C (1) << BLOCK_BITS)

/* So few layers are as quickly asked. */
#define LAYERS_MIN 3u

static struct layer *
below (const struct layer *l)
{
  return l->image ? l->image->backing : NULL;
}

int
depths_open (struct layer *first, struct depths **ret)
{
  struct layer *l;
  struct depths *d;
  unsigned n = 0;

  *ret = NULL;
  for (l = first; l; l = below (l))
    n++;
  if (n < LAYERS_MIN)
    return 0;
  d = malloc (sizeof *d + n * sizeof d->layers[0]);
  if (!d)
    return -ENOMEM;
  for (d->n = 0, l = first; l; l = below (l))
    d->layers[d->n++] = l;
  if (tlb_open (&d->tlb, div_up (first->size, BLOCK)) < 0) {
    free (d);
    return -ENOMEM;
  }
  *ret = d;
  return 0;
}

void
depths_close (struct depths *d)
{
  if (!d)
    return;
  tlb_close (&d->tlb);
  free (d);
}

/* Has layer L nothing of [OFFSET, END)?  What cannot be looked up may be
 * something: reading it says what is wrong.
 */
static bool
has_nothing (const struct layer *l, uint64_t offset, uint64_t end)
{
  struct map_extent e;

  if (!l->image || l->size < end)
    return false;
  for (; offset < end; offset += e.len)
    if (map_lookup (l->image, offset, end - offset, &e) < 0
        || (e.kind != L2_UNALLOCATED && e.kind != L2_UNALLOC_KEPT))
      return false;
  return true;
}

static unsigned
depth_of (struct depths *d, uint64_t block)
{
  const uint64_t offset = block << BLOCK_BITS;
  uint64_t depth;

  if (tlb_find (&d->tlb, block, false, &depth))
    return (unsigned) depth;
  for (depth = 0; depth < d->n - 1; ++depth)
    if (!has_nothing (d->layers[depth], offset, offset + BLOCK))
      break;
  tlb_note (&d->tlb, block, depth, false);
  return (unsigned) depth;
}

int
depths_read (struct depths *d, void *buf, size_t len, uint64_t offset)
{
  const uint64_t end = offset + len;
  uint8_t *p = buf;
  unsigned depth;
  uint64_t to;
  int r = 0;

  while (offset < end && r == 0) {
    depth = depth_of (d, offset >> BLOCK_BITS);
    to = round_down (offset, BLOCK) + BLOCK;
    while (to < end && depth_of (d, to >> BLOCK_BITS) == depth)
      to += BLOCK;
    to = MIN (to, end);
    r = layer_read_from (d->layers[depth], p, to - offset, offset);
    p += to - offset;
    offset = to;
  }
  return r;
}
