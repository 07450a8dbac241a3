/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcount entries of all widths, against an oracle that spells out the
 * specification bit by bit, and against literal bytes.
 */

#include <config.h>

#include "format-test.h"
#include "refcount.h"

#define ORDERS 7
#define BLOCK 512

/* Bit BIT of entry INDEX (0 is the least significant): the byte of the
 * block and the bit in it.
 */
static void
oracle_place (uint32_t order, uint64_t index, unsigned bit,
              uint64_t *byte, unsigned *in_byte)
{
  const unsigned width = 1u << order;

  if (width >= 8) {
    /* Big-endian: the last byte has the lowest bits. */
    *byte = index * (width / 8) + (width / 8 - 1 - bit / 8);
    *in_byte = bit % 8;
  }
  else {
    *byte = (index * width + bit) / 8;
    *in_byte = (unsigned) ((index * width + bit) % 8);
  }
}

static uint64_t
oracle_get (const uint8_t *block, uint32_t order, uint64_t index)
{
  uint64_t byte, value = 0;
  unsigned bit, in_byte;

  for (bit = 0; bit < 1u << order; bit++) {
    oracle_place (order, index, bit, &byte, &in_byte);
    if (block[byte] >> in_byte & 1)
      value |= UINT64_C (1) << bit;
  }
  return value;
}

static void
oracle_set (uint8_t *block, uint32_t order, uint64_t index, uint64_t value)
{
  uint64_t byte;
  unsigned bit, in_byte;

  for (bit = 0; bit < 1u << order; bit++) {
    oracle_place (order, index, bit, &byte, &in_byte);
    block[byte] &= (uint8_t) ~(1u << in_byte);
    if (value >> bit & 1)
      block[byte] |= (uint8_t) (1u << in_byte);
  }
}

/* A generator that is the same everywhere. */
static uint64_t
random_bits (uint64_t *state)
{
  *state = *state * UINT64_C (6364136223846793005)
    + UINT64_C (1442695040888963407);
  return *state >> 32 | *state << 32;
}

START_TEST (sizes)
{
  static const uint64_t max[ORDERS] = {
    1, 3, 15, 255, 65535, UINT32_MAX, UINT64_MAX
  };

  ck_assert_uint_eq (refcount_max ((uint32_t) _i), max[_i]);
  ck_assert_uint_eq (refcount_block_entries (512, (uint32_t) _i),
                     UINT64_C (4096) >> _i);
  ck_assert_uint_eq (refcount_block_entries (2 << 20, (uint32_t) _i),
                     UINT64_C (16777216) >> _i);
}
END_TEST

/* The same bytes in every width, written out. */
START_TEST (literal)
{
  static const uint8_t block[8] = {
    0x81, 0x42, 0x00, 0xff, 0x12, 0x34, 0x56, 0x78
  };

  ck_assert_uint_eq (refcount_get (block, 0, 0), 1);
  ck_assert_uint_eq (refcount_get (block, 0, 1), 0);
  ck_assert_uint_eq (refcount_get (block, 0, 7), 1);
  ck_assert_uint_eq (refcount_get (block, 0, 9), 1);
  ck_assert_uint_eq (refcount_get (block, 1, 0), 1);
  ck_assert_uint_eq (refcount_get (block, 1, 3), 2);
  ck_assert_uint_eq (refcount_get (block, 2, 0), 1);
  ck_assert_uint_eq (refcount_get (block, 2, 1), 8);
  ck_assert_uint_eq (refcount_get (block, 2, 3), 4);
  ck_assert_uint_eq (refcount_get (block, 3, 1), 0x42);
  ck_assert_uint_eq (refcount_get (block, 4, 1), 0x00ff);
  ck_assert_uint_eq (refcount_get (block, 5, 1), 0x12345678);
  ck_assert_uint_eq (refcount_get (block, 6, 0),
                     UINT64_C (0x814200ff12345678));
}
END_TEST

/* Random values at random places: read and written as the oracle does,
 * the whole block compared after each write.
 */
