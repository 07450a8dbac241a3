/* SPDX-License-Identifier: BSD-3-Clause */

/* The way of a check, for all of it to be inlined: from the number of a
 * window to its slot, from the slot to its runs, and the search there.
 * Each part belongs to the file that is named above it, whose opening
 * comment explains it.
 */

#ifndef QCOW2_OVERLAP_FAST_H
#define QCOW2_OVERLAP_FAST_H

#include <endian.h>
#include <string.h>

#include "overlap-internal.h"
#include "per-thread.h"

/* The lowest bits, less than 64 of them. */
static inline uint64_t
ov_mask (unsigned bits)
{
  return (UINT64_C (1) << bits) - 1;
}

/* ---- overlap-directory.c ---- */

#define OV_WAY_BITS 5
#define OV_WAYS (1u << OV_WAY_BITS)

struct ov_node {
  /* Window >> (shift + OV_WAY_BITS), and in the low byte, which windows
   * leave free, the shift.
   */
  uint64_t prefix;
  union {
    ov_slot slot;               /* at shift 0 */
    _Atomic (struct ov_node *) node;
  } way[OV_WAYS];
};

/* The first leaves, by their number. */
struct ov_leaves {
  uint64_t n;
  struct ov_leaves *shorter;    /* the array before, which checks may read */
  _Atomic (struct ov_node *) leaf[];
};

/* Down the tree.  Only the leaf is compared with the window: whoever took a
 * wrong turn ends at a wrong leaf.
 */
static inline ov_slot *
ov_dir_descend (const struct overlap *o, uint64_t window)
{
  struct ov_node *n = atomic_load_explicit (&o->root, memory_order_acquire);
  unsigned shift;

  while (n && (shift = n->prefix & 0xff) > 0)
    n = atomic_load_explicit (&n->way[window >> shift & (OV_WAYS - 1)].node,
                              memory_order_acquire);
  if (!n || window >> OV_WAY_BITS != n->prefix >> 8)
    return NULL;
  return &n->way[window & (OV_WAYS - 1)].slot;
}

static inline ov_slot *
ov_dir_find (const struct overlap *o, uint64_t window)
{
  const struct ov_leaves *l
    = atomic_load_explicit (&o->leaves, memory_order_acquire);
  struct ov_node *n;

  if (!l || window >> OV_WAY_BITS >= l->n)
    return ov_dir_descend (o, window);
  n = atomic_load_explicit (&l->leaf[window >> OV_WAY_BITS],
                            memory_order_acquire);
  return n ? &n->way[window & (OV_WAYS - 1)].slot : NULL;
}

/* ---- overlap-window.c ---- */

struct ov_reader {
  _Alignas (64) _Atomic (const void *) at;
  atomic_bool owned;            /* by a thread */
};

/* This thread's place, or NULL. */
extern __thread struct ov_reader *ov_mine FAST_TLS;

/* Give this thread a place of its own if there is one. */
void ov_own_place (void);

/* The bit of a slot's group. */
static inline uint64_t
ov_group (const ov_slot *slot)
{
  return UINT64_C (1) << ((uintptr_t) slot / sizeof *slot % 64);
}

uintptr_t ov_read_lock_fenced (struct overlap *o, ov_slot *slot,
                               struct ov_reader **reader);

static inline void
ov_read_unlock (struct ov_reader *reader)
{
  atomic_store_explicit (&reader->at, NULL, memory_order_release);
}

/* Lock if that is done without waiting and without a fence, else 0; V is
 * what the slot held a moment ago, not 0.
 */
static inline uintptr_t
ov_read_try (struct overlap *o, ov_slot *slot, uintptr_t v)
{
  struct ov_reader *r = ov_mine;

  /* The index says where in the block the search goes: do not wait for
   * one line of the processor's cache after the other.
   */
  __builtin_prefetch ((const char *) v + 64);
  __builtin_prefetch ((const char *) v + 128);
  __builtin_prefetch ((const char *) v + 192);
  if (__builtin_expect (r == NULL, 0))
    return 0;
  atomic_store_explicit (&r->at, slot, memory_order_relaxed);
  atomic_signal_fence (memory_order_seq_cst); /* for the compiler */
  if (__builtin_expect ((atomic_load_explicit (&o->fenced,
                                               memory_order_relaxed)
                         & ov_group (slot)) == 0, 1)) {
    v = atomic_load_explicit (slot, memory_order_acquire);
    if (__builtin_expect (v != 0 && !(v & OV_BUSY), 1))
      return v;
  }
  ov_read_unlock (r);
  return 0;
}

