/* SPDX-License-Identifier: BSD-3-Clause */

/* A sorted list of pieces in as few bits as position and kind need.
 *
 * The window is cut into chunks of 1 << chunk_bits clusters.  The pieces
 * stand in one string of bits, each with its offset in its chunk
 * (chunk_bits bits) and its kind less one (kind_bits bits).  An index
 * says how many pieces lie before each chunk, in entries of 1, 2 or 4 bytes:
 *
 *     header | index[0] ... index[chunks] | piece 0, piece 1, ... | room
 *
 * A look-up reads two neighbours of the index.  They say at which bit the
 * pieces of the chunk end, and what ends there is loaded as a word: three
 * to five pieces, with 64 KiB clusters nearly always all that the chunk
 * has.  They are compared at once, by one subtraction (ov_packed_at);
 * chunks with more pieces than two words are searched in halves
 * (ov_search).  The index stands right behind the header, most often in
 * the same line of the processor's cache, and the pieces in another, which
 * is asked for as soon as the slot is known: so a check waits for the
 * slot's line, then for those of the block together.
 *
 * Smaller chunks make pieces shorter and the index longer; the two are
 * in balance at a few pieces a chunk, and ov_packed_tune holds them
 * there.  For metadata at random places this comes to the logarithm of
 * their mean distance and some five bits.
 *
 * Invariants:
 *
 * 1. Pieces are sorted and do not overlap; each lies in one chunk.
 * 2. Neighbouring pieces of the same class in a chunk form a maximal
 *    run coded as the binary digits of its length, largest first, so
 *    that a list depends only on what it says and its chunk_bits.
 *    (overlap-runs.c sees to it; here pieces are just pieces.)
 * 3. An empty list is NULL.
 *
 * Locks: changes need overlap.lock and the window's write lock, reading
 * one of these or the window's read lock.
 */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "overlap-bits.h"

#define HEADER offsetof (struct ov_runs, data)

/* The lowest bit of piece I from the top of a word, of pieces of B bits;
 * of the 64 bits seven may be missing.
 */
#define ONE(b, i)                                                       \
  ((b) * (i) <= 57 ? UINT64_C (1) << ((64 - (b) * (i)) & 63) : 0)
#define ONES(b)                                                         \
  (ONE (b, 1) | ONE (b, 2) | ONE (b, 3) | ONE (b, 4) | ONE (b, 5)       \
   | ONE (b, 6) | ONE (b, 7) | ONE (b, 8) | ONE (b, 9) | ONE (b, 10)    \
   | ONE (b, 11) | ONE (b, 12) | ONE (b, 13) | ONE (b, 14)              \
   | ONE (b, 15) | ONE (b, 16) | ONE (b, 17) | ONE (b, 18) | ONE (b, 19))
#define GROUP(b)                                                        \
  [b] = {                                                               \
    .lowest = ONES (b), .highest = ONES (b) << ((b) - 1),               \
    .span = 57 / (b) * (b), .mask = (UINT64_C (1) << (b)) - 1,          \
  }

const struct ov_group_of_pieces ov_groups[OV_PIECE_BITS_MAX + 1] = {
  GROUP (3), GROUP (4), GROUP (5), GROUP (6), GROUP (7), GROUP (8),
  GROUP (9), GROUP (10), GROUP (11), GROUP (12), GROUP (13), GROUP (14),
  GROUP (15), GROUP (16), GROUP (17), GROUP (18), GROUP (19), GROUP (20),
  GROUP (21), GROUP (22),
#if OV_PIECE_BITS_MAX > 22
  GROUP (23), GROUP (24), GROUP (25), GROUP (26), GROUP (27), GROUP (28),
  GROUP (29), GROUP (30), GROUP (31), GROUP (32), GROUP (33), GROUP (34),
  GROUP (35), GROUP (36),
#endif
};
_Static_assert (OV_PIECE_BITS_MAX == 22 || OV_PIECE_BITS_MAX == 36,
                "ov_groups has other sizes of pieces");
_Static_assert (OV_MIN_CHUNK_BITS == 3, "ov_groups begins at 3");

static size_t
index_bytes (unsigned chunks_log, unsigned entry_log)
{
  return (((size_t) 1 << chunks_log) + 1) << entry_log;
}

/* The first piece of CHUNK that begins behind CLUSTER, which lies in
 * the chunk.
 */
