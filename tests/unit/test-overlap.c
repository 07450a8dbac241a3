/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker, operation by operation.  docs/design/tracker.md lists
 * what went wrong in an earlier tracker; tests named fault_NN_ cover
 * what in that list a tracker by itself can get wrong.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <check.h>

#include "overlap-internal.h"

#define L2 OVERLAP_ACTIVE_L2
#define OLD_L2 OVERLAP_INACTIVE_L2
#define BLOCK OVERLAP_REFCOUNT_BLOCK
#define BIT OVERLAP_BIT

static struct overlap *o;

/* What the notices told. */
static struct overlap_notice told[4096];
static unsigned n_told;

static void
notice (void *opaque, const struct overlap_notice *n)
{
  (void) opaque;
  ck_assert_uint_lt (n_told, 4096);
  told[n_told++] = *n;
}

static void
start (uint64_t bitmap_size, uint64_t limit)
{
  struct overlap_config config = {
    .bitmap_size = bitmap_size, .total_limit = limit, .notice = notice,
  };

  n_told = 0;
  o = overlap_new (&config);
  ck_assert_ptr_nonnull (o);
}

static void
setup (void)
{
  start (0, UINT64_MAX);
}

static void
verify (void)
{
  const char *why;

  ck_assert_msg (overlap_verify (o, &why), "%s", why);
}

static void
finish (void)
{
  verify ();
  overlap_free (o);
}

static uint64_t
used (void)
{
  struct overlap_stats s;

  overlap_get_stats (o, &s);
  return s.used;
}

static struct overlap_answer
ask (uint64_t first, uint64_t count)
{
  struct overlap_answer a = { .where = 0 };

  overlap_query (o, first, count, OVERLAP_ALL, &a);
  ck_assert_int_eq (overlap_hit (o, first, count, OVERLAP_ALL),
                    a.any != 0 || a.outside);
  return a;
}

static void
enter (enum overlap_type type, uint64_t first, uint64_t count)
{
  ck_assert_uint_eq (overlap_enter (o, type, first, count, NULL), 0);
}

static void
leave (enum overlap_type type, uint64_t first, uint64_t count)
{
  ck_assert_uint_eq (overlap_leave (o, type, first, count), 0);
}

START_TEST (types_have_names_that_parse)
{
  enum overlap_type t, back;

  for (t = 0; t < OVERLAP_TYPES; ++t) {
    ck_assert (overlap_type_parse (overlap_type_name (t), &back));
    ck_assert_int_eq (back, t);
    ck_assert_ptr_nonnull (overlap_type_text (t));
  }
  ck_assert (!overlap_type_parse ("active-l3", &back));
  ck_assert (!overlap_type_parse ("", &back));
  ck_assert_str_eq (overlap_type_text (L2), "active L2 table");
}
END_TEST

START_TEST (nothing_is_marked_at_first)
{
  struct overlap_answer a = ask (0, UINT64_MAX);

  ck_assert_uint_eq (a.any, 0);
  ck_assert_uint_eq (a.all, 0);
  ck_assert (!a.outside);
}
END_TEST

START_TEST (a_range_of_no_clusters_is_nothing)
{
  enter (L2, 5, 0);
  ck_assert_uint_eq (ask (0, 10).any, 0);
  enter (L2, 5, 1);
  ck_assert_uint_eq (ask (5, 0).any, 0);
  ck_assert (!overlap_hit (o, 5, 0, OVERLAP_ALL));
  ck_assert_uint_eq (overlap_leave (o, L2, 5, 0), 0);
  ck_assert_uint_eq (overlap_claim (o, BLOCK, 5, 0, NULL), 0);
}
END_TEST

/* Nine types are QEMU's; crypto-header, bitmap-table and bitmap-data
 * were never tracked by it.
 */
