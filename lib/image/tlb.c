/* SPDX-License-Identifier: BSD-3-Clause */

/* A lookaside buffer for the map.
 *
 * To look a guest cluster up in the L2 cache takes the lock of a shard,
 * its hash table, the slice, the entry and the bit that says whether its
 * count is known: half a dozen cache lines, one after the other, and after
 * the data of a request went through the processor's caches all of them
 * have to come from far away.  A guest comes back to the same clusters, so
 * what was found is kept in one word each, in a table that is looked at
 * without any lock:
 *
 *     63               38 37                2  1  0
 *    +-------------------+-------------------+--+--+
 *    | guest cluster     | host cluster      |W |V |   W: may be written
 *    | >> log2 of places |                   |  |  |      to in place
 *    +-------------------+-------------------+--+--+   V: valid
 *
 * A guest cluster has one place, of its lowest bits, which it shares with
 * others: the last one to be looked up has it.  What does not fit into a
 * word (with 64 KiB clusters that is a host file of 4 EiB) is not kept.
 *
 * Only what is most common is kept: a cluster with data, not compressed,
 * without subclusters, in the image file itself.  All else has to be
 * looked up each time, and so has whether a mapping is durable.
 *
 * Invariants
 *
 * T1. A valid word says of its guest cluster what the L2 entry in memory
 *     says, and of the count what the engine has looked up, for all that
 *     hold the lock of the entry's slice: who changes an entry forgets the
 *     word before the lock is let go, and words are noted under it.
 * T2. Whoever has no such lock but a range lock of the guest cluster sees
 *     the word as of an entry that does not change meanwhile (M2 of map.c).
 * T3. A word outlives its slice in the cache.  When the slice is read again
 *     it is what was written, since only clean ones are evicted (L1 of
 *     l2cache.c).  What others write into the file, such as the check's
 *     repairs, makes all words go (l2cache_forget).
 *
 * Locks: none.  Two guest clusters with the same place may be in slices of
 * two shards, so words are atomic, and forgetting the one may take the
 * other one's away, which is no loss.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "tlb.h"

/* 256 KiB, of which pages that are not used take no memory: with clusters
 * of 64 KiB they stand for 2 GiB.
 */
#define MAX_BITS 15u

#define VALID UINT64_C (1)
#define WRITABLE UINT64_C (2)
#define HOST_SHIFT 2
#define HOST_BITS 36
#define TAG_SHIFT (HOST_SHIFT + HOST_BITS)

int
tlb_open (struct tlb *t, uint64_t clusters)
{
  t->bits = 0;
  while (t->bits < MAX_BITS && UINT64_C (1) << t->bits < clusters)
    t->bits++;
  t->word = calloc ((size_t) 1 << t->bits, sizeof t->word[0]);
  return t->word ? 0 : -ENOMEM;
}

void
tlb_close (struct tlb *t)
{
  free ((void *) t->word);
  t->word = NULL;
}

static _Atomic uint64_t *
place_of (const struct tlb *t, uint64_t guest)
{
  return &t->word[guest & ((UINT64_C (1) << t->bits) - 1)];
}

static uint64_t
tag_of (const struct tlb *t, uint64_t guest)
{
  return guest >> t->bits;
}

/* Is WORD about a guest cluster with that tag? */
static bool
is_about (uint64_t word, uint64_t tag)
{
  return (word & VALID) && word >> TAG_SHIFT == tag;
}

void
tlb_note (struct tlb *t, uint64_t guest, uint64_t host, bool writable)
{
  const uint64_t tag = tag_of (t, guest);
  _Atomic uint64_t *place;
  uint64_t word;

  if (!t->word)
    return;
  if (tag >> (64 - TAG_SHIFT) != 0 || host >> HOST_BITS != 0) {
    tlb_forget (t, guest);
    return;
  }
  place = place_of (t, guest);
  word = tag << TAG_SHIFT | host << HOST_SHIFT
    | (writable ? WRITABLE : 0) | VALID;
  /* A line that need not be written stays where it is. */
  if (atomic_load_explicit (place, memory_order_relaxed) != word)
    atomic_store_explicit (place, word, memory_order_relaxed);
}

void
tlb_forget (struct tlb *t, uint64_t guest)
{
  _Atomic uint64_t *place;

  if (!t->word)
    return;
  place = place_of (t, guest);
  if (is_about (atomic_load_explicit (place, memory_order_relaxed),
                tag_of (t, guest)))
    atomic_store_explicit (place, 0, memory_order_relaxed);
}

void
tlb_forget_all (struct tlb *t)
{
  uint64_t i;

  for (i = 0; t->word && i < UINT64_C (1) << t->bits; ++i)
    atomic_store_explicit (&t->word[i], 0, memory_order_relaxed);
}

bool
tlb_find (const struct tlb *t, uint64_t guest, bool writable, uint64_t *host)
{
  uint64_t word;

  if (!t->word)
    return false;
  word = atomic_load_explicit (place_of (t, guest), memory_order_relaxed);
  if (!is_about (word, tag_of (t, guest)) || (writable && !(word & WRITABLE)))
    return false;
  *host = word >> HOST_SHIFT & ((UINT64_C (1) << HOST_BITS) - 1);
  return true;
}
