/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcount entries of every width.
 *
 * The searches look at 64 bits at a time.  Loaded as little-endian, a
 * word has its entries in ascending order from bit 0 up, whatever their
 * width: entries narrower than a byte fill it from its least significant
 * bit, and the byte order inside wider entries does not matter when the
 * only question is whether they are zero.  Folding each entry into its
 * lowest bit then answers that question for all entries of a word.
 *
 * A block is a whole number of words long, since a cluster is; a search
 * reads no word that lies wholly outside the range asked for.
 */

#include <config.h>

#include <endian.h>
#include <string.h>

#include "byteorder.h"
#include "refcount.h"

uint64_t
refcount_get (const void *block, uint32_t order, uint64_t index)
{
  const uint8_t *p = block;
  const unsigned bits = 1u << order;

  switch (order) {
  case 0: case 1: case 2: case 3:
    return (unsigned) p[index * bits / 8] >> (index * bits % 8)
      & ((1u << bits) - 1);
  case 4: return load_be16 (p + index * 2);
  case 5: return load_be32 (p + index * 4);
  default: return load_be64 (p + index * 8);
  }
}

void
refcount_set (void *block, uint32_t order, uint64_t index, uint64_t value)
{
  uint8_t *p = block;
  const unsigned bits = 1u << order;
  unsigned shift, mask;

  switch (order) {
  case 0: case 1: case 2: case 3:
    p += index * bits / 8;
    shift = (unsigned) (index * bits % 8);
    mask = ((1u << bits) - 1) << shift;
    *p = (uint8_t) ((*p & ~mask) | ((unsigned) value << shift & mask));
    break;
  case 4: store_be16 (p + index * 2, (uint16_t) value); break;
  case 5: store_be32 (p + index * 4, (uint32_t) value); break;
  default: store_be64 (p + index * 8, value); break;
  }
}

/* The lowest bit of every entry in a word, by order. */
static const uint64_t lowest_bits[7] = {
  UINT64_MAX,
  UINT64_C (0x5555555555555555),
  UINT64_C (0x1111111111111111),
  UINT64_C (0x0101010101010101),
  UINT64_C (0x0001000100010001),
  UINT64_C (0x0000000100000001),
  1,
};

/* Word number WORD of the block, every entry reduced to its lowest bit:
 * set if the entry is not zero.
 */
static uint64_t
used_bits (const uint8_t *block, uint32_t order, uint64_t word)
{
  uint64_t v;
  unsigned s;

  memcpy (&v, block + word * 8, sizeof v);
  v = le64toh (v);
  for (s = 1u << order >> 1; s > 0; s >>= 1)
    v |= v >> s;
  return v & lowest_bits[order];
}

/* The first entry in [INDEX, END) whose being used is not FLIP's. */
static uint64_t
find (const void *block, uint32_t order, uint64_t index, uint64_t end,
      uint64_t flip)
{
  const unsigned per_word = 6 - order; /* log2 of entries per word */
  uint64_t word, hits, found;

  if (index >= end)
    return end;

  word = index >> per_word;
  /* Entries below INDEX in its word do not count. */
  hits = (used_bits (block, order, word) ^ flip)
    & UINT64_MAX << ((index & ((UINT64_C (1) << per_word) - 1)) << order);

  while (hits == 0) {
    word++;
    if (word << per_word >= end)
      return end;
    hits = used_bits (block, order, word) ^ flip;
  }

  found = (word << per_word) + ((unsigned) __builtin_ctzll (hits) >> order);
  return found < end ? found : end;
}

uint64_t
refcount_find_zero (const void *block, uint32_t order, uint64_t index,
                    uint64_t end)
{
  return find (block, order, index, end, lowest_bits[order]);
}

uint64_t
refcount_find_used (const void *block, uint32_t order, uint64_t index,
                    uint64_t end)
{
  return find (block, order, index, end, 0);
}