START_TEST (fault_09_every_type_is_tracked)
{
  enum overlap_type t = (enum overlap_type) _i;

  enter (t, 100, 3);
  ck_assert_uint_eq (ask (99, 1).any, 0);
  ck_assert_uint_eq (ask (100, 3).any, BIT (t));
  ck_assert_uint_eq (ask (100, 3).all, BIT (t));
  ck_assert_uint_eq (ask (99, 2).any, BIT (t));
  ck_assert_uint_eq (ask (99, 2).all, 0);
  ck_assert_uint_eq (ask (0, 1000).where, 100);
  ck_assert_uint_eq (ask (103, 1).any, 0);
  ck_assert (!overlap_hit (o, 100, 3, OVERLAP_ALL & ~BIT (t)));
  leave (t, 100, 3);
  ck_assert_uint_eq (ask (0, 1000).any, 0);
}
END_TEST

START_TEST (where_is_the_first_of_the_mask)
{
  struct overlap_answer a = { .where = 7 };

  enter (L2, 10, 2);
  enter (BLOCK, 12, 2);
  overlap_query (o, 0, 100, BIT (BLOCK), &a);
  ck_assert_uint_eq (a.where, 12);
  a.where = 7;
  overlap_query (o, 0, 100, BIT (OVERLAP_MAIN_HEADER), &a);
  ck_assert_uint_eq (a.where, 7);
  ck_assert_uint_eq (a.any, BIT (L2) | BIT (BLOCK));
}
END_TEST

START_TEST (ranges_cross_the_borders_of_windows)
{
  uint64_t first = OV_WINDOW - 3, count = 2 * OV_WINDOW + 6;

  enter (OVERLAP_BITMAP_DATA, first, count);
  ck_assert_uint_eq (ask (first, count).all, BIT (OVERLAP_BITMAP_DATA));
  ck_assert_uint_eq (ask (first - 1, 1).any, 0);
  ck_assert_uint_eq (ask (first + count, 1).any, 0);
  ck_assert_uint_eq (ask (first, count + 1).all, 0);
  ck_assert_uint_eq (ask (0, UINT64_MAX).where, first);

  leave (OVERLAP_BITMAP_DATA, 2 * OV_WINDOW - 1, 2);
  ck_assert_uint_eq (ask (first, count).all, 0);
  ck_assert_uint_eq (ask (2 * OV_WINDOW - 1, 2).any, 0);
  ck_assert_uint_eq (overlap_leave (o, OVERLAP_BITMAP_DATA, first, count), 2);
  ck_assert_uint_eq (ask (0, UINT64_MAX).any, 0);
}
END_TEST

/* A window that nothing ever touched lies in the range. */
START_TEST (a_gap_in_the_directory_is_not_all_marked)
{
  enter (L2, 0, 1);
  enter (L2, 100 * (uint64_t) OV_WINDOW, 1);
  ck_assert_uint_eq (ask (0, 100 * (uint64_t) OV_WINDOW + 1).any, BIT (L2));
  ck_assert_uint_eq (ask (0, 100 * (uint64_t) OV_WINDOW + 1).all, 0);
}
END_TEST

START_TEST (owners_met_are_reported_unless_allowed)
{
  enum overlap_type a = (enum overlap_type) (_i / OVERLAP_TYPES);
  enum overlap_type b = (enum overlap_type) (_i % OVERLAP_TYPES);
  bool allowed = (a == L2 && b == OLD_L2) || (a == OLD_L2 && b == L2)
    || (a == OLD_L2 && b == OLD_L2);
  uint64_t where = 1;

  enter (a, 50, 1);
  ck_assert_uint_eq (overlap_enter (o, b, 48, 4, &where),
                     allowed ? 0 : BIT (a));
  ck_assert_uint_eq (where, allowed ? 1 : 50);

  /* It is marked in any case, and keeps the other's mark. */
  ck_assert_uint_eq (ask (50, 1).all, BIT (a) | BIT (b));
  ck_assert_uint_eq (ask (48, 1).all, BIT (b));
  leave (b, 48, 4);
  ck_assert_uint_eq (ask (48, 4).any, BIT (a));
  leave (a, 50, 1);
  ck_assert_uint_eq (ask (48, 4).any, 0);
}
END_TEST

