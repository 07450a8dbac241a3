/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker when memory is short: limits, what leaves and what is told
 * of it, and allocations that fail.
 */

#include <config.h>

#include <sys/wait.h>
#include <unistd.h>

#include "checked.h"
#include "overlap-test.h"

/* A limit of nothing made opening the image fail. */
START_TEST (fault_17_any_limit_works_and_pinned_marks_stay)
{
  static const uint64_t limits[] = { 0, 1, 1000, 1500 };
  enum overlap_type t;

  start (65536, limits[_i]);
  for (t = 0; t < OVERLAP_TYPES; ++t)
    enter (t, 10 * (uint64_t) t, 2);
  for (t = 0; t < OVERLAP_TYPES; ++t) {
    struct overlap_answer a = ask (10 * (uint64_t) t, 2);
    if (OV_PINNED & BIT (t) || !a.outside)
      ck_assert_uint_eq (a.any, BIT (t));
  }
  if (limits[_i] < 1000) {
    ck_assert_uint_eq (n_told, 1);
    ck_assert_uint_eq (told[0].first, 0);
    ck_assert_uint_eq (told[0].count, OV_WINDOW);
    ck_assert_uint_eq (told[0].limit, limits[_i]);
    ck_assert (ask (10 * L2, 1).outside);
    ck_assert_uint_eq (ask (10 * L2, 1).any, 0);
    /* What is outside says nothing against any claim. */
    ck_assert_uint_eq (ask (10 * L2, 1).all, OVERLAP_ALL);
  }
  for (t = 0; t < OVERLAP_TYPES; ++t)
    leave (t, 10 * (uint64_t) t, 2);
  ck_assert_uint_eq (ask (0, OV_WINDOW).any, 0);
  finish ();
}
END_TEST

/* Marks at random places of windows that lie so far apart; LEAST is the
 * share (in percent) that they take of what is said to be the most.
 */
static const struct bound {
  unsigned cluster_bits, per_window, windows;
  uint64_t stride;
  unsigned least;
} bounds[] = {
  /* A few in each of many windows, or very many in some. */
  { 16, 1, 1, 1, 0 },
  { 16, 1, 3000, 1, 20 },
  { 16, 7, 1000, 1, 20 },
  { 16, 30, 300, 1, 20 },
  { 16, 300, 30, 1, 20 },
  { 16, 3000, 10, 1, 20 },
  { 16, 30000, 3, 1, 20 },
  { 12, 5, 1000, 1, 20 },
  { 12, 150, 100, 1, 20 },
  { 12, 10000, 3, 1, 20 },
  { 9, 1, 3000, 1, 20 },
  { 9, 20, 1000, 1, 20 },
  { 9, 160, 300, 1, 20 },
  { 9, 2000, 20, 1, 20 },
  /* As dear as can be: each has a node of the directory to itself. */
  { 16, 1, 300, 5000, 20 },
  { 16, 5, 300, 77, 10 },
  { 12, 1, 300, 100000, 20 },
};

START_TEST (the_most_memory_is_never_exceeded)
{
  const struct bound *b = &bounds[_i];
  const struct overlap_config config = {
    .cluster_bits = b->cluster_bits, .total_limit = UINT64_MAX,
  };
  const uint64_t window = UINT64_C (1) << ov_window_bits (b->cluster_bits);
  uint64_t i, at, pieces = 0, share = 0;

  srandom ((unsigned) _i);
  o = overlap_new (&config);
  ck_assert_ptr_nonnull (o);
  for (i = 0; i < (uint64_t) b->windows * b->per_window; ++i) {
    at = i / b->per_window * b->stride * window
      + (uint64_t) random () % window;
    if (ask (at, 1).any != 0)
      continue;
    enter (random () % 5 ? L2 : BLOCK, at, 1);
    /* Not only in the end: lists have room to grow. */
    pieces++;
    share = 100 * used () / overlap_most_memory (b->cluster_bits, pieces,
                                                 at + 1, 0);
    ck_assert_uint_le (share, 100);
  }
  /* Nor is it so much that nobody would give it. */
  ck_assert_uint_ge (share, b->least);
  finish ();
}
END_TEST

