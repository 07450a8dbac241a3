/* SPDX-License-Identifier: BSD-3-Clause */

/* Arithmetic on numbers that an image may have chosen: sums and
 * products that say when they would wrap, and rounding to powers of
 * two.
 */

#ifndef QCOW2_CHECKED_H
#define QCOW2_CHECKED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* True if the result did NOT fit; *r is then unusable. */
#define ADD_OVERFLOW(a, b, r) __builtin_add_overflow ((a), (b), (r))
#define MUL_OVERFLOW(a, b, r) __builtin_mul_overflow ((a), (b), (r))

/* The smaller and the larger of two values of one type. */
#define MIN(a, b)                                                       \
  ({ __typeof__ (a) _min_a = (a); __typeof__ (a) _min_b = (b);          \
     _min_a < _min_b ? _min_a : _min_b; })
#define MAX(a, b)                                                       \
  ({ __typeof__ (a) _max_a = (a); __typeof__ (a) _max_b = (b);          \
     _max_a > _max_b ? _max_a : _max_b; })

#define ARRAY_SIZE(a) (sizeof (a) / sizeof ((a)[0]))

/* N must be a power of two. */
static inline bool
is_aligned (uint64_t v, uint64_t n)
{
  return (v & (n - 1)) == 0;
}

static inline uint64_t
round_down (uint64_t v, uint64_t n)
{
  return v & ~(n - 1);
}

/* The caller knows that v + n does not wrap. */
static inline uint64_t
round_up (uint64_t v, uint64_t n)
{
  return (v + n - 1) & ~(n - 1);
}

/* Quotient rounded up, for any n > 0; never wraps. */
static inline uint64_t
div_up (uint64_t v, uint64_t n)
{
  return v / n + (v % n != 0);
}

#endif /* QCOW2_CHECKED_H */