/* One bit for all owners lost its protection with the first of them. */
START_TEST (fault_03_a_cluster_stays_marked_until_each_owner_left)
{
  unsigned i;

  for (i = 0; i < 30000; ++i)
    enter (OLD_L2, 33, 1);
  enter (L2, 33, 1);
  for (i = 0; i < 30000; ++i) {
    ck_assert_uint_eq (ask (33, 1).all, BIT (L2) | BIT (OLD_L2));
    leave (OLD_L2, 33, 1);
    if (i == 20000)
      verify ();
  }
  ck_assert_uint_eq (ask (33, 1).all, BIT (L2));
  leave (L2, 33, 1);
  ck_assert_uint_eq (ask (33, 1).any, 0);
  ck_assert_uint_eq (overlap_leave (o, OLD_L2, 33, 1), 1);
}
END_TEST

/* A damaged image may name a table twice. */
START_TEST (fault_03_a_double_reference_is_counted_too)
{
  enum overlap_type t = (enum overlap_type) _i;

  enter (t, 9, 1);
  ck_assert_uint_eq (overlap_enter (o, t, 9, 1, NULL),
                     t == OLD_L2 ? 0 : BIT (t));
  leave (t, 9, 1);
  ck_assert_uint_eq (ask (9, 1).any, BIT (t));
  leave (t, 9, 1);
  ck_assert_uint_eq (ask (9, 1).any, 0);
}
END_TEST

START_TEST (a_claim_marks_all_or_nothing)
{
  uint64_t where = 1;

  ck_assert_uint_eq (overlap_claim (o, BLOCK, 10, 10, &where), 0);
  ck_assert_uint_eq (where, 1);
  ck_assert_uint_eq (overlap_claim (o, L2, 0, 11, &where), BIT (BLOCK));
  ck_assert_uint_eq (where, 10);
  ck_assert_uint_eq (ask (0, 10).any, 0);
  ck_assert_uint_eq (overlap_claim (o, BLOCK, 19, 2, &where), BIT (BLOCK));
  ck_assert_uint_eq (ask (20, 1).any, 0);

  /* What may be shared may still not be claimed twice. */
  ck_assert_uint_eq (overlap_claim (o, OLD_L2, 30, 1, NULL), 0);
  ck_assert_uint_eq (overlap_claim (o, L2, 30, 1, NULL), BIT (OLD_L2));
  ck_assert_uint_eq (overlap_claim (o, OLD_L2, 30, 1, NULL), BIT (OLD_L2));
}
END_TEST

START_TEST (leaving_counts_what_was_not_marked)
{
  enter (L2, 10, 5);
  ck_assert_uint_eq (overlap_leave (o, L2, 8, 10), 5);
  ck_assert_uint_eq (overlap_leave (o, L2, 8, 10), 10);
  enter (L2, 10, 5);
  ck_assert_uint_eq (overlap_leave (o, BLOCK, 10, 5), 5);
  ck_assert_uint_eq (ask (10, 5).all, BIT (L2));
  ck_assert_uint_eq (overlap_leave (o, L2, UINT64_C (1) << 60, 3), 3);
}
END_TEST

/* Bare ints and products of 32 bits. */
START_TEST (fault_21_ranges_reach_the_end_of_all_numbers)
{
  enter (L2, UINT64_MAX - 1, 1);
  ck_assert_uint_eq (ask (UINT64_MAX - 1, 1).all, BIT (L2));
  ck_assert_uint_eq (ask (UINT64_MAX - 1, UINT64_MAX).any, BIT (L2));
  ck_assert_uint_eq (ask (0, UINT64_MAX).where, UINT64_MAX - 1);
  ck_assert_uint_eq (ask (UINT64_MAX, 1).any, 0);
  ck_assert_uint_eq (overlap_leave (o, L2, UINT64_MAX - 3, 100), 2);
  ck_assert_uint_eq (ask (0, UINT64_MAX).any, 0);
  enter (BLOCK, (UINT64_C (1) << 32) - 1, 2);
  ck_assert_uint_eq (ask (UINT64_C (1) << 32, 1).any, BIT (BLOCK));
  ck_assert_uint_eq (ask (0, 1).any, 0);
}
END_TEST

