/* SPDX-License-Identifier: BSD-3-Clause */

/* After corruption was found: what is said, what is on disk, what still
 * works, and what the next start does.
 */

#include <config.h>

#include "engine-test.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)

/* Everything that is reported. */
static char said[8192];
static unsigned events;

static void
listen (enum report_level level, const char *text)
{
  const size_t used = strlen (said);

  (void) level;
  snprintf (said + used, sizeof said - used, "%s\n", text);
}

static void
expect_said (const char *what)
{
  ck_assert_msg (strstr (said, what) != NULL, "not said: %s; but: %s", what,
                 said);
}

static void
count_event (void *opaque, const struct event *event)
{
  (void) opaque;
  events += event->kind == EVENT_IMAGE_CORRUPTED;
}

/* From now on listen. */
static void
attend (void)
{
  said[0] = '\0';
  events = 0;
  report_set_sink (listen);
  img->config.event = count_event;
}

/* A write of a guest that would land on the L1 table. */
static int
hit (void)
{
  struct iovec iov = { .iov_base = (void *) "x", .iov_len = 1 };

  return guard_write (img, GUARD_DATA, &iov, 1, img->header.l1_table_offset,
                      false);
}

/* The same bytes in a new storage: the server is started again. */
static void
restart (void)
{
  struct temporary t;
  uint64_t size;
  uint8_t *buf;

  ck_assert_int_eq (storage_size (storage, &size), 0);
  buf = malloc (size);
  ck_assert_ptr_nonnull (buf);
  ck_assert_int_eq (storage_read (storage, buf, size, 0), 0);
  image_close (img);
  temporary_name (&t, "qcow2");
  write_file (t.name, buf, size);
  free (buf);
  open_loaded (t.name);
  temporary_remove (&t);
}

static uint64_t
features (void)
{
  uint64_t bits;

  ck_assert_int_eq (storage_read (storage, &bits, 8,
                                  HEADER_OFFSET_INCOMPATIBLE), 0);
  return be64toh (bits);
}

/* The bit is written and synced before the error is returned; one event. */
START_TEST (the_bit_is_durable_before_the_error)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  attend ();
  watch.n = 0;
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_uint_eq (watch.n, 2);
  ck_assert_int_eq (watch.ops[0].kind, STORAGE_MEMORY_WRITE);
  ck_assert_uint_eq (watch.ops[0].offset, HEADER_OFFSET_INCOMPATIBLE);
  ck_assert_uint_eq (watch.ops[0].len, 8);
  ck_assert_int_eq (watch.ops[1].kind, STORAGE_MEMORY_SYNC);
  ck_assert_uint_eq (features (), INCOMPAT_CORRUPT);
  expect_said ("marking image as corrupt");
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_int_eq (write_byte (M, 64 * K, 1), -EIO);
  expect_said ("qcow2-overlap check --repair all");
  ck_assert_uint_eq (watch.n, 2);
  ck_assert_uint_eq (events, 1);
  expect_byte (0, 64 * K, 1);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* The next start serves it read-only, and says how to repair it. */
START_TEST (the_next_start_refuses_to_write)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_int_eq (image_stop (img), 0);
  report_set_sink (listen);
  said[0] = '\0';
  restart ();
  attend ();
  ck_assert (!image_is_writable (img));
  ck_assert_int_eq (image_begin_writing (img), -EROFS);
  ck_assert_int_eq (write_byte (0, 64 * K, 2), -EIO);
  expect_said ("qcow2-overlap check --repair all");
  expect_byte (0, 64 * K, 1);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_WRITE), 0);
  image_close (img);
}
END_TEST

