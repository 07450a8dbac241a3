/* SPDX-License-Identifier: BSD-3-Clause */

/* Checks against updates, from several threads.  Most is gained from
 * this under ThreadSanitizer (configure --enable-tsan), but the answers
 * are compared, too: what is marked all the time is seen by each check,
 * what is never marked by none, and of those who claim one cluster only
 * one gets it.
 */

#include <config.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <check.h>

#include "overlap-internal.h"
#include "run-suite.h"

#define CHECKERS 3

/* Valgrind runs one thread at a time, and slowly. */
static unsigned
updates (void)
{
  return getenv ("QCOW2_VALGRIND") ? 1000 : 20000;
}

/* Clusters of each window: STEADY is marked, FREE never is, what lies
 * between comes and goes.
 */
#define WINDOWS 4u
#define STEADY 10u
#define CHURN 11u
#define CHURN_END 60u
#define FREE 60u

static struct overlap *o;
static atomic_bool done;
static _Atomic (uint64_t) wrong, checks;
static bool may_leave, unfence;

static uint64_t
at (unsigned window, unsigned cluster)
{
  return window * (uint64_t) OV_WINDOW + cluster;
}

static void *
check_all_the_time (void *opaque)
{
  unsigned w = (unsigned) (uintptr_t) opaque;
  struct overlap_answer a;
  uint64_t bad = 0, n = 0;

  /* Once at least, should all updates be over before this begins. */
  do {
    w = (w + 1) % WINDOWS;
    overlap_query (o, at (w, STEADY), 1, OVERLAP_ALL, &a);
    if (!(may_leave && a.outside))
      bad += a.any != OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK);
    overlap_query (o, at (w, FREE), 3, OVERLAP_ALL, &a);
    bad += a.any != 0;
    overlap_query (o, at (w, 0), FREE, OVERLAP_ALL, &a);
    bad += (a.any & ~(OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK)
                      | OVERLAP_BIT (OVERLAP_ACTIVE_L2)
                      | OVERLAP_BIT (OVERLAP_INACTIVE_L2))) != 0;
    bad += !overlap_hit (o, at (w, 0), OV_WINDOW,
                         OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK));
    bad += overlap_hit (o, at (w + 100, 0), OV_WINDOW, OVERLAP_ALL);
    /* These are for the sieve, if there is one. */
    bad += !overlap_hit (o, at (w, STEADY), 1, OVERLAP_ALL);
    bad += overlap_hit (o, at (w, FREE), 1, OVERLAP_ALL) && !may_leave;
    n++;
  } while (!atomic_load_explicit (&done, memory_order_relaxed));
  atomic_fetch_add (&wrong, bad);
  atomic_fetch_add (&checks, n);
  return NULL;
}

/* Let every update need membarrier, and no check have a fence. */
static void
take_back_fences (void)
{
  pthread_mutex_lock (&o->lock);
  if (!o->always_fenced)
    atomic_store (&o->fenced, 0);
  o->fences = 0;
  pthread_mutex_unlock (&o->lock);
}

static void *
update_all_the_time (void *opaque)
{
  unsigned me = (unsigned) (uintptr_t) opaque, i;
  enum overlap_type type = me ? OVERLAP_ACTIVE_L2 : OVERLAP_INACTIVE_L2;
  const unsigned n = updates ();

  for (i = 0; i < n; ++i) {
    unsigned w = i / 37 % WINDOWS, c = CHURN + i * 7 % (CHURN_END - CHURN);

    if (unfence)
      take_back_fences ();
    overlap_enter (o, type, at (w, c), 1, NULL);
    if (!overlap_hit (o, at (w, c), 1, OVERLAP_BIT (type)))
      atomic_fetch_add (&wrong, 1);
    if (i % 3)
      overlap_leave (o, type, at (w, c), 1);
    if (i % 1000 == 999)
      for (w = 0; w < WINDOWS; ++w)
        while (overlap_leave (o, type, at (w, CHURN), CHURN_END - CHURN)
               < CHURN_END - CHURN && !may_leave)
          ;
    if (i % 64 == 0)
      sched_yield ();
  }
  return NULL;
}

