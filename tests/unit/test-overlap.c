/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker, operation by operation.  docs/design/tracker.md lists
 * what went wrong in an earlier tracker; tests named fault_NN_ cover it,
 * here, in the other tests of the tracker, and in those of the engine.
 */

#include <config.h>

#include "overlap-fast.h"
#include "overlap-test.h"

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
  const uint64_t far = 2 * (sizeof (struct ov_node) + 16) + 24;
  uint64_t before, cost;
  unsigned i;

  enter (L2, 1, 1);
  before = used ();
  enter (L2, UINT64_C (1) << 47, 1);
  cost = used () - before;
  ck_assert_uint_le (cost, far);
  ck_assert_uint_le (far, 600);

  /* Many of them, each far from all others. */
  before = used ();
  for (i = 1; i <= 1000; ++i)
    enter (L2, i * (UINT64_C (0xfedcba987654321) >> 4), 1);
  ck_assert_uint_le (used () - before, far * 1000);
}
END_TEST

/* The bytes of the arrays of leaves. */
static uint64_t
arrays (void)
{
  const struct ov_leaves *l = atomic_load (&o->leaves);
  uint64_t sum = 0;

  for (; l; l = l->shorter)
    sum += ov_size (l);
  return sum;
}

/* With leaves in order or not; now and then there is no memory for an array,
 * or for a leaf, and a sparse part comes behind.
 */
START_TEST (the_short_way_to_leaves_finds_what_the_tree_has)
{
  const uint64_t span = (uint64_t) OV_WAYS * OV_WINDOW, leaves = 512;
  const char *why;
  uint64_t i, j;

  for (i = 0; i < leaves; ++i) {
    j = _i & 1 ? i * 77 % leaves : i;
    if (_i & 2)
      ov_fail_alloc (1 + i % 5, false);
    enter (L2, j * span + i, 1);
    ov_fail_alloc (0, false);
    if (i % 4 == 0)
      enter (L2, (leaves + i * i * 1000) * span + 1, 1);
    ck_assert_msg (overlap_verify (o, &why), "%s", why);
    ck_assert_uint_le (4 * arrays (), o->directory_bytes);
  }
  ck_assert_ptr_nonnull (atomic_load (&o->leaves));
  for (i = 0; i < leaves && _i < 2; ++i) {
    j = _i & 1 ? i * 77 % leaves : i;
    ck_assert_uint_eq (ask (j * span + i, 1).any, BIT (L2));
    ck_assert_uint_eq (ask (j * span + i + OV_WINDOW, 1).any, 0);
  }
}
END_TEST