/* A small image, to see what it needs and what less than that does. */
static void
small_image (uint64_t bitmap_size, uint64_t limit)
{
  uint64_t i;

  start (bitmap_size, limit);
  enter (OVERLAP_MAIN_HEADER, 0, 1);
  enter (OVERLAP_ACTIVE_L1, 3, 2);
  for (i = 0; i < 300; ++i) {
    enter (L2, i * 8193 + 17, 1);
    if (i % 4 == 0)
      enter (BLOCK, i * 8193 + 18, 1);
    if (limit != UINT64_MAX)
      ck_assert_uint_le (used (), limit);
  }
}

/* The same in a child process, so that each try starts from the same
 * heap: malloc may give one block 16 bytes more than it gave to its
 * like before, and the account counts what malloc gave.  Returns how
 * many notices there were, and in *NEED the memory in use at the end.
 */
static unsigned
try_small_image (uint64_t limit, uint64_t *need)
{
  uint64_t result[2];
  int fd[2], status;
  pid_t pid;

  ck_assert_int_eq (pipe (fd), 0);
  pid = fork ();
  ck_assert_int_ge (pid, 0);
  if (pid == 0) {
    small_image (0, limit);
    result[0] = n_told;
    result[1] = used ();
    _exit (write (fd[1], result, sizeof result) != sizeof result);
  }
  close (fd[1]);
  ck_assert_int_eq (read (fd[0], result, sizeof result), sizeof result);
  close (fd[0]);
  ck_assert_int_eq (waitpid (pid, &status, 0), pid);
  ck_assert_int_eq (status, 0);
  if (need)
    *need = result[1];
  return (unsigned) result[0];
}

START_TEST (the_exact_limit_suffices_and_a_byte_less_does_not)
{
  uint64_t lo = 1500, hi, i;

  ck_assert_uint_eq (try_small_image (UINT64_MAX, &hi), 0);
  ck_assert_uint_eq (try_small_image (hi, NULL), 0);

  /* The least that suffices; a list may do with less spare room. */
  while (hi - lo > 1) {
    uint64_t mid = lo + (hi - lo) / 2;

    if (try_small_image (mid, NULL) == 0)
      hi = mid;
    else
      lo = mid;
  }
  ck_assert_uint_eq (try_small_image (hi - 1, NULL), 1);
  small_image (0, hi);
  ck_assert_uint_eq (n_told, 0);
  for (i = 0; i < 300; ++i)
    ck_assert_uint_eq (ask (i * 8193 + 17, 1).all, BIT (L2));
  ck_assert_uint_eq (ask (0, 1).all, BIT (OVERLAP_MAIN_HEADER));
  finish ();
}
END_TEST

/* At the limit everything failed open, even what was tracked; and each
 * check raised the event again.
 */
START_TEST (fault_11_18_what_stays_is_right_and_each_notice_comes_once)
{
  uint64_t limit, i, gone = 0;
  unsigned before;

  try_small_image (UINT64_MAX, &limit);
  limit -= 300;

  start (0, limit);
  for (i = 0; i < 300; ++i)
    enter (L2, i * 8193 + 17, 1);
  for (i = 0; i < 300; ++i)
    enter (BLOCK, i * 8193 + 5000, 1);
  before = n_told;
  ck_assert_uint_gt (before, 0);
  for (i = 0; i < 300; ++i) {
    struct overlap_answer a = ask (i * 8193 + 17, 1);

    ck_assert (a.outside || a.all == BIT (L2));
    a = ask (i * 8193 + 5000, 1);
    ck_assert (a.outside || a.all == BIT (BLOCK));
    gone += a.outside;
  }
  ck_assert_uint_gt (gone, 0);
  ck_assert_uint_lt (gone, 300);
  ck_assert_uint_le (used (), limit);
  ck_assert_uint_eq (n_told, before);
  finish ();
}
END_TEST

/* A window that had failed once said "no overlap" for ever. */
START_TEST (fault_12_a_window_that_left_stays_outside)
{
  start (0, 0);
  enter (L2, 5, 1);
  ck_assert_uint_eq (n_told, 1);
  enter (L2, 6, 1);
  enter (OVERLAP_REFCOUNT_TABLE, 7, 1);
  leave (L2, 5, 1);
  ck_assert (ask (100, 1).outside);
  ck_assert (ask (0, OV_WINDOW).outside);
  ck_assert (!ask (OV_WINDOW, 1).outside);
  ck_assert (overlap_hit (o, 100, 1, OVERLAP_NONE));
  ck_assert_uint_eq (n_told, 1);
  ck_assert_uint_eq (ask (0, OV_WINDOW).any, BIT (OVERLAP_REFCOUNT_TABLE));
  finish ();
}
END_TEST