/* Returns what the slot holds; 0 means that nothing is locked. */
static inline uintptr_t
ov_read_lock (struct overlap *o, ov_slot *slot, struct ov_reader **reader)
{
  uintptr_t v = atomic_load_explicit (slot, memory_order_acquire);

  if (v == 0)
    return 0;
  v = ov_read_try (o, slot, v);
  *reader = ov_mine;
  return v != 0 ? v : ov_read_lock_fenced (o, slot, reader);
}

/* ---- overlap-sieve.c ---- */

/* [FIRST, END) are about to be marked; overlap.lock is held. */
static inline void
ov_sieve_add (struct overlap *o, uint64_t first, uint64_t end)
{
  struct ov_sieve *s = (struct ov_sieve *)
    atomic_load_explicit (&o->sieve, memory_order_relaxed);
  _Atomic (uint64_t) *word;
  uint64_t group, v;

  if (!s)
    return;
  if (end > s->end)
    s->end = end;
  group = first >> s->shift;
  if ((end - 1) >> s->shift != group) {
    ov_sieve_add_range (o, first, end);
    return;
  }
  word = &s->word[(group & s->mask) / 64];
  v = atomic_load_explicit (word, memory_order_relaxed);
  if (v >> group % 64 & 1)
    return;
  atomic_store_explicit (word, v | UINT64_C (1) << group % 64,
                         memory_order_relaxed);
  s->set_bits++;
}

/* CLUSTER may be marked soon: do not wait for its word then. */
static inline void
ov_sieve_prepare (struct overlap *o, uint64_t cluster)
{
  const struct ov_sieve *s = (const struct ov_sieve *)
    atomic_load_explicit (&o->sieve, memory_order_relaxed);

  if (s)
    __builtin_prefetch ((const void *)
                        &s->word[(cluster >> s->shift & s->mask) / 64], 1);
}

/* The sieve, until ov_read_unlock; NULL means that nothing is locked.  A
 * thread without a place of its own does without.
 */
static inline __attribute__ ((always_inline)) const struct ov_sieve *
ov_sieve_lock (struct overlap *o, struct ov_reader **reader)
{
  struct ov_reader *r = ov_mine;
  const struct ov_sieve *s;

  *reader = r;
  if (__builtin_expect (r == NULL, 0))
    return NULL;
  atomic_store_explicit (&r->at, &o->sieve, memory_order_relaxed);
  atomic_signal_fence (memory_order_seq_cst); /* for the compiler */
  s = (const struct ov_sieve *) atomic_load_explicit (&o->sieve,
                                                      memory_order_acquire);
  if (__builtin_expect (s == NULL, 0))
    ov_read_unlock (r);
  return s;
}

/* Does the sieve know that COUNT clusters from FIRST on have no mark?  It
 * does not look at ranges whose bits are in two words.
 */
static inline __attribute__ ((always_inline)) bool
ov_sieve_free_of (struct overlap *o, uint64_t first, uint64_t count)
{
  struct ov_reader *r;
  const struct ov_sieve *s = ov_sieve_lock (o, &r);
  uint64_t group, more, bits;

  if (__builtin_expect (s == NULL, 0))
    return false;
  group = first >> s->shift;
  more = ((first + count - 1) >> s->shift) - group;
  bits = atomic_load_explicit (&s->word[(group & s->mask) / 64],
                               memory_order_relaxed) >> group % 64;
  ov_read_unlock (r);
  if (__builtin_expect (more == 0, 1))
    return (bits & 1) == 0;
  return more < 64 - group % 64 && (bits & ((UINT64_C (2) << more) - 1)) == 0;
}

/* The same for one cluster, in as few steps as can be. */
static inline __attribute__ ((always_inline)) bool
ov_sieve_free_one (struct overlap *o, uint64_t cluster)
{
  struct ov_reader *r;
  const struct ov_sieve *s = ov_sieve_lock (o, &r);
  uint64_t group, bits;

  if (__builtin_expect (s == NULL, 0))
    return false;
  group = cluster >> s->shift;
  bits = atomic_load_explicit (&s->word[(group & s->mask) / 64],
                               memory_order_relaxed);
  ov_read_unlock (r);
  return (bits & UINT64_C (1) << group % 64) == 0;
}

/* ---- overlap-packed.c ---- */

static inline uint64_t
ov_load64 (const uint8_t *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return le64toh (v);
}

static inline unsigned
ov_kind_bits (const struct ov_runs *r)
{
  return r->kind_bits & OV_KIND_BITS_MASK;
}

static inline unsigned
ov_piece_bits (const struct ov_runs *r)
{
  return r->chunk_bits + ov_kind_bits (r);
}

/* The bytes of an entry of the index, as a power of two. */
static inline unsigned
ov_entry_log (const struct ov_runs *r)
{
  return r->kind_bits >> OV_ENTRY_SHIFT;
}

static inline size_t
ov_block_bytes (const struct ov_runs *r)
{
  return OV_BLOCK_BASE + (size_t) OV_BLOCK_UNIT * r->units;
}

