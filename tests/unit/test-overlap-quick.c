/* SPDX-License-Identifier: BSD-3-Clause */

/* The usual update has a way of its own (overlap-quick.c).  Whatever it
 * does, the general way does the same: two trackers get the same updates,
 * one the usual way where it can be gone, the other never, and their lists
 * are compared piece by piece.
 */

#include <config.h>

#include <pthread.h>
#include <string.h>

#include "overlap-fast.h"
#include "overlap-test.h"

#define CLUSTERS (OV_PAGE * 2)
#define ROUNDS 16384u
#define MOST 1024u              /* marks at a time */

static struct overlap *other;   /* goes the general way */
static uint64_t state;

/* A list grows to so many marks, a part of which touch each other, and
 * shrinks again.
 */
static struct {
  uint64_t cluster;
  enum overlap_type type;
} mark[MOST];
static unsigned n_marks;
static uint64_t n_quick;

static uint32_t
rnd (uint32_t below)
{
  state = state * UINT64_C (6364136223846793005) + 1442695040888963407;
  return (uint32_t) (state >> 33) % below;
}

static void
general (struct overlap *t, bool comes, enum overlap_type type,
         uint64_t cluster)
{
  struct ov_edit e = { .what = comes ? OV_ENTER : OV_LEAVE, .type = type };

  pthread_mutex_lock (&t->lock);
  ov_update_window (t, cluster, cluster + 1, &e);
  pthread_mutex_unlock (&t->lock);
  if (e.missing > 0)
    ck_abort_msg ("a mark was missing");
}

static void
both_ways (bool comes, enum overlap_type type, uint64_t cluster)
{
  bool done;

  pthread_mutex_lock (&o->lock);
  done = comes ? ov_quick_enter (o, type, cluster)
    : ov_quick_leave (o, type, cluster);
  pthread_mutex_unlock (&o->lock);
  if (done)
    n_quick++;
  else
    general (o, comes, type, cluster);
  general (other, comes, type, cluster);
}

static const struct ov_runs *
list_of (const struct overlap *t)
{
  ov_slot *slot = ov_dir_find (t, 0);

  return slot ? (const struct ov_runs *) atomic_load (slot) : NULL;
}

static struct ov_piece pieces[2][CLUSTERS];
static unsigned n_pieces;

static int
note (void *opaque, struct ov_piece piece)
{
  struct ov_piece *to = opaque;

  to[n_pieces++] = piece;
  return 0;
}

/* Check writes to a file at each of its assertions: do not ask it often. */
static void
compare (void)
{
  const struct ov_runs *a = list_of (o), *b = list_of (other);
  unsigned n, i;

  ck_assert (o->runs == other->runs && (a == NULL) == (b == NULL));
  if (!a)
    return;
  ck_assert (a->units == b->units && a->chunk_bits == b->chunk_bits
             && a->kind_bits == b->kind_bits);
  n_pieces = 0;
  ov_runs_each (a, note, pieces[0]);
  n = n_pieces;
  n_pieces = 0;
  ov_runs_each (b, note, pieces[1]);
  for (i = 0; i < n; ++i)
    if (pieces[0][i].start != pieces[1][i].start
        || pieces[0][i].kind != pieces[1][i].kind)
      break;
  ck_assert (n_pieces == n && i == n);
}

static void
come (uint32_t clusters)
{
  static const enum overlap_type types[] = { L2, L2, BLOCK, OLD_L2 };

  mark[n_marks].cluster = rnd (clusters);
  mark[n_marks].type = types[rnd (4)];
  both_ways (true, mark[n_marks].type, mark[n_marks].cluster);
  n_marks++;
}

static void
go (void)
{
  const unsigned i = rnd (n_marks);

  both_ways (false, mark[i].type, mark[i].cluster);
  mark[i] = mark[--n_marks];
}

/* In all of a window, in pieces of many bits; and in a few clusters, where
 * most touch others or have two owners.
 */
