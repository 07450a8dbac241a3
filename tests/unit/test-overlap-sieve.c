/* SPDX-License-Identifier: BSD-3-Clause */

/* The sieve of the tracker: what it knows, how large it is, and when it is
 * made anew or goes.  Where there is no membarrier(2) there is none, and
 * these tests are left out.
 */

#include <config.h>

#include <stdio.h>

#include "overlap-fast.h"
#include "overlap-test.h"

#define SPAN (16 * (uint64_t) OV_WINDOW)
#define PLACE (SPAN / 2 + 1000)

static uint64_t state;

static uint64_t
rnd (uint64_t below)
{
  state = state * UINT64_C (6364136223846793005)
    + UINT64_C (1442695040888963407);
  return (state >> 20) % below;
}

static struct ov_sieve *
sieve (void)
{
  return (struct ov_sieve *) atomic_load (&o->sieve);
}

static bool
knows (uint64_t first, uint64_t count)
{
  const bool yes = ov_sieve_free_of (o, first, count);

  if (count == 1) {
    ck_assert (ov_sieve_free_one (o, first) == yes);
    ck_assert (overlap_hit_one (o, first, OVERLAP_ALL)
               == overlap_hit (o, first, 1, OVERLAP_ALL));
  }
  return yes;
}

/* This thread has its place after a check that had to look further. */
static void
begin (uint64_t bitmap_size, uint64_t limit)
{
  state = 1;
  start (bitmap_size, limit);
  enter (L2, 0, 1);
  ck_assert (overlap_hit (o, 0, 1, OVERLAP_ALL));
}

static void
enter_at_random (unsigned n, uint64_t *cluster)
{
  unsigned i;

  for (i = 0; i < n; ++i) {
    cluster[i] = 1 + rnd (SPAN - 1);
    overlap_enter (o, L2, cluster[i], 1, NULL);
  }
}

/* Of 1000 random clusters, how many does it know to be free? */
static unsigned
known (void)
{
  unsigned i, n = 0;

  for (i = 0; i < 1000; ++i)
    n += knows (1 + rnd (SPAN - 1), 1);
  return n;
}

/* It may say less than is so, but most of it, and never more; however many
 * marks there are.
 */
START_TEST (most_of_what_is_free_is_known)
{
  static const unsigned numbers[] = { 1, 10, 100, 2576, 40000 };
  const unsigned n = numbers[_i];
  uint64_t *cluster = calloc (n, sizeof *cluster);
  unsigned i;

  ck_assert_ptr_nonnull (cluster);
  begin (0, UINT64_MAX);
  enter_at_random (n, cluster);
  for (i = 0; i < n; ++i) {
    ck_assert (!knows (cluster[i], 1));
    ck_assert (!knows (cluster[i] - 1, 2));
    ck_assert (!knows (cluster[i], OV_WINDOW));
  }
  ck_assert_uint_ge (known (), 750);
  free (cluster);
  finish ();
}
END_TEST

/* And it takes no more than is said of it: with malloc's header, at most
 * RATIO * 2 bits a mark.
 */
START_TEST (it_is_as_long_as_there_are_marks)
{
  static uint64_t cluster[40000];
  struct overlap_stats s;

  begin (0, UINT64_MAX);
  overlap_get_stats (o, &s);
  ck_assert_uint_le (s.sieve_bytes, 320);
  enter_at_random (40000, cluster);
  overlap_get_stats (o, &s);
  ck_assert_uint_ge (s.sieve_bytes, 40000 * 4 / 8);
  ck_assert_uint_le (s.sieve_bytes, 40000 * 10 / 8 + 64);
  finish ();
}
END_TEST

START_TEST (an_update_is_seen_at_once)
{
  const bool claims = _i;

  begin (0, UINT64_MAX);
  ck_assert (knows (PLACE, 1));
  if (claims)
    ck_assert_uint_eq (overlap_claim (o, BLOCK, PLACE, 3, NULL), 0);
  else
    enter (BLOCK, PLACE, 3);
  ck_assert (!knows (PLACE, 1) && !knows (PLACE + 2, 1));
  ck_assert (overlap_hit (o, PLACE + 2, 1, OVERLAP_ALL));
  ck_assert (!overlap_hit (o, PLACE + 3, 1, OVERLAP_ALL));
  leave (BLOCK, PLACE, 3);
  ck_assert (!overlap_hit (o, PLACE + 2, 1, OVERLAP_ALL));
  /* All there is, and more. */
  enter (BLOCK, SPAN, 3 * SPAN);
  ck_assert (!knows (SPAN + 777, 1) && !knows (4 * SPAN - 1, 1));
  ck_assert (overlap_hit (o, 4 * SPAN - 1, 1, OVERLAP_ALL));
  finish ();
}
END_TEST

