/* SPDX-License-Identifier: BSD-3-Clause */

/* The hot groups of the tracker: what they remember, and when they forget
 * it.  Where there is no membarrier(2) there are none, and these tests are
 * left out.
 */

#include <config.h>

#include <stdio.h>

#include "overlap-test.h"

#define CACHE 65536u

static bool
hit (uint64_t first, uint64_t count)
{
  return overlap_hit (o, first, count, OVERLAP_ALL);
}

static struct ov_hot *
table (void)
{
  return (struct ov_hot *) atomic_load (&o->hot);
}

static uint64_t
word (uint64_t cluster)
{
  const uint64_t group = cluster / OV_HOT_GROUP;

  return atomic_load (&table ()->word[group & table ()->mask]);
}

/* Is this cluster's group in the table, with these bits? */
static bool
remembered (uint64_t cluster, uint32_t bits)
{
  return word (cluster) == (cluster / OV_HOT_GROUP << 32 | bits);
}

/* Ask until the group is filled, if it is to be. */
static void
warm (uint64_t cluster)
{
  unsigned i;

  for (i = 0; i < 400; ++i)
    hit (cluster, 1);
}

START_TEST (a_group_is_remembered_when_it_is_asked_about_again)
{
  start (CACHE, UINT64_MAX);
  enter (L2, 70, 2);
  ck_assert (!hit (64, 1));
  ck_assert (remembered (64, UINT32_MAX));
  warm (64);
  ck_assert (remembered (64, 3u << 6));
  ck_assert (!hit (65, 1) && hit (70, 1) && hit (71, 1) && !hit (72, 1));
  ck_assert (!hit (64, 6) && hit (64, 7) && hit (64, 32) && !hit (72, 24));
  /* Over the border of the group, with and without a mark behind it. */
  ck_assert (!hit (72, 25));
  enter (L2, 96, 1);
  ck_assert (hit (72, 25) && !hit (72, 24));
  ck_assert (!overlap_hit (o, 70, 1, BIT (BLOCK)));
  ck_assert (overlap_hit (o, 70, 1, BIT (L2)));
  finish ();
}
END_TEST

START_TEST (an_update_is_seen_at_once)
{
  const bool claims = _i;

  start (CACHE, UINT64_MAX);
  warm (1000);
  ck_assert (remembered (1000, 0));
  if (claims)
    ck_assert_uint_eq (overlap_claim (o, L2, 1001, 1, NULL), 0);
  else
    enter (L2, 1001, 1);
  ck_assert (hit (1001, 1) && !hit (1000, 1));
  warm (1000);
  ck_assert (hit (1001, 1) && !hit (1000, 1));
  leave (L2, 1001, 1);
  ck_assert (!hit (1001, 1));
  /* An update of more than the table has. */
  warm (5000);
  ck_assert (remembered (5000, 0));
  enter (BLOCK, 0, 10000000);
  ck_assert (hit (5000, 1));
  leave (BLOCK, 0, 10000000);
  warm (5000);
  ck_assert (!hit (5000, 1));
  finish ();
}
END_TEST

/* Two groups with one place in the table take turns. */
START_TEST (groups_that_share_a_place_are_not_mixed_up)
{
  uint64_t other;
  unsigned i;

  start (CACHE, UINT64_MAX);
  other = 64 + (table ()->mask + 1) * OV_HOT_GROUP;
  enter (L2, other + 3, 1);
  warm (64);
  ck_assert (remembered (64, 0));
  ck_assert (hit (other + 3, 1));
  for (i = 0; i < 10; ++i) {
    ck_assert (!hit (67, 1));
    ck_assert (hit (other + 3, 1));
  }
  /* Neither is asked about twice in a row, so neither is filled. */
  ck_assert_uint_eq ((uint32_t) word (64), UINT32_MAX);
  warm (other);
  ck_assert (remembered (other, 1u << 3));
  ck_assert (!hit (67, 1) && hit (other + 3, 1));
  finish ();
}
END_TEST

/* Filling a word takes the time of 30 checks.  Groups that are asked about
 * twice, and then driven out by others, must not be filled each time: at
 * random among more groups than the table has words, checks took 200 ns
 * instead of 30.
 */
START_TEST (groups_that_drive_each_other_out_are_seldom_filled)
{
  unsigned i, filled = 0;
  bool is, was = false;
  uint64_t far;

  start (CACHE, UINT64_MAX);
  far = (table ()->mask + 1) * OV_HOT_GROUP;
  for (i = 0; i < 1280; ++i, was = is) {
    hit (64 + i % 2 * far, 1);
    hit (64 + i % 2 * far, 1);
    is = (uint32_t) word (64) == 0;
    filled += is && !was;
  }
  ck_assert_uint_gt (filled, 0);
  ck_assert_uint_lt (filled, 64);
  finish ();
}
END_TEST

/* Two threads that checked all over an image with more groups than words did
 * no more than one: each check stored its group, in lines that the other
 * thread had.
 */