/* Taking a mark back under pressure wiped its whole window. */
START_TEST (fault_13_leaving_works_at_the_limit_and_gives_memory_back)
{
  uint64_t limit, i;

  try_small_image (UINT64_MAX, &limit);
  small_image (0, limit);
  ck_assert_uint_eq (n_told, 0);
  for (i = 0; i < 300; ++i)
    if (i % 3)
      leave (L2, i * 8193 + 17, 1);
  for (i = 0; i < 300; ++i)
    ck_assert_uint_eq (ask (i * 8193 + 17, 1).all, i % 3 ? 0 : BIT (L2));
  ck_assert_uint_eq (n_told, 0);
  ck_assert_uint_lt (used (), limit - 200);
  for (i = 0; i < 300; ++i)
    if (i % 3)
      enter (L2, i * 8193 + 17, 1);
  ck_assert_uint_eq (n_told, 0);
  finish ();
}
END_TEST

/* The start was rounded to windows, the length was not. */
START_TEST (fault_16_a_notice_names_whole_windows_joined)
{
  start (0, 0);
  enter (OVERLAP_BITMAP_DATA, 3 * OV_WINDOW + 7, 6 * OV_WINDOW);
  ck_assert_uint_eq (n_told, 1);
  ck_assert_uint_eq (told[0].first, 3 * OV_WINDOW);
  ck_assert_uint_eq (told[0].count, 7 * OV_WINDOW);
  enter (OVERLAP_BITMAP_DATA, 2 * OV_WINDOW, OV_WINDOW + 1);
  ck_assert_uint_eq (n_told, 2);
  ck_assert_uint_eq (told[1].first, 2 * OV_WINDOW);
  ck_assert_uint_eq (told[1].count, OV_WINDOW);
  finish ();
}
END_TEST

/* While an image is opened its tables come in any order. */
START_TEST (notices_that_were_held_are_joined)
{
  static const unsigned order[] = { 5, 2, 9, 3, 4, 0, 8 };
  unsigned i;

  start (0, 0);
  overlap_hold_notices (o, true);
  for (i = 0; i < 7; ++i)
    enter (L2, order[i] * (uint64_t) OV_WINDOW + 7, 1);
  ck_assert_uint_eq (n_told, 0);
  overlap_hold_notices (o, false);
  ck_assert_uint_eq (n_told, 3);
  ck_assert_uint_eq (told[0].first, 0);
  ck_assert_uint_eq (told[0].count, OV_WINDOW);
  ck_assert_uint_eq (told[1].first, 2 * OV_WINDOW);
  ck_assert_uint_eq (told[1].count, 4 * OV_WINDOW);
  ck_assert_uint_eq (told[2].first, 8 * OV_WINDOW);
  ck_assert_uint_eq (told[2].count, 2 * OV_WINDOW);
  enter (L2, OV_WINDOW, 1);
  ck_assert_uint_eq (n_told, 4);
  finish ();
}
END_TEST

/* What remembers the ranges outside is bounded: those nearest to each
 * other are joined, and what lies between leaves with a notice.
 */
START_TEST (ranges_outside_are_remembered_in_bounded_memory)
{
  uint64_t i, sum = 0, before;
  struct overlap_stats s;
  unsigned k;

  start (0, UINT64_MAX);
  enter (L2, 41 * (uint64_t) OV_WINDOW, 1);
  o->config.total_limit = 0;
  before = used ();
  for (i = 0; i < 100; ++i)
    enter (L2, i * i * OV_WINDOW * 2, 1);
  ck_assert_uint_le (used (), before);
  for (i = 0; i < 100; ++i)
    ck_assert (ask (i * i * OV_WINDOW * 2, 1).outside);
  for (k = 0; k < n_told; ++k)
    sum += told[k].count / OV_WINDOW;
  overlap_get_stats (o, &s);
  ck_assert_uint_eq (sum, s.outside_windows);
  /* This one lay between. */
  ck_assert (ask (41 * (uint64_t) OV_WINDOW, 1).outside);
  ck_assert_uint_eq (ask (41 * (uint64_t) OV_WINDOW, 1).any, 0);
  finish ();
}
END_TEST