/* A dense directory took 8 GiB for one such entry. */
START_TEST (fault_20_a_far_entry_costs_two_nodes_and_a_run)
{
  uint64_t before, cost;
  unsigned i;

  enter (L2, 1, 1);
  before = used ();
  enter (L2, UINT64_C (1) << 47, 1);
  cost = used () - before;
  ck_assert_uint_le (cost, 400);

  /* Many of them, each far from all others. */
  before = used ();
  for (i = 1; i <= 1000; ++i)
    enter (L2, i * (UINT64_C (0xfedcba987654321) >> 4), 1);
  ck_assert_uint_le (used () - before, 400 * 1000);
}
END_TEST

START_TEST (fault_25_a_check_needs_no_memory)
{
  uint64_t i, before;

  enter (L2, 7, 1);
  enter (BLOCK, OV_WINDOW + 7, 4000);
  before = used ();
  ov_fail_alloc (1, true);
  for (i = 0; i < 100; ++i) {
    ck_assert_uint_eq (ask (i, 1).any, i == 7 ? BIT (L2) : 0);
    ck_assert_uint_eq (ask (i * 1000 * OV_WINDOW + 9, 1).any, 0);
    ck_assert_uint_eq (ask (OV_WINDOW + 7 + i, 5).all, BIT (BLOCK));
  }
  ov_fail_alloc (0, false);
  ck_assert_uint_eq (used (), before);
  ck_assert_uint_eq (n_told, 0);
}
END_TEST

/* Cluster by cluster this would take minutes, not milliseconds. */
START_TEST (fault_27_a_large_range_is_a_few_pieces)
{
  uint64_t before = used (), count = UINT64_C (1) << 32;

  enter (OVERLAP_BITMAP_DATA, 5, count);
  ck_assert_uint_eq (ask (5, count).all, BIT (OVERLAP_BITMAP_DATA));
  ck_assert_uint_le (used () - before, (count / OV_WINDOW + 1) * 45 + 4096);
  ck_assert_uint_eq (overlap_enter (o, BLOCK, 6, count - 2, NULL),
                     BIT (OVERLAP_BITMAP_DATA));
  leave (BLOCK, 6, count - 2);
  leave (OVERLAP_BITMAP_DATA, 5, count);
  ck_assert_uint_eq (ask (0, UINT64_MAX).any, 0);
  ck_assert_uint_eq (overlap_leave (o, L2, 0, UINT64_MAX), UINT64_MAX);
}
END_TEST

/* A list that had become empty was freed and used. */
START_TEST (fault_19_a_window_is_emptied_and_filled_again)
{
  unsigned i, k;

  for (i = 0; i < 100; ++i) {
    for (k = 0; k < 200; ++k)
      enter (L2, k * 3, 1);
    for (k = 0; k < 200; ++k)
      leave (L2, k * 3, 1);
    ck_assert_uint_eq (ask (0, 600).any, 0);
  }
  verify ();
}
END_TEST