START_TEST (groups_that_drive_each_other_out_are_seldom_stored)
{
  unsigned i, stored = 0;
  uint64_t far, before = 0;

  start (CACHE, UINT64_MAX);
  far = (table ()->mask + 1) * OV_HOT_GROUP;
  for (i = 0; i < 1280; ++i) {
    hit (64 + i % 16 * far, 1);
    stored += word (64) != before;
    before = word (64);
  }
  ck_assert_uint_gt (stored, 0);
  ck_assert_uint_lt (stored, 1280 / 8);
  finish ();
}
END_TEST

/* A server that had just begun filled the words of a disk of 1 GiB only in
 * 130,000 writes.
 */
START_TEST (groups_that_have_room_are_filled_soon)
{
  unsigned i, group, filled = 0;

  start (CACHE, UINT64_MAX);
  for (i = 0; i < 24; ++i)
    for (group = 2; group < 66; ++group)
      hit (group * OV_HOT_GROUP, 1);
  for (group = 2; group < 66; ++group)
    filled += (uint32_t) word (group * OV_HOT_GROUP) == 0;
  ck_assert_uint_gt (filled, 48);
  finish ();
}
END_TEST

/* The number of such a group has more than 32 bits. */
START_TEST (groups_far_away_are_not_remembered)
{
  const uint64_t far = (UINT64_C (1) << 32) * OV_HOT_GROUP;

  start (CACHE, UINT64_MAX);
  warm (0);
  ck_assert (remembered (0, 0));
  enter (L2, far, 1);
  enter (L2, far - OV_HOT_GROUP, 1);
  warm (far);
  warm (far - OV_HOT_GROUP);
  ck_assert (hit (far, 1) && !hit (far + 1, 1) && !hit (0, 1));
  ck_assert (hit (far - OV_HOT_GROUP, 1) && !hit (far - 1, 1));
  finish ();
}
END_TEST

START_TEST (the_table_is_a_part_of_the_cache_and_goes_first)
{
  struct overlap_stats s;
  uint64_t i;

  start (CACHE, UINT64_MAX);
  overlap_get_stats (o, &s);
  ck_assert_uint_ge (s.hot_bytes, CACHE / 2);
  ck_assert_uint_lt (s.hot_bytes, CACHE / 2 + 64);
  overlap_free (o);

  start (0, UINT64_MAX);
  ck_assert_ptr_null (table ());
  overlap_free (o);
  start (CACHE, s.used);         /* not for a quarter of what is allowed */
  ck_assert_ptr_null (table ());
  overlap_free (o);

  start (CACHE, 2 * s.used);
  ck_assert_ptr_nonnull (table ());
  for (i = 0; n_told == 0; ++i) {
    overlap_get_stats (o, &s);
    ck_assert_uint_le (s.used, o->config.total_limit);
    overlap_enter (o, i % 2 ? L2 : BLOCK, i * 7919 % OV_WINDOW, 1, NULL);
    if (!table ())
      break;
  }
  ck_assert_uint_eq (n_told, 0);
  ck_assert_ptr_null (table ());
  ck_assert (hit (0, 1));
  finish ();
}
END_TEST

/* A group that was known free, and then left the tracker. */
START_TEST (what_is_outside_is_not_remembered_as_free)
{
  start (CACHE, UINT64_MAX);
  enter (L2, 1, 1);
  warm (640);
  ck_assert (remembered (640, 0));
  ov_fail_alloc (1, true);
  overlap_enter (o, L2, 3 * (uint64_t) OV_WINDOW, 1, NULL);
  overlap_enter (o, L2, 300, 1, NULL);
  ov_fail_alloc (0, false);
  ck_assert_uint_gt (n_told, 0);
  ck_assert (ask (3 * (uint64_t) OV_WINDOW, 1).outside);
  ck_assert_ptr_null (table ());
  ov_hot_new (o);
  ck_assert_ptr_nonnull (table ());
  warm (3 * (uint64_t) OV_WINDOW + 64);
  warm (640);
  ck_assert_uint_eq ((uint32_t) word (640), UINT32_MAX);
  ck_assert (hit (3 * (uint64_t) OV_WINDOW + 64, 1));
  finish ();
}
END_TEST

static bool
have_table (void)
{
  const struct overlap_config config = { .total_limit = UINT64_MAX };
  struct overlap *probe = overlap_new (&config);
  const bool can = probe && ov_can_take (probe);

  overlap_free (probe);
  return can;
}

int
main (void)
{
  Suite *s = suite_create ("overlap-hot");
  TCase *tc = tcase_create ("overlap-hot");

  if (!have_table ()) {
    puts ("SKIP: membarrier(2) is not to be had here");
    return 77;
  }
  tcase_add_test (tc, a_group_is_remembered_when_it_is_asked_about_again);
  tcase_add_test (tc, groups_that_drive_each_other_out_are_seldom_filled);
  tcase_add_test (tc, groups_that_drive_each_other_out_are_seldom_stored);
  tcase_add_test (tc, groups_that_have_room_are_filled_soon);
  tcase_add_loop_test (tc, an_update_is_seen_at_once, 0, 2);
  tcase_add_test (tc, groups_that_share_a_place_are_not_mixed_up);
  tcase_add_test (tc, groups_far_away_are_not_remembered);
  tcase_add_test (tc, the_table_is_a_part_of_the_cache_and_goes_first);
  tcase_add_test (tc, what_is_outside_is_not_remembered_as_free);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
