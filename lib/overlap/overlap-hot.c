/* SPDX-License-Identifier: BSD-3-Clause */

/* The hot groups: one bit a cluster for the places that are asked about
 * again and again.
 *
 * A guest writes where it wrote a moment ago, and nearly always there is
 * no metadata there.  For that case a check should cost nothing, however
 * long the run list of the window is.  So a part of the bytemap cache is
 * a table of words, each of which describes one group of 32 clusters:
 *
 *     63            32 31             0
 *    +----------------+----------------+
 *    | number of the  | a bit for each |
 *    | group          | cluster: known |
 *    | (all 1: none)  | free, or not   |
 *    +----------------+----------------+
 *
 * A check whose clusters are in one group and whose bits are all 0 is
 * done after one load.  All else goes the long way, through the window:
 * a bit that is set says nothing but that.
 *
 * Number and bits are one word, so a check never sees one group's number
 * with the bits of another, and needs no lock for the word.  Groups whose
 * number has more than 32 bits are never remembered: with clusters of
 * 512 bytes they begin at 64 TiB of the host file.
 *
 *
 * How a word changes
 *
 *                 ov_hot_missed              ov_hot_missed
 *      other --> candidate (all bits set) ---------------> filled
 *        ^                    |             (asked again)     |
 *        |   ov_hot_forget    |                               |
 *        +--------------------+-------------------------------+
 *
 * A group is filled when it is asked about again without another one of
 * the same place in between, and not each time.  Where groups drive each
 * other out it is once in some 128 times: checks all over a large image,
 * which no table would help, do not fill words in vain, which takes the
 * time of 30 checks.  Nor do they store each time that they were there: a
 * group takes another one's place once in some 64 times, or two threads
 * would pull the table's lines from each other.  Where there is room for
 * all, a group is filled once in some 8 times: a guest comes back thousands
 * of times, but a server that has just begun, or a disk of many GiB, has
 * many groups to fill.  Each thread judges by what it met of late.
 *
 *
 * Invariants
 *
 * 1. A bit is 0 only if the cluster has no mark, its window is not
 *    outside the tracker, and the fixed lists know nothing of it.
 * 2. Words with a bit that is 0 are stored under overlap.lock only, and
 *    an update forgets the groups it goes to before it changes anything.
 *    So whoever has seen the effect of an update will not see what the
 *    word said before it.
 * 3. While anything is outside, or in the fixed list, no word is filled;
 *    when a window leaves the whole table goes.
 * 4. The table takes about half of bitmap_size, if that is not too small,
 *    and pages and table together no more than all of it.  The table is
 *    the first to go when memory is short.
 *
 * Locks: ov_hot_free_of (overlap-fast.h) needs none; its thread's place
 * says that it reads the table, as for a window.  But it never looks at
 * "fenced": who takes the table away lets all threads pass a fence
 * (overlap-window.c).  Where there is no membarrier there is no table.
 * ov_hot_missed tries overlap.lock and does not wait for it.  The others
 * need it.
 */

#include <config.h>

#include "cleanup.h"
#include "overlap-fast.h"

/* With less than that the cache has no room for a table beside pages. */
#define CACHE_MIN 32768u
#define WORDS_MAX (UINT64_C (1) << 20)
#define FILL_EACH 8
#define FILL_EACH_CROWDED 128
#define REPLACE_EACH_CROWDED 64

/* So many candidates are met again before a thread forgets that it found
 * another group in its place.
 */
#define CROWDED 64u

/* How many words fit in half of the cache, a power of two; or 0. */
static uint64_t
words_for (uint64_t bitmap_size)
{
  uint64_t n = CACHE_MIN / 2 / sizeof (uint64_t);

  if (bitmap_size < CACHE_MIN)
    return 0;
  while (n < WORDS_MAX && n * 2 * sizeof (uint64_t) <= bitmap_size / 2)
    n *= 2;
  return n;
}

static void
forget_all (struct ov_hot *hot)
{
  uint64_t i;

  for (i = 0; i <= hot->mask; ++i)
    atomic_store_explicit (&hot->word[i], OV_HOT_NONE, memory_order_relaxed);
}

void
ov_hot_new (struct overlap *o)
{
  const uint64_t n = words_for (o->config.bitmap_size);
  const uint64_t limit = o->config.total_limit;
  const size_t size = sizeof (struct ov_hot) + n * sizeof (uint64_t);
  struct ov_hot *hot;

  if (n == 0 || o->hot_bytes > 0 || !ov_can_take (o)
      || o->bytemap_bytes + size > o->config.bitmap_size
      || o->used + size > limit - limit / 4)
    return;
  hot = ov_alloc (o, size, false);
  if (!hot)
    return;
  hot->mask = n - 1;
  forget_all (hot);
  o->hot_bytes = ov_size (hot);
  atomic_store_explicit (&o->hot, (uintptr_t) hot, memory_order_release);
}