/* Ranges of several groups, and such as are no range. */
START_TEST (a_range_is_known_if_all_of_it_is)
{
  uint64_t group, i;

  begin (0, UINT64_MAX);
  group = UINT64_C (1) << sieve ()->shift;
  enter (L2, 70 * group, 1);
  for (i = 64; i < 70; ++i)
    ck_assert (knows (i * group, (70 - i) * group));
  for (i = 64; i <= 70; ++i)
    ck_assert (!knows (i * group, (70 - i) * group + 1));
  ck_assert (!knows (71 * group - 1, 1) && knows (71 * group, 1));
  ck_assert (knows (71 * group, 57 * group));
  ck_assert (!knows (71 * group, 57 * group + 1)); /* two words */
  ck_assert (!overlap_hit (o, 71 * group, 57 * group + 1, OVERLAP_ALL));
  ck_assert (!knows (100 * group, UINT64_MAX));
  ck_assert (!knows (100 * group, SPAN * 1024));
  ck_assert (overlap_hit (o, 100 * group, UINT64_MAX, OVERLAP_ALL)
             == overlap_hit (o, 100 * group, UINT64_MAX - 100 * group,
                             OVERLAP_ALL));
  finish ();
}
END_TEST

/* Marks come and go all over the file: the bits of those that went must not
 * stay for ever, or nothing would be known any more.
 */
START_TEST (it_is_made_anew_when_it_is_full)
{
  static uint64_t cluster[500];
  unsigned i, k;

  begin (0, UINT64_MAX);
  for (k = 0; k < 100; ++k) {
    enter_at_random (500, cluster);
    for (i = 0; i < 500; ++i)
      overlap_leave (o, L2, cluster[i], 1);
  }
  ck_assert_uint_ge (known (), 750);
  ck_assert_uint_le (sieve ()->mask, 500 * 10);
  finish ();
}
END_TEST

/* A mark that leaves and comes back is no reason to make it anew. */
START_TEST (what_comes_back_costs_nothing)
{
  const struct ov_sieve *before;
  static uint64_t cluster[500];
  unsigned i, k;

  begin (0, UINT64_MAX);
  enter_at_random (500, cluster);
  before = sieve ();
  for (k = 0; k < 100; ++k)
    for (i = 0; i < 500; ++i) {
      overlap_leave (o, L2, cluster[i], 1);
      overlap_enter (o, L2, cluster[i], 1, NULL);
    }
  ck_assert_ptr_eq (sieve (), before);
  finish ();
}
END_TEST

/* A table at the end of a hostile file makes no group larger. */
START_TEST (a_mark_far_away_is_one_bit)
{
  static uint64_t cluster[2000];
  const uint64_t far = UINT64_MAX / 4;
  unsigned i;

  begin (0, UINT64_MAX);
  for (i = 0; i < 5; ++i)
    enter (L2, far - i * (far / 7), 1);
  enter_at_random (2000, cluster);
  ck_assert_uint_ge (known (), 750);
  for (i = 0; i < 5; ++i)
    ck_assert (!knows (far - i * (far / 7), 1));
  finish ();
}
END_TEST

/* Marks in pages are no less marks when it is made anew. */
START_TEST (pages_are_in_it)
{
  static uint64_t cluster[2000];
  struct overlap_stats s;
  unsigned i;

  begin (65536, UINT64_MAX);
  for (i = 0; i < 100; ++i) {
    enter (L2, 5000 + i, 1);
    leave (L2, 5000 + i, 1);
    enter (BLOCK, 5000 + i, 1);
  }
  overlap_get_stats (o, &s);
  ck_assert_uint_gt (s.bytemap_bytes, 0);
  pthread_mutex_lock (&o->lock);
  ov_sieve_new (o);
  pthread_mutex_unlock (&o->lock);
  verify ();
  for (i = 0; i < 100; ++i)
    ck_assert (!knows (5000 + i, 1));
  enter_at_random (2000, cluster);
  finish ();
}
END_TEST