/* Version 2 has no such bit: that is said, and nothing is written. */
START_TEST (version_2_says_that_it_has_no_bit)
{
  make_image ("-o compat=0.10", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  attend ();
  watch.n = 0;
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_uint_eq (watch.n, 0);
  expect_said ("a version 2 image cannot store that it is corrupt");
  ck_assert_int_eq (write_byte (M, 64 * K, 1), -EIO);
  ck_assert_uint_eq (events, 1);
  expect_byte (0, 64 * K, 1);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* The bit cannot be stored: the write fails, or the sync. */
START_TEST (a_bit_that_cannot_be_stored_is_reported)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  attend ();
  fail_next (_i ? STORAGE_MEMORY_SYNC : STORAGE_MEMORY_WRITE, UINT64_MAX, EIO,
             1);
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_uint_eq (watch.fail_times, 0);
  expect_said ("the corrupt bit could not be stored: Input/output error");
  ck_assert_int_eq (write_byte (M, 64 * K, 1), -EIO);
  ck_assert_uint_eq (events, 1);
  expect_byte (0, 64 * K, 1);
  ck_assert_int_eq (image_stop (img), _i ? -EIO : 0);
  image_close (img);
}
END_TEST

/* Writes to new clusters and to snapshots' ones, zeroes and trims that
 * were acknowledged before are made durable by the flush after it; the
 * image is sound but for the bit.
 */
START_TEST (all_that_was_acknowledged_becomes_durable)
{
  make_image ("-o cluster_size=512,refcount_bits=64", "4M");
  ck_assert_int_eq (write_byte (0, 256 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (M, 512 * K, 2), 0);
  ck_assert_int_eq (image_trim (img, 0, 64 * K, false), 0);
  ck_assert_int_eq (image_zero (img, 64 * K, 64 * K, 0, false), 0);
  ck_assert_int_eq (write_byte (200 * K + 100, 5000, 3), 0);
  ck_assert_int_eq (hit (), -EIO);
  ck_assert_int_eq (write_byte (0, 512, 9), -EIO);
  ck_assert_int_eq (image_flush (img), 0);
  /* As after a crash: no close. */
  restart ();
  ck_assert (!image_is_writable (img));
  expect_byte (0, 128 * K, 0);
  expect_byte (128 * K, 72 * K + 100, 1);
  expect_byte (200 * K + 100, 5000, 3);
  expect_byte (M, 512 * K, 2);
  ck_assert_int_ne (qemu_check (), 2);
  image_close (img);
}
END_TEST

/* A table of them cannot be written safely: it is not tracked as what it
 * is.  Then the flush says so, every time, and does not write it.
 */
START_TEST (a_flush_does_not_lie_about_what_is_unsafe)
{
  uint64_t table;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  table = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  overlap_leave (img->guard.overlap, OVERLAP_ACTIVE_L2, table / (64 * K), 1);
  attend ();
  watch.n = 0;
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (image_flush (img), -EIO);
  expect_said ("not tracked as active L2 table");
  ck_assert_uint_eq (features (), INCOMPAT_CORRUPT);
  ck_assert_uint_eq (events, 1);
  {
    unsigned i;

    for (i = 0; i < watch.n; ++i)
      if (watch.ops[i].kind == STORAGE_MEMORY_WRITE)
        ck_assert (watch.ops[i].offset < table
                   || watch.ops[i].offset >= table + 64 * K);
  }
  expect_byte (0, 64 * K, 1);
  ck_assert_int_lt (image_stop (img), 0);
  ck_assert_int_ne (qemu_check (), 2);
  image_close (img);
}
END_TEST

/* A reader meets it first: the bit is set when there is a writer. */
START_TEST (a_reader_leaves_the_bit_to_the_writer)
{
  struct iovec iov = { .iov_base = (void *) "\x80\0\0\0\0\0\2\1",
                       .iov_len = 8 };
  uint64_t table;
  uint8_t buf[512];

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_stop (img), 0);
  table = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  /* An entry that is not a multiple of the cluster size. */
  ck_assert_int_eq (storage_write (storage, &iov, 1, table + 8, false), 0);
  restart ();
  attend ();
  ck_assert_int_eq (image_read (img, buf, sizeof buf, 64 * K), -EIO);
  ck_assert_uint_eq (features (), 0);
  ck_assert_uint_eq (events, 1);
  watch.n = 0;
  ck_assert_int_eq (image_begin_writing (img), 0);
  ck_assert_uint_eq (features (), INCOMPAT_CORRUPT);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_SYNC), 1);
  ck_assert_int_eq (write_byte (0, 512, 2), -EIO);
  ck_assert_uint_eq (events, 1);
  expect_byte (0, 64 * K, 1);
  image_stop (img);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("corrupt");
  TCase *tc = tcase_create ("corrupt");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, the_bit_is_durable_before_the_error);
  tcase_add_test (tc, the_next_start_refuses_to_write);
  tcase_add_test (tc, version_2_says_that_it_has_no_bit);
  tcase_add_loop_test (tc, a_bit_that_cannot_be_stored_is_reported, 0, 2);
  tcase_add_test (tc, all_that_was_acknowledged_becomes_durable);
  tcase_add_test (tc, a_flush_does_not_lie_about_what_is_unsafe);
  tcase_add_test (tc, a_reader_leaves_the_bit_to_the_writer);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
