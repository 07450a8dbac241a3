/* SPDX-License-Identifier: BSD-3-Clause */

/* A sorted list of pieces in as few bits as position and kind need.
 *
 * The window is cut into chunks of 1 << chunk_bits clusters.  An index
 * says how many pieces lie before each chunk but the first; behind the
 * index the pieces stand in one string of bits, each with its offset in
 * its chunk (chunk_bits bits) and its kind less one (kind_bits bits):
 *
 *     header | index[1] ... index[chunks - 1] | piece 0, piece 1, ...
 *
 * Smaller chunks make pieces shorter and the index longer; the two are
 * in balance at 4 to 16 pieces a chunk, and ov_packed_tune holds them
 * there, nearer to 4.  For metadata at random places this comes to the
 * logarithm of their mean distance and some five bits.  A look-up reads two
 * neighbours of the index and searches between them.
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

#include "overlap-internal.h"

#define HEADER offsetof (struct ov_runs, data)

/* Blocks of 24 + 16 * n bytes are what malloc has no waste for. */
#define UNIT 16u
#define BASE 24u

#define MIN_CHUNK_BITS (OV_WINDOW_BITS < 3 ? OV_WINDOW_BITS : 3)

static size_t
block_bytes (const struct ov_runs *r)
{
  return BASE + (size_t) UNIT * r->units;
}

static unsigned
kind_bits (const struct ov_runs *r)
{
  return r->kind_bits & ~(unsigned) OV_WIDE;
}

static unsigned
piece_bits (const struct ov_runs *r)
{
  return r->chunk_bits + kind_bits (r);
}

static size_t
index_bytes (unsigned chunk_bits, bool wide)
{
  return ((OV_WINDOW >> chunk_bits) - 1) * (wide ? (size_t) 4 : (size_t) 2);
}

/* The bit at which piece I begins, counted from the block's start. */
static size_t
piece_at (const struct ov_runs *r, uint32_t i)
{
  return (HEADER + index_bytes (r->chunk_bits, r->kind_bits & OV_WIDE)) * 8
    + (size_t) i * piece_bits (r);
}

static uint64_t
load64 (const uint8_t *p)
{
  uint64_t v;

  memcpy (&v, p, sizeof v);
  return le64toh (v);
}

static void
store64 (uint8_t *p, uint64_t v)
{
  v = htole64 (v);
  memcpy (p, &v, sizeof v);
}

/* The eight bytes of the block in which the bits from BIT on lie, as
 * many as fit behind it; never reaches past the block's end.
 */
static uint8_t *
word_of (const struct ov_runs *r, size_t bit, unsigned *shift)
{
  size_t byte = bit / 8, last = block_bytes (r) - 8;

  if (byte > last)
    byte = last;
  *shift = (unsigned) (bit - byte * 8);
  return (uint8_t *) r + byte;
}

static uint64_t
mask (unsigned bits)
{
  return (UINT64_C (1) << bits) - 1;
}

static uint64_t
load_piece (const struct ov_runs *r, uint32_t i)
{
  unsigned shift;
  const uint8_t *p = word_of (r, piece_at (r, i), &shift);

  return load64 (p) >> shift & mask (piece_bits (r));
}

static void
store_piece (struct ov_runs *r, uint32_t i, const struct ov_piece *piece)
{
  unsigned shift;
  uint8_t *p = word_of (r, piece_at (r, i), &shift);
  uint64_t v = (piece->start & mask (r->chunk_bits)) << kind_bits (r)
    | (uint64_t) (piece->kind - 1);
  uint64_t keep = ~(mask (piece_bits (r)) << shift);

  store64 (p, (load64 (p) & keep) | v << shift);
}

/* Pieces before CHUNK. */
uint32_t
ov_packed_prefix (const struct ov_runs *r, uint32_t chunk)
{
  if (chunk == 0)
    return 0;
  if (chunk == ov_chunks (r))
    return r->n;
  if (r->kind_bits & OV_WIDE) {
    uint32_t v;
    memcpy (&v, r->data + (chunk - 1) * sizeof v, sizeof v);
    return v;
  }
  else {
    uint16_t v;
    memcpy (&v, r->data + (chunk - 1) * sizeof v, sizeof v);
    return v;
  }
}

static void
set_prefix (struct ov_runs *r, uint32_t chunk, uint32_t v)
{
  if (r->kind_bits & OV_WIDE)
    memcpy (r->data + (chunk - 1) * sizeof v, &v, sizeof v);
  else {
    uint16_t narrow = (uint16_t) v;
    memcpy (r->data + (chunk - 1) * sizeof narrow, &narrow, sizeof narrow);
  }
}

