/* SPDX-License-Identifier: BSD-3-Clause */

/* Which request becomes which call of the engine, and which result which
 * error.
 */

#include <config.h>

#include "plugin-test.h"

static char buffer[512];

enum request { PREAD, PWRITE, TRIM, ZERO, EXTENTS, CACHE, FLUSH, REQUESTS };

/* Any request, without flags. */
static int
ask (enum request what, void *h, uint32_t count, uint64_t offset)
{
  switch (what) {
  case PREAD: return p->pread (h, buffer, count, offset, 0);
  case PWRITE: return p->pwrite (h, buffer, count, offset, 0);
  case TRIM: return p->trim (h, count, offset, 0);
  case ZERO: return p->zero (h, count, offset, 0);
  case EXTENTS: return p->extents (h, count, offset, 0, NULL);
  case CACHE: return p->cache (h, count, offset, 0);
  case FLUSH: return p->flush (h, 0);
  case REQUESTS: break;
  }
  ck_abort_msg ("request %d", (int) what);
}

/* The engine's errors get through, but ENOTSUP only for a fast zero. */
START_TEST (test_errors)
{
  static const int errors[] = {
    EIO, ENOSPC, ENOMEM, EROFS, ENOTSUP, EOPNOTSUPP
  };
  void *h = serve ();
  enum request what;
  size_t j;

  for (what = 0; what < REQUESTS; what++) {
    engine.result = 0;
    ck_assert_int_eq (ask (what, h, 512, 0), 0);
    for (j = 0; j < ARRAY_SIZE (errors); j++) {
      bool notsup = errors[j] == ENOTSUP || errors[j] == EOPNOTSUPP;

      engine.result = -errors[j];
      told.error = 0;
      ck_assert_int_eq (ask (what, h, 512, 0), -1);
      ck_assert_int_eq (told.error, notsup ? EIO : errors[j]);
    }
  }
  engine.result = -ENOTSUP;
  ck_assert_int_eq (p->zero (h, 512, 0, NBDKIT_FLAG_FAST_ZERO), -1);
  ck_assert_int_eq (told.error, ENOTSUP);
}
END_TEST

START_TEST (test_flags)
{
  void *h = serve ();

  ck_assert_int_eq (p->pwrite (h, buffer, 300, 77, 0), 0);
  ck_assert (!engine.fua && engine.offset == 77 && engine.len == 300);
  ck_assert_int_eq (p->pwrite (h, buffer, 300, 77, NBDKIT_FLAG_FUA), 0);
  ck_assert (engine.fua);
  ck_assert_int_eq (p->trim (h, UINT32_MAX, 5, 0), 0);
  ck_assert (!engine.fua && engine.offset == 5 && engine.len == UINT32_MAX);
  ck_assert_int_eq (p->trim (h, 1, 5, NBDKIT_FLAG_FUA), 0);
  ck_assert (engine.fua);
  ck_assert_int_eq (p->zero (h, UINT32_MAX, 1, 0), 0);
  ck_assert (engine.flags == 0 && !engine.fua && engine.len == UINT32_MAX);
  p->zero (h, 1, 1, NBDKIT_FLAG_FUA);
  ck_assert (engine.flags == 0 && engine.fua);
  p->zero (h, 1, 1, NBDKIT_FLAG_MAY_TRIM);
  ck_assert (engine.flags == IMAGE_ZERO_MAY_TRIM && !engine.fua);
  p->zero (h, 1, 1, NBDKIT_FLAG_FAST_ZERO | NBDKIT_FLAG_MAY_TRIM);
  ck_assert (engine.flags == (IMAGE_ZERO_FAST | IMAGE_ZERO_MAY_TRIM));
  p->extents (h, 1, 1, 0, NULL);
  ck_assert (!engine.one);
  p->extents (h, 1, 1, NBDKIT_FLAG_REQ_ONE, NULL);
  ck_assert (engine.one);

  ck_assert_int_eq (p->can_fua (h), NBDKIT_FUA_NATIVE);
  ck_assert_int_eq (p->can_cache (h), NBDKIT_CACHE_NATIVE);
  ck_assert_int_eq (p->can_multi_conn (h), 1);
  ck_assert_int_eq (p->can_flush (h), 1);
  ck_assert_int_eq (p->can_zero (h), 1);
  ck_assert_int_eq (p->can_fast_zero (h), 1);
  ck_assert_int_eq (p->can_trim (h), 1);
  ck_assert_int_eq (p->can_extents (h), 1);
  ck_assert_int_eq (p->_thread_model, NBDKIT_THREAD_MODEL_PARALLEL);
}
END_TEST