static void
race (uint64_t bitmap_size, uint64_t limit)
{
  struct overlap_config config = {
    .bitmap_size = bitmap_size, .total_limit = UINT64_MAX,
  };
  pthread_t checker[CHECKERS], updater[2];
  struct overlap_stats s;
  const char *why;
  unsigned i;

  o = overlap_new (&config);
  ck_assert_ptr_nonnull (o);
  atomic_store (&done, false);
  atomic_store (&wrong, 0);
  for (i = 0; i < WINDOWS; ++i)
    overlap_enter (o, OVERLAP_REFCOUNT_BLOCK, at (i, STEADY), 1, NULL);
  overlap_get_stats (o, &s);
  may_leave = limit != UINT64_MAX;
  if (may_leave)
    o->config.total_limit = s.used + limit;

  for (i = 0; i < CHECKERS; ++i)
    pthread_create (&checker[i], NULL, check_all_the_time,
                    (void *) (uintptr_t) i);
  for (i = 0; i < 2; ++i)
    pthread_create (&updater[i], NULL, update_all_the_time,
                    (void *) (uintptr_t) i);
  for (i = 0; i < 2; ++i)
    pthread_join (updater[i], NULL);
  atomic_store (&done, true);
  for (i = 0; i < CHECKERS; ++i)
    pthread_join (checker[i], NULL);
  ck_assert_uint_eq (wrong, 0);
  ck_assert_uint_gt (checks, 0);
  ck_assert_msg (overlap_verify (o, &why), "%s", why);
  overlap_free (o);
}

START_TEST (fault_29_checks_race_with_updates_of_runs)
{
  race (0, UINT64_MAX);
}
END_TEST

START_TEST (fault_29_checks_race_with_updates_of_pages)
{
  race (3 * sizeof (struct ov_page), UINT64_MAX);
}
END_TEST

/* The window is fenced anew for each update. */
START_TEST (fault_29_checks_without_fences_race_with_updates)
{
  unfence = true;
  race (_i ? 3 * sizeof (struct ov_page) : 0, UINT64_MAX);
}
END_TEST

START_TEST (checks_race_with_updates_of_pages)
{
  race (65536, UINT64_MAX);
}
END_TEST

/* The sieve goes while it is read, and comes back. */
static void *
take_the_sieve_away (void *opaque)
{
  (void) opaque;
  while (!atomic_load_explicit (&done, memory_order_relaxed)) {
    pthread_mutex_lock (&o->lock);
    ov_sieve_drop (o);
    ov_sieve_new (o);
    pthread_mutex_unlock (&o->lock);
    sched_yield ();
  }
  return NULL;
}

START_TEST (checks_race_with_the_end_of_the_sieve)
{
  struct overlap_config config = {
    .bitmap_size = 65536, .total_limit = UINT64_MAX,
  };
  pthread_t t;
  uint64_t i;

  o = overlap_new (&config);
  atomic_store (&done, false);
  overlap_enter (o, OVERLAP_ACTIVE_L1, at (0, STEADY), 1, NULL);
  pthread_create (&t, NULL, take_the_sieve_away, NULL);
  for (i = 0; i < updates () * 10; ++i) {
    ck_assert (overlap_hit (o, at (0, STEADY), 1, OVERLAP_ALL));
    ck_assert (!overlap_hit (o, at (0, FREE), 1, OVERLAP_ALL));
  }
  atomic_store (&done, true);
  pthread_join (t, NULL);
  overlap_free (o);
}
END_TEST

START_TEST (checks_race_with_windows_that_leave)
{
  race (_i & 1 ? 65536 : 0, _i & 2 ? 100 : 20);
}
END_TEST

