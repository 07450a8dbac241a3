/* SPDX-License-Identifier: BSD-3-Clause */

/* The writes of a guest that flushes after each are begun at once, and no
 * others (lib/image/habit.c).
 */

#include <config.h>

#include "engine-test.h"
#include "run-suite.h"

#define K 1024u
#define FLUSHES 16              /* after so many it is known */

static atomic_uint starts, start_len;
static _Atomic uint64_t start_offset;
static atomic_int start_result;

static int
hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
      uint64_t len)
{
  (void) opaque;
  if (kind != STORAGE_MEMORY_START_SYNC)
    return 0;
  atomic_fetch_add (&starts, 1);
  atomic_store (&start_offset, offset);
  atomic_store (&start_len, (unsigned) len);
  return atomic_load (&start_result);
}

static void
begin (const char *options)
{
  make_image (options, "64M");
  ck_assert_int_eq (write_byte (0, 1024 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  storage_memory_set_hook (storage, hook, NULL);
}

static void
flush_after (unsigned writes, unsigned flushes)
{
  unsigned i, j;

  for (i = 0; i < flushes; ++i) {
    for (j = 0; j < writes; ++j)
      ck_assert_int_eq (write_byte (j * 8 * K, 4 * K, 2), 0);
    ck_assert_int_eq (image_flush (img), 0);
  }
}

START_TEST (a_write_that_will_be_flushed_is_begun)
{
  begin ("");
  flush_after (1, FLUSHES - 2);
  ck_assert_uint_eq (atomic_load (&starts), 0);
  flush_after (1, 2);
  atomic_store (&starts, 0);
  ck_assert_int_eq (write_byte (68 * K, 4 * K, 3), 0);
  ck_assert_uint_eq (atomic_load (&starts), 1);
  ck_assert_uint_eq (atomic_load (&start_offset), host_of (64 * K) + 4 * K);
  ck_assert_uint_eq (atomic_load (&start_len), 4 * K);
  stop_clean ();
}
END_TEST

START_TEST (writes_that_share_a_flush_are_not_begun)
{
  begin ("");
  flush_after (1, 2 * FLUSHES);
  flush_after (2, 2 * FLUSHES);
  atomic_store (&starts, 0);
  flush_after (2, 2 * FLUSHES);
  flush_after (32, 2 * FLUSHES);
  ck_assert_uint_eq (atomic_load (&starts), 0);
  stop_clean ();
}
END_TEST

/* The habit may end with no flush to notice it. */
START_TEST (writes_without_a_flush_are_soon_not_begun)
{
  unsigned i;

  begin ("");
  flush_after (1, 2 * FLUSHES);
  for (i = 0; i < 2 * FLUSHES; ++i)
    ck_assert_int_eq (write_byte (0, 4 * K, 2), 0);
  ck_assert_uint_gt (atomic_load (&starts), 0);
  atomic_store (&starts, 0);
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (write_byte (0, 4 * K, 2), 0);
  ck_assert_uint_eq (atomic_load (&starts), 0);
  stop_clean ();
}
END_TEST

/* A flush of new clusters has more to write than the data. */
START_TEST (writes_to_new_clusters_are_not_begun)
{
  unsigned i;

  begin ("");
  for (i = 0; i < 3 * FLUSHES; ++i) {
    ck_assert_int_eq (write_byte ((32 + i) * 64 * K, 64 * K, 2), 0);
    ck_assert_int_eq (image_flush (img), 0);
  }
  ck_assert_int_eq (write_byte (0, 4 * K, 3), 0);
  ck_assert_uint_eq (atomic_load (&starts), 0);
  stop_clean ();
}
END_TEST

START_TEST (durable_writes_are_not_begun)
{
  const char byte = 2;

  begin ("");
  flush_after (1, 2 * FLUSHES);
  atomic_store (&starts, 0);
  ck_assert_int_eq (image_write (img, &byte, 1, 0, true), 0);
  ck_assert_uint_eq (atomic_load (&starts), 0);
  stop_clean ();
}
END_TEST

/* What was lost then no later sync may tell of. */
START_TEST (a_write_that_is_lost_when_begun_is_not_promised)
{
  begin ("");
  flush_after (1, 2 * FLUSHES);
  atomic_store (&start_result, -EIO);
  write_byte (0, 4 * K, 3);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (write_byte (0, 4 * K, 3), -EIO);
  ck_assert_int_lt (image_stop (img), 0);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("habit");
  TCase *tc = tcase_create ("habit");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, a_write_that_will_be_flushed_is_begun);
  tcase_add_test (tc, writes_that_share_a_flush_are_not_begun);
  tcase_add_test (tc, writes_without_a_flush_are_soon_not_begun);
  tcase_add_test (tc, writes_to_new_clusters_are_not_begun);
  tcase_add_test (tc, durable_writes_are_not_begun);
  tcase_add_test (tc, a_write_that_is_lost_when_begun_is_not_promised);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
