/* SPDX-License-Identifier: BSD-3-Clause */

/* The engine and its tracker: that the marks are those of the tables
 * after whatever happened.  The windows are tiny here, 64 clusters, so that
 * an image has many.  What happens where memory is short is in
 * test-engine-limit.c.
 *
 * Tests named fault_NN_ are of the list in docs/design/tracker.md.
 */

#include <config.h>

#include "byteorder.h"
#include "run-suite.h"
#include "selfcheck.h"
#include "tracked-test.h"

/* Nothing is left behind by whatever fails, and nothing is missing. */
START_TEST (fault_08_the_marks_are_those_of_the_tables)
{
  const unsigned requests = 400 / slower ();
  unsigned i, failures = 0;

  limit = UINT64_MAX;
  fail_at = _i ? 7 + (unsigned) _i : UINT32_MAX;
  open_rich ();
  asking = false;
  memset (&answers, 0, sizeof answers);
  storage_memory_set_hook (storage, ask_hook, NULL);
  restart_random ((uint64_t) _i + 100);
  question_state = 1;
  for (i = 0; i < requests; ++i) {
    failures += random_request () < 0;
    ck_assert_uint_eq (verify_tracker (img), 0);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  ck_assert (_i == 0 ? failures == 0 : failures > 0);
  stop_rich ();
  free (answers.v);
}
END_TEST

START_TEST (the_self_check_sees_both_kinds_of_difference)
{
  uint64_t table;

  limit = UINT64_MAX;
  open_rich ();
  ck_assert_uint_eq (verify_tracker (img), 0);
  overlap_enter (img->guard.overlap, OVERLAP_ACTIVE_L2, 100000, 3, NULL);
  ck_assert_uint_eq (verify_tracker (img), 3);
  overlap_leave (img->guard.overlap, OVERLAP_ACTIVE_L2, 100000, 3);
  table = refcounts_block_offset (img, 0) >> img->cluster_bits;
  overlap_leave (img->guard.overlap, OVERLAP_REFCOUNT_BLOCK, table, 1);
  ck_assert_uint_eq (verify_tracker (img), 1);
  overlap_enter (img->guard.overlap, OVERLAP_ACTIVE_L2, table, 1, NULL);
  ck_assert_uint_eq (verify_tracker (img), 1);
  overlap_leave (img->guard.overlap, OVERLAP_ACTIVE_L2, table, 1);
  overlap_enter (img->guard.overlap, OVERLAP_REFCOUNT_BLOCK, table, 1, NULL);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

static overlap_set
types_at (uint64_t offset)
{
  struct overlap_answer a;

  overlap_query (img->guard.overlap, offset >> img->cluster_bits, 1,
                 OVERLAP_NONE, &a);
  ck_assert (!a.outside);
  return a.any;
}

/* After a snapshot an L2 table is copied; the old one stayed marked as
 * active, and a good image was called corrupt when its cluster was used
 * again.
 */
START_TEST (fault_01_a_copied_table_is_not_active_any_more)
{
  uint64_t old, new;

  limit = UINT64_MAX;
  open_rich ();
  /* Written before the first snapshot, and never since. */
  old = atomic_load (&img->map.l1[2 * M / (32 * K) - 30]) & ENTRY_OFFSET;
  ck_assert_uint_ne (old, 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_ACTIVE_L2)
                     | OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_int_eq (write_byte (2 * M - 30 * 32 * K, 512, 1), 0);
  new = atomic_load (&img->map.l1[2 * M / (32 * K) - 30]) & ENTRY_OFFSET;
  ck_assert_uint_ne (new, old);
  /* The disk still leads to it. */
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_ACTIVE_L2)
                     | OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_uint_eq (types_at (new), OVERLAP_BIT (OVERLAP_ACTIVE_L2));
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Which owners a table has was guessed from reference counts, of another
 * table at that.  Here a table is shared by the disk and two snapshots,
 * and counts are not asked.
 */
START_TEST (fault_02_owners_are_not_guessed_from_counts)
{
  uint64_t offset, shared = 0, table;
  unsigned i;

  limit = UINT64_MAX;
  open_rich ();
  for (i = 0; i < img->map.l1_size; ++i) {
    table = atomic_load (&img->map.l1[i]) & ENTRY_OFFSET;
    if (table == 0 || !(types_at (table)
                        & OVERLAP_BIT (OVERLAP_INACTIVE_L2)))
      continue;
    offset = (uint64_t) i * 32 * K;
    ck_assert_int_eq (image_trim (img, offset, 32 * K, false), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (types_at (table), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
    ck_assert_int_eq (write_byte (offset, 4 * K, 1), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (types_at (table), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
    shared++;
  }
  ck_assert_uint_gt (shared, 2);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* When tables moved, their marks stayed behind; and when the refcount
 * table grew, the block that made it grow was not entered.
 */
START_TEST (fault_04_05_a_refcount_table_that_grows_brings_its_marks)
{
  uint64_t old, new, i, block;

  limit = UINT64_MAX;
  configure = with_limit;
  make_image ("-o cluster_size=512,refcount_bits=64", "12M");
  old = img->refcounts.table_offset;
  for (i = 0; img->refcounts.table_offset == old; i += 4 * K)
    ck_assert_int_eq (write_byte (i, 4 * K, 1), 0);
  new = img->refcounts.table_offset;
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE));
  ck_assert_uint_eq (types_at (new), OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE));
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_NONE);
  for (i = 0; i < img->refcounts.table_entries; ++i) {
    block = refcounts_block_offset (img, i);
    if (block != 0)
      ck_assert_uint_eq (types_at (block),
                         OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK));
  }
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Entries of the snapshot table have any length; 40 bytes each were
 * marked, and the rest was open.
 */
START_TEST (fault_06_all_of_the_snapshot_table_is_marked)
{
  uint64_t offset, end;
  struct temporary t;
  unsigned i;

  limit = UINT64_MAX;
  configure = with_limit;
  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=512 %s 1M", t.name);
  for (i = 0; i < 12; ++i)
    qemu_img ("snapshot -c %0200u %s", i, t.name);
  open_loaded (t.name);
  temporary_remove (&t);
  offset = img->header.snapshots_offset;
  end = offset + img->snapshots.bytes;
  ck_assert_uint_gt (img->snapshots.bytes, 12 * 240);
  for (; offset < end; offset += 512)
    ck_assert_uint_eq (types_at (offset),
                       OVERLAP_BIT (OVERLAP_SNAPSHOT_TABLE));
  stop_rich ();
}
END_TEST

/* A snapshot's L1 table that could not be read was left out in silence. */
START_TEST (fault_07_an_unreadable_table_is_not_left_out)
{
  static struct chain chain;
  struct image_config config;
  struct image *second;

  /* While it is open: an answer cannot be given, so nothing is written. */
  limit = 0;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  ck_assert_int_eq (write_byte (0, 512, 1), 0);
  unreadable = img->snapshots.v[1].l1_table_offset;
  storage_memory_set_hook (storage, fail_reading, NULL);
  ck_assert_int_eq (write_byte (0, 512, 2), -EIO);
  storage_memory_set_hook (storage, watch_hook, NULL);
  expect_byte (0, 512, 1);
  ck_assert_int_eq (write_byte (0, 512, 3), 0);
  ck_assert_int_eq (image_stop (img), 0);

  /* When it is opened: it is not. */
  storage_memory_set_hook (storage, fail_reading, NULL);
  image_config_init (&config);
  config.filename = "memory";
  chain.length = 1;
  ck_assert_int_eq (image_open_in_chain (&config, storage, &chain, &second),
                    -EIO);
}
END_TEST

/* Tables that are not where clusters begin were skipped.  Such an image,
 * one with a table outside the file, and one with two owners where only
 * one may be, is corrupt: it says so, by name, and is served read-only.
 */
struct damage {
  const char *msg;
  unsigned what;
};

static const struct damage damages[] = {
  { "not a multiple of the cluster size", 0 },
  { "past the end of the file", 1 },
  { "active L2 table at host offset", 2 },
  { "refcount block at host offset", 3 },
  { "inactive L2 table at host offset", 4 },
  { "is also refcount table", 5 },
};

static void
store (uint8_t *buf, uint64_t offset, uint64_t value)
{
  store_be64 (buf + offset, value);
}

static uint64_t
load (const uint8_t *buf, uint64_t offset)
{
  return load_be64 (buf + offset);
}

START_TEST (fault_10_wrong_tables_are_corruption_by_name)
{
  uint64_t l1, table, snap_l1, block0;
  struct temporary t;
  uint8_t *buf;
  size_t len;

  limit = UINT64_MAX;
  configure = with_limit;
  temporary_name (&t, "qcow2");
  buf = read_file (rich_image (), &len);
  l1 = load (buf, 40);
  table = load (buf, 48);
  block0 = load (buf, table);
  snap_l1 = load (buf, load (buf, 64)); /* of the first snapshot */
  switch (damages[_i].what) {
  case 0: store (buf, table + 8, load (buf, table + 8) + 256); break;
  case 1: store (buf, l1 + 800, len + 4096); break;
  case 2: store (buf, l1 + 800, load (buf, l1) & ENTRY_OFFSET); break;
  case 3: store (buf, table + 8, block0); break;
  case 4: store (buf, snap_l1 + 8, block0); break;
  default: store (buf, l1, table); break;
  }
  write_file (t.name, buf, len);
  free (buf);
  open_loaded (t.name);
  temporary_remove (&t);
  ck_assert_uint_eq (seen_events.corrupted, 1);
  ck_assert_msg (strstr (seen_events.msg, damages[_i].msg) != NULL, "%s",
                 seen_events.msg);
  ck_assert (!image_is_writable (img));
  ck_assert_int_lt (image_begin_writing (img), 0);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine-overlap");
  TCase *tc = tcase_create ("engine-overlap");

  if (!have_qemu_img ())
    return 77;
  tcase_add_unchecked_fixture (tc, make_images, remove_images);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, fault_08_the_marks_are_those_of_the_tables, 0, 4);
  tcase_add_test (tc, the_self_check_sees_both_kinds_of_difference);
  tcase_add_test (tc, fault_01_a_copied_table_is_not_active_any_more);
  tcase_add_test (tc, fault_02_owners_are_not_guessed_from_counts);
  tcase_add_test (tc,
                  fault_04_05_a_refcount_table_that_grows_brings_its_marks);
  tcase_add_test (tc, fault_06_all_of_the_snapshot_table_is_marked);
  tcase_add_test (tc, fault_07_an_unreadable_table_is_not_left_out);
  tcase_add_loop_test (tc, fault_10_wrong_tables_are_corruption_by_name, 0,
                       (int) ARRAY_SIZE (damages));
  suite_add_tcase (s, tc);
  return run_suite (s);
}
