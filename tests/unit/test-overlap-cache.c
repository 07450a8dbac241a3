/* SPDX-License-Identifier: BSD-3-Clause */

/* The bytemap cache of the tracker. */

#include <config.h>

#include "overlap-test.h"

/* Update clusters of one page until it is in the cache. */
static void
warm_page (uint64_t first)
{
  unsigned i;

  for (i = 0; i < 40; ++i)
    enter (L2, first + i * 3, 1);
}

/* Is the page of this cluster in the cache? */
static bool
cached (uint64_t cluster)
{
  const struct ov_page *page;

  for (page = o->oldest; page; page = page->newer)
    if (page->number == cluster / OV_PAGE)
      return true;
  return false;
}

START_TEST (the_bytemap_cache_is_bounded_and_becomes_runs_again)
{
  struct overlap_stats s;
  uint64_t i;
  unsigned k;

  start (65536, UINT64_MAX);
  for (i = 0; i < 50; ++i) {
    warm_page (i * OV_PAGE + 1000);
    overlap_get_stats (o, &s);
    ck_assert_uint_le (s.bytemap_bytes, 65536);
    if (i == 0) {
      ck_assert_uint_gt (s.bytemap_bytes, OV_PAGE);
      ck_assert_uint_eq (s.runs, 0);
    }
    verify ();
  }
  ck_assert_uint_gt (s.runs, 30 * 40);
  for (i = 0; i < 50; ++i)
    for (k = 0; k < 40; ++k) {
      ck_assert_uint_eq (ask (i * OV_PAGE + 1000 + k * 3, 1).all, BIT (L2));
      ck_assert_uint_eq (ask (i * OV_PAGE + 1001 + k * 3, 2).any, 0);
    }
  for (i = 0; i < 50; ++i)
    for (k = 0; k < 40; ++k)
      leave (L2, i * OV_PAGE + 1000 + k * 3, 1);
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.bytemap_bytes + s.runs + s.windows, 0);
  finish ();
}
END_TEST

/* No neighbours are alike. */
static enum overlap_type
dense (uint64_t i)
{
  return i % 2 ? BLOCK : OLD_L2;
}

/* Pages whose runs would have been larger left the cache and were never
 * looked at again; here a page full of runs goes and comes back.
 */
START_TEST (fault_28_a_dense_page_leaves_the_cache_and_returns)
{
  struct overlap_stats s;
  uint64_t i;
  unsigned round;

  start (12000, UINT64_MAX);
  for (round = 0; round < 3; ++round) {
    for (i = 0; i < OV_PAGE; ++i)
      if (i % 8 != 7)
        enter (dense (i), i, 1);
    ck_assert (cached (0));
    warm_page (OV_PAGE * 3);
    warm_page (OV_PAGE * 5);
    ck_assert (!cached (0));
    verify ();
    for (i = 0; i < OV_PAGE; ++i)
      ck_assert_uint_eq (ask (i, 1).any, i % 8 == 7 ? 0 : BIT (dense (i)));
    for (i = 0; i < OV_PAGE; ++i)
      if (i % 8 != 7)
        leave (dense (i), i, 1);
    overlap_leave (o, L2, OV_PAGE * 3, OV_PAGE * 3);
  }
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.windows, 0);
  finish ();
}
END_TEST

START_TEST (the_limit_takes_pages_before_it_takes_marks)
{
  struct overlap_stats s;
  uint64_t i;

  start (65536, UINT64_MAX);
  ov_sieve_drop (o);            /* which would go before the pages */
  for (i = 0; i < 10; ++i)
    warm_page (i * OV_PAGE);
  overlap_get_stats (o, &s);
  ck_assert_uint_gt (s.bytemap_bytes, 10 * OV_PAGE);
  o->config.total_limit = s.used;
  for (i = 0; i < 2000; ++i) {
    enter (BLOCK, OV_WINDOW + i * 50, 1);
    ck_assert_uint_le (used (), s.used);
  }
  ck_assert_uint_eq (n_told, 0);
  overlap_get_stats (o, &s);
  ck_assert_uint_lt (s.bytemap_bytes, 10 * OV_PAGE);
  for (i = 0; i < 10; ++i)
    ck_assert_uint_eq (ask (i * OV_PAGE, 1).all, BIT (L2));
  finish ();
}
END_TEST