/* Add BY to the index of every chunk behind CHUNK. */
static void
shift_index (struct ov_runs *r, uint32_t chunk, uint32_t by)
{
  uint32_t i, n = ov_chunks (r) - 1;

  if (r->kind_bits & OV_WIDE) {
    uint32_t *v = (uint32_t *) (void *) r->data;
    for (i = chunk; i < n; ++i)
      v[i] += by;
  }
  else {
    uint16_t *v = (uint16_t *) (void *) r->data;
    for (i = chunk; i < n; ++i)
      v[i] = (uint16_t) (v[i] + by);
  }
}

struct ov_piece
ov_packed_get (const struct ov_runs *r, uint32_t chunk, uint32_t i)
{
  uint64_t v = load_piece (r, i);
  struct ov_piece piece = {
    .start = chunk << r->chunk_bits | (uint32_t) (v >> kind_bits (r)),
    .kind = (uint16_t) ((v & mask (kind_bits (r))) + 1),
  };

  return piece;
}

/* The piece whose last bit is bit LAST of the block, in the top bits of
 * a word.  The eight bytes that end there are read: they never reach
 * out of the block, whose header has as many.
 */
static inline uint64_t
top_piece (const struct ov_runs *r, size_t last)
{
  return load64 ((const uint8_t *) r + last / 8 - 7) << (7 - last % 8);
}

/* Of N pieces, find the last one that does not begin behind the offset
 * in the top bits of TOP (the others are ones).  BEFORE is the bit
 * before the first, and returned if there is none; else the piece's
 * last bit is.  The steps are arithmetic, not branches: which way a
 * search goes is not predictable.
 */
static inline size_t
search (const struct ov_runs *r, size_t before, uint32_t n, unsigned bits,
        uint64_t top)
{
  uint32_t half;
  size_t step;

  while (n > 0) {
    half = (n + 1) / 2;
    step = (size_t) half * bits;
    before += step & -(size_t) (top_piece (r, before + step) <= top);
    n -= half;
  }
  return before;
}

/* As "top" of search for a cluster of the window. */
static inline uint64_t
top_of (const struct ov_runs *r, uint32_t cluster)
{
  unsigned rest = 64u - r->chunk_bits;

  return rest == 64 ? UINT64_MAX : (uint64_t) cluster << rest | mask (rest);
}

/* The first piece of CHUNK that begins behind CLUSTER, which lies in
 * the chunk.
 */
uint32_t
ov_packed_find (const struct ov_runs *r, uint32_t chunk, uint32_t cluster)
{
  uint32_t lo = ov_packed_prefix (r, chunk);
  uint32_t n = ov_packed_prefix (r, chunk + 1) - lo;
  size_t before = piece_at (r, lo) - 1;

  return lo + (uint32_t) ((search (r, before, n, piece_bits (r),
                                   top_of (r, cluster)) - before)
                          / piece_bits (r));
}

bool
ov_packed_at (const struct ov_runs *r, uint32_t cluster,
              struct ov_piece *piece)
{
  uint32_t chunk = cluster >> r->chunk_bits;
  uint32_t lo = ov_packed_prefix (r, chunk);
  uint32_t n = ov_packed_prefix (r, chunk + 1) - lo;
  unsigned bits = piece_bits (r), kbits = kind_bits (r);
  size_t before = piece_at (r, lo) - 1, last;
  uint64_t v;

  last = search (r, before, n, bits, top_of (r, cluster));
  if (last == before)
    return false;
  v = top_piece (r, last) >> (64 - bits);
  piece->start = chunk << r->chunk_bits | (uint32_t) (v >> kbits);
  piece->kind = (uint16_t) ((v & mask (kbits)) + 1);
  return true;
}

/* Move N bits of the block up, from bit FROM to bit FROM + BY.  Whole
 * bytes first, then what is left of BY, from the top down.
 */
static void
bits_up (uint8_t *block, size_t from, size_t n, size_t by)
{
  size_t first = from / 8, last = (from + n - 1) / 8, bytes = by / 8;
  unsigned s = by % 8;
  uint8_t *lo = block + first + bytes, *hi = block + last + bytes;
  uint8_t below = block[first];
  uint8_t keep = (uint8_t) mask (from % 8);

  memmove (lo, block + first, last - first + 1);
  if (s > 0) {
    if ((from + n + by - 1) / 8 > last + bytes)
      hi[1] = (uint8_t) (*hi >> (8 - s));
    for (; hi - lo >= 8; hi -= 8)
      store64 (hi - 7, load64 (hi - 7) << s | (uint64_t) hi[-8] >> (8 - s));
    for (; hi > lo; --hi)
      *hi = (uint8_t) (*hi << s | hi[-1] >> (8 - s));
    *lo = (uint8_t) (*lo << s);
  }
  block[first] = (uint8_t) ((block[first] & ~keep) | (below & keep));
}