/* The pieces before CHUNK. */
static inline uint32_t
ov_packed_prefix (const struct ov_runs *r, uint32_t chunk)
{
  unsigned entry_log = ov_entry_log (r);

  if (entry_log == 0)
    return r->data[chunk];
  if (entry_log == 1)
    return ((const uint16_t *) (const void *) r->data)[chunk];
  return ((const uint32_t *) (const void *) r->data)[chunk];
}

/* A piece is never longer than its chunk, so it lies in one.  There is a
 * power of two of them, and one more entry in the index.
 */
static inline uint32_t
ov_chunks (const struct ov_runs *r)
{
  return ((r->pieces_at / 8 - (uint32_t) sizeof *r) >> ov_entry_log (r)) - 1;
}

/* All pieces. */
static inline uint32_t
ov_count (const struct ov_runs *r)
{
  return ov_packed_prefix (r, ov_chunks (r));
}

/* The bit at which piece I begins, counted from the block's start. */
static inline size_t
ov_piece_at (const struct ov_runs *r, uint32_t i)
{
  return r->pieces_at + (size_t) i * ov_piece_bits (r);
}

/* The piece whose last bit is bit LAST of the block, in the top bits of
 * a word.  The eight bytes that end there are read: they never reach
 * out of the block, whose header has as many.
 */
static inline uint64_t
ov_top_piece (const struct ov_runs *r, size_t last)
{
  return ov_load64 ((const uint8_t *) r + last / 8 - 7) << (~last % 8);
}

/* Piece I, which lies in CHUNK. */
static inline struct ov_piece
ov_packed_get (const struct ov_runs *r, uint32_t chunk, uint32_t i)
{
  unsigned kbits = ov_kind_bits (r), bits = r->chunk_bits + kbits;
  uint64_t v = ov_top_piece (r, ov_piece_at (r, i + 1) - 1) >> (64 - bits);
  struct ov_piece piece = {
    .start = chunk << r->chunk_bits | (uint32_t) (v >> kbits),
    .kind = (uint16_t) ((v & ov_mask (kbits)) + 1),
  };

  return piece;
}

/* The pieces of a list, one after the other. */
struct ov_cursor {
  const struct ov_runs *r;
  uint32_t i, chunk, next_chunk; /* the piece, its chunk, its end */
  size_t last;                  /* bit of the piece */
};

static inline void
ov_cursor_init (struct ov_cursor *at, const struct ov_runs *r)
{
  at->r = r;
  at->i = at->chunk = 0;
  at->next_chunk = ov_packed_prefix (r, 1);
  at->last = r->pieces_at - 1;
}

/* The next of COUNT pieces; false at the end. */
static inline bool
ov_cursor_next (struct ov_cursor *at, uint32_t count, struct ov_piece *piece)
{
  const struct ov_runs *r = at->r;
  unsigned kbits = ov_kind_bits (r), bits = r->chunk_bits + kbits;
  uint64_t v;

  if (at->i == count)
    return false;
  for (; at->i == at->next_chunk; ++at->chunk)
    at->next_chunk = ov_packed_prefix (r, at->chunk + 2);
  at->i++;
  at->last += bits;
  v = ov_top_piece (r, at->last) >> (64 - bits);
  piece->start = at->chunk << r->chunk_bits | (uint32_t) (v >> kbits);
  piece->kind = (uint16_t) ((v & ov_mask (kbits)) + 1);
  return true;
}

/* Have the compiler select, not jump: it must not know what a value has
 * become, or it makes a way for each case.
 */
#define OV_SETTLE(var) __asm__ ("" : "+r" (var))

/* One step of a search: try what is STEP bits further if that is not
 * beyond LIMIT.  No branch, for which way a search goes is not
 * predictable.
 */
static inline size_t
ov_search_step (const struct ov_runs *r, size_t at, size_t step,
                size_t limit, uint64_t top)
{
  size_t next = at + step;

  next = next <= limit ? next : at;
  OV_SETTLE (next);
  next = ov_top_piece (r, next) <= top ? next : at;
  OV_SETTLE (next);
  return next;
}

/* Of N pieces, find the last one that does not begin behind the offset
 * in the top bits of TOP (the others are ones).  BEFORE is the bit
 * before the first, and returned if there is none; else the piece's
 * last bit is.  The number of steps depends on N as little as possible:
 * one too many is cheaper than a wrong guess of how many.  Most chunks
 * have less than 8 pieces in short lists, and less than 16 in others.
 */
