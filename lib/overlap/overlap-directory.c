/* SPDX-License-Identifier: BSD-3-Clause */

/* The directory: from the number of a window to its slot.
 *
 * A radix tree of 32-way nodes that skips the levels at which there is
 * only one way to go.  A node exists only where at least two windows
 * part, or for 32 neighbouring windows of which one has been marked, so
 * a pointer to the far end of a hostile file costs two nodes (of 264
 * bytes), however far it points.
 *
 * An image of small clusters has three or four levels, and a check waits for
 * one after the other.  So where windows lie densely from the begin of the
 * file on, as they do in all but hostile ones, there is an array of the
 * leaves, too, of at most an eighth of the directory: the first leaves are
 * found there, in two steps however many there are, and others in the tree.
 * It is made, and made anew of twice the length, when a leaf comes behind its
 * end.  The arrays before it stay, for a check may still be reading one;
 * together they are shorter than the last.  Without memory for it, or where
 * windows are far apart, the tree does.
 *
 * Invariants:
 *
 * 1. A node never moves, changes its prefix or goes away before
 *    overlap_free; its children only change from nothing to something,
 *    or to a new node with the old child below it.  So checks walk the
 *    tree without a lock, with one acquiring load per level.
 * 2. Every window below a node has the node's prefix.
 * 3. The array has all leaves with numbers (the first window, divided by 32)
 *    below its length; so if a leaf is not there it is not in the tree.
 *    Before a slot of a new leaf is changed, the array has the leaf.
 *
 * Locks: ov_dir_insert needs overlap.lock.
 */

#include <config.h>

#include "overlap-fast.h"

static unsigned
shift_of (const struct ov_node *n)
{
  return n->prefix & 0xff;
}

/* Bits above the node's own ways. */
static uint64_t
above (uint64_t window, unsigned shift)
{
  return window >> shift >> OV_WAY_BITS;
}

static bool
covers (const struct ov_node *n, uint64_t window)
{
  return above (window, shift_of (n)) == n->prefix >> 8;
}

static unsigned
way_of (const struct ov_node *n, uint64_t window)
{
  return (window >> shift_of (n)) & (OV_WAYS - 1);
}

static struct ov_node *
child (const struct ov_node *n, unsigned way)
{
  return atomic_load_explicit (&n->way[way].node, memory_order_acquire);
}

static struct ov_node *
new_node (struct overlap *o, uint64_t window, unsigned shift, bool force)
{
  struct ov_node *n = ov_alloc (o, sizeof *n, force);

  if (n) {
    n->prefix = above (window, shift) << 8 | shift;
    o->directory_bytes += ov_size (n);
  }
  return n;
}

/* Put a node that covers WINDOW too in the place of N. */
static struct ov_node *
part (struct overlap *o, struct ov_node *n, uint64_t window, bool force)
{
  uint64_t other = n->prefix >> 8 << shift_of (n) << OV_WAY_BITS;
  unsigned shift = shift_of (n);
  struct ov_node *upper;

  do
    shift += OV_WAY_BITS;
  while (above (window, shift) != above (other, shift));
  upper = new_node (o, window, shift, force);
  if (upper)
    atomic_init (&upper->way[way_of (upper, other)].node, n);
  return upper;
}

/* ---- the array of leaves ---- */

/* No array is shorter; the tests with tiny windows have some. */
#define LEAVES_MIN (OV_WINDOW_BITS < 10 ? UINT64_C (2) : UINT64_C (32))
#define LEAVES_PART 8           /* of the directory, at most */

/* Call F for each leaf from N down, until it says that it is enough. */
static bool
each_leaf (struct ov_node *n, struct ov_leaves *l,
           bool (*f) (struct ov_leaves *l, struct ov_node *leaf))
{
  unsigned way;

  if (!n)
    return true;
  if (shift_of (n) == 0)
    return f (l, n);
  for (way = 0; way < OV_WAYS; ++way)
    if (!each_leaf (child (n, way), l, f))
      return false;
  return true;
}

static bool
put_leaf (struct ov_leaves *l, struct ov_node *leaf)
{
  const uint64_t number = leaf->prefix >> 8;

  if (number < l->n)
    atomic_store_explicit (&l->leaf[number], leaf, memory_order_release);
  return true;
}

