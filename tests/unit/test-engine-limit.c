/* SPDX-License-Identifier: BSD-3-Clause */

/* The engine and its tracker where memory is short: what is tracked is
 * right, what is not was told of, overlap-limit=verify answers as a tracker
 * without a limit, and what left comes back.  The windows are tiny here,
 * 64 clusters, so that an image has many.
 *
 * Tests named fault_NN_ are of the list in docs/design/tracker.md.
 */

#include <config.h>

#include "byteorder.h"
#include "claims.h"
#include "restore.h"
#include "run-suite.h"
#include "selfcheck.h"
#include "tracked-test.h"
#include "walk.h"

/*----------------------------------------------------------------------
 * overlap-limit=verify answers as a tracker without a limit.
 */

/* The same requests and questions each time. */
static struct answers
run_and_ask (unsigned seed, unsigned requests)
{
  struct answers result;
  unsigned i;

  memset (&answers, 0, sizeof answers);
  op_number = 0;
  open_loaded (rich_image ());
  storage_memory_set_hook (storage, ask_hook, NULL);
  restart_random (seed);
  question_state = seed + 12345;
  for (i = 0; i < requests; ++i) {
    random_request ();
    ask_some (4);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  ck_assert (!atomic_load (&img->guard.corrupt));
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
  result = answers;
  return result;
}

START_TEST (verify_answers_as_a_tracker_without_limit)
{
  const unsigned requests = 150 / slower ();
  struct answers right, verified;
  uint64_t hits = 0;
  size_t i;

  configure = with_limit;
  with_bitmap = _i >= 2;
  fail_at = _i % 2 ? 37 : UINT32_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  limit = UINT64_MAX;
  right = run_and_ask ((unsigned) _i, requests);
  ck_assert_uint_eq (seen_events.limit_reached, 0);
  limit = 0;
  verified = run_and_ask ((unsigned) _i, requests);
  ck_assert_uint_gt (seen_events.limit_reached, 0);

  ck_assert_uint_eq (right.n, verified.n);
  ck_assert_uint_gt (right.n, 1000 / slower ());
  for (i = 0; i < right.n; ++i) {
    const struct overlap_answer *a = &right.v[i], *b = &verified.v[i];

    hits += a->any != 0;
    if (a->any != b->any || a->all != b->all || a->where != b->where
        || b->outside)
      ck_abort_msg ("question %zu: any 0x%x and 0x%x, all 0x%x and 0x%x, "
                    "where %ju and %ju, outside %d", i, a->any, b->any,
                    a->all, b->all, (uintmax_t) a->where,
                    (uintmax_t) b->where, b->outside);
  }
  ck_assert_uint_gt (hits, right.n / 20);
  free (right.v);
  free (verified.v);
}
END_TEST

/*----------------------------------------------------------------------
 * Limits.
 */

/* Any limit: the image opens, is used, and nothing that is tracked is
 * wrong.  What left was told of exactly; with the limit that the message
 * names nothing leaves.
 */
START_TEST (fault_17_any_limit_will_do)
{
  static const uint64_t limits[] = { 0, 1, 800, 1200, 1500, 1900, 2300 };
  struct overlap_stats s;
  uint64_t enough;
  unsigned i;

  limit = limits[_i / 2];
  policy = _i % 2 ? OVERLAP_LIMIT_VERIFY : OVERLAP_LIMIT_UNPROTECTED;
  open_rich ();
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_uint_le (seen_events.limit_reached, OV_OUTSIDE_MAX);
  restart_random ((unsigned) _i + 1u);
  for (i = 0; i < 60; ++i) {
    ck_assert_int_eq (random_request (), 0);
    ck_assert_uint_eq (verify_tracker (img), 0);
    overlap_get_stats (img->guard.overlap, &s);
    ck_assert_uint_eq (s.outside_windows * OV_WINDOW * 512,
                       seen_events.outside);
  }
  enough = seen_events.enough;
  stop_rich ();

  limit = enough;
  open_rich ();
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (random_request (), 0);
  ck_assert_uint_eq (seen_events.limit_reached, 0);
  stop_rich ();
}
END_TEST

/* Little more than the least limit with which nothing leaves while the
 * image is opened: no room to give up.
 */
static uint64_t
tight_limit (void)
{
  policy = OVERLAP_LIMIT_VERIFY;
  limit = 1024;
  do {
    limit += 256;
    open_rich ();
    stop_rich ();
  } while (seen_events.limit_reached > 0);
  return limit + limit / 4;
}

/* Each allocation that the tracker makes fails in turn while an image is
 * opened and used, or it and all that follow: nothing that is tracked is
 * wrong, and what is not was told of.  One alone is made up for if there
 * is something that can be given up; with a tight limit there is not.
 */
START_TEST (any_allocation_may_fail)
{
  static const struct { bool tight, from_then_on; unsigned least; } ways[] = {
    { false, false, 0 }, { false, true, 15 }, { true, false, 20 },
  };
  const unsigned step = slower () > 1 ? 5 : 1;
  struct overlap_stats s;
  unsigned n, i, told = 0;

  ov_sieve_forbid (ways[_i].tight); /* it would make up for one failure */
  limit = ways[_i].tight ? tight_limit () : UINT64_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  for (n = 1; n < 3000; n += (n < 40 ? 1 : n / 8) * step) {
    ov_fail_alloc (n, ways[_i].from_then_on);
    open_rich ();
    restart_random (n);
    for (i = 0; i < 30; ++i)
      ck_assert_int_eq (random_request (), 0);
    ov_fail_alloc (0, false);
    ck_assert_uint_eq (verify_tracker (img), 0);
    overlap_get_stats (img->guard.overlap, &s);
    ck_assert_uint_eq (s.outside_windows * OV_WINDOW * 512,
                       seen_events.outside);
    told += seen_events.limit_reached;
    stop_rich ();
  }
  ov_sieve_forbid (false);
  ck_assert_uint_ge (told, ways[_i].least / step);
}
END_TEST

/*----------------------------------------------------------------------
 * Coming back.
 */

/* While the walk of a rebuilding reads the snapshots' tables, others make
 * and drop tables.
 */
static uint64_t meddled;

static int
meddle_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
             uint64_t len)
{
  const uint64_t here = 60000 + meddled % 7 * 11;

  (void) opaque;
  (void) offset;
  if (kind != STORAGE_MEMORY_READ || asking || len != img->map.l1_size * 8)
    return 0;
  asking = true;
  ck_assert_int_eq (guard_claim (img, OVERLAP_ACTIVE_L2, here * 512, 512), 0);
  if (meddled++ % 2)
    guard_unclaim (img, OVERLAP_ACTIVE_L2, here * 512, 512);
  else {
    guard_unclaim (img, OVERLAP_ACTIVE_L2, here * 512, 512);
    ck_assert_int_eq (guard_claim (img, OVERLAP_REFCOUNT_BLOCK, here * 512,
                                   512), 0);
    guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK, here * 512, 512);
  }
  asking = false;
  return 0;
}