/* The account lost or invented bytes each time a list shrank. */
START_TEST (fault_14_the_account_is_exact_after_100000_rounds)
{
  /* What malloc may give one time and not another, for few blocks. */
  const uint64_t malloc_spare = 64;
  uint64_t filled = 0, thin = 0;
  unsigned i, k;

  /* Each round fills or thins a part of one window. */
  for (i = 0; i < 100000; ++i) {
    for (k = 0; k < 8; ++k) {
      uint64_t at = (i * 8 + k) % 512 * 7;
      if (i / 64 % 2 == 0)
        enter (k % 2 ? L2 : BLOCK, at, 1);
      else
        leave (k % 2 ? L2 : BLOCK, at, 1);
    }
    if (i % 128 == 63) {
      if (filled == 0)
        filled = used ();
      ck_assert_uint_le (used (), filled + malloc_spare);
      ck_assert_uint_ge (used () + malloc_spare, filled);
    }
    if (i % 128 == 127) {
      if (thin == 0)
        thin = used ();
      ck_assert_uint_le (used (), thin + malloc_spare);
      ck_assert_uint_ge (used () + malloc_spare, thin);
    }
    if (i % 64 == 0)
      verify ();
  }
  ck_assert_uint_lt (thin, filled);
}
END_TEST

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
  uint64_t n, i, told_runs = 0;

  for (n = 1; ; ++n) {
    bool failed;

    start (_i & 1 ? 65536 : 0, UINT64_MAX);
    ov_fail_alloc (n, _i & 2);
    for (i = 0; i < 150; ++i) {
      enter (i % 2 ? L2 : BLOCK, i * 5, 2);
      enter (OLD_L2, i * 9001 + 2000, 1);
      if (i % 5 == 4)
        overlap_leave (o, i % 2 ? L2 : BLOCK, i * 5 - 4, 8);
    }
    enter (OVERLAP_ACTIVE_L1, OV_WINDOW - 8, 16);
    failed = n_told > 0;
    ov_fail_alloc (0, false);
    verify ();
    told_runs += failed;
    for (i = 0; i < 150; ++i) {
      struct overlap_answer a = ask (i * 9001 + 2000, 1);
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
  ck_assert_uint_gt (told_runs, 3);
}
END_TEST

START_TEST (pinned_marks_are_kept_with_no_memory_at_all)
{
  enum overlap_type t;
  uint64_t where;

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
}
END_TEST

/* Update clusters of one page until it is in the cache. */
static void
warm_page (uint64_t first)
{
  unsigned i;

  for (i = 0; i < 40; ++i)
    enter (L2, first + i * 3, 1);
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
    for (i = 0; i < OV_PAGE; i += 2)
      ck_assert_uint_eq (overlap_enter (o, i % 4 ? BLOCK : OLD_L2, i, 1,
                                        NULL), 0);
    warm_page (OV_PAGE * 3);
    warm_page (OV_PAGE * 5);
    verify ();
    for (i = 0; i < OV_PAGE; ++i)
      ck_assert_uint_eq (ask (i, 1).any,
                         i % 2 ? 0 : i % 4 ? BIT (BLOCK) : BIT (OLD_L2));
    for (i = 0; i < OV_PAGE; i += 2)
      leave (i % 4 ? BLOCK : OLD_L2, i, 1);
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
  const struct ov_page *page;
  bool first = false;
  unsigned i;

  start (4 * sizeof (struct ov_page), UINT64_MAX);
  for (i = 0; i < 12; ++i) {
    warm_page ((i + 1) * OV_PAGE);
    enter (BLOCK, OV_PAGE + 1000 + i * 3, 1);
  }
  for (page = o->oldest; page; page = page->newer)
    first |= page->number == 1;
  ck_assert (first);
  ck_assert_uint_eq (o->newest->number, 1);
  finish ();
}
END_TEST

/* A page has to become runs and there is no memory at all. */
START_TEST (pinned_marks_of_a_page_survive_its_window)
{
  start (65536, UINT64_MAX);
  warm_page (0);
  enter (OVERLAP_SNAPSHOT_TABLE, 1, 1);
  enter (OVERLAP_ACTIVE_L1, 130, 2);
  ov_fail_alloc (1, true);
  enter (L2, 3 * OV_WINDOW, 1);
  ov_fail_alloc (0, false);
  ck_assert_uint_eq (n_told, 2);
  ck_assert (ask (0, 1).outside);
  ck_assert_uint_eq (ask (0, 1).any, 0);
  ck_assert_uint_eq (ask (1, 1).any, BIT (OVERLAP_SNAPSHOT_TABLE));
  ck_assert_uint_eq (ask (130, 2).any, BIT (OVERLAP_ACTIVE_L1));
  finish ();
}
END_TEST

/* The allocator may give more than it was asked for. */
START_TEST (the_limit_counts_what_the_allocator_gave)
{
  uint64_t limit, fixed;
  unsigned i;

  start (0, 0);
  fixed = used ();
  finish ();
  for (limit = fixed; limit < fixed + 4000; ++limit) {
    start (0, limit);
    for (i = 0; i < 70; ++i) {
      enter (OLD_L2, 5, 1);
      ck_assert_uint_le (used (), limit);
    }
    finish ();
  }
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

START_TEST (the_self_check_sees_a_wrong_account)
{
  const char *why = NULL;

  enter (L2, 5, 1);
  o->used++;
  ck_assert (!overlap_verify (o, &why));
  ck_assert_ptr_nonnull (why);
  o->used--;
  o->runs--;
  ck_assert (!overlap_verify (o, &why));
  o->runs++;
  verify ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap");
  TCase *basic = tcase_create ("operations");
  TCase *limit = tcase_create ("limits");
  SRunner *sr;
  int failed;

  tcase_add_checked_fixture (basic, setup, finish);
  tcase_set_timeout (basic, 300);
  tcase_add_test (basic, types_have_names_that_parse);
  tcase_add_test (basic, nothing_is_marked_at_first);
  tcase_add_test (basic, a_range_of_no_clusters_is_nothing);
  tcase_add_loop_test (basic, fault_09_every_type_is_tracked, 0,
                       OVERLAP_TYPES);
  tcase_add_test (basic, where_is_the_first_of_the_mask);
  tcase_add_test (basic, ranges_cross_the_borders_of_windows);
  tcase_add_test (basic, a_gap_in_the_directory_is_not_all_marked);
  tcase_add_loop_test (basic, owners_met_are_reported_unless_allowed, 0,
                       OVERLAP_TYPES * OVERLAP_TYPES);
  tcase_add_test (basic,
                  fault_03_a_cluster_stays_marked_until_each_owner_left);
  tcase_add_loop_test (basic, fault_03_a_double_reference_is_counted_too, 0,
                       OVERLAP_TYPES);
  tcase_add_test (basic, a_claim_marks_all_or_nothing);
  tcase_add_test (basic, leaving_counts_what_was_not_marked);
  tcase_add_test (basic, fault_21_ranges_reach_the_end_of_all_numbers);
  tcase_add_test (basic, fault_20_a_far_entry_costs_two_nodes_and_a_run);
  tcase_add_test (basic, fault_25_a_check_needs_no_memory);
  tcase_add_test (basic, fault_27_a_large_range_is_a_few_pieces);
  tcase_add_test (basic, fault_19_a_window_is_emptied_and_filled_again);
  tcase_add_test (basic, fault_14_the_account_is_exact_after_100000_rounds);
  tcase_add_test (basic, pinned_marks_are_kept_with_no_memory_at_all);
  tcase_add_test (basic, the_self_check_sees_a_wrong_account);
  suite_add_tcase (s, basic);

  /* These make their own trackers. */
  tcase_set_timeout (limit, 300);
  tcase_add_loop_test (limit, fault_17_any_limit_works_and_pinned_marks_stay,
                       0, 4);
  tcase_add_test (limit, the_exact_limit_suffices_and_a_byte_less_does_not);
  tcase_add_test (limit,
                  fault_11_18_what_stays_is_right_and_each_notice_comes_once);
  tcase_add_test (limit, fault_12_a_window_that_left_stays_outside);
  tcase_add_test (limit,
                  fault_13_leaving_works_at_the_limit_and_gives_memory_back);
  tcase_add_test (limit, fault_16_a_notice_names_whole_windows_joined);
  tcase_add_test (limit, ranges_outside_are_remembered_in_bounded_memory);
  tcase_add_loop_test (limit, fault_15_22_any_allocation_may_fail, 0, 4);
  tcase_add_test (limit,
                  the_bytemap_cache_is_bounded_and_becomes_runs_again);
  tcase_add_test (limit, fault_28_a_dense_page_leaves_the_cache_and_returns);
  tcase_add_test (limit, the_limit_takes_pages_before_it_takes_marks);
  tcase_add_test (limit,
                  fault_23_24_the_page_updated_longest_ago_goes_first);
  tcase_add_test (limit, pinned_marks_of_a_page_survive_its_window);
  tcase_add_test (limit, the_limit_counts_what_the_allocator_gave);
  tcase_add_test (limit, a_page_with_many_classes_goes_back_to_runs);
  tcase_add_test (limit, a_full_dictionary_is_a_limit_like_any_other);
  tcase_add_test (limit, a_range_that_came_back_is_told_of_and_tracked);
  suite_add_tcase (s, limit);

  sr = srunner_create (s);
  srunner_run_all (sr, CK_ENV);
  failed = srunner_ntests_failed (sr);
  srunner_free (sr);
  return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