/* Let the Nth allocation fail, for every N: no assertion, and nothing
 * that is lost without a notice.
 */
START_TEST (fault_15_22_any_allocation_may_fail)
{
  static const struct {
    bool cache, forever, no_sieve;
  } how[] = {
    { false, false, true }, { true, false, false }, { true, false, true },
    { false, true, true }, { true, true, false }, { true, true, true },
  };
  const unsigned step = getenv ("QCOW2_VALGRIND") ? 7 : 1;
  uint64_t n, i, told_runs = 0;

  /* Under valgrind each one until enough were told of, then some. */
  for (n = 1; ; n += told_runs > 3 ? step : 1) {
    bool failed;

    start (how[_i].cache ? 65536 : 0, UINT64_MAX);
    if (how[_i].no_sieve)
      ov_sieve_drop (o);
    ov_fail_alloc (n, how[_i].forever);
    for (i = 0; i < 150; ++i) {
      enter (i % 2 ? L2 : BLOCK, i * 5, 2);
      enter (OLD_L2, i * (OV_WINDOW / 29) + 2000, 1);
      if (i % 5 == 4)
        overlap_leave (o, i % 2 ? L2 : BLOCK, i * 5 - 4, 8);
    }
    enter (OVERLAP_ACTIVE_L1, OV_WINDOW - 8, 16);
    failed = n_told > 0;
    ov_fail_alloc (0, false);
    verify ();
    told_runs += failed;
    for (i = 0; i < 150; ++i) {
      struct overlap_answer a = ask (i * (OV_WINDOW / 29) + 2000, 1);
      ck_assert (a.outside || a.all == BIT (OLD_L2));
      if (a.outside)
        ck_assert (failed);
    }
    ck_assert (ask (OV_WINDOW - 8, 16).any & BIT (OVERLAP_ACTIVE_L1));
    overlap_free (o);
    if (!failed && n > 400)
      break;
    ck_assert_uint_lt (n, 20000);
  }
  /* The sieve makes room for a single one. */
  if (_i == 1)
    ck_assert_uint_eq (told_runs, 0);
  else
    ck_assert_uint_gt (told_runs, 3);
}
END_TEST

START_TEST (pinned_marks_are_kept_with_no_memory_at_all)
{
  enum overlap_type t;
  uint64_t where;

  setup ();
  ov_fail_alloc (1, true);
  for (t = 0; t < OVERLAP_TYPES; ++t)
    if (OV_PINNED & BIT (t))
      enter (t, 1000 * (uint64_t) t, 20);
  ck_assert_uint_eq (n_told, 1);
  for (t = 0; t < OVERLAP_TYPES; ++t)
    if (OV_PINNED & BIT (t)) {
      ck_assert_uint_eq (ask (1000 * (uint64_t) t + 19, 1).any, BIT (t));
      ck_assert_uint_eq (ask (1000 * (uint64_t) t + 20, 1).any, 0);
    }
  ck_assert_uint_eq (overlap_enter (o, OVERLAP_ACTIVE_L1, 0, 1, &where),
                     BIT (OVERLAP_MAIN_HEADER));
  ck_assert_uint_eq (where, 0);
  leave (OVERLAP_ACTIVE_L1, 1005, 2);
  ck_assert_uint_eq (ask (1005, 2).any, 0);
  ck_assert_uint_eq (ask (1000, 5).any, BIT (OVERLAP_ACTIVE_L1));
  ck_assert_uint_eq (ask (1007, 13).any, BIT (OVERLAP_ACTIVE_L1));
  ov_fail_alloc (0, false);
  verify ();
  for (t = 0; t < OVERLAP_TYPES; ++t)
    if (OV_PINNED & BIT (t))
      overlap_leave (o, t, 0, 100000);
  ck_assert_uint_eq (ask (0, 100000).any, 0);
  finish ();
}
END_TEST

