/* SPDX-License-Identifier: BSD-3-Clause */

/* Changes of a run list where it is: of its string of bits, and of the
 * index before it.  overlap-packed.c explains the form.  They are here, to
 * be inlined, because the usual update (overlap-quick.c) needs them, too.
 *
 * Bits are moved by bytes of the block: by 8 * DELTA + S bits.  What comes
 * to lie in a word is in two words that begin a byte apart, of which one
 * is shifted by S and the other by 8 - S the other way; what both have is
 * the same.  So no step needs anything of the one before it, and as many
 * bytes as a register of the processor has are moved at once.
 *
 * Locks: as in overlap-packed.c.
 */

#ifndef QCOW2_OVERLAP_BITS_H
#define QCOW2_OVERLAP_BITS_H

#include "overlap-fast.h"

static inline void
ov_store64 (uint8_t *p, uint64_t v)
{
  v = htole64 (v);
  memcpy (p, &v, sizeof v);
}

/* Words side by side, whose bytes are in the order of memory. */
#if defined (__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
typedef uint64_t ov_words __attribute__ ((vector_size (16)));

static inline ov_words
ov_load_words (const uint8_t *p)
{
  ov_words v;

  memcpy (&v, p, sizeof v);
  return v;
}

static inline void
ov_store_words (uint8_t *p, ov_words v)
{
  memcpy (p, &v, sizeof v);
}
#else
typedef uint64_t ov_words;

static inline ov_words
ov_load_words (const uint8_t *p)
{
  return ov_load64 (p);
}

static inline void
ov_store_words (uint8_t *p, ov_words v)
{
  ov_store64 (p, v);
}
#endif

/* What comes to lie where the bytes at P, less DELTA, move up by S bits. */
static inline uint64_t
ov_up64 (const uint8_t *p, unsigned s)
{
  return ov_load64 (p) << s | ov_load64 (p - 1) >> (8 - s);
}

static inline ov_words
ov_up_words (const uint8_t *p, unsigned s)
{
  const uint64_t up = s, down = 8 - s;

  return ov_load_words (p) << up | ov_load_words (p - 1) >> down;
}

/* And where they move down. */
static inline uint64_t
ov_down64 (const uint8_t *p, unsigned s)
{
  return ov_load64 (p) >> s | ov_load64 (p + 1) << (8 - s);
}

static inline ov_words
ov_down_words (const uint8_t *p, unsigned s)
{
  const uint64_t down = s, up = 8 - s;

  return ov_load_words (p) >> down | ov_load_words (p + 1) << up;
}

/* So many bits are in one word wherever they begin. */
#define OV_WORD_BITS 57u

/* Put the N bits V where bit LAST of the block is their last. */
static inline void
ov_store_bits (struct ov_runs *r, size_t last, size_t n, uint64_t v)
{
  uint8_t *p = (uint8_t *) r + last / 8 - 7;
  unsigned shift = (unsigned) (OV_WORD_BITS + last % 8 - n);

  ov_store64 (p, (ov_load64 (p) & ~(ov_mask ((unsigned) n) << shift))
              | v << shift);
}

/* Bytes FIRST to END, at least eight, get what is DELTA bytes and S bits
 * below.  What comes lowest is read first and written last: the step
 * before it may reach over it.
 */
static inline void
ov_bytes_up (uint8_t *first, uint8_t *end, size_t delta, unsigned s)
{
  const size_t step = sizeof (ov_words);

  if ((size_t) (end - first) < step) {
    const uint64_t lowest = ov_up64 (first - delta, s);

    ov_store64 (end - 8, ov_up64 (end - 8 - delta, s));
    ov_store64 (first, lowest);
  }
  else {
    const ov_words lowest = ov_up_words (first - delta, s);

    for (; (size_t) (end - first) > 3 * step; end -= 2 * step) {
      const ov_words upper = ov_up_words (end - step - delta, s);
      const ov_words lower = ov_up_words (end - 2 * step - delta, s);

      ov_store_words (end - step, upper);
      ov_store_words (end - 2 * step, lower);
    }
    for (end -= step; end > first; end -= step)
      ov_store_words (end, ov_up_words (end - delta, s));
    ov_store_words (first, lowest);
  }
}

