/* SPDX-License-Identifier: BSD-3-Clause */

/* The consistency check of a large image tells how far it is. */

#include <config.h>

#include "check.h"
#include "engine-test.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)

/* What was said of the progress. */
static unsigned lines, last;
static bool in_order, dirty, repaired;

static void
listen (enum report_level level, const char *text)
{
  const char *end = strstr (text, "% done");
  unsigned percent;

  dirty |= strstr (text, "checking and repairing") != NULL;
  repaired |= strstr (text, "is not dirty any more") != NULL;
  if (!end)
    return;
  ck_assert_int_eq (level, REPORT_WARNING);
  while (end[-1] >= '0' && end[-1] <= '9')
    end--;
  percent = (unsigned) strtoul (end, NULL, 10);
  in_order &= dirty && !repaired && percent >= last;
  last = percent;
  lines++;
}

/* Marked as one that QEMU did not close; and as large as can be, by its
 * number of L2 tables.
 */
static void
make_dirty (void)
{
  const uint64_t bit = htobe64 (INCOMPAT_DIRTY);
  const struct iovec iov = { .iov_base = (void *) &bit, .iov_len = 8 };
  uint64_t at;

  make_image ("-o cluster_size=512", "8M");
  for (at = 0; at < 8 * M; at += 64 * K)
    ck_assert_int_eq (write_byte (at, 512, 1), 0);
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (storage_write (storage, &iov, 1,
                                   HEADER_OFFSET_INCOMPATIBLE, true), 0);
  img->header.incompatible |= INCOMPAT_DIRTY;
  atomic_store (&img->writing, false);
  lines = last = 0;
  in_order = true;
  dirty = repaired = false;
  report_set_sink (listen);
}

START_TEST (repairing_a_dirty_image_tells_the_progress)
{
  make_dirty ();
  check_tell_seconds = 0;
  ck_assert_int_eq (image_begin_writing (img), 0);
  ck_assert (dirty && repaired && in_order);
  ck_assert_uint_ge (lines, 128);
  ck_assert_uint_ge (last, 99);
  ck_assert_int_eq (write_byte (0, 512, 2), 0);
  stop_clean ();
}
END_TEST

/* What takes less than some seconds is not worth a line. */
START_TEST (a_short_repair_tells_none)
{
  make_dirty ();
  ck_assert_int_eq (image_begin_writing (img), 0);
  ck_assert (dirty && repaired);
  ck_assert_uint_eq (lines, 0);
  stop_clean ();
}
END_TEST

START_TEST (check_all_tells_the_progress)
{
  struct image_check_result result;

  make_dirty ();
  check_tell_seconds = 0;
  dirty = true;
  ck_assert_int_eq (image_check (img, CHECK_ALL, &result), 0);
  ck_assert_uint_ge (lines, 128);
  ck_assert (in_order);
  ck_assert_uint_eq (result.errors + result.leaks, 0);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("check-progress");
  TCase *tc = tcase_create ("check-progress");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, repairing_a_dirty_image_tells_the_progress);
  tcase_add_test (tc, a_short_repair_tells_none);
  tcase_add_test (tc, check_all_tells_the_progress);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