bool
ov_hot_drop (struct overlap *o)
{
  struct ov_hot *hot = (struct ov_hot *) atomic_load (&o->hot);

  if (!hot)
    return false;
  ov_slot_take (o, &o->hot);
  o->hot_bytes = 0;
  ov_free (o, hot);
  return true;
}

void
ov_hot_forget (struct overlap *o, uint64_t first, uint64_t end)
{
  struct ov_hot *hot = (struct ov_hot *) atomic_load_explicit
    (&o->hot, memory_order_relaxed);
  uint64_t group = first / OV_HOT_GROUP;
  const uint64_t last = (end - 1) / OV_HOT_GROUP;
  _Atomic (uint64_t) *word;

  if (!hot)
    return;
  if (last - group >= hot->mask) {
    forget_all (hot);
    return;
  }
  for (; group <= last; ++group) {
    word = &hot->word[group & hot->mask];
    if (atomic_load_explicit (word, memory_order_relaxed) >> 32 == group)
      atomic_store_explicit (word, OV_HOT_NONE, memory_order_relaxed);
  }
}

/* The bits of a group, as the windows say. */
static uint32_t
bits_of (struct overlap *o, uint64_t group)
{
  const uint64_t first = group * OV_HOT_GROUP;
  struct overlap_answer answer;
  uint32_t bits = 0;
  unsigned i;

  overlap_query (o, first, OV_HOT_GROUP, OVERLAP_NONE, &answer);
  for (i = 0; answer.any != OVERLAP_NONE && i < OV_HOT_GROUP; ++i) {
    struct overlap_answer one;

    overlap_query (o, first + i, 1, OVERLAP_NONE, &one);
    bits |= (uint32_t) (one.any != OVERLAP_NONE) << i;
  }
  return bits;
}

/* Asked about again: look once, and remember. */
static void
fill (struct overlap *o, uint64_t group)
{
  struct ov_hot *hot;

  if (pthread_mutex_trylock (&o->lock) != 0)
    return;
  hot = (struct ov_hot *) atomic_load_explicit (&o->hot,
                                                memory_order_relaxed);
  if (hot && atomic_load_explicit (&o->fixed, memory_order_relaxed) == 0)
    atomic_store_explicit (&hot->word[group & hot->mask],
                           group << 32 | bits_of (o, group),
                           memory_order_relaxed);
  pthread_mutex_unlock (&o->lock);
}

/* This thread's judgement. */
static __thread uint32_t turn FAST_TLS;
static __thread uint32_t crowded FAST_TLS;

/* True one time in EACH, at no regular distance: whatever takes turns has
 * its turn here, too.
 */
static bool
one_in (uint32_t each)
{
  turn += UINT32_C (0x9e3779b1); /* the golden ratio */
  return turn < UINT32_MAX / each;
}

/* To be a candidate in the place of another group? */
static bool
worth_a_place (void)
{
  const bool quiet = crowded == 0;

  crowded = CROWDED;
  return quiet || one_in (REPLACE_EACH_CROWDED);
}

/* A candidate, to be filled? */
static bool
worth_filling (void)
{
  if (crowded == 0)
    return one_in (FILL_EACH);
  crowded--;
  return one_in (FILL_EACH_CROWDED);
}

void
ov_hot_missed (struct overlap *o, uint64_t cluster)
{
  const uint64_t group = cluster / OV_HOT_GROUP;
  const uint64_t candidate = group << 32 | UINT32_MAX;
  struct ov_reader *reader;
  struct ov_hot *hot;
  uint64_t word;

  if (!ov_mine)
    ov_own_place ();
  if (group >= UINT32_MAX || !(hot = ov_hot_lock (o, &reader)))
    return;
  word = atomic_load_explicit (&hot->word[group & hot->mask],
                               memory_order_relaxed);
  if (word >> 32 != group && (word == OV_HOT_NONE || worth_a_place ()))
    atomic_store_explicit (&hot->word[group & hot->mask], candidate,
                           memory_order_relaxed);
  ov_read_unlock (reader);
  if (word == candidate && worth_filling ())
    fill (o, group);
}

bool
ov_hot_verify (struct overlap *o, uint64_t *bytes, const char **why)
{
  struct ov_hot *hot = (struct ov_hot *) atomic_load (&o->hot);
  uint64_t i, word, group;

  *bytes = hot ? ov_size (hot) : 0;
  for (i = 0; hot && i <= hot->mask; ++i) {
    word = atomic_load (&hot->word[i]);
    if ((uint32_t) word == UINT32_MAX)
      continue;
    group = word >> 32;
    if (atomic_load (&o->fixed) != 0
        || (bits_of (o, group) & ~(uint32_t) word) != 0) {
      *why = "a hot group is remembered as free and is not";
      return false;
    }
  }
  return true;
}