/* Requests of no length succeed and do not reach the engine. */
START_TEST (test_no_length)
{
  void *h = serve ();
  enum request what;

  engine.result = -EIO;
  for (what = 0; what < REQUESTS; what++)
    if (what != FLUSH)
      ck_assert_int_eq (ask (what, h, 0, 1000), 0);
  ck_assert_uint_eq (engine.calls, 0);
}
END_TEST

/* Whatever the engine says, nbdkit hears of the request only. */
START_TEST (test_extents)
{
  static const struct extent from_engine[] = {
    { 0, 900, 0 },                              /* before it */
    { 900, 200, IMAGE_EXTENT_ZERO },            /* over its start */
    { 1100, 400, 0 },
    { 1500, 200, IMAGE_EXTENT_HOLE },
    { 1700, UINT64_MAX, IMAGE_EXTENT_HOLE | IMAGE_EXTENT_ZERO },
    { UINT64_MAX - 5, 100, 0 },                 /* wraps */
    { 0, 0, 0 }
  };
  static const struct extent expected[] = {
    { 1000, 100, NBDKIT_EXTENT_ZERO },
    { 1100, 400, 0 },
    { 1500, 200, NBDKIT_EXTENT_HOLE },
    { 1700, 300, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO },
  };
  static const struct extent huge[] = {
    { 0, UINT64_C (1) << 40, IMAGE_EXTENT_HOLE }, { 0, 0, 0 }
  };
  void *h = serve ();
  size_t i;

  engine.extents = from_engine;
  ck_assert_int_eq (p->extents (h, 1000, 1000, 0, NULL), 0);
  ck_assert_uint_eq (told.nr_extents, ARRAY_SIZE (expected));
  for (i = 0; i < told.nr_extents; i++) {
    ck_assert_uint_eq (told.extents[i].offset, expected[i].offset);
    ck_assert_uint_eq (told.extents[i].len, expected[i].len);
    ck_assert_uint_eq (told.extents[i].status, expected[i].status);
  }

  told.nr_extents = 0;
  engine.extents = huge;
  ck_assert_int_eq (p->extents (h, UINT32_MAX, 1, 0, NULL), 0);
  ck_assert_uint_eq (told.nr_extents, 1);
  ck_assert_uint_eq (told.extents[0].offset, 1);
  ck_assert_uint_eq (told.extents[0].len, UINT32_MAX);

  /* nbdkit has no memory for one more. */
  told.nr_extents = ARRAY_SIZE (told.extents);
  ck_assert_int_eq (p->extents (h, 1, 0, 0, NULL), -1);
  ck_assert_int_eq (told.error, ENOMEM);
}
END_TEST

START_TEST (test_block_size)
{
  static const uint64_t sizes[][2] = {
    { 512, 512 }, { 65536, 65536 }, { 2 << 20, 2 << 20 },
    { 1, 512 }, { UINT64_C (1) << 40, 32 << 20 }
  };
  uint32_t minimum, preferred, maximum;
  void *h = serve ();
  size_t i;

  for (i = 0; i < ARRAY_SIZE (sizes); i++) {
    engine.cluster_size = sizes[i][0];
    ck_assert_int_eq (p->block_size (h, &minimum, &preferred, &maximum), 0);
    ck_assert_uint_eq (minimum, 1);
    ck_assert_uint_eq (preferred, sizes[i][1]);
    ck_assert_uint_eq (maximum, UINT32_MAX);
  }
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-requests");
  TCase *tc = plugin_case (suite);

  tcase_add_test (tc, test_errors);
  tcase_add_test (tc, test_flags);
  tcase_add_test (tc, test_no_length);
  tcase_add_test (tc, test_extents);
  tcase_add_test (tc, test_block_size);
  return run_suite (suite);
}
