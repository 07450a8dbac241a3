/* SPDX-License-Identifier: BSD-3-Clause */

/* The map's lookaside buffer: what it keeps, and that nothing it says is
 * older than the map.
 */

#include <config.h>

#include "engine-test.h"
#include "run-suite.h"

#define C (UINT64_C (64) << 10) /* a cluster */

static bool
knows (uint64_t guest, bool writable)
{
  uint64_t host;

  return tlb_find (&img->map.tlb, guest, writable, &host);
}

START_TEST (what_is_noted_is_found)
{
  struct tlb t;
  uint64_t host = 0;

  ck_assert_int_eq (tlb_open (&t, 1000), 0);
  ck_assert (!tlb_find (&t, 0, false, &host));
  tlb_note (&t, 5, 77, false);
  ck_assert (tlb_find (&t, 5, false, &host));
  ck_assert_uint_eq (host, 77);
  ck_assert (!tlb_find (&t, 5, true, &host));
  tlb_note (&t, 5, 78, true);
  ck_assert (tlb_find (&t, 5, true, &host));
  ck_assert_uint_eq (host, 78);
  tlb_forget (&t, 5);
  ck_assert (!tlb_find (&t, 5, false, &host));
  tlb_close (&t);
}
END_TEST

START_TEST (clusters_of_one_place_are_told_apart)
{
  struct tlb t;
  uint64_t host = 0, other;

  ck_assert_int_eq (tlb_open (&t, UINT64_C (1) << 40), 0);
  other = 5 + (UINT64_C (1) << t.bits);
  tlb_note (&t, 5, 77, true);
  ck_assert (!tlb_find (&t, other, false, &host));
  tlb_forget (&t, other);
  ck_assert (tlb_find (&t, 5, false, &host));
  tlb_note (&t, other, 1, true);
  ck_assert (!tlb_find (&t, 5, false, &host));
  ck_assert (tlb_find (&t, other, false, &host));
  ck_assert_uint_eq (host, 1);
  tlb_forget_all (&t);
  ck_assert (!tlb_find (&t, other, false, &host));
  tlb_close (&t);
}
END_TEST

/* ... and takes what was said before with it. */
START_TEST (what_does_not_fit_is_not_kept)
{
  struct tlb t;
  uint64_t host = 0, far;

  ck_assert_int_eq (tlb_open (&t, UINT64_MAX), 0);
  far = UINT64_C (1) << (t.bits + 26);
  tlb_note (&t, far, 1, true);
  ck_assert (!tlb_find (&t, far, false, &host));
  ck_assert (!tlb_find (&t, 0, false, &host));
  tlb_note (&t, 9, (UINT64_C (1) << 36) - 1, true);
  ck_assert (tlb_find (&t, 9, true, &host));
  ck_assert_uint_eq (host, (UINT64_C (1) << 36) - 1);
  tlb_note (&t, 9, UINT64_C (1) << 36, true);
  ck_assert (!tlb_find (&t, 9, false, &host));
  tlb_close (&t);
}
END_TEST

START_TEST (a_change_of_the_map_is_seen)
{
  uint64_t old;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (3 * C, C, 0x11), 0);
  ck_assert_int_eq (write_byte (3 * C, C, 0x12), 0);
  ck_assert (knows (3, true));
  expect_byte (3 * C, C, 0x12);
  old = host_of (3 * C);

  ck_assert_int_eq (image_trim (img, 3 * C, C, false), 0);
  ck_assert (!knows (3, false));
  expect_byte (3 * C, C, 0);
  ck_assert_int_eq (write_byte (3 * C + 512, 512, 0x13), 0);
  ck_assert_int_eq (write_byte (3 * C + 1024, 512, 0x14), 0);
  ck_assert (knows (3, true));
  ck_assert_uint_ne (host_of (3 * C), old);
  expect_byte (3 * C, 512, 0);
  expect_byte (3 * C + 512, 512, 0x13);
  expect_byte (3 * C + 1024, 512, 0x14);
  ck_assert_int_eq (image_zero (img, 3 * C, C, 0, false), 0);
  expect_byte (3 * C, C, 0);
  stop_clean ();
}
END_TEST

/* What is noted beside a cluster that was looked up: not those whose host
 * clusters are kept, but read as zeroes.
 */
START_TEST (neighbours_that_read_as_zeroes_are_not_data)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 4 * C, 0x51), 0);
  ck_assert_int_eq (image_zero (img, C, C, 0, false), 0);
  ck_assert_int_eq (image_flush (img), 0);
  l2cache_forget (img);         /* counts are not known any more */
  ck_assert (!knows (0, false));
  ck_assert_int_eq (write_byte (0, 512, 0x52), 0);
  ck_assert (knows (0, false) && knows (2, true) && !knows (1, false));
  expect_byte (C, C, 0);
  ck_assert_int_eq (write_byte (C, 512, 0x53), 0);
  expect_byte (C, 512, 0x53);
  expect_byte (C + 512, C - 512, 0);
  stop_clean ();
}
END_TEST

/* A request for more than one cluster goes the long way. */
START_TEST (requests_over_several_clusters)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, C, 0x21), 0);
  ck_assert_int_eq (write_byte (5 * C, C, 0x25), 0);
  ck_assert_int_eq (write_byte (C, C, 0x22), 0);
  expect_byte (0, C, 0x21);
  expect_byte (C, C, 0x22);
  ck_assert (knows (0, false) && knows (1, false));
  ck_assert_int_eq (write_byte (C / 2, C, 0x23), 0);
  expect_byte (0, C / 2, 0x21);
  expect_byte (C / 2, C, 0x23);
  expect_byte (C + C / 2, C / 2, 0x22);
  expect_byte (5 * C, C, 0x25);
  stop_clean ();
}
END_TEST

/* A durable write asks whether the mapping is durable, which is not kept:
 * one sync for what was there, a commit for what is new.
 */
START_TEST (durable_writes_look_further)
{
  uint8_t byte[512] = { 1 };
  unsigned commits;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, C, 0x31), 0);
  ck_assert_int_eq (write_byte (0, C, 0x32), 0);
  ck_assert (knows (0, true));
  commits = (unsigned) img->commit.ended;
  ck_assert_int_eq (image_write (img, byte, sizeof byte, 0, true), 0);
  ck_assert_uint_eq (img->commit.ended, commits + 1);
  ck_assert_int_eq (image_write (img, byte, sizeof byte, 0, true), 0);
  ck_assert_uint_eq (img->commit.ended, commits + 1);
  stop_clean ();
}
END_TEST

START_TEST (where_there_are_subclusters_there_is_none)
{
  make_image ("-o extended_l2=on,cluster_size=64k", "64M");
  ck_assert_int_eq (write_byte (0, 2048, 0x41), 0);
  ck_assert_int_eq (write_byte (0, 2048, 0x42), 0);
  ck_assert (!knows (0, false));
  expect_byte (0, 2048, 0x42);
  stop_clean ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("tlb");
  TCase *tc = tcase_create ("tlb");

  tcase_set_timeout (tc, patience ());
  tcase_add_test (tc, what_is_noted_is_found);
  tcase_add_test (tc, clusters_of_one_place_are_told_apart);
  tcase_add_test (tc, what_does_not_fit_is_not_kept);
  tcase_add_test (tc, a_change_of_the_map_is_seen);
  tcase_add_test (tc, neighbours_that_read_as_zeroes_are_not_data);
  tcase_add_test (tc, requests_over_several_clusters);
  tcase_add_test (tc, durable_writes_look_further);
  tcase_add_test (tc, where_there_are_subclusters_there_is_none);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
