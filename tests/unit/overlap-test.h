/* SPDX-License-Identifier: BSD-3-Clause */

/* For the tests of the tracker, operation by operation: one tracker, and
 * what its notices told.
 */

#ifndef QCOW2_OVERLAP_TEST_H
#define QCOW2_OVERLAP_TEST_H

#include <stdlib.h>

#include <check.h>

#include "overlap-internal.h"
#include "run-suite.h"

#define L2 OVERLAP_ACTIVE_L2
#define OLD_L2 OVERLAP_INACTIVE_L2
#define BLOCK OVERLAP_REFCOUNT_BLOCK
#define BIT OVERLAP_BIT

static struct overlap *o;

/* What the notices told. */
static struct overlap_notice told[4096];
static unsigned n_told;

static inline void
notice (void *opaque, const struct overlap_notice *n)
{
  (void) opaque;
  ck_assert_uint_lt (n_told, 4096);
  told[n_told++] = *n;
}

static inline void
start (uint64_t bitmap_size, uint64_t limit)
{
  struct overlap_config config = {
    .bitmap_size = bitmap_size, .total_limit = limit, .notice = notice,
  };

  n_told = 0;
  o = overlap_new (&config);
  ck_assert_ptr_nonnull (o);
}

static inline void
setup (void)
{
  start (0, UINT64_MAX);
}

static inline void
verify (void)
{
  const char *why;

  ck_assert_msg (overlap_verify (o, &why), "%s", why);
}

static inline void
finish (void)
{
  verify ();
  overlap_free (o);
}

static inline uint64_t
used (void)
{
  struct overlap_stats s;

  overlap_get_stats (o, &s);
  return s.used;
}

static inline struct overlap_answer
ask (uint64_t first, uint64_t count)
{
  struct overlap_answer a = { .where = 0 };

  overlap_query (o, first, count, OVERLAP_ALL, &a);
  ck_assert_int_eq (overlap_hit (o, first, count, OVERLAP_ALL),
                    a.any != 0 || a.outside);
  return a;
}

static inline void
enter (enum overlap_type type, uint64_t first, uint64_t count)
{
  ck_assert_uint_eq (overlap_enter (o, type, first, count, NULL), 0);
}

static inline void
leave (enum overlap_type type, uint64_t first, uint64_t count)
{
  ck_assert_uint_eq (overlap_leave (o, type, first, count), 0);
}

#endif /* QCOW2_OVERLAP_TEST_H */