/* Faults 23 and 24: ages that wrapped, and a search for the oldest. */
START_TEST (fault_23_24_the_page_updated_longest_ago_goes_first)
{
  unsigned i;

  start (4 * sizeof (struct ov_page), UINT64_MAX);
  for (i = 0; i < 12; ++i) {
    warm_page ((i + 1) * OV_PAGE);
    enter (BLOCK, OV_PAGE + 1000 + i * 3, 1);
  }
  ck_assert (cached (OV_PAGE));
  ck_assert_uint_eq (o->newest->number, 1);
  finish ();
}
END_TEST

/* A page that has to become runs where there is no memory lost marks that
 * must never leave: so these are in runs from the beginning.
 */
START_TEST (pinned_marks_are_never_in_pages)
{
  struct overlap_stats s;

  start (65536, UINT64_MAX);
  warm_page (0);
  overlap_get_stats (o, &s);
  ck_assert_uint_gt (s.bytemap_bytes, 0);
  enter (OVERLAP_SNAPSHOT_TABLE, 1, 1);
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.bytemap_bytes, 0);
  enter (OVERLAP_ACTIVE_L1, 130, 2);
  warm_page (200);
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.bytemap_bytes, 0);
  ov_fail_alloc (1, true);
  enter (L2, 3 * OV_WINDOW, 1);
  ov_fail_alloc (0, false);
  ck_assert_uint_eq (n_told, 1);
  ck_assert (!ask (0, 1).outside);
  ck_assert_uint_eq (ask (0, 1).any, BIT (L2));
  ck_assert_uint_eq (ask (1, 1).any, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (ask (130, 2).any, BIT (OVERLAP_ACTIVE_L1));
  finish ();
}
END_TEST

/* More classes than a byte can tell apart. */
START_TEST (a_page_with_many_classes_goes_back_to_runs)
{
  struct overlap_stats s;
  unsigned i, k;

  start (65536, UINT64_MAX);
  for (k = 0; k < 400; ++k)
    for (i = 0; i <= k / 8; ++i)
      enter (OLD_L2, 100 + i, 1);
  for (k = 0; k < 300; ++k)
    enter (OLD_L2, 50, 1);
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.bytemap_bytes, 0);
  verify ();
  for (k = 0; k < 300; ++k) {
    ck_assert_uint_eq (ask (50, 1).any, BIT (OLD_L2));
    leave (OLD_L2, 50, 1);
  }
  ck_assert_uint_eq (ask (50, 1).any, 0);
  finish ();
}
END_TEST

/* Updates at random places threw out a dirty page each time, which cost
 * more than the update.  A page has to be earned by many updates in one
 * place.
 */
START_TEST (fault_26_updates_at_random_places_move_no_pages)
{
  const struct ov_page *page;
  struct overlap_stats s;
  uint64_t i, before;

  start (65536, UINT64_MAX);
  warm_page (0);
  page = o->newest;
  ck_assert_ptr_nonnull (page);
  overlap_get_stats (o, &s);
  before = s.bytemap_bytes;
  for (i = 0; i < 20000; ++i)
    overlap_enter (o, BLOCK, OV_PAGE + i * 2654435761u % (1u << 27), 1, NULL);
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (s.bytemap_bytes, before);
  ck_assert_ptr_eq (o->newest, page);
  ck_assert_ptr_eq (o->oldest, page);
  finish ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-cache");
  TCase *tc = tcase_create ("overlap-cache");

  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, the_bytemap_cache_is_bounded_and_becomes_runs_again);
  tcase_add_test (tc, fault_28_a_dense_page_leaves_the_cache_and_returns);
  tcase_add_test (tc, the_limit_takes_pages_before_it_takes_marks);
  tcase_add_test (tc, fault_23_24_the_page_updated_longest_ago_goes_first);
  tcase_add_test (tc, pinned_marks_are_never_in_pages);
  tcase_add_test (tc, a_page_with_many_classes_goes_back_to_runs);
  tcase_add_test (tc, fault_26_updates_at_random_places_move_no_pages);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
