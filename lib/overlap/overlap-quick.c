/* SPDX-License-Identifier: BSD-3-Clause */

/* The usual update: one cluster that nobody owned comes to be a table's, or
 * one that had one owner is given back, and nothing else is to be done.
 * Then a piece comes into a run list, or goes from it; no run is coded anew,
 * and nothing can fail but to get a larger block for the list.
 *
 * All that can be done in the general way, too (ov_update_window and what it
 * calls), and is where anything is unusual: who calls these two goes that
 * way if they return false, which they do before they have changed anything.
 * They take half its time, for all that they need is at hand, and inlined.
 * The list is in the same form whoever edited it.
 *
 * To give back a single piece of one owner is always right: it is a run of
 * its own or the last digit of one (invariant 2 of overlap-packed.c), and
 * the digits before it are those of the shorter run.  A new piece that
 * touches another may have to be coded with it, and is left to the general
 * way.
 *
 * Locks: overlap.lock is held.
 */

#include <config.h>

#include "checked.h"
#include "overlap-bits.h"

/* The window of an update. */
struct quick {
  ov_slot *slot;
  uintptr_t value;
  struct ov_recent *recent;     /* NULL: there are no pages */
  struct ov_runs *runs;
  uint32_t a;                   /* the cluster in the window */
  uint32_t n;                   /* pieces of the list */
  uint32_t chunk;
  unsigned bits;                /* of a piece */
  size_t end;                   /* the bit behind the last piece */
};

/* True if something is to be done that is no part of a usual update, or
 * looked at.  (What is being rebuilt is outside until then: "fixed".)
 */
static inline bool
busy (struct overlap *o)
{
  return atomic_load_explicit (&o->fixed, memory_order_relaxed) != 0
    || o->n_owed > 0 || o->hold || o->building;
}

/* Is this the update that earns a page?  If not, *RECENT is where it is
 * counted.  As ov_page_promote.
 */
static inline bool
earns_page (struct overlap *o, uint64_t cluster, struct ov_recent **recent)
{
  const uint32_t page = (uint32_t) (cluster / OV_PAGE);
  struct ov_recent *r = &o->recent[page % OV_RECENT];

  if (r->page != page) {
    r->page = page;
    r->updates = 0;
  }
  *recent = r;
  return r->updates + 1 >= OV_PROMOTE;
}

/* Find the list; false if there is none, or a page may be in the way. */
static inline bool
quick_find (struct overlap *o, uint64_t cluster, struct quick *q)
{
  const char *block;

  if (busy (o) || cluster == UINT64_MAX) /* which is no cluster */
    return false;
  q->slot = ov_dir_find (o, ov_window_of (o, cluster));
  if (!q->slot)
    return false;
  q->value = atomic_load_explicit (q->slot, memory_order_relaxed);
  if (q->value == 0 || (q->value & OV_PAGED))
    return false;
  block = (const char *) q->value;
  __builtin_prefetch (block + 64);
  __builtin_prefetch (block + 128);
  __builtin_prefetch (block + 192);
  __builtin_prefetch (block + 256);
  q->recent = NULL;
  if (ov_has_pages (&o->config) && earns_page (o, cluster, &q->recent))
    return false;
  q->runs = (struct ov_runs *) q->value;
  q->a = ov_in_window (o, cluster);
  q->chunk = q->a >> q->runs->chunk_bits;
  q->n = ov_count (q->runs);
  q->bits = ov_piece_bits (q->runs);
  q->end = ov_piece_at (q->runs, q->n);
  return true;
}

/* A place in the list. */
struct place {
  size_t at;                    /* the bit where the pieces of the chunk */
                                /* that begin behind the cluster do */
  size_t end;                   /* and where they end */
  uint32_t before;              /* the piece there begins so many clusters */
                                /* before the cluster, */
  uint32_t kind;                /* and is of this kind; 0: none */
};

/* As ov_packed_at, for a list that is to be edited. */
static inline void
quick_search (const struct ov_runs *r, const struct quick *q,
              struct place *place)
{
  const uint32_t lo = ov_packed_prefix (r, q->chunk);
  const uint32_t hi = ov_packed_prefix (r, q->chunk + 1);
  const struct ov_group_of_pieces *g = &ov_groups[q->bits];
  const unsigned kbits = ov_kind_bits (r);
  const uint64_t kind_mask = ov_mask (kbits);
  const uint64_t asked = ((uint64_t) q->a << kbits | kind_mask) & g->mask;
  const uint64_t y = asked * g->lowest;
  const size_t length = (size_t) (hi - lo) * q->bits;
  const size_t last = ov_piece_at (r, hi) - 1;
  unsigned skip;
  size_t skipped;
  uint64_t w = ov_top_piece (r, last), those = ov_at_most (w, y, g), piece;
  /* How many pieces a chunk has is not to be foretold: take two words, and
   * more only if need be.  Where a second would begin before the block there
   * is not that much in the chunk.
   */
  const uint64_t other = ov_top_piece (r, MAX (last - g->span, 63u));
  const uint64_t in_other = -(uint64_t) ((those == 0) & (length > g->span));