/* The fixed list holds a few marks; the ninth was lost in silence. */
START_TEST (a_pinned_mark_without_memory_is_made_or_refused)
{
  const uint64_t border = OV_WINDOW - 5;
  unsigned i, refused = 0;
  overlap_set got;

  start (0, UINT64_MAX);
  enter (OVERLAP_ACTIVE_L1, border - 100, 1);
  ov_fail_alloc (1, true);
  for (i = 1; i <= 20; ++i) {
    const uint64_t first = i * 5 * (uint64_t) OV_WINDOW;

    if (i % 2)
      got = overlap_enter (o, OVERLAP_ACTIVE_L1, first, 20, NULL);
    else
      got = overlap_claim (o, OVERLAP_ACTIVE_L1, first, 20, NULL);
    ck_assert (got == OVERLAP_NONE || got == OVERLAP_NO_MEMORY);
    ck_assert_uint_eq (ask (first, 20).any,
                       got == 0 ? BIT (OVERLAP_ACTIVE_L1) : 0);
    refused += got != 0;
  }
  ck_assert_uint_eq (refused, 20 - OV_KEPT_MAX);

  /* There is room for the first part of it only: not made in part. */
  got = overlap_enter (o, OVERLAP_ACTIVE_L1, border, 10, NULL);
  ck_assert_uint_eq (got, OVERLAP_NO_MEMORY);
  ck_assert_uint_eq (ask (border, 10).any, 0);
  ck_assert_uint_eq (ask (border - 100, 1).any, BIT (OVERLAP_ACTIVE_L1));
  ov_fail_alloc (0, false);
  verify ();
  enter (OVERLAP_ACTIVE_L1, border, 10);
  ck_assert_uint_eq (ask (border, 10).any, BIT (OVERLAP_ACTIVE_L1));
  finish ();
}
END_TEST

static void
expect_marks (uint64_t first, uint64_t end, overlap_set set)
{
  for (; first < end; ++first)
    ck_assert_uint_eq (ask (first, 1).any, set);
}

/* To take marks back from the middle of a piece needs memory, too.  They
 * stayed, and a write to what had been their cluster was corruption.
 */