/* A check that had looked into a window while it was outside, and asked
 * what is outside when the window had come back, said that nothing was
 * there.  On one processor it is interrupted just there now and then.
 */
static void *
look_for_the_mark (void *opaque)
{
  struct overlap_answer a;
  uint64_t bad = 0;

  (void) opaque;
  while (!atomic_load_explicit (&done, memory_order_relaxed)) {
    overlap_query (o, at (0, STEADY), 1, OVERLAP_ALL, &a);
    bad += !a.outside && a.any == OVERLAP_NONE;
    bad += !overlap_hit (o, at (0, STEADY), 1, OVERLAP_ALL);
    overlap_query (o, at (0, STEADY), 2, OVERLAP_ALL, &a);
    bad += !a.outside && a.any == OVERLAP_NONE;
  }
  atomic_fetch_add (&wrong, bad);
  return NULL;
}

static void
on_one_processor (void)
{
#ifdef __linux__
  cpu_set_t all, one;
  size_t i;

  if (sched_getaffinity (0, sizeof all, &all) != 0)
    return;
  for (i = 0; i < CPU_SETSIZE && !CPU_ISSET (i, &all); ++i)
    ;
  CPU_ZERO (&one);
  CPU_SET (i, &one);
  sched_setaffinity (0, sizeof one, &one);
#endif
}

START_TEST (checks_race_with_windows_that_come_back)
{
  struct overlap_config config = { .total_limit = UINT64_MAX };
  pthread_t t;
  unsigned i;

  on_one_processor ();
  o = overlap_new (&config);
  overlap_enter (o, OVERLAP_ACTIVE_L2, at (0, STEADY), 1, NULL);
  atomic_store (&done, false);
  atomic_store (&wrong, 0);
  ck_assert_int_eq (pthread_create (&t, NULL, look_for_the_mark, NULL), 0);
  for (i = 0; i < updates () / 200; ++i) {
    pthread_mutex_lock (&o->lock);
    ov_abandon (o, 0, NULL);
    ov_tell (o);
    pthread_mutex_unlock (&o->lock);
    sched_yield ();
    ck_assert (overlap_restore_begin (o));
    overlap_restore_enter (o, OVERLAP_ACTIVE_L2, at (0, STEADY), 1);
    ck_assert (overlap_restore_end (o, true));
    sched_yield ();
  }
  atomic_store (&done, true);
  pthread_join (t, NULL);
  ck_assert_uint_eq (wrong, 0);
  overlap_free (o);
}
END_TEST

/* The directory grows while it is read: what was entered is found. */
#define LEAF 32u                /* windows, OV_WAYS */
static _Atomic (uint64_t) entered;

static uint64_t
in_leaf (uint64_t number)
{
  return (number * LEAF + number % LEAF) * OV_WINDOW + 5;
}

static void *
look_for_all (void *opaque)
{
  struct overlap_answer a;
  uint64_t bad = 0, i = 0, n;

  (void) opaque;
  while (!atomic_load_explicit (&done, memory_order_relaxed)) {
    n = atomic_load_explicit (&entered, memory_order_acquire);
    i = i * 7 + 1;
    overlap_query (o, in_leaf (i % n), 1, OVERLAP_ALL, &a);
    bad += a.any == OVERLAP_NONE;
    overlap_query (o, in_leaf (n - 1), 1, OVERLAP_ALL, &a);
    bad += a.any == OVERLAP_NONE;
    overlap_query (o, in_leaf (n + 1) + 1, 1, OVERLAP_ALL, &a);
    bad += a.any != OVERLAP_NONE;
  }
  atomic_fetch_add (&wrong, bad);
  return NULL;
}

