/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker gets back what had to leave: the hysteresis, what is told,
 * and a model with updates, short memory and stale answers of the walk
 * while ranges are rebuilt.  The windows are tiny here.
 *
 * OVERLAP_MODEL_OPS and OVERLAP_MODEL_SEED as in test-overlap-model.c.
 */

#include <config.h>

#include <inttypes.h>
#include <string.h>

#include "overlap-test.h"

/* Each cluster has no owner, or one; inactive L2 tables have as many as
 * this array says and are not changed.
 */
#define CLUSTERS (48 * OV_WINDOW)
static int owner[CLUSTERS];     /* a type, or -1 */
static unsigned old_owners[CLUSTERS];

static uint64_t state;

static uint64_t
rnd (uint64_t below)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * UINT64_C (2685821657736338717) >> 16) % below;
}

static void
no_owners (void)
{
  uint64_t i;

  for (i = 0; i < CLUSTERS; ++i) {
    owner[i] = -1;
    old_owners[i] = 0;
  }
}

static overlap_set
truth (uint64_t i)
{
  return (owner[i] < 0 ? 0 : BIT ((unsigned) owner[i]))
    | (old_owners[i] ? BIT (OLD_L2) : 0);
}

/* What the walk meets of one cluster. */
static void
meet (uint64_t i, int type)
{
  unsigned k;

  if (type >= 0)
    overlap_restore_enter (o, (enum overlap_type) type, i, 1);
  for (k = 0; k < old_owners[i]; ++k)
    overlap_restore_enter (o, OLD_L2, i, 1);
}

static bool
rebuild (void)
{
  uint64_t i;

  if (!overlap_restore_begin (o))
    return false;
  for (i = 0; i < CLUSTERS; ++i)
    meet (i, owner[i]);
  return overlap_restore_end (o, true);
}

/* Everything inside is as it is, everything outside was told of. */
static void
compare_all (void)
{
  static bool out[CLUSTERS / OV_WINDOW];
  uint64_t i, k, wrong = CLUSTERS;
  struct overlap_answer a;

  memset (out, 0, sizeof out);
  for (i = 0; i < n_told; ++i)
    for (k = told[i].first / OV_WINDOW;
         k < (told[i].first + told[i].count) / OV_WINDOW
           && k < CLUSTERS / OV_WINDOW; ++k) {
      ck_assert_int_eq (out[k], told[i].restored);
      out[k] = !told[i].restored;
    }
  for (i = 0; i < CLUSTERS && wrong == CLUSTERS; ++i) {
    overlap_query (o, i, 1, OVERLAP_ALL, &a);
    if (a.outside != out[i / OV_WINDOW]
        || (!a.outside && a.any != truth (i))
        || ((truth (i) & OV_PINNED) && !(a.any & truth (i))))
      wrong = i;
  }
  ck_assert_msg (wrong == CLUSTERS, "cluster %" PRIu64, wrong);
  verify ();
}

static void
put (uint64_t i, enum overlap_type type)
{
  owner[i] = (int) type;
  overlap_enter (o, type, i, 1, NULL);
}

/* Tables in every window, and a limit that takes most of them out. */
static void
crowded (uint64_t *full)
{
  uint64_t i;

  no_owners ();
  start (0, UINT64_MAX);
  put (0, OVERLAP_MAIN_HEADER);
  for (i = 1; i < CLUSTERS; ++i)
    if (i % 3 == 0)
      put (i, i % 2 ? L2 : BLOCK);
    else if (i % 7 == 0) {
      old_owners[i] = 1 + i % 2;
      overlap_enter (o, OLD_L2, i, 1, NULL);
      if (i % 2)
        overlap_enter (o, OLD_L2, i, 1, NULL);
    }
  ov_sieve_drop (o);
  *full = used ();
  overlap_free (o);

  start (0, *full / 2);
  for (i = 0; i < CLUSTERS; ++i) {
    unsigned k;

    if (owner[i] >= 0)
      overlap_enter (o, (enum overlap_type) owner[i], i, 1, NULL);
    for (k = 0; k < old_owners[i]; ++k)
      overlap_enter (o, OLD_L2, i, 1, NULL);
  }
  ck_assert_uint_gt (n_told, 0);
  compare_all ();
}

/* Ask until nothing is outside. */
static void
rebuild_all (void)
{
  struct overlap_stats s;
  unsigned i;

  for (i = 0; i < 20000; ++i) {
    overlap_get_stats (o, &s);
    if (s.outside_windows == 0)
      break;
    rebuild ();
  }
  ck_assert_uint_eq (s.outside_windows, 0);
  compare_all ();
}

/* Room for all: everything comes back, and is told of. */
START_TEST (all_comes_back_when_there_is_room)
{
  uint64_t full, i;

  crowded (&full);
  ov_set_limit (o, 2 * full);
  rebuild_all ();
  for (i = 0; i < CLUSTERS; ++i)
    for (; old_owners[i] > 0; --old_owners[i])
      leave (OLD_L2, i, 1);
  compare_all ();
  finish ();
}
END_TEST