  w ^= (w ^ other) & in_other;
  those |= ov_at_most (other, y, g) & in_other;
  skipped = g->span & in_other;
  while (__builtin_expect (those == 0 && length > skipped + g->span, 0)) {
    skipped += g->span;
    w = ov_top_piece (r, last - skipped);
    those = ov_at_most (w, y, g);
  }
  skip = (unsigned) __builtin_clzll (those | 1);
  skipped += skip;
  piece = w >> ((64 - q->bits - skip) & 63) & g->mask;
  place->before = (uint32_t) ((asked - piece) >> kbits);
  place->kind = ((uint32_t) (piece & kind_mask) + 1)
    & -(uint32_t) (skipped < length);
  place->end = last + 1;
  place->at = last + 1 - MIN (skipped, length);
}

/* Does a piece begin right behind the cluster? */
static inline bool
next_touches (const struct ov_runs *r, const struct quick *q,
              const struct place *place)
{
  const unsigned kbits = ov_kind_bits (r);
  size_t at = place->at + q->bits <= q->end ? place->at : q->end - q->bits;
  uint64_t v = ov_top_piece (r, at + q->bits - 1) >> (64 - q->bits);

  return (place->at < place->end)
    & ((v >> kbits) == ((q->a & ov_mask (r->chunk_bits)) + 1));
}

/* The update is done; see to the form of the list. */
static inline void
quick_end (struct overlap *o, struct quick *q, uint32_t n)
{
  if (q->recent)
    q->recent->updates++;
  if (ov_needs_other_chunks (q->runs, n)
      || ov_has_room_to_spare (q->runs, n))
    ov_packed_tune (o, &q->runs);
  ov_write_unlock (q->slot, (uintptr_t) q->runs);
}

/* Have room for a piece more, in another block if need be.  False if there
 * is no memory; the window is not locked any more then.
 */
static inline bool
have_room (struct overlap *o, struct quick *q, struct place *place)
{
  const size_t before = q->runs->pieces_at;

  if (ov_entry_log_for (q->n + 1) <= ov_entry_log (q->runs)
      && ov_bytes_for (q->runs, q->n + 1) <= ov_block_bytes (q->runs))
    return true;
  if (ov_packed_reserve (o, &q->runs, q->n + 1) < 0) {
    ov_write_unlock (q->slot, q->value);
    return false;
  }
  place->at += q->runs->pieces_at - before;
  q->end += q->runs->pieces_at - before;
  return true;
}

bool
ov_quick_enter (struct overlap *o, enum overlap_type type, uint64_t cluster)
{
  const uint16_t kind = o->plain[type];
  struct ov_runs *r;
  struct place place;
  struct quick q;

  ov_sieve_prepare (o, cluster);
  if (!quick_find (o, cluster, &q))
    return false;
  r = q.runs;
  if (kind == 0 || (kind - 1u) >> ov_kind_bits (r) != 0)
    return false;
  quick_search (r, &q, &place);
  if ((place.kind != 0
       && place.before <= UINT32_C (1) << ov_kind (o, place.kind)->log)
      || next_touches (r, &q, &place))
    return false;

  ov_sieve_add (o, cluster, cluster + 1);
  ov_write_lock (o, q.slot);
  if (!have_room (o, &q, &place))
    return false;
  r = q.runs;
  if (place.at < q.end)
    ov_bits_up (r, place.at, q.end - place.at, q.bits);
  ov_store_piece (r, place.at + q.bits - 1, q.a, kind);
  ov_shift_index (r, q.chunk, 1);
  o->runs++;
  quick_end (o, &q, q.n + 1);
  ov_sieve_tune (o);
  return true;
}

bool
ov_quick_leave (struct overlap *o, enum overlap_type type, uint64_t cluster)
{
  struct ov_runs *r;
  struct place place;
  struct quick q;

  if (!quick_find (o, cluster, &q) || q.n == 1)
    return false;
  r = q.runs;
  quick_search (r, &q, &place);
  if (place.kind == 0 || place.before != 0 || place.kind != o->plain[type])
    return false;

  ov_write_lock (o, q.slot);
  if (place.at < q.end)
    ov_bits_down (r, place.at, q.end - place.at, q.bits);
  ov_shift_index (r, q.chunk, 0u - 1);
  o->runs--;
  quick_end (o, &q, q.n - 1);
  return true;
}