/* Bytes FIRST to END, at least eight, get what is DELTA bytes and S bits
 * above, of which the last byte is read, and none behind it.
 */
static inline void
ov_bytes_down (uint8_t *first, uint8_t *end, size_t delta, unsigned s)
{
  const size_t step = sizeof (ov_words);
  uint8_t *p = first, *last = end - 8;
  const uint64_t highest = ov_load64 (last + delta) >> s;

  if ((size_t) (last - first) < step)
    for (; p < last; p += 8)
      ov_store64 (p, ov_down64 (p + delta, s));
  else {
    const ov_words higher = ov_down_words (last - step + delta, s);

    for (; (size_t) (last - p) > 3 * step; p += 2 * step) {
      const ov_words lower = ov_down_words (p + delta, s);
      const ov_words upper = ov_down_words (p + step + delta, s);

      ov_store_words (p, lower);
      ov_store_words (p + step, upper);
    }
    for (; p < last - step; p += step)
      ov_store_words (p, ov_down_words (p + delta, s));
    ov_store_words (last - step, higher);
  }
  ov_store64 (last, highest);
}

/* Move N bits, more than none, from bit FROM to bit FROM + BY.  The bits of
 * the gap that this makes, and those behind the last moved, become anything.
 */
static inline void
ov_bits_up (struct ov_runs *r, size_t from, size_t n, size_t by)
{
  uint8_t *block = (uint8_t *) r, *low = block + from / 8;
  const uint8_t mask = (uint8_t) ov_mask (from % 8), kept = *low & mask;

  if (n <= OV_WORD_BITS) {
    ov_store_bits (r, from + n - 1 + by, n,
                   ov_top_piece (r, from + n - 1) >> (64 - n));
    return;
  }
  ov_bytes_up (block + (from + by) / 8, block + (from + n + by + 7) / 8,
               by / 8, by % 8);
  *low = (uint8_t) ((*low & ~mask) | kept);
}

/* Move N bits, more than none, from bit FROM to bit FROM - BY.  The bits
 * behind the last moved become anything.
 */
static inline void
ov_bits_down (struct ov_runs *r, size_t from, size_t n, size_t by)
{
  uint8_t *block = (uint8_t *) r, *low = block + (from - by) / 8;
  const uint8_t mask = (uint8_t) ov_mask ((from - by) % 8);
  const uint8_t kept = *low & mask;

  if (n <= OV_WORD_BITS) {
    ov_store_bits (r, from + n - 1 - by, n,
                   ov_top_piece (r, from + n - 1) >> (64 - n));
    return;
  }
  ov_bytes_down (low, block + (from + n + 7) / 8 - by / 8, by / 8, by % 8);
  *low = (uint8_t) ((*low & ~mask) | kept);
}

/* ---- pieces and the index ---- */

/* The piece that ends with bit LAST of the block. */
static inline void
ov_store_piece (struct ov_runs *r, size_t last, uint32_t start,
                uint16_t kind)
{
  const unsigned kbits = ov_kind_bits (r);
  const uint64_t offset = start & ov_mask (r->chunk_bits);

  ov_store_bits (r, last, ov_piece_bits (r),
                 offset << kbits | (uint64_t) (kind - 1u));
}

static inline uint8_t *
ov_index_entry (struct ov_runs *r, uint32_t chunk)
{
  return r->data + ((size_t) chunk << ov_entry_log (r));
}