/* A bit of room is no reason to begin; and what comes back leaves an
 * eighth of the limit free, so that it does not leave at once.
 */
START_TEST (there_is_hysteresis)
{
  uint64_t full, limit, told_before, tries = 0, i, before;
  struct overlap_stats s;

  crowded (&full);
  overlap_get_stats (o, &s);
  before = s.outside_windows;
  told_before = n_told;
  /* A fifth is free, which is room for all that a beginning needs if the
   * tracker is not too small; it is asked longer than it would wait to
   * try again.
   */
  ov_set_limit (o, UINT64_MAX);
  for (i = 0; i < CLUSTERS; ++i)
    overlap_enter (o, i % 2 ? L2 : BLOCK, CLUSTERS + 3 * i, 1, NULL);
  ck_assert_uint_gt (used () / 4, sizeof (struct ov_restore) + 64);
  ov_set_limit (o, used () + used () / 4);
  for (i = 0; i < 10000 && !overlap_restore_begin (o); ++i)
    ;
  ck_assert_uint_eq (i, 10000);
  for (i = 0; i < CLUSTERS; ++i)
    leave (i % 2 ? L2 : BLOCK, CLUSTERS + 3 * i, 1);
  overlap_get_stats (o, &s);

  limit = s.used * 3 / 2 + sizeof (struct ov_restore);
  ov_set_limit (o, limit);
  for (i = 0; i < 1000; ++i)
    if (overlap_restore_begin (o)) {
      uint64_t k;

      ++tries;
      for (k = 0; k < CLUSTERS; ++k)
        meet (k, owner[k]);
      overlap_restore_end (o, true);
      ck_assert_uint_le (used (), limit - limit / 8);
      compare_all ();
    }
  overlap_get_stats (o, &s);
  ck_assert_uint_lt (s.outside_windows, before);
  ck_assert_uint_gt (s.outside_windows, 0);
  ck_assert_uint_gt (n_told, told_before);
  /* Hopeless tries are rare, and nothing went back and forth. */
  ck_assert_uint_le (tries, 12);
  for (i = told_before; i < n_told; ++i)
    ck_assert (told[i].restored);
  finish ();
}
END_TEST

/* The walk could not read a table. */
START_TEST (a_walk_that_fails_changes_nothing)
{
  uint64_t full, i;
  unsigned before;

  crowded (&full);
  before = n_told;
  ov_set_limit (o, UINT64_MAX);
  ck_assert (overlap_restore_begin (o));
  ck_assert (!overlap_restore_begin (o));
  for (i = 0; i < CLUSTERS / 2; ++i)
    meet (i, owner[i]);
  ck_assert (!overlap_restore_end (o, false));
  ck_assert_uint_eq (n_told, before);
  compare_all ();
  finish ();
}
END_TEST

/* Nothing is believed before the end. */
START_TEST (what_is_being_rebuilt_is_outside)
{
  struct overlap_answer a;
  uint64_t full, at;

  crowded (&full);
  ov_set_limit (o, UINT64_MAX);
  ck_assert (overlap_restore_begin (o));
  for (at = 0; at < CLUSTERS; ++at) {
    overlap_query (o, at, 1, OVERLAP_ALL, &a);
    if (a.outside)
      break;
  }
  ck_assert_uint_lt (at, CLUSTERS);
  overlap_restore_enter (o, L2, at, 1);
  overlap_query (o, at, 1, OVERLAP_ALL, &a);
  ck_assert (a.outside);
  overlap_restore_end (o, false);
  finish ();
}
END_TEST

/* More marks taken back than are remembered. */
START_TEST (too_many_updates_end_the_rebuilding)
{
  uint64_t full, i;

  crowded (&full);
  ov_set_limit (o, UINT64_MAX);
  ck_assert (overlap_restore_begin (o));
  for (i = 1; i < CLUSTERS; ++i) {
    meet (i, owner[i]);
    if (owner[i] >= 0 && owner[i] != BLOCK) {
      overlap_leave (o, (enum overlap_type) owner[i], i, 1);
      owner[i] = -1;
    }
  }
  ck_assert (!overlap_restore_end (o, true));
  compare_all ();
  /* It is tried again, after a while. */
  for (i = 0; i < 200 && !rebuild (); ++i)
    ;
  ck_assert_uint_gt (i, 3);
  ck_assert_uint_lt (i, 200);
  compare_all ();
  finish ();
}
END_TEST