uint32_t
ov_packed_find (const struct ov_runs *r, uint32_t chunk, uint32_t cluster)
{
  uint32_t lo = ov_packed_prefix (r, chunk);
  uint32_t n = ov_packed_prefix (r, chunk + 1) - lo;
  size_t before = ov_piece_at (r, lo) - 1;
  size_t at = ov_search (r, before, n, ov_piece_bits (r),
                         ov_top_of (r, cluster));

  /* A division of 64 bits would take longer than the search. */
  return lo + (uint32_t) (at - before) / ov_piece_bits (r);
}

/* Bits that a piece's kind takes. */
static unsigned
bits_of (uint16_t kind)
{
  return kind < 2 ? 0 : 32 - (unsigned) __builtin_clz (kind - 1u);
}

static struct ov_runs *
new_list (struct overlap *o, uint32_t n, unsigned chunk_bits,
          unsigned kbits, const struct ov_runs *old, bool force)
{
  unsigned entry_log = ov_entry_log_for (n);
  unsigned chunks_log = o->window_bits - chunk_bits;
  size_t index = HEADER + index_bytes (chunks_log, entry_log);
  size_t bytes = index + ((size_t) n * (chunk_bits + kbits) + 7) / 8;
  size_t units = bytes <= OV_BLOCK_BASE ? 0
    : (bytes - OV_BLOCK_BASE + OV_BLOCK_UNIT - 1) / OV_BLOCK_UNIT;
  struct ov_runs *r = ov_alloc_instead (o, OV_BLOCK_BASE
                                        + units * OV_BLOCK_UNIT, old, force);

  if (r) {
    r->units = (uint16_t) units;
    r->chunk_bits = (uint8_t) chunk_bits;
    r->kind_bits = (uint8_t) (kbits | entry_log << OV_ENTRY_SHIFT);
    r->pieces_at = (uint32_t) index * 8;
  }
  return r;
}

/* Put *R into a block with room for N pieces of KBITS. */
static int
move_list (struct overlap *o, struct ov_runs **r, uint32_t n, unsigned kbits,
           bool force)
{
  struct ov_runs *old = *r, *new;
  uint32_t chunk, i;

  if (n < ov_count (old))       /* pieces go only after the move */
    n = ov_count (old);
  /* A long list gets a little spare room, lest each piece copy it. */
  new = new_list (o, n + n / 32, old->chunk_bits, kbits, old, false);
  if (!new)
    new = new_list (o, n, old->chunk_bits, kbits, old, force);
  if (!new)
    return -ENOMEM;
  if (new->kind_bits == old->kind_bits)
    memcpy (new->data, old->data,
            (ov_piece_at (old, ov_count (old)) + 7) / 8 - HEADER);
  else {
    for (chunk = 0, i = 0; chunk < ov_chunks (old); ++chunk) {
      for (; i < ov_packed_prefix (old, chunk + 1); ++i) {
        struct ov_piece piece = ov_packed_get (old, chunk, i);
        ov_store_piece (new, ov_piece_at (new, i + 1) - 1, piece.start,
                        piece.kind);
      }
      ov_set_prefix (new, chunk + 1, i);
    }
  }
  ov_free (o, old);
  *r = new;
  return 0;
}

/* Make sure that *R can hold N pieces with kinds of KBITS bits. */
static int
make_room (struct overlap *o, struct ov_runs **r, uint32_t n, unsigned kbits,
           bool force)
{
  if (!*r) {
    *r = new_list (o, n, o->window_bits, kbits, NULL, force);
    return *r ? 0 : -ENOMEM;
  }
  if (kbits < ov_kind_bits (*r))
    kbits = ov_kind_bits (*r);
  if (kbits == ov_kind_bits (*r)
      && ov_entry_log_for (n) <= ov_entry_log (*r)
      && ov_bytes_for (*r, n) <= ov_block_bytes (*r))
    return 0;
  return move_list (o, r, n, kbits, force);
}

int
ov_packed_reserve (struct overlap *o, struct ov_runs **list, uint32_t n)
{
  return make_room (o, list, n, 0, false);
}