/* The array is to have leaf NUMBER, too, if it may become so long. */
static void
extend (struct overlap *o, struct ov_leaves *old, uint64_t number)
{
  struct ov_leaves *l;
  const uint64_t most = o->directory_bytes / LEAVES_PART / sizeof l->leaf[0];
  uint64_t length = LEAVES_MIN;

  while (length <= number && length <= most)
    length *= 2;
  if (length > most)
    return;
  l = ov_alloc (o, sizeof *l + length * sizeof l->leaf[0], false);
  if (!l)
    return;
  o->directory_bytes += ov_size (l);
  l->n = length;
  l->shorter = old;
  each_leaf (atomic_load_explicit (&o->root, memory_order_relaxed), l,
             put_leaf);
  atomic_store_explicit (&o->leaves, l, memory_order_release);
}

/* LEAF is new. */
static void
note_leaf (struct overlap *o, struct ov_node *leaf)
{
  struct ov_leaves *l = atomic_load_explicit (&o->leaves,
                                              memory_order_relaxed);
  const uint64_t number = leaf->prefix >> 8;

  if (l && number < l->n)
    put_leaf (l, leaf);
  else
    extend (o, l, number);
}

ov_slot *
ov_dir_insert (struct overlap *o, uint64_t window, bool force)
{
  _Atomic (struct ov_node *) *link = &o->root;
  struct ov_node *n;

  for (;;) {
    n = atomic_load_explicit (link, memory_order_relaxed);
    if (!n || !covers (n, window)) {
      n = n ? part (o, n, window, force) : new_node (o, window, 0, force);
      if (!n)
        return NULL;
      atomic_store_explicit (link, n, memory_order_release);
      if (shift_of (n) == 0)
        note_leaf (o, n);
    }
    if (shift_of (n) == 0)
      return &n->way[way_of (n, window)].slot;
    link = &n->way[way_of (n, window)].node;
  }
}

/* The first slot from *WINDOW on below N, in the order of windows. */
static ov_slot *
next_below (struct ov_node *n, uint64_t *window)
{
  unsigned shift = shift_of (n), way;
  uint64_t first = n->prefix >> 8 << shift << OV_WAY_BITS;
  ov_slot *slot;

  if (*window < first)
    *window = first;
  if (!covers (n, *window))
    return NULL;
  if (shift == 0)
    return &n->way[way_of (n, *window)].slot;
  for (way = way_of (n, *window); way < OV_WAYS; ++way) {
    struct ov_node *c = child (n, way);

    slot = c ? next_below (c, window) : NULL;
    if (slot)
      return slot;
  }
  return NULL;
}

ov_slot *
ov_dir_next (const struct overlap *o, uint64_t *window)
{
  struct ov_node *n = atomic_load_explicit (&o->root, memory_order_acquire);

  return n ? next_below (n, window) : NULL;
}

/* Sum up the nodes from N down, and release them if FREE is set. */
static uint64_t
walk (struct overlap *o, struct ov_node *n, bool free)
{
  uint64_t sum;
  unsigned way;

  if (!n)
    return 0;
  sum = ov_size (n);
  if (shift_of (n) > 0)
    for (way = 0; way < OV_WAYS; ++way)
      sum += walk (o, child (n, way), free);
  if (free)
    ov_free (o, n);
  return sum;
}

/* The same for the arrays. */
static uint64_t
walk_arrays (struct overlap *o, bool free)
{
  struct ov_leaves *l = atomic_load (&o->leaves), *shorter;
  uint64_t sum = 0;

  for (; l; l = shorter) {
    shorter = l->shorter;
    sum += ov_size (l);
    if (free)
      ov_free (o, l);
  }
  return sum;
}

void
ov_dir_free (struct overlap *o)
{
  walk (o, atomic_load (&o->root), true);
  walk_arrays (o, true);
}

/* ---- the self-check ---- */

uint64_t
ov_dir_recount (const struct overlap *o)
{
  return walk ((struct overlap *) o, atomic_load (&o->root), false)
    + walk_arrays ((struct overlap *) o, false);
}

static bool
has_leaf (struct ov_leaves *l, struct ov_node *leaf)
{
  const uint64_t number = leaf->prefix >> 8;

  return number >= l->n || atomic_load (&l->leaf[number]) == leaf;
}

/* A leaf that the array has is of its number, and so in the tree: there is
 * no other way to make one.
 */
bool
ov_dir_verify (const struct overlap *o)
{
  struct ov_leaves *l = atomic_load (&o->leaves);
  uint64_t i;

  if (!l)
    return true;
  for (i = 0; i < l->n; ++i) {
    const struct ov_node *leaf = atomic_load (&l->leaf[i]);

    if (leaf && leaf->prefix != i << 8)
      return false;
  }
  return each_leaf (atomic_load (&o->root), l, has_leaf);
}