/* Marks that wait until all are there, as when an image is opened. */
START_TEST (opening_makes_it_once)
{
  struct overlap_stats s;
  unsigned i;

  begin (0, UINT64_MAX);
  overlap_hold_notices (o, true);
  for (i = 0; i < 20000; ++i)
    overlap_enter (o, L2, 1 + rnd (SPAN - 1), 1, NULL);
  overlap_hold_notices (o, false);
  overlap_get_stats (o, &s);
  ck_assert_uint_ge (s.sieve_bytes, 20000 * 5 / 8);
  ck_assert_uint_le (s.sieve_bytes, 20000 * 10 / 8 + 64);
  ck_assert_uint_ge (known (), 750);
  finish ();
}
END_TEST

START_TEST (it_is_the_first_to_go)
{
  struct overlap_stats s;
  uint64_t i;

  begin (0, UINT64_MAX);
  overlap_get_stats (o, &s);
  overlap_free (o);
  start (0, s.fixed_bytes + s.sieve_bytes); /* an eighth is to be left */
  ck_assert_ptr_null (sieve ());
  overlap_free (o);

  begin (0, 2 * s.used);
  ck_assert_ptr_nonnull (sieve ());
  for (i = 1; n_told == 0; ++i) {
    overlap_get_stats (o, &s);
    ck_assert_uint_le (s.used, o->config.total_limit);
    overlap_enter (o, i % 2 ? L2 : BLOCK, i * 7919 % OV_WINDOW, 1, NULL);
    if (!sieve ())
      break;
  }
  ck_assert_uint_eq (n_told, 0);
  ck_assert_ptr_null (sieve ());
  ck_assert (overlap_hit (o, 7919, 1, OVERLAP_ALL));
  finish ();
}
END_TEST

/* What it knew to be free, and then left the tracker; and comes back. */
START_TEST (there_is_none_while_anything_is_outside)
{
  begin (0, UINT64_MAX);
  ck_assert (knows (640, 1) || knows (100000, 1));
  ov_fail_alloc (1, true);
  overlap_enter (o, L2, 3 * (uint64_t) OV_WINDOW, 1, NULL);
  overlap_enter (o, L2, 300, 1, NULL);
  ov_fail_alloc (0, false);
  ck_assert_uint_gt (n_told, 0);
  ck_assert_ptr_null (sieve ());
  ov_sieve_new (o);
  ck_assert_ptr_null (sieve ());
  ck_assert (overlap_hit (o, 3 * (uint64_t) OV_WINDOW + 64, 1, OVERLAP_ALL));
  while (ask (3 * (uint64_t) OV_WINDOW, 1).outside || ask (0, 1).outside) {
    ck_assert (overlap_restore_begin (o));
    overlap_restore_enter (o, L2, 3 * (uint64_t) OV_WINDOW, 1);
    overlap_restore_enter (o, L2, 300, 1);
    overlap_restore_enter (o, L2, 0, 1);
    overlap_restore_end (o, true);
  }
  ck_assert_ptr_nonnull (sieve ());
  ck_assert (!knows (300, 1) && !knows (0, 1));
  ck_assert (!knows (3 * (uint64_t) OV_WINDOW, 1));
  finish ();
}
END_TEST

static bool
have_sieve (void)
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
  Suite *s = suite_create ("overlap-sieve");
  TCase *tc = tcase_create ("overlap-sieve");

  if (!have_sieve ()) {
    puts ("SKIP: membarrier(2) is not to be had here");
    return 77;
  }
  tcase_add_loop_test (tc, most_of_what_is_free_is_known, 0, 5);
  tcase_add_test (tc, it_is_as_long_as_there_are_marks);
  tcase_add_loop_test (tc, an_update_is_seen_at_once, 0, 2);
  tcase_add_test (tc, a_range_is_known_if_all_of_it_is);
  tcase_add_test (tc, it_is_made_anew_when_it_is_full);
  tcase_add_test (tc, what_comes_back_costs_nothing);
  tcase_add_test (tc, a_mark_far_away_is_one_bit);
  tcase_add_test (tc, pages_are_in_it);
  tcase_add_test (tc, opening_makes_it_once);
  tcase_add_test (tc, it_is_the_first_to_go);
  tcase_add_test (tc, there_is_none_while_anything_is_outside);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