int
ov_packed_splice (struct overlap *o, struct ov_runs **list, uint32_t chunk,
                  uint32_t i, uint32_t m, const struct ov_piece *pieces,
                  uint32_t k, bool force)
{
  struct ov_runs *r = *list;
  uint32_t n = r ? ov_count (r) : 0, j;
  unsigned kbits = 0;
  size_t tail;

  for (j = 0; j < k; ++j)
    if (kbits < bits_of (pieces[j].kind))
      kbits = bits_of (pieces[j].kind);
  if (n - m + k == 0) {
    ov_free (o, r);
    o->runs -= n;
    *list = NULL;
    return 0;
  }
  if (k > 0 && make_room (o, list, n - m + k, kbits, force) < 0)
    return -ENOMEM;

  r = *list;
  tail = (size_t) (n - i - m) * ov_piece_bits (r);
  if (tail > 0 && k > m)
    ov_bits_up (r, ov_piece_at (r, i + m), tail,
             (size_t) (k - m) * ov_piece_bits (r));
  else if (tail > 0 && k < m)
    ov_bits_down (r, ov_piece_at (r, i + m), tail,
               (size_t) (m - k) * ov_piece_bits (r));
  for (j = 0; j < k; ++j)
    ov_store_piece (r, ov_piece_at (r, i + j + 1) - 1, pieces[j].start,
                    pieces[j].kind);
  if (k != m)
    ov_shift_index (r, chunk, k - m);
  o->runs += k;
  o->runs -= m;
  return 0;
}

/* A list on its way to other chunks.  Pieces that touch become one run
 * again, which is cut at the new chunks and coded there.  What does not
 * fit in "to" is not stored, only counted.  Pieces are put into a word
 * until it is full.
 */
struct recode {
  struct overlap *o;
  struct ov_runs *to;
  unsigned chunk_bits, kbits;
  uint32_t n;                   /* pieces */
  uint32_t room;                /* pieces that fit in "to" */
  uint32_t start, len;          /* the run that still grows */
  uint16_t class;
  uint64_t word;                /* the next bits of "to", */
  unsigned filled;              /* so many of them, */
  uint8_t *next;                /* and where they go */
};

static inline void
recode_put (struct recode *c, uint64_t v, unsigned bits)
{
  c->word |= v << c->filled;
  c->filled += bits;
  if (c->filled >= 64) {
    ov_store64 (c->next, c->word);
    c->next += sizeof c->word;
    c->filled -= 64;
    c->word = c->filled > 0 ? v >> (bits - c->filled) : 0;
  }
}

static inline void
recode_piece (struct recode *c, uint32_t start, uint16_t kind)
{
  const unsigned kbits = ov_kind_bits (c->to);
  const uint32_t chunk = start >> c->chunk_bits;

  if (kind - 1u > ov_mask (c->kbits))
    c->kbits = bits_of (kind);
  if (c->n < c->room && c->kbits == kbits) {
    ov_set_prefix (c->to, chunk + 1, ov_packed_prefix (c->to, chunk + 1) + 1);
    recode_put (c, (start & ov_mask (c->chunk_bits)) << kbits | (kind - 1u),
                c->chunk_bits + kbits);
  }
  c->n++;
}

/* Code a run of several clusters. */
static int
recode_long (struct recode *c)
{
  uint32_t chunk_size = UINT32_C (1) << c->chunk_bits;
  uint16_t kind;

  while (c->len > 0) {
    uint32_t room = chunk_size - c->start % chunk_size;
    uint32_t part = c->len < room ? c->len : room;

    while (part > 0) {
      unsigned log = 31 - (unsigned) __builtin_clz (part);

      if (ov_kind_sized (c->o, c->class, log, false, &kind) < 0)
        return -ENOMEM;
      recode_piece (c, c->start, kind);
      c->start += UINT32_C (1) << log;
      c->len -= UINT32_C (1) << log;
      part -= UINT32_C (1) << log;
    }
  }
  return 0;
}

/* Code the run that has ended. */
static inline int
recode_flush (struct recode *c)
{
  if (c->len > 1)
    return recode_long (c);
  if (c->len == 1)
    recode_piece (c, c->start, c->class);
  c->len = 0;
  return 0;
}

static inline int
recode_add (struct recode *c, const struct ov_piece *piece)
{
  const struct ov_kind *k = ov_kind (c->o, piece->kind);

  /* That it does not touch is the best guess. */
  if (piece->start != c->start + c->len || k->class != c->class
      || c->len == 0) {
    if (recode_flush (c) < 0)
      return -ENOMEM;
    c->start = piece->start;
    c->class = k->class;
  }
  c->len += UINT32_C (1) << k->log;
  return 0;
}