/* Move N bits of the block down, from bit FROM to bit FROM - BY. */
static void
bits_down (uint8_t *block, size_t from, size_t n, size_t by)
{
  size_t to = from - by, bytes = by / 8;
  unsigned s = by % 8;
  uint8_t *lo = block + to / 8, *hi = block + (from + n - 1) / 8 - bytes;
  uint8_t below = *lo;
  uint8_t keep = (uint8_t) mask (to % 8);

  memmove (block + from / 8 - bytes, block + from / 8,
           (from + n - 1) / 8 - from / 8 + 1);
  if (s > 0) {
    for (; hi - lo >= 8; lo += 8)
      store64 (lo, load64 (lo) >> s | (uint64_t) lo[8] << (64 - s));
    for (; lo < hi; ++lo)
      *lo = (uint8_t) (*lo >> s | lo[1] << (8 - s));
    *lo = (uint8_t) (*lo >> s);
  }
  lo = block + to / 8;
  *lo = (uint8_t) ((*lo & ~keep) | (below & keep));
}

/* Bits that a piece's kind takes. */
static unsigned
bits_of (uint16_t kind)
{
  return kind < 2 ? 0 : 32 - (unsigned) __builtin_clz (kind - 1u);
}

/* The bytes that N pieces take. */
static size_t
bytes_for (uint32_t n, unsigned chunk_bits, unsigned kbits, bool wide)
{
  return HEADER + index_bytes (chunk_bits, wide)
    + ((size_t) n * (chunk_bits + kbits) + 7) / 8;
}

static struct ov_runs *
new_list (struct overlap *o, uint32_t n, unsigned chunk_bits,
          unsigned kbits, const struct ov_runs *old, bool force)
{
  bool wide = n > UINT16_MAX;
  size_t bytes = bytes_for (n, chunk_bits, kbits, wide);
  size_t units = bytes <= BASE ? 0 : (bytes - BASE + UNIT - 1) / UNIT;
  struct ov_runs *r = ov_alloc_instead (o, BASE + units * UNIT, old, force);

  if (r) {
    r->units = (uint16_t) units;
    r->chunk_bits = (uint8_t) chunk_bits;
    r->kind_bits = (uint8_t) (kbits | (wide ? OV_WIDE : 0));
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

  if (n < old->n)               /* pieces go only after the move */
    n = old->n;
  /* A long list gets a little spare room, lest each piece copy it. */
  new = new_list (o, n + n / 32, old->chunk_bits, kbits, old, false);
  if (!new)
    new = new_list (o, n, old->chunk_bits, kbits, old, force);
  if (!new)
    return -ENOMEM;
  if (new->kind_bits == old->kind_bits)
    memcpy (new->data, old->data,
            (piece_at (old, old->n) + 7) / 8 - HEADER);
  else {
    for (chunk = 0, i = 0; chunk < ov_chunks (old); ++chunk) {
      if (chunk > 0)
        set_prefix (new, chunk, i);
      for (; i < ov_packed_prefix (old, chunk + 1); ++i) {
        struct ov_piece piece = ov_packed_get (old, chunk, i);
        store_piece (new, i, &piece);
      }
    }
  }
  new->n = old->n;
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
    *r = new_list (o, n, OV_WINDOW_BITS, kbits, NULL, force);
    return *r ? 0 : -ENOMEM;
  }
  if (kbits < kind_bits (*r))
    kbits = kind_bits (*r);
  if (kbits == kind_bits (*r)
      && (n <= UINT16_MAX || ((*r)->kind_bits & OV_WIDE))
      && bytes_for (n, (*r)->chunk_bits, kbits, (*r)->kind_bits & OV_WIDE)
         <= block_bytes (*r))
    return 0;
  return move_list (o, r, n, kbits, force);
}

int
ov_packed_splice (struct overlap *o, struct ov_runs **list, uint32_t chunk,
                  uint32_t i, uint32_t m, const struct ov_piece *pieces,
                  uint32_t k, bool force)
{
  struct ov_runs *r = *list;
  uint32_t n = r ? r->n : 0, j;
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
  tail = (size_t) (n - i - m) * piece_bits (r);
  if (tail > 0 && k > m)
    bits_up ((uint8_t *) r, piece_at (r, i + m), tail,
             (size_t) (k - m) * piece_bits (r));
  else if (tail > 0 && k < m)
    bits_down ((uint8_t *) r, piece_at (r, i + m), tail,
               (size_t) (m - k) * piece_bits (r));
  for (j = 0; j < k; ++j)
    store_piece (r, i + j, &pieces[j]);
  r->n = n - m + k;
  shift_index (r, chunk, k - m);
  o->runs += k;
  o->runs -= m;
  return 0;
}