START_TEST (get_set)
{
  const uint32_t order = (uint32_t) _i;
  const uint64_t entries = refcount_block_entries (BLOCK, order);
  uint64_t state = (uint64_t) _i + 1;
  uint8_t *block = malloc (BLOCK), expected[BLOCK];
  unsigned n;

  ck_assert_ptr_nonnull (block);
  for (n = 0; n < BLOCK; n++)
    block[n] = expected[n] = (uint8_t) random_bits (&state);
  for (n = 0; n < 20000; n++) {
    const uint64_t index = n < entries ? n : random_bits (&state) % entries;
    const uint64_t value = random_bits (&state) & refcount_max (order);

    if (refcount_get (block, order, index)
        != oracle_get (expected, order, index))
      ck_abort_msg ("order %u: get %llu", order, (unsigned long long) index);
    refcount_set (block, order, index, value);
    oracle_set (expected, order, index, value);
    if (memcmp (block, expected, BLOCK) != 0)
      ck_abort_msg ("order %u: set %llu", order, (unsigned long long) index);
  }
  free (block);
}
END_TEST

/* Both searches from INDEX to END, against a walk. */
static void
check_find (const uint8_t *block, uint32_t order, uint64_t index,
            uint64_t end)
{
  uint64_t zero = index, used = index;

  while (zero < end && oracle_get (block, order, zero) != 0)
    zero++;
  while (used < end && oracle_get (block, order, used) == 0)
    used++;
  /* Check's assertions are too slow for so many. */
  if (refcount_find_zero (block, order, index, end) != zero
      || refcount_find_used (block, order, index, end) != used)
    ck_abort_msg ("order %u, [%llu, %llu): zero %llu, used %llu expected",
                  order, (unsigned long long) index,
                  (unsigned long long) end, (unsigned long long) zero,
                  (unsigned long long) used);
}

/* A block almost full or almost empty, with one or two entries that
 * differ, each of which has one bit set.
 */
START_TEST (find_few)
{
  const uint32_t order = (uint32_t) _i;
  const uint64_t entries = refcount_block_entries (BLOCK, order);
  uint64_t state = 77;
  uint8_t *block = malloc (BLOCK);
  unsigned n, bit;
  int full;

  ck_assert_ptr_nonnull (block);
  for (n = 0; n < 3000; n++) {
    const uint64_t a = random_bits (&state) % entries;
    const uint64_t b = random_bits (&state) % entries;
    const uint64_t from = random_bits (&state) % entries;
    const uint64_t to = from + random_bits (&state) % (entries - from + 1);

    full = n % 2;
    bit = (unsigned) (random_bits (&state) % (1u << order));
    memset (block, full ? 0xff : 0, BLOCK);
    oracle_set (block, order, a, full ? 0 : UINT64_C (1) << bit);
    oracle_set (block, order, b, full ? 0 : 1);
    check_find (block, order, from, to);
    check_find (block, order, a, entries);
    check_find (block, order, MIN (a, b), MAX (a, b) + 1);
    check_find (block, order, MIN (a, b), MAX (a, b));
  }
  free (block);
}
END_TEST

/* Every range of the first words of a random block, the empty one too. */
START_TEST (find_ranges)
{
  const uint32_t order = (uint32_t) _i;
  const uint64_t entries = MIN (refcount_block_entries (32, order),
                                UINT64_C (200));
  uint64_t state = 5, from, to;
  uint8_t *block = malloc (32);
  unsigned n;

  ck_assert_ptr_nonnull (block);
  memset (block, 0, 32);
  for (n = 0; n < entries; n++) {
    if (random_bits (&state) % 3 == 0)
      oracle_set (block, order, n,
                  random_bits (&state) & refcount_max (order));
  }
  for (from = 0; from <= entries; from++) {
    for (to = from; to <= entries; to++)
      check_find (block, order, from, to);
  }
  ck_assert_uint_eq (refcount_find_zero (block, order, 5, 3), 3);
  ck_assert_uint_eq (refcount_find_used (block, order, 5, 3), 3);
  free (block);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("refcount");
  TCase *tc = tcase_create ("refcount");

  tcase_set_timeout (tc, 60);
  tcase_add_loop_test (tc, sizes, 0, ORDERS);
  tcase_add_test (tc, literal);
  tcase_add_loop_test (tc, get_set, 0, ORDERS);
  tcase_add_loop_test (tc, find_few, 0, ORDERS);
  tcase_add_loop_test (tc, find_ranges, 0, ORDERS);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