START_TEST (a_pinned_mark_that_could_not_be_taken_back_goes_later)
{
  start (0, UINT64_MAX);
  enter (OVERLAP_SNAPSHOT_TABLE, 100, 60);
  ov_fail_alloc (1, true);
  overlap_leave (o, OVERLAP_SNAPSHOT_TABLE, 130, 3);
  /* None but these is there too long, and none has gone. */
  expect_marks (100, 160, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (o->n_owed, 1);
  verify ();
  /* One gets a new owner meanwhile. */
  if (_i == 1)
    overlap_enter (o, OVERLAP_SNAPSHOT_TABLE, 131, 1, NULL);
  ov_fail_alloc (0, false);
  if (_i == 0)
    ck_assert (!overlap_restore_begin (o) || !overlap_restore_end (o, false));
  else
    enter (L2, 20 * OV_WINDOW, 1);
  ck_assert_uint_eq (o->n_owed, 0);
  expect_marks (100, 130, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (ask (130, 1).any | ask (132, 1).any, 0);
  ck_assert_uint_eq (ask (131, 1).any,
                     _i == 1 ? BIT (OVERLAP_SNAPSHOT_TABLE) : 0);
  expect_marks (133, 160, BIT (OVERLAP_SNAPSHOT_TABLE));
  finish ();
}
END_TEST

/* A range of which a part was marked twice, once without memory, lost
 * both marks there at once.
 */
START_TEST (a_kept_mark_stays_when_another_of_its_type_goes)
{
  start (0, UINT64_MAX);
  enter (OVERLAP_SNAPSHOT_TABLE, 10, 1);
  ov_fail_alloc (1, true);
  ck_assert_uint_eq (overlap_enter (o, OVERLAP_SNAPSHOT_TABLE, 10, 1, NULL),
                     BIT (OVERLAP_SNAPSHOT_TABLE));
  enter (OVERLAP_SNAPSHOT_TABLE, 20, 3);
  ov_fail_alloc (0, false);
  ck_assert_uint_eq (overlap_enter (o, OVERLAP_SNAPSHOT_TABLE, 21, 1, NULL),
                     BIT (OVERLAP_SNAPSHOT_TABLE));
  overlap_leave (o, OVERLAP_SNAPSHOT_TABLE, 8, 16);
  ck_assert_uint_eq (ask (10, 1).any, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (ask (20, 1).any, 0);
  ck_assert_uint_eq (ask (21, 1).any, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (ask (22, 1).any, 0);
  overlap_leave (o, OVERLAP_SNAPSHOT_TABLE, 8, 16);
  ck_assert_uint_eq (ask (0, 100).any, 0);
  finish ();
}
END_TEST

/* The allocator may give more than it was asked for. */
START_TEST (the_limit_counts_what_the_allocator_gave)
{
  const unsigned step = getenv ("QCOW2_VALGRIND") ? 29 : 1;
  uint64_t limit, fixed;
  unsigned i;

  start (0, 0);
  fixed = used ();
  finish ();
  for (limit = fixed; limit < fixed + 4000; limit += step) {
    start (0, limit);
    for (i = 0; i < 70; ++i) {
      enter (OLD_L2, 5, 1);
      ck_assert_uint_le (used (), limit);
    }
    finish ();
  }
}
END_TEST

/* 65536 combinations of owners are all that can be told apart. */
START_TEST (a_full_dictionary_is_a_limit_like_any_other)
{
  uint64_t i;

  start (0, UINT64_MAX);
  for (i = 0; i < 70000 && n_told == 0; ++i)
    enter (OLD_L2, 5, 1);
  ck_assert_uint_eq (n_told, 1);
  ck_assert_uint_gt (i, 65000);
  ck_assert (ask (5, 1).outside);
  enter (L2, OV_WINDOW, 1);
  ck_assert_uint_eq (ask (OV_WINDOW, 1).all, BIT (L2));
  enter (OVERLAP_ACTIVE_L1, 6, 1);
  ck_assert_uint_eq (ask (6, 1).any, BIT (OVERLAP_ACTIVE_L1));
  finish ();
}
END_TEST

/* The seam for rebuilding. */
START_TEST (a_range_that_came_back_is_told_of_and_tracked)
{
  start (0, 0);
  enter (OVERLAP_BITMAP_DATA, 0, 5 * OV_WINDOW);
  ck_assert_uint_eq (n_told, 1);
  o->config.total_limit = UINT64_MAX;
  ck_assert (ov_restored (o, 2, 2));
  ck_assert_uint_eq (n_told, 2);
  ck_assert (told[1].restored);
  ck_assert_uint_eq (told[1].first, 2 * OV_WINDOW);
  ck_assert_uint_eq (told[1].count, OV_WINDOW);
  ck_assert (!ask (2 * OV_WINDOW, OV_WINDOW).outside);
  ck_assert (ask (2 * OV_WINDOW - 1, 1).outside);
  ck_assert (ask (3 * OV_WINDOW, 1).outside);
  enter (L2, 2 * OV_WINDOW, 1);
  ck_assert_uint_eq (ask (2 * OV_WINDOW, 1).all, BIT (L2));
  ck_assert (ov_restored (o, 3, 4));
  ck_assert (ov_restored (o, 0, 1));
  ck_assert (!ask (0, 5 * OV_WINDOW).outside);
  finish ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-limit");
  TCase *tc = tcase_create ("overlap-limit");

  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, fault_17_any_limit_works_and_pinned_marks_stay,
                       0, 4);
  tcase_add_loop_test (tc, the_most_memory_is_never_exceeded, 0,
                       ARRAY_SIZE (bounds));
  tcase_add_test (tc, the_exact_limit_suffices_and_a_byte_less_does_not);
  tcase_add_test (tc,
                  fault_11_18_what_stays_is_right_and_each_notice_comes_once);
  tcase_add_test (tc, fault_12_a_window_that_left_stays_outside);
  tcase_add_test (tc,
                  fault_13_leaving_works_at_the_limit_and_gives_memory_back);
  tcase_add_test (tc, fault_16_a_notice_names_whole_windows_joined);
  tcase_add_test (tc, notices_that_were_held_are_joined);
  tcase_add_test (tc, ranges_outside_are_remembered_in_bounded_memory);
  tcase_add_loop_test (tc, fault_15_22_any_allocation_may_fail, 0, 6);
  tcase_add_test (tc, pinned_marks_are_kept_with_no_memory_at_all);
  tcase_add_test (tc, a_pinned_mark_without_memory_is_made_or_refused);
  tcase_add_loop_test
    (tc, a_pinned_mark_that_could_not_be_taken_back_goes_later, 0, 3);
  tcase_add_test (tc, a_kept_mark_stays_when_another_of_its_type_goes);
  tcase_add_test (tc, the_limit_counts_what_the_allocator_gave);
  tcase_add_test (tc, a_full_dictionary_is_a_limit_like_any_other);
  tcase_add_test (tc, a_range_that_came_back_is_told_of_and_tracked);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