START_TEST (what_left_comes_back_after_a_commit)
{
  struct overlap_stats s;
  unsigned i;

  limit = _i ? 1500 : 0;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_int_eq (write_byte (0, 4 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.restored, 0);

  ov_set_limit (img->guard.overlap, UINT64_MAX);
  storage_memory_set_hook (storage, meddle_hook, NULL);
  restart_random (7);
  for (i = 0; i < 200 && seen_events.outside > 0; ++i) {
    ck_assert_int_eq (random_request (), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (verify_tracker (img), 0);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  overlap_get_stats (img->guard.overlap, &s);
  ck_assert_uint_eq (s.outside_windows, 0);
  ck_assert_uint_eq (seen_events.outside, 0);
  ck_assert_uint_gt (seen_events.restored, 0);
  ck_assert_uint_gt (meddled, 0);
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (random_request (), 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* The tables cannot be read just then: it stays outside, and is tried
 * again later.
 */
START_TEST (a_rebuilding_that_fails_is_tried_again)
{
  unsigned i;

  limit = 0;
  policy = OVERLAP_LIMIT_UNPROTECTED;
  open_rich ();
  ck_assert_int_eq (write_byte (0, 4 * K, 1), 0);
  ov_set_limit (img->guard.overlap, UINT64_MAX);
  unreadable = img->snapshots.v[0].l1_table_offset;
  storage_memory_set_hook (storage, fail_reading, NULL);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.restored, 0);
  storage_memory_set_hook (storage, NULL, NULL);
  for (i = 0; i < 200 && seen_events.outside > 0; ++i)
    ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.outside, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Commits, requests and rebuildings at the same time. */
static atomic_bool threads_stop;

static void *
writer (void *opaque)
{
  uint64_t mine = (uint64_t) (uintptr_t) opaque, i;
  uint8_t buf[4096];

  memset (buf, (int) mine, sizeof buf);
  for (i = 0; !atomic_load (&threads_stop); ++i)
    if (image_write (img, buf, sizeof buf,
                     (mine * M + i * 7919 * 512 % (M - 4096)) & ~511ull,
                     i % 16 == 0) < 0
        || (i % 32 == 0 && image_trim (img, mine * M, 200 * K, false) < 0))
      return (void *) 1;
  return NULL;
}

START_TEST (ranges_leave_and_return_under_load)
{
  bool left = false, returned = false;
  struct overlap_stats s;
  pthread_t t[3];
  void *result;
  uintptr_t i;

  limit = UINT64_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  storage_memory_set_hook (storage, NULL, NULL);
  atomic_store (&threads_stop, false);
  for (i = 0; i < 3; ++i)
    ck_assert_int_eq (pthread_create (&t[i], NULL, writer, (void *) i), 0);
  for (i = 0; i < 60 / slower () || !returned; ++i) {
    ov_set_limit (img->guard.overlap, i % 2 ? UINT64_MAX : 0);
    usleep (10000);
    restore_tracker (img);
    ck_assert_uint_eq (verify_tracker (img), 0);
    overlap_get_stats (img->guard.overlap, &s);
    left |= s.outside_windows > 0;
    returned |= left && s.outside_windows == 0;
  }
  atomic_store (&threads_stop, true);
  for (i = 0; i < 3; ++i) {
    ck_assert_int_eq (pthread_join (t[i], &result), 0);
    ck_assert_ptr_null (result);
  }
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_uint_gt (seen_events.restored, 0);
  ck_assert_uint_eq (seen_events.corrupted, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/*----------------------------------------------------------------------
 * What depends on all metadata being known.
 */

/* With overlap-limit=refuse a table that left the tracker after a write
 * was acknowledged could not be written, and the flush failed.
 */
START_TEST (under_refuse_no_flush_fails_for_what_was_acknowledged)
{
  unsigned i, failed = 0;
  uint64_t offset;
  int r;

  limit = UINT64_MAX;
  policy = OVERLAP_LIMIT_REFUSE;
  restart_random (5);
  open_rich ();
  for (i = 0; i < 300; ++i) {
    ov_set_limit (img->guard.overlap, i / 4 % 2 ? 0 : UINT64_MAX);
    offset = rnd (4 * M - 64 * K) & ~UINT64_C (511);
    r = rnd (4) ? write_byte (offset, (rnd (16) + 1) * 512, (int) rnd (256))
      : image_trim (img, offset, 4 * K, false);
    ck_assert (r == 0 || r == -EIO);
    failed += r < 0;
    if (i % 4 == 0)
      ck_assert_int_eq (image_flush (img), 0);
  }
  ck_assert_uint_gt (failed, 0);
  ck_assert_uint_lt (failed, i / 2);
  ck_assert_uint_gt (atomic_load (&img->guard.refused_outside), 0);
  ck_assert_uint_eq (seen_events.corrupted, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* What left the tracker was no metadata for the consistency check, and it
 * never looked where compressed data lies: it did not find the guest's data
 * there, so that a repair took the mark of corruption away and freed what
 * seemed to be leaked.
 */
static int
first_place (void *opaque, struct image *image, enum overlap_type type,
             uint64_t offset, uint64_t len)
{
  uint64_t *place = opaque;

  (void) image;
  (void) len;
  if (place[type] == 0)
    place[type] = offset;
  return 0;
}

/* The rich image, in which the first entry of its first L2 table, with
 * FLAGS, leads to metadata of TYPE.
 */
static void
open_upon (enum overlap_type type, uint64_t flags)
{
  uint64_t place[OVERLAP_TYPES] = { 0 };
  uint8_t entry[8];
  struct iovec iov = { .iov_base = entry, .iov_len = sizeof entry };
  uint8_t *bytes;
  uint64_t size;
  struct temporary t;

  open_rich ();
  ck_assert_int_eq (walk_metadata (img, OVERLAP_ALL, first_place, place), 0);
  ck_assert (type == OVERLAP_MAIN_HEADER || place[type] != 0);
  store_be64 (entry, place[type] | flags);
  ck_assert_int_eq (storage_write (storage, &iov, 1,
                                   place[OVERLAP_ACTIVE_L2], false), 0);
  ck_assert_int_eq (storage_size (storage, &size), 0);
  bytes = malloc (size);
  ck_assert_ptr_nonnull (bytes);
  ck_assert_int_eq (storage_read (storage, bytes, size, 0), 0);
  image_close (img);
  temporary_name (&t, "qcow2");
  write_file (t.name, bytes, size);
  free (bytes);
  open_loaded (t.name);
  temporary_remove (&t);
}

static const enum overlap_type upon[] = {
  OVERLAP_ACTIVE_L1, OVERLAP_ACTIVE_L2, OVERLAP_REFCOUNT_TABLE,
  OVERLAP_REFCOUNT_BLOCK, OVERLAP_SNAPSHOT_TABLE, OVERLAP_INACTIVE_L1,
  OVERLAP_INACTIVE_L2, OVERLAP_BITMAP_DIRECTORY, OVERLAP_BITMAP_TABLE,
};

START_TEST (the_check_finds_guest_data_upon_metadata)
{
  const enum overlap_type type = upon[_i / 4];
  struct image_check_result res;

  with_bitmap = true;
  policy = OVERLAP_LIMIT_UNPROTECTED;
  limit = _i & 1 ? UINT64_MAX : 0;
  open_upon (type, _i & 2 ? ENTRY_COMPRESSED : 0);
  ck_assert (!img->untracked);
  ck_assert_uint_eq (seen_events.outside == 0, _i & 1);
  ck_assert_int_eq (image_check (img, CHECK_REPORT, &res), 0);
  ck_assert_uint_ge (res.overlaps, 1); /* snapshots may share the table */
  ck_assert (res.unseen && res.grave);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine-limit");
  TCase *tc = tcase_create ("engine-limit");

  if (!have_qemu_img ())
    return 77;
  tcase_add_unchecked_fixture (tc, make_images, remove_images);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, verify_answers_as_a_tracker_without_limit, 0, 4);
  tcase_add_loop_test (tc, fault_17_any_limit_will_do, 0, 14);
  tcase_add_loop_test (tc, any_allocation_may_fail, 0, 3);
  tcase_add_loop_test (tc, what_left_comes_back_after_a_commit, 0, 2);
  tcase_add_test (tc, a_rebuilding_that_fails_is_tried_again);
  tcase_add_test (tc, ranges_leave_and_return_under_load);
  tcase_add_test (tc, under_refuse_no_flush_fails_for_what_was_acknowledged);
  tcase_add_loop_test (tc, the_check_finds_guest_data_upon_metadata, 0,
                       (int) ARRAY_SIZE (upon) * 4);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