/* The index says how many pieces each chunk has: let it say how many lie
 * before each.  (They are counted first, for there is no guessing which
 * chunk comes next.)
 */
static void
sum_index (struct ov_runs *r)
{
  uint32_t chunk, sum = 0;

  for (chunk = 1; chunk <= ov_chunks (r); ++chunk) {
    sum += ov_packed_prefix (r, chunk);
    ov_set_prefix (r, chunk, sum);
  }
}

/* Code the COUNT pieces of FROM, and the N pieces of MORE, which are single
 * clusters.  -EEXIST if one of them is in both.
 */
static int
recode (struct recode *c, const struct ov_runs *from, uint32_t count,
        const struct ov_piece *more, uint32_t n)
{
  const struct ov_piece *end = n > 0 ? more + n : more;
  struct ov_piece piece;
  struct ov_cursor at;
  uint64_t word;

  c->n = c->len = 0;
  c->word = c->filled = 0;
  c->next = (uint8_t *) c->to + c->to->pieces_at / 8;
  if (count > 0)
    ov_cursor_init (&at, from);
  while (count > 0 && ov_cursor_next (&at, count, &piece)) {
    for (; more < end && more->start < piece.start; ++more)
      if (recode_add (c, more) < 0)
        return -ENOMEM;
    if (recode_add (c, &piece) < 0)
      return -ENOMEM;
    if (more < end && more->start < c->start + c->len)
      return -EEXIST;
  }
  for (; more < end; ++more)
    if (recode_add (c, more) < 0)
      return -ENOMEM;
  if (recode_flush (c) < 0)
    return -ENOMEM;
  word = htole64 (c->word);
  memcpy (c->next, &word, (c->filled + 7) / 8);
  sum_index (c->to);
  return 0;
}

/* The chunks of a list of N pieces.  One that GROWS mark by mark is made for
 * half as many again, so that it is not coded anew too often.  One that was
 * made in one go will not grow much.  (A sixth more pieces in a chunk would
 * save another one or two in a hundred bytes at random places, and make a
 * check there half as slow again.)
 */
static unsigned
best_chunk_bits (uint32_t n, bool grows, unsigned window_bits)
{
  const uint32_t expected = grows ? n + n / 2 : n;
  unsigned log = 0;

  while (log < window_bits - OV_MIN_CHUNK_BITS
         && expected > ov_most_pieces (n) << log)
    log++;
  return window_bits - log;
}

/* Put what *LIST has and N more pieces into a new list.  Most need as
 * many pieces in other chunks as they had, so that is tried first; what
 * was counted then is right for a second time.
 */
static int
remake (struct overlap *o, struct ov_runs **list,
        const struct ov_piece *more, uint32_t n)
{
  struct ov_runs *old = *list;
  uint32_t count = old ? ov_count (old) : 0;
  struct recode c = {
    .o = o, .room = count + n, .kbits = old ? ov_kind_bits (old) : 0,
    .chunk_bits = best_chunk_bits (count + n, n == 0, o->window_bits),
  };
  unsigned kbits;
  uint32_t i;
  int r;

  for (i = 0; i < n; ++i)
    if (more[i].kind - 1u > ov_mask (c.kbits))
      c.kbits = bits_of (more[i].kind);
  do {
    ov_free (o, c.to);
    kbits = c.kbits;
    c.to = new_list (o, c.room, c.chunk_bits, kbits, old, false);
    if (!c.to)
      return -ENOMEM;
    r = recode (&c, old, count, more, n);
    if (r < 0) {
      ov_free (o, c.to);
      return r;
    }
  } while ((c.n > c.room || c.kbits > kbits) && (c.room = c.n));
  o->runs += c.n;
  o->runs -= count;
  ov_free (o, old);
  *list = c.to;
  return 0;
}

void
ov_packed_tune (struct overlap *o, struct ov_runs **list)
{
  const uint32_t n = *list ? ov_count (*list) : 0;

  if (n > 0 && ov_needs_other_chunks (*list, n))
    remake (o, list, NULL, 0);
  else if (n > 0 && ov_has_room_to_spare (*list, n))
    move_list (o, list, n, ov_kind_bits (*list), false);
}

int
ov_packed_merge (struct overlap *o, struct ov_runs **list,
                 const struct ov_piece *pieces, uint32_t n)
{
  return remake (o, list, pieces, n);
}