static inline void
ov_set_prefix (struct ov_runs *r, uint32_t chunk, uint32_t v)
{
  uint8_t *entry = ov_index_entry (r, chunk);

  switch (ov_entry_log (r)) {
  case 0:
    *entry = (uint8_t) v;
    break;
  case 1:
    *(uint16_t *) (void *) entry = (uint16_t) v;
    break;
  default:
    *(uint32_t *) (void *) entry = v;
  }
}

/* Add BY, which may be negative modulo 2^32, to the index of every chunk
 * behind CHUNK.  From the end some words at a time: what is right in each
 * entry does not carry into the next.  The last words may begin before the
 * entries that are meant, which are then left out.
 */
static inline void
ov_shift_words (struct ov_runs *r, uint32_t chunk, uint32_t by)
{
  static const uint64_t ones[] = {
    UINT64_C (0x0101010101010101), UINT64_C (0x0001000100010001),
    UINT64_C (0x0000000100000001),
  };
  /* Loaded from byte N on, all but the first SIZE - N bytes are ones. */
  enum { SIZE = sizeof (ov_words) };
  static const uint8_t edge[2 * SIZE] = { [SIZE ... 2 * SIZE - 1] = 0xff };
  const bool down = by >> 31;
  const uint64_t each = ones[ov_entry_log (r)] * (down ? 0u - by : by);
  const uint64_t change = down ? 0 - each : each;
  const uint8_t *first = ov_index_entry (r, chunk + 1);
  uint8_t *p = ov_index_entry (r, ov_chunks (r) + 1);

  for (; p - first >= SIZE; p -= SIZE)
    ov_store_words (p - SIZE, ov_load_words (p - SIZE) + change);
  if (p > first) {
    const ov_words some = ov_load_words (edge + (p - first)) & each;

    ov_store_words (p - SIZE, ov_load_words (p - SIZE)
                    + (down ? -some : some));
  }
}

static inline void
ov_shift_index (struct ov_runs *r, uint32_t chunk, uint32_t by)
{
  if (ov_chunks (r) << ov_entry_log (r) >= sizeof (ov_words))
    ov_shift_words (r, chunk, by);
  else
    while (chunk++ < ov_chunks (r))
      ov_set_prefix (r, chunk, ov_packed_prefix (r, chunk) + by);
}

/* The size of entries for an index that has numbers up to N. */
static inline unsigned
ov_entry_log_for (uint32_t n)
{
  return n <= UINT8_MAX ? 0 : n <= UINT16_MAX ? 1 : 2;
}

/* The bytes that N pieces take in the list's form. */
static inline size_t
ov_bytes_for (const struct ov_runs *r, uint32_t n)
{
  return (ov_piece_at (r, n) + 7) / 8;
}

/* Half as many pieces in a chunk make each a bit shorter, and save a
 * step of each search, but need twice the index.  Up to this mean number
 * a chunk is left whole.
 */
static inline uint32_t
ov_most_pieces (uint32_t n)
{
  return ov_entry_log_for (n) == 0 ? 4 : 8;
}

#define OV_MIN_CHUNK_BITS (OV_WINDOW_BITS < 3 ? OV_WINDOW_BITS : 3)

/* True if the chunks of a list of N pieces are far from their best size.
 * The bounds are so far apart that a list is recoded only after it has
 * changed by a good part.
 */
static inline bool
ov_needs_other_chunks (const struct ov_runs *r, uint32_t n)
{
  const uint32_t few = ov_most_pieces (n) * ov_chunks (r);

  return (2 * n > 3 * few && r->chunk_bits > OV_MIN_CHUNK_BITS)
    || (4 * n < few && ov_chunks (r) > 1);
}

/* True if the block of N pieces is much larger than they need. */
static inline bool
ov_has_room_to_spare (const struct ov_runs *r, uint32_t n)
{
  const size_t bytes = ov_bytes_for (r, n);

  return r->units > 0 && ov_block_bytes (r) - bytes
    > OV_BLOCK_UNIT + OV_BLOCK_UNIT / 2 + bytes / 8;
}

#endif /* QCOW2_OVERLAP_BITS_H */