START_TEST (far_windows_have_no_short_way)
{
  uint64_t i;

  for (i = 0; i < 1000; ++i)
    enter (L2, (i + 1) * OV_WAYS * OV_WINDOW * 40, 1);
  ck_assert_ptr_null (atomic_load (&o->leaves));
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
  const unsigned rounds = getenv ("QCOW2_VALGRIND") ? 2000 : 100000;
  uint64_t filled = 0, thin = 0;
  unsigned i, k;

  /* Each round fills or thins a part of one window. */
  for (i = 0; i < rounds; ++i) {
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

/* Marks that wait while an image is opened, more than the processor's caches
 * hold: in random order, some clusters with several owners.
 */
static uint64_t
place (uint32_t i)
{
  return (uint64_t) (i * 2654435761u) % (4 * OV_WINDOW);
}

START_TEST (marks_that_wait_are_sorted_and_counted)
{
  enum { MARKS = 30000 };
  struct overlap_conflict c;
  uint32_t i, k;

  overlap_free (o);
  start (0, _i % 2 ? 1 << 30 : UINT64_MAX);
  overlap_hold_notices (o, true);
  for (k = 0; k < 3; ++k)
    for (i = k; i < MARKS; i += 1 + k * k)
      overlap_enter (o, k ? OLD_L2 : L2, place (i), 1, NULL);
  if (_i >= 2)
    overlap_enter (o, BLOCK, place (777), 1, NULL);
  overlap_hold_notices (o, false);
  ck_assert_int_eq (overlap_conflict (o, &c), _i >= 2);
  if (_i >= 2) {
    ck_assert_uint_eq (c.cluster, place (777));
    ck_assert_int_eq (c.type, BLOCK);
    ck_assert_uint_eq (c.there, BIT (L2) | BIT (OLD_L2));
    leave (BLOCK, place (777), 1);
  }
  verify ();
  ck_assert_uint_eq (n_told, 0);
  for (k = 3; k-- > 0; )
    for (i = k; i < MARKS; i += 1 + k * k) {
      const enum overlap_type type = k ? OLD_L2 : L2;

      ck_assert (ask (place (i), 1).any & BIT (type));
      leave (type, place (i), 1);
    }
  ck_assert_uint_eq (ask (0, 4 * OV_WINDOW).any, 0);
}
END_TEST

/* Found by the long run of the model: the first conflict of a range that
 * does not wait was said to be with whatever is anywhere in the range.
 */
START_TEST (a_conflict_of_a_range_is_with_what_is_at_its_cluster)
{
  struct overlap_conflict c;

  overlap_hold_notices (o, true);
  overlap_enter (o, L2, 10, 1, NULL);
  overlap_enter (o, BLOCK, 12, 1, NULL);
  overlap_enter (o, OVERLAP_ACTIVE_L1, 8, 8, NULL);
  overlap_hold_notices (o, false);
  ck_assert (overlap_conflict (o, &c));
  ck_assert_uint_eq (c.cluster, 10);
  ck_assert_int_eq (c.type, OVERLAP_ACTIVE_L1);
  ck_assert_uint_eq (c.there, BIT (L2));
  verify ();
}
END_TEST

/* What the tracker is to take at most for an image whose every cluster is
 * allocated, without the sieve and with it; malloc may leave a few blocks 16
 * bytes more than they need.
 */
#define SLACK 64
struct aim {
  unsigned size_bits, cluster_bits;
  uint64_t usual, random;       /* bytes */
  uint64_t floor;
};

static const struct aim aims[] = {
  { 40, 16, 7 << 10, 7300, 12 << 10 },  /* 7 KiB was the aim there, too */
  { 43, 16, 56 << 10, 56 << 10, 96 << 10 },
  /* A 16th of 1 TiB at 1.3 MiB, and of 128 GiB at 9 MiB, of which a larger
   * part is directory.
   */
  { 36, 12, (1331 << 10) / 16, 86500, (3 << 20) / 16 },
  { 33, 9, (9 << 20) / 16, 600000, (22 << 20) / 16 },
};
#define AIMS (sizeof aims / sizeof aims[0])

/* Enter TYPE: every PER clusters one, or as many of N at random places. */
static void
enter_tables (enum overlap_type type, uint64_t per, uint64_t n, bool random,
              uint64_t *state)
{
  uint64_t i;

  for (i = 1; i < n; i += per) {
    *state = *state * UINT64_C (6364136223846793005) + 1;
    overlap_enter (o, type, random ? (*state >> 20) % n : i, 1, NULL);
  }
}

/* Tables in their usual places, which are close together where clusters are
 * small, or at random ones.
 */
START_TEST (full_images_take_no_more_memory_than_they_should)
{
  const struct aim *aim = &aims[_i / 2];
  const unsigned bits = aim->cluster_bits;
  const uint64_t data = UINT64_C (1) << (aim->size_bits - bits);
  const uint64_t per_l2 = (UINT64_C (1) << (bits - 3)) + 1;
  const uint64_t clusters = data + data / 32;
  struct overlap_config config = {
    .cluster_bits = bits, .total_limit = UINT64_MAX,
  };
  struct overlap_stats stats;
  uint64_t state = 1;

  overlap_free (o);
  o = overlap_new (&config);
  ck_assert_ptr_nonnull (o);
  overlap_hold_notices (o, true);
  enter_tables (L2, per_l2, data / (per_l2 - 1) * per_l2, _i % 2, &state);
  enter_tables (BLOCK, UINT64_C (1) << (bits - 1), clusters, _i % 2, &state);
  overlap_hold_notices (o, false);
  overlap_get_stats (o, &stats);
  ck_assert_uint_le (stats.used - stats.sieve_bytes,
                     SLACK + (_i % 2 ? aim->random : aim->usual));
  ck_assert_uint_le (stats.used, aim->floor);
  verify ();
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap");
  TCase *tc = tcase_create ("overlap");

  tcase_add_checked_fixture (tc, setup, finish);
  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, types_have_names_that_parse);
  tcase_add_test (tc, nothing_is_marked_at_first);
  tcase_add_test (tc, a_range_of_no_clusters_is_nothing);
  tcase_add_loop_test (tc, fault_09_every_type_is_tracked, 0, OVERLAP_TYPES);
  tcase_add_test (tc, where_is_the_first_of_the_mask);
  tcase_add_test (tc, ranges_cross_the_borders_of_windows);
  tcase_add_test (tc, a_gap_in_the_directory_is_not_all_marked);
  tcase_add_loop_test (tc, owners_met_are_reported_unless_allowed,
                       0, OVERLAP_TYPES * OVERLAP_TYPES);
  tcase_add_test (tc, fault_03_a_cluster_stays_marked_until_each_owner_left);
  tcase_add_loop_test (tc, fault_03_a_double_reference_is_counted_too,
                       0, OVERLAP_TYPES);
  tcase_add_test (tc, a_claim_marks_all_or_nothing);
  tcase_add_test (tc, leaving_counts_what_was_not_marked);
  tcase_add_test (tc, fault_21_ranges_reach_the_end_of_all_numbers);
  tcase_add_test (tc, fault_20_a_far_entry_costs_two_nodes_and_a_run);
  tcase_add_loop_test (tc, the_short_way_to_leaves_finds_what_the_tree_has, 0,
                       4);
  tcase_add_test (tc, far_windows_have_no_short_way);
  tcase_add_test (tc, fault_25_a_check_needs_no_memory);
  tcase_add_test (tc, fault_27_a_large_range_is_a_few_pieces);
  tcase_add_test (tc, fault_19_a_window_is_emptied_and_filled_again);
  tcase_add_test (tc, fault_14_the_account_is_exact_after_100000_rounds);
  tcase_add_test (tc, the_self_check_sees_a_wrong_account);
  tcase_add_loop_test (tc, full_images_take_no_more_memory_than_they_should,
                       0, 2 * AIMS);
  tcase_add_test (tc, a_conflict_of_a_range_is_with_what_is_at_its_cluster);
  tcase_add_loop_test (tc, marks_that_wait_are_sorted_and_counted, 0, 4);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