START_TEST (usual_updates_leave_lists_as_general_ones_do)
{
  const uint32_t clusters = _i % 2 ? 300 : CLUSTERS;
  struct overlap_config config = {
    .cluster_bits = _i < 2 ? 16 : 9, .total_limit = UINT64_MAX,
  };
  uint64_t n = 0;

  state = (uint64_t) _i;
  overlap_free (o);
  o = overlap_new (&config);
  other = overlap_new (&config);
  ck_assert (o && other);
  n_marks = 0;
  n_quick = 0;
  while (n < ROUNDS || n_marks > 0) {
    const bool growing = n < ROUNDS && n / MOST % 4 < 2;

    if (n_marks == 0 || (n_marks < MOST && rnd (8) < (growing ? 6 : 2)))
      come (clusters);
    else
      go ();
    if (++n % 32 == 0)
      compare ();
    if (n % 512 == 0)
      verify ();
  }
  compare ();
  ck_assert_uint_gt (n_quick, _i % 2 ? n / 20 : n / 2);
  overlap_free (other);
}
END_TEST

/* Lists of up to 255 pieces have an index of bytes, whatever the room that
 * is left in their blocks.  (There is some for a piece more only where there
 * was no memory for other chunks, and eight there are.)
 */
START_TEST (an_index_of_bytes_does_not_overflow)
{
  unsigned i;
  bool done;

  overlap_hold_notices (o, true);
  for (i = 0; i < 30; ++i)
    overlap_enter (o, L2, 3 * i, 1, NULL);
  overlap_hold_notices (o, false);
  for (; i < 300; ++i) {
    ck_assert_uint_eq (list_of (o)->chunk_bits, OV_WINDOW_BITS - 3);
    ov_fail_alloc (1, true);
    pthread_mutex_lock (&o->lock);
    done = ov_quick_enter (o, L2, 3 * i);
    pthread_mutex_unlock (&o->lock);
    ov_fail_alloc (2, false);   /* a larger block, but no other chunks */
    if (!done)
      general (o, true, L2, 3 * i);
  }
  ov_fail_alloc (0, false);
  verify ();
  ck_assert_uint_eq (o->runs, 300);
}
END_TEST

/* While notices are held, each mark is answered with the first conflict,
 * also where marks do not wait.
 */
START_TEST (the_first_conflict_is_told_of_each_mark)
{
  uint64_t where = 0;

  enter (L2, 5, 1);
  ov_fail_alloc (1, false);
  overlap_hold_notices (o, true);
  ck_assert_ptr_null (o->building);
  ck_assert_uint_ne (overlap_enter (o, BLOCK, 5, 1, NULL), 0);
  ck_assert_uint_ne (overlap_enter (o, L2, 9, 1, &where), 0);
  ck_assert_uint_eq (where, 5);
  overlap_hold_notices (o, false);
}
END_TEST

/* The last number is none of a cluster, in any window. */
START_TEST (the_last_number_is_never_entered)
{
  enter (L2, UINT64_MAX - 1000, 1);
  enter (L2, UINT64_MAX, 1);
  ck_assert_uint_eq (o->runs, 1);
  ck_assert_uint_eq (overlap_claim (o, L2, UINT64_MAX, 1, NULL), 0);
  ck_assert_uint_eq (o->runs, 1);
}
END_TEST

/* Where much is updated a page is made, whichever way the updates go. */
START_TEST (usual_updates_earn_a_page)
{
  unsigned i;

  overlap_free (o);
  start (1 << 16, UINT64_MAX);
  enter (L2, 1, 1);
  for (i = 0; i < OV_PROMOTE; ++i)
    enter (L2, 16 + i * 2, 1);
  ck_assert_uint_gt (o->bytemap_bytes, 0);
  for (i = 0; i < OV_PROMOTE; ++i)
    leave (L2, 16 + i * 2, 1);
  ck_assert_uint_eq (ask (0, OV_PAGE).any, BIT (L2));
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-quick");
  TCase *tc = tcase_create ("overlap-quick");

  tcase_add_checked_fixture (tc, setup, finish);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, usual_updates_leave_lists_as_general_ones_do,
                       0, 4);
  tcase_add_test (tc, an_index_of_bytes_does_not_overflow);
  tcase_add_test (tc, the_first_conflict_is_told_of_each_mark);
  tcase_add_test (tc, the_last_number_is_never_entered);
  tcase_add_test (tc, usual_updates_earn_a_page);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