/* Let each allocation of a rebuilding fail in turn. */
START_TEST (any_allocation_may_fail_meanwhile)
{
  uint64_t n, full;
  bool back;

  for (n = 1; ; n += n < 60 ? 1 : 17) {
    crowded (&full);
    ov_set_limit (o, 4 * full);
    ov_fail_alloc (n, _i);
    back = rebuild ();
    ov_fail_alloc (0, false);
    compare_all ();
    rebuild_all ();
    finish ();
    if (back && n > 400)
      break;
    ck_assert_uint_lt (n, 20000);
  }
}
END_TEST

/* With no memory at all, marks that must not leave are kept in a list;
 * they go back to their windows.
 */
START_TEST (kept_marks_go_back_to_their_windows)
{
  no_owners ();
  setup ();
  ov_fail_alloc (1, true);
  put (5, OVERLAP_ACTIVE_L1);
  put (6, OVERLAP_ACTIVE_L1);
  put (OV_WINDOW + 1, OVERLAP_REFCOUNT_TABLE);
  put (7, L2);
  ck_assert (!rebuild ());
  ov_fail_alloc (0, false);
  ck_assert_uint_gt (o->n_kept, 0);
  rebuild_all ();
  ck_assert_uint_eq (o->n_kept, 0);
  leave (OVERLAP_ACTIVE_L1, 5, 2);
  ck_assert_uint_eq (ask (5, 2).any, 0);
  finish ();
}
END_TEST

/*----------------------------------------------------------------------
 * The model.
 */

static void
random_update (void)
{
  uint64_t i = rnd (CLUSTERS - 1) + 1;
  static const enum overlap_type types[] = {
    L2, L2, BLOCK, BLOCK, OVERLAP_REFCOUNT_TABLE,
  };
  enum overlap_type type = types[rnd (5)];

  if (rnd (30) == 0)
    ov_fail_alloc (rnd (3) + 1, rnd (2));
  if (owner[i] >= 0) {
    ck_assert_uint_eq (overlap_leave (o, (enum overlap_type) owner[i], i, 1),
                       0);
    owner[i] = -1;
  }
  else if (old_owners[i] == 0) {
    ck_assert_uint_eq (overlap_claim (o, type, i, 1, NULL), 0);
    owner[i] = (int) type;
  }
  ov_fail_alloc (0, false);
}

/* What was read a while ago is entered after updates. */
static bool
fuzzy_rebuild (unsigned updates)
{
  enum { BATCH = 16 };
  int stale[BATCH];
  uint64_t i, k;

  if (!overlap_restore_begin (o))
    return false;
  for (i = 0; i < CLUSTERS; i += BATCH) {
    for (k = 0; k < BATCH; ++k)
      stale[k] = owner[i + k];
    for (k = 0; k < updates; ++k)
      if (rnd (40) == 0)
        random_update ();
    for (k = 0; k < BATCH; ++k)
      meet (i + k, stale[k]);
    if (rnd (8) == 0)           /* met twice */
      for (k = 0; k < BATCH; ++k)
        if (owner[i + k] >= 0)
          overlap_restore_enter (o, (enum overlap_type) owner[i + k], i + k,
                                 1);
    if (i % 256 == 0)
      verify ();
  }
  return overlap_restore_end (o, rnd (10) > 0);
}

START_TEST (a_model_with_updates)
{
  const char *env = getenv ("OVERLAP_MODEL_OPS");
  uint64_t rounds = (env ? strtoull (env, NULL, 10) : 1000000) / 25000;
  uint64_t full, round, i, back = 0;

  if (getenv ("QCOW2_VALGRIND"))
    rounds = rounds / 10 + 2;
  env = getenv ("OVERLAP_MODEL_SEED");
  state = (env ? strtoull (env, NULL, 10) : 1ull) * 77777u + (unsigned) _i;
  for (round = 0; round < rounds; ++round) {
    crowded (&full);
    for (i = 0; i < 40; ++i) {
      ov_set_limit (o, rnd (4) ? full / 2 + rnd (full * 2)
                    : rnd (2) ? UINT64_MAX : full / 3);
      back += fuzzy_rebuild ((unsigned) rnd (4) * (_i ? 8u : 1u));
      compare_all ();
      if (n_told > 3000)
        break;
    }
    finish ();
  }
  ck_assert_uint_gt (back, rounds / 2);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-restore");
  TCase *tc = tcase_create ("restore");

  tcase_set_timeout (tc, 0);
  tcase_add_test (tc, all_comes_back_when_there_is_room);
  tcase_add_test (tc, there_is_hysteresis);
  tcase_add_test (tc, a_walk_that_fails_changes_nothing);
  tcase_add_test (tc, what_is_being_rebuilt_is_outside);
  tcase_add_test (tc, too_many_updates_end_the_rebuilding);
  tcase_add_loop_test (tc, any_allocation_may_fail_meanwhile, 0, 2);
  tcase_add_test (tc, kept_marks_go_back_to_their_windows);
  tcase_add_loop_test (tc, a_model_with_updates, 0, 2);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