static inline __attribute__ ((always_inline)) size_t
ov_search (const struct ov_runs *r, size_t before, uint32_t n,
           size_t bits, uint64_t top)
{
  size_t at = before, limit = before + n * bits, step = 8;

  if (n > 7 || ov_entry_log (r) > 0) {
    if (__builtin_expect (n > 15, 0))
      while (step <= n / 2)
        step *= 2;
    for (; step > 8; step /= 2)
      at = ov_search_step (r, at, step * bits, limit, top);
    at = ov_search_step (r, at, 8 * bits, limit, top);
  }
  at = ov_search_step (r, at, 4 * bits, limit, top);
  at = ov_search_step (r, at, 2 * bits, limit, top);
  return ov_search_step (r, at, bits, limit, top);
}

/* As "top" of ov_search for a cluster of the window. */
static inline uint64_t
ov_top_of (const struct ov_runs *r, uint32_t cluster)
{
  /* Two shifts, for there may be 0 bits of offset. */
  return ~((~(uint64_t) cluster << (63u - r->chunk_bits)) << 1);
}

/* Pieces of so many bits in the top of a word: as many as are there
 * whatever the bit at which they begin.
 */
struct ov_group_of_pieces {
  uint64_t lowest, highest;     /* bit of each piece */
  uint64_t span;                /* bits of all */
  uint64_t mask;                /* one piece, in the low bits */
};
#define OV_PIECE_BITS_MAX (OV_WINDOW_BITS + 16)
extern const struct ov_group_of_pieces ov_groups[];

/* For each of the pieces in W, is it at most the one in Y?  The answers
 * are in the highest bit of each.  (The mean of Y and the complement of
 * W, rounded up, has its highest bit set then; what is taken off is never
 * more than what it is taken off from, so each piece keeps to itself.)
 */
static inline uint64_t
ov_at_most (uint64_t w, uint64_t y, const struct ov_group_of_pieces *g)
{
  uint64_t others = g->highest - g->lowest;

  return ((y | ~w) - ((y ^ ~w) >> 1 & others)) & g->highest;
}

/* What ov_packed_at found. */
struct ov_found {
  uint32_t before;              /* so many clusters before the one asked */
  uint32_t kind;                /* 0: none in the chunk */
};

/* The last piece that begins at or before CLUSTER, in its chunk.  The
 * pieces of a chunk are compared all at once, in the word in which they
 * end, or two.  The fields before the first piece are of the chunk before
 * or of the index; whatever is found there is nothing.  False if the
 * chunk has more pieces.
 *
 * No branch depends on where in the chunk CLUSTER is, for that cannot be
 * foretold.
 */
static inline __attribute__ ((always_inline)) bool
ov_packed_at (const struct ov_runs *r, uint32_t cluster,
              struct ov_found *found)
{
  uint32_t chunk = cluster >> r->chunk_bits;
  uint32_t lo = ov_packed_prefix (r, chunk);
  uint32_t hi = ov_packed_prefix (r, chunk + 1);
  unsigned kbits = ov_kind_bits (r), bits = r->chunk_bits + kbits, skip;
  const struct ov_group_of_pieces *g = &ov_groups[bits];
  uint64_t kind_mask = ov_mask (kbits);
  uint64_t asked = ((uint64_t) cluster << kbits | kind_mask) & g->mask;
  uint64_t y = asked * g->lowest;
  size_t last = ov_piece_at (r, hi) - 1, length = (hi - lo) * bits;
  uint64_t w = ov_top_piece (r, last);
  uint64_t those = ov_at_most (w, y, g);
  uint64_t piece;

  if (__builtin_expect (length > g->span, 0)) {
    if (length > 2 * g->span)
      return false;
    if (!those) {
      length -= g->span;
      w = ov_top_piece (r, last - g->span);
      those = ov_at_most (w, y, g);
    }
  }
  skip = (unsigned) __builtin_clzll (those | 1);
  piece = w >> ((64 - bits - skip) & 63) & g->mask;
  found->before = (uint32_t) ((asked - piece) >> kbits);
  found->kind = ((uint32_t) (piece & kind_mask) + 1)
    & -(uint32_t) (skip < length);
  return true;
}

/* The types of COUNT clusters from A on, if there is one or nothing in
 * them; of pieces that begin at or before the last only one can reach A.
 * False if it is neither, or lies in several chunks, or in one of many
 * pieces.
 */
static inline __attribute__ ((always_inline)) bool
ov_packed_look (const struct overlap *o, const struct ov_runs *r,
                uint32_t a, uint32_t count, overlap_set *set)
{
  uint32_t last = a + (count - 1);
  const struct ov_kind *k;
  struct ov_found f;

  if ((a ^ last) >> r->chunk_bits != 0 || !ov_packed_at (r, last, &f))
    return false;
  k = ov_kind (o, f.kind);
  *set = k->set & -(uint32_t) (f.before < (UINT32_C (1) << k->log) + count - 1);
  return count == 1 || *set == OVERLAP_NONE;
}

#endif /* QCOW2_OVERLAP_FAST_H */