START_TEST (checks_race_with_leaves_of_the_directory)
{
  struct overlap_config config = { .total_limit = UINT64_MAX };
  pthread_t t;
  uint64_t i;

  o = overlap_new (&config);
  overlap_enter (o, OVERLAP_ACTIVE_L2, in_leaf (0), 1, NULL);
  atomic_store (&entered, 1);
  atomic_store (&done, false);
  atomic_store (&wrong, 0);
  ck_assert_int_eq (pthread_create (&t, NULL, look_for_all, NULL), 0);
  for (i = 1; i < 5000; ++i) {
    overlap_enter (o, OVERLAP_ACTIVE_L2, in_leaf (i), 1, NULL);
    atomic_store_explicit (&entered, i + 1, memory_order_release);
  }
  atomic_store (&done, true);
  pthread_join (t, NULL);
  ck_assert_uint_eq (wrong, 0);
  overlap_free (o);
}
END_TEST

/* Each thread claims the same clusters in the same order. */
static _Atomic (uint64_t) won;

static void *
claim_all (void *opaque)
{
  uint64_t c, mine = 0;

  (void) opaque;
  for (c = 0; c < 5000; ++c)
    mine += overlap_claim (o, OVERLAP_ACTIVE_L2, c * 3, 2, NULL) == 0;
  atomic_fetch_add (&won, mine);
  return NULL;
}

START_TEST (one_of_many_claims_wins)
{
  struct overlap_config config = {
    .bitmap_size = 65536, .total_limit = UINT64_MAX,
  };
  pthread_t t[4];
  unsigned i;

  o = overlap_new (&config);
  for (i = 0; i < 4; ++i)
    pthread_create (&t[i], NULL, claim_all, NULL);
  for (i = 0; i < 4; ++i)
    pthread_join (t[i], NULL);
  ck_assert_uint_eq (won, 5000);
  ck_assert_uint_eq (overlap_leave (o, OVERLAP_ACTIVE_L2, 0, 15000), 5000);
  ck_assert (!overlap_hit (o, 0, 15000, OVERLAP_ALL));
  overlap_free (o);
}
END_TEST

/* More checks at once than there are places for readers. */
static void *
hold_a_place (void *opaque)
{
  struct overlap_answer a;
  unsigned i;

  (void) opaque;
  for (i = 0; i < 200; ++i) {
    overlap_query (o, at (0, STEADY), 1, OVERLAP_ALL, &a);
    if (a.any != OVERLAP_BIT (OVERLAP_ACTIVE_L1))
      atomic_fetch_add (&wrong, 1);
    sched_yield ();
  }
  return NULL;
}

START_TEST (there_may_be_more_threads_than_places)
{
  struct overlap_config config = { .total_limit = UINT64_MAX };
  pthread_t t[100];
  unsigned i;

  o = overlap_new (&config);
  overlap_enter (o, OVERLAP_ACTIVE_L1, at (0, STEADY), 1, NULL);
  atomic_store (&wrong, 0);
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (pthread_create (&t[i], NULL, hold_a_place, NULL), 0);
  for (i = 0; i < 100; ++i)
    pthread_join (t[i], NULL);
  ck_assert_uint_eq (wrong, 0);
  overlap_free (o);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-threads");
  TCase *tc = tcase_create ("threads");

  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, fault_29_checks_race_with_updates_of_runs);
  tcase_add_test (tc, fault_29_checks_race_with_updates_of_pages);
  tcase_add_loop_test (tc, fault_29_checks_without_fences_race_with_updates,
                       0, 2);
  tcase_add_test (tc, checks_race_with_updates_of_pages);
  tcase_add_test (tc, checks_race_with_the_end_of_the_sieve);
  tcase_add_loop_test (tc, checks_race_with_windows_that_leave, 0, 4);
  tcase_add_test (tc, checks_race_with_windows_that_come_back);
  tcase_add_test (tc, one_of_many_claims_wins);
  tcase_add_test (tc, checks_race_with_leaves_of_the_directory);
  tcase_add_test (tc, there_may_be_more_threads_than_places);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