/* A list on its way to other chunks.  Pieces that touch become one run
 * again, which is cut at the new chunks and coded there.  While "to" is
 * NULL nothing is stored, only counted.
 */
struct recode {
  struct overlap *o;
  struct ov_runs *to;
  unsigned chunk_bits, kbits;
  uint32_t n, chunk;            /* pieces, and chunks begun */
  uint32_t start, len;          /* the run that still grows */
  uint16_t class;
};

static int
recode_piece (struct recode *c, uint32_t start, unsigned log)
{
  struct ov_piece piece = { .start = start };

  if (ov_kind_sized (c->o, c->class, log, false, &piece.kind) < 0)
    return -ENOMEM;
  if (c->kbits < bits_of (piece.kind))
    c->kbits = bits_of (piece.kind);
  if (c->to) {
    while (c->chunk < start >> c->chunk_bits)
      set_prefix (c->to, ++c->chunk, c->n);
    store_piece (c->to, c->n, &piece);
  }
  c->n++;
  return 0;
}

/* Code the run that has ended. */
static int
recode_flush (struct recode *c)
{
  uint32_t chunk_size = UINT32_C (1) << c->chunk_bits;

  while (c->len > 0) {
    uint32_t room = chunk_size - c->start % chunk_size;
    uint32_t part = c->len < room ? c->len : room;

    while (part > 0) {
      unsigned log = 31 - (unsigned) __builtin_clz (part);

      if (recode_piece (c, c->start, log) < 0)
        return -ENOMEM;
      c->start += UINT32_C (1) << log;
      c->len -= UINT32_C (1) << log;
      part -= UINT32_C (1) << log;
    }
  }
  return 0;
}

static int
recode_add (void *opaque, struct ov_piece piece)
{
  struct recode *c = opaque;
  const struct ov_kind *k = ov_kind (c->o, piece.kind);

  if (c->len == 0 || k->class != c->class
      || piece.start != c->start + c->len) {
    if (recode_flush (c) < 0)
      return -ENOMEM;
    c->start = piece.start;
    c->class = k->class;
  }
  c->len += UINT32_C (1) << k->log;
  return 0;
}

static int
recode (struct recode *c, const struct ov_runs *from)
{
  c->n = c->chunk = c->len = 0;
  if (ov_runs_each (from, recode_add, c) < 0 || recode_flush (c) < 0)
    return -ENOMEM;
  if (c->to) {
    while (c->chunk < ov_chunks (c->to) - 1)
      set_prefix (c->to, ++c->chunk, c->n);
    c->to->n = c->n;
  }
  return 0;
}

/* At 16 pieces a chunk, halving the chunks saves one bit a piece and
 * costs as much index.  Half as many pieces cost a third of a bit more
 * and save a step of each search.
 */
static unsigned
best_chunk_bits (uint32_t n)
{
  unsigned bits = OV_WINDOW_BITS;

  while (bits > MIN_CHUNK_BITS && n > 8 * (OV_WINDOW >> bits))
    bits--;
  return bits;
}

/* True if the list is far from its best form.  The bounds are so far
 * apart that a list is recoded only after it has changed by a quarter.
 */
static bool
needs_tuning (const struct ov_runs *r)
{
  uint32_t chunks = ov_chunks (r);
  size_t bytes = bytes_for (r->n, r->chunk_bits, kind_bits (r),
                            r->kind_bits & OV_WIDE);

  if (r->n > 10 * chunks && r->chunk_bits > MIN_CHUNK_BITS)
    return true;
  if (r->n < 3 * chunks && r->chunk_bits < OV_WINDOW_BITS)
    return true;
  return block_bytes (r) > BASE
    && block_bytes (r) - bytes > UNIT + UNIT / 2 + bytes / 8;
}

void
ov_packed_tune (struct overlap *o, struct ov_runs **list)
{
  struct ov_runs *old = *list;
  struct recode c = { .o = o };

  if (!old || !needs_tuning (old))
    return;
  c.chunk_bits = best_chunk_bits (old->n);
  if (recode (&c, old) < 0)
    return;
  c.to = new_list (o, c.n, c.chunk_bits, c.kbits, old, false);
  if (!c.to)
    return;
  if (recode (&c, old) < 0)     /* every kind exists by now */
    abort ();
  o->runs += c.n;
  o->runs -= old->n;
  ov_free (o, old);
  *list = c.to;
}
