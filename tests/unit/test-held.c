/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests that are held in the middle of a call of the storage, while
 * others come: each test forces one interleaving that could go wrong.
 */

#include <config.h>

#include "held-test.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)

/* A cluster that is being read is not given away: the trim waits. */
START_TEST (a_trim_waits_for_a_read)
{
  struct request reader = { .kind = READ, .offset = 0, .len = 64 * K };
  struct request trimmer = { .kind = TRIM, .offset = 0, .len = 64 * K };
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  host = host_of (0);
  hold_next (STORAGE_MEMORY_READ, host, 64 * K);
  start (&reader);
  wait_until_held ();
  start (&trimmer);
  expect_waiting (&trimmer);
  /* Commits wait for nobody, and others get other clusters. */
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  ck_assert_uint_ne (host_of (M), host);
  let_go ();
  expect_read (&reader, 1);
  done (&trimmer, 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (2 * M, 64 * K, 3), 0);
  ck_assert_uint_eq (host_of (2 * M), host);
  expect_byte (0, 64 * K, 0);
  stop_clean ();
}
END_TEST

/* The same with a write in place: it must not arrive in a cluster that
 * belongs to somebody else by then.
 */
START_TEST (a_trim_waits_for_a_write_in_place)
{
  struct request in_place = { .kind = WRITE, .offset = 4 * K, .len = 4 * K,
                              .byte = 9 };
  struct request trimmer = { .kind = TRIM, .offset = 0, .len = 64 * K };
  struct request reader = { .kind = READ, .offset = 0, .len = 4 * K };
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  host = host_of (0);
  hold_next (STORAGE_MEMORY_WRITE, host, 64 * K);
  start (&in_place);
  wait_until_held ();
  start (&trimmer);
  expect_waiting (&trimmer);
  /* Who comes later does not overtake the trim. */
  start (&reader);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  ck_assert_uint_ne (host_of (M), host);
  let_go ();
  done (&in_place, 0);
  done (&trimmer, 0);
  expect_read (&reader, 0);
  expect_byte (0, 64 * K, 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (2 * M, 64 * K, 3), 0);
  ck_assert_uint_eq (host_of (2 * M), host);
  expect_byte (2 * M, 64 * K, 3);
  stop_clean ();
}
END_TEST

/* Until the punch has returned the cluster is nobody's. */
START_TEST (a_cluster_is_not_reused_before_its_hole_is_punched)
{
  struct request flusher = { .kind = FLUSH };
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  host = host_of (0);
  ck_assert_int_eq (image_trim (img, 0, 64 * K, false), 0);
  hold_next (STORAGE_MEMORY_PUNCH, host, 64 * K);
  start (&flusher);
  wait_until_held ();
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  ck_assert_uint_ne (host_of (M), host);
  let_go ();
  done (&flusher, 0);
  expect_byte (M, 64 * K, 2);
  stop_clean ();
}
END_TEST

/* Where were holes punched since watch.n was 0?  The only one. */
static struct op
only_punch (void)
{
  struct op found = { .len = 0 };
  unsigned i;

  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 1);
  for (i = 0; i < watch.n; ++i)
    if (watch.ops[i].kind == STORAGE_MEMORY_PUNCH)
      found = watch.ops[i];
  return found;
}

/* Subclusters of 4 KiB: those that were trimmed, after the pointers are
 * durable, and no others.
 */
START_TEST (holes_are_made_for_subclusters)
{
  struct op punch;
  uint64_t host;

  make_image ("-o extended_l2=on,cluster_size=128k", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  host = host_of (0);
  watch.n = 0;
  ck_assert_int_eq (image_trim (img, 8 * K, 12 * K, false), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  ck_assert_int_eq (image_flush (img), 0);
  punch = only_punch ();
  ck_assert_uint_eq (punch.offset, host + 8 * K);
  ck_assert_uint_eq (punch.len, 12 * K);
  /* Not while the pointers are on their way. */
  ck_assert_int_eq (watch.ops[watch.n - 2].kind, STORAGE_MEMORY_SYNC);
  ck_assert_int_eq (watch.ops[watch.n - 1].kind, STORAGE_MEMORY_PUNCH);
  expect_byte (0, 8 * K, 1);
  expect_byte (8 * K, 12 * K, 0);
  expect_byte (20 * K, 108 * K, 1);
  ck_assert_uint_eq (host_of (0), host);
  stop_clean ();
}
END_TEST

/* Subclusters of 2 KiB: a block goes with the second half of it. */
START_TEST (holes_are_whole_blocks)
{
  struct op punch;
  uint64_t host;

  make_image ("-o extended_l2=on", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  host = host_of (0);
  ck_assert_int_eq (image_trim (img, 10 * K, 2 * K, false), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  ck_assert_int_eq (image_trim (img, 8 * K, 2 * K, false), 0);
  ck_assert_int_eq (image_flush (img), 0);
  punch = only_punch ();
  ck_assert_uint_eq (punch.offset, host + 8 * K);
  ck_assert_uint_eq (punch.len, 4 * K);
  expect_byte (0, 8 * K, 1);
  expect_byte (12 * K, 52 * K, 1);
  stop_clean ();
}
END_TEST

/* What was filled again has data. */
START_TEST (no_hole_is_made_in_what_was_filled_again)
{
  struct op punch;
  uint64_t host;

  make_image ("-o extended_l2=on,cluster_size=128k", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  host = host_of (0);
  ck_assert_int_eq (image_trim (img, 8 * K, 12 * K, false), 0);
  ck_assert_int_eq (write_byte (8 * K, 4 * K, 2), 0);
  ck_assert_int_eq (image_flush (img), 0);
  punch = only_punch ();
  ck_assert_uint_eq (punch.offset, host + 12 * K);
  ck_assert_uint_eq (punch.len, 8 * K);
  expect_byte (8 * K, 4 * K, 2);
  stop_clean ();
}
END_TEST

/* A write that fills it is on its way: the commit neither punches nor
 * waits, and the next one knows better.
 */
START_TEST (no_hole_is_made_under_a_write)
{
  struct request writer = { .kind = WRITE, .offset = 8 * K, .len = 4 * K,
                            .byte = 2 };
  uint64_t host;

  make_image ("-o extended_l2=on,cluster_size=128k", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  host = host_of (0);
  ck_assert_int_eq (image_trim (img, 8 * K, 12 * K, false), 0);
  hold_next (STORAGE_MEMORY_WRITE, host, 128 * K);
  start (&writer);
  wait_until_held ();
  ck_assert_int_eq (image_flush (img), 0);
  let_go ();
  done (&writer, 0);
  storage_memory_set_hook (storage, watch_hook, NULL);
  watch.n = 0;
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (only_punch ().offset, host + 12 * K);
  ck_assert_uint_eq (only_punch ().len, 8 * K);
  expect_byte (8 * K, 4 * K, 2);
  stop_clean ();
}
END_TEST

/* Data on disk, none in memory: a crash would bring it back.  The commit
 * after the one that is under way may punch.
 */
START_TEST (no_hole_is_made_in_what_a_crash_brings_back)
{
  struct request flusher = { .kind = FLUSH };
  uint64_t host;

  make_image ("-o extended_l2=on,cluster_size=128k", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  host = host_of (0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (image_trim (img, 8 * K, 4 * K, false), 0);
  ck_assert_int_eq (write_byte (8 * K, 4 * K, 2), 0);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&flusher);
  wait_until_held ();
  /* The cut has the data; this is in the next epoch. */
  ck_assert_int_eq (image_trim (img, 8 * K, 4 * K, false), 0);
  storage_memory_set_hook (storage, watch_hook, NULL);
  watch.n = 0;
  let_go ();
  done (&flusher, 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (only_punch ().offset, host + 8 * K);
  stop_clean ();
}
END_TEST

/* The other way round: filled while the commit of the trim is under way. */
START_TEST (no_hole_is_made_in_what_is_newer_than_the_commit)
{
  struct request flusher = { .kind = FLUSH };
  uint64_t host;

  make_image ("-o extended_l2=on,cluster_size=128k", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  host = host_of (0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (image_trim (img, 8 * K, 12 * K, false), 0);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&flusher);
  wait_until_held ();
  ck_assert_int_eq (write_byte (8 * K, 4 * K, 2), 0);
  storage_memory_set_hook (storage, watch_hook, NULL);
  watch.n = 0;
  let_go ();
  done (&flusher, 0);
  ck_assert_uint_eq (only_punch ().offset, host + 12 * K);
  expect_byte (8 * K, 4 * K, 2);
  stop_clean ();
}
END_TEST

/* A snapshot has the data still. */
START_TEST (no_hole_is_made_in_what_a_snapshot_has)
{
  struct temporary t;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o extended_l2=on,cluster_size=128k %s 64M",
            t.name);
  qemu_img ("bench -w -c 1 -s 131072 --pattern=1 -f qcow2 %s", t.name);
  qemu_img ("snapshot -c before %s", t.name);
  open_loaded (t.name);
  temporary_remove (&t);
  watch.n = 0;
  ck_assert_int_eq (image_trim (img, 8 * K, 4 * K, false), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  expect_byte (8 * K, 4 * K, 0);
  stop_clean ();
}
END_TEST

/* A new cluster is linked when its data has been written, not before: a
 * commit in between makes nothing durable that leads to it.
 */
START_TEST (a_commit_does_not_link_data_that_is_on_its_way)
{
  struct request writer = { .kind = WRITE, .offset = 64 * K, .len = 64 * K,
                            .byte = 9 };
  struct request reader = { .kind = READ, .offset = 64 * K, .len = 64 * K };
  struct map_extent e;
  uint64_t next;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  next = host_of (0) + 64 * K;
  hold_next (STORAGE_MEMORY_WRITE, next, 64 * M);
  start (&writer);
  wait_until_held ();
  start (&reader);
  ck_assert_int_eq (map_lookup (img, 64 * K, 64 * K, &e), 0);
  ck_assert_int_eq (e.kind, L2_UNALLOCATED);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_ne (qemu_check (), 2);
  expect_waiting (&reader);
  let_go ();
  done (&writer, 0);
  expect_read (&reader, 9);
  stop_clean ();
}
END_TEST

/* A slice changes after the cut and before it is written: the commit
 * writes it as it was at the cut, and the change goes out with the next.
 */
START_TEST (a_commit_writes_slices_as_at_its_cut)
{
  struct request flusher = { .kind = FLUSH };
  uint64_t table, entries[3], host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (64 * K, 64 * K, 2), 0);
  table = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&flusher);
  wait_until_held ();
  ck_assert_int_eq (write_byte (128 * K, 64 * K, 3), 0);
  ck_assert_int_eq (image_trim (img, 0, 64 * K, false), 0);
  let_go ();
  done (&flusher, 0);
  ck_assert_int_eq (storage_read (storage, entries, sizeof entries, table),
                    0);
  ck_assert_uint_ne (be64toh (entries[0]) & ENTRY_OFFSET, 0);
  ck_assert_uint_ne (be64toh (entries[1]) & ENTRY_OFFSET, 0);
  ck_assert_uint_eq (entries[2], 0);
  ck_assert_int_ne (qemu_check (), 2);
  host = be64toh (entries[0]) & ENTRY_OFFSET;
  ck_assert_uint_ne (host_of (128 * K), host);
  expect_byte (0, 64 * K, 0);
  expect_byte (64 * K, 64 * K, 2);
  expect_byte (128 * K, 64 * K, 3);
  stop_clean ();
}
END_TEST

/* A flush that comes while a commit runs must not be answered by it: the
 * cut lies before what it is to make durable.
 */
START_TEST (a_flush_is_not_answered_by_an_earlier_commit)
{
  struct request first = { .kind = FLUSH }, second = { .kind = FLUSH };
  uint64_t ended, entry, table;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  table = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&first);
  wait_until_held ();
  ck_assert_int_eq (write_byte (64 * K, 64 * K, 2), 0);
  start (&second);
  expect_waiting (&second);
  ended = img->commit.ended;
  let_go ();
  done (&first, 0);
  done (&second, 0);
  ck_assert_uint_ge (img->commit.ended, ended + 2);
  ck_assert_int_eq (storage_read (storage, &entry, 8, table + 8), 0);
  ck_assert_uint_eq (be64toh (entry) & ENTRY_OFFSET, host_of (64 * K));
  stop_clean ();
}
END_TEST

/* Clients that write durably all the time leave no moment at which none of
 * them does: a sync that waited for one would wait for ever.
 */
START_TEST (durable_writes_do_not_overtake_a_flush)
{
  struct request before = { .kind = WRITE_DURABLY, .offset = 0,
                            .len = 4 * K, .byte = 2 };
  struct request flush = { .kind = FLUSH };
  struct request after = { .kind = WRITE_DURABLY, .offset = 64 * K,
                           .len = 4 * K, .byte = 3 };

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (8 * K, 4 * K, 4), 0);
  hold_next (STORAGE_MEMORY_WRITE_DURABLE, 0, 0);
  start (&before);
  wait_until_held ();
  start (&flush);
  expect_waiting (&flush);
  start (&after);
  expect_waiting (&after);
  let_go ();
  done (&before, 0);
  done (&flush, 0);
  done (&after, 0);
  expect_byte (0, 4 * K, 2);
  expect_byte (64 * K, 4 * K, 3);
  stop_clean ();
}
END_TEST

/* An L2 table that is shared with a snapshot is copied while somebody
 * reads a slice of it: the reader looks again, because the old table may
 * be anybody's by then.  (A slice of 4 KiB of a table of 64 KiB, so that
 * the copy does not need it.)
 */
START_TEST (a_slice_is_read_again_when_its_table_has_moved)
{
  struct request reader = { .kind = READ, .offset = 300 * M, .len = 4 * K };
  struct iovec none = { .iov_base = (void *) "\0\0\0\0\0\0\0", .iov_len = 8 };
  struct temporary t;
  uint64_t table, entry, old;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 %s 512M", t.name);
  open_loaded (t.name);
  ck_assert_int_eq (write_byte (300 * M, 64 * K, 5), 0);
  ck_assert_int_eq (image_stop (img), 0);
  {
    uint64_t size;
    uint8_t *buf;

    ck_assert_int_eq (storage_size (storage, &size), 0);
    buf = malloc (size);
    ck_assert_ptr_nonnull (buf);
    ck_assert_int_eq (storage_read (storage, buf, size, 0), 0);
    write_file (t.name, buf, size);
    free (buf);
    image_close (img);
  }
  qemu_img ("snapshot -c one %s", t.name);
  open_loaded (t.name);
  temporary_remove (&t);

  table = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  hold_next (STORAGE_MEMORY_READ, table + 300 * M / (64 * K) * 8, 8);
  start (&reader);
  wait_until_held ();
  ck_assert_int_eq (write_byte (0, 64 * K, 6), 0);
  ck_assert_uint_ne (atomic_load (&img->map.l1[0]) & ENTRY_OFFSET, table);
  ck_assert_int_eq (image_flush (img), 0);
  entry = table + 300 * M / (64 * K) * 8;
  ck_assert_int_eq (storage_read (storage, &old, 8, entry), 0);
  ck_assert_int_eq (storage_write (storage, &none, 1, entry, false), 0);
  let_go ();
  expect_read (&reader, 5);
  none.iov_base = &old;         /* the snapshot wants it back */
  ck_assert_int_eq (storage_write (storage, &none, 1, entry, false), 0);
  ck_assert_int_eq (write_byte (300 * M, 4 * K, 7), 0);
  expect_byte (300 * M, 4 * K, 7);
  expect_byte (300 * M + 4 * K, 60 * K, 5);
  stop_clean ();
}
END_TEST

/* The error of a request that is refused because another one met
 * corruption does not overtake the corrupt bit.
 */
START_TEST (no_error_overtakes_the_corrupt_bit)
{
  struct request bad = { .kind = BAD_WRITE, .offset = 0, .len = 8 };
  struct request others[] = {
    { .kind = WRITE, .offset = M, .len = 4 * K },
    { .kind = TRIM, .offset = M, .len = 64 * K },
    { .kind = ZERO, .offset = M, .len = 64 * K },
    { .kind = BAD_WRITE, .offset = 64 * K, .len = 8 },
  };
  struct request reader = { .kind = READ, .offset = M, .len = 4 * K };
  unsigned i;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (M, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&bad);
  wait_until_held ();
  for (i = 0; i < ARRAY_SIZE (others); ++i)
    start (&others[i]);
  for (i = 0; i < ARRAY_SIZE (others); ++i)
    expect_waiting (&others[i]);
  /* Reads go on even now. */
  start (&reader);
  expect_read (&reader, 1);
  let_go ();
  done (&bad, -EIO);
  for (i = 0; i < ARRAY_SIZE (others); ++i)
    done (&others[i], -EIO);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("held");
  TCase *tc = tcase_create ("held");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, a_trim_waits_for_a_read);
  tcase_add_test (tc, a_trim_waits_for_a_write_in_place);
  tcase_add_test (tc, a_cluster_is_not_reused_before_its_hole_is_punched);
  tcase_add_test (tc, holes_are_made_for_subclusters);
  tcase_add_test (tc, holes_are_whole_blocks);
  tcase_add_test (tc, no_hole_is_made_in_what_was_filled_again);
  tcase_add_test (tc, no_hole_is_made_under_a_write);
  tcase_add_test (tc, no_hole_is_made_in_what_a_crash_brings_back);
  tcase_add_test (tc, no_hole_is_made_in_what_is_newer_than_the_commit);
  tcase_add_test (tc, no_hole_is_made_in_what_a_snapshot_has);
  tcase_add_test (tc, a_commit_does_not_link_data_that_is_on_its_way);
  tcase_add_test (tc, a_commit_writes_slices_as_at_its_cut);
  tcase_add_test (tc, a_flush_is_not_answered_by_an_earlier_commit);
  tcase_add_test (tc, durable_writes_do_not_overtake_a_flush);
  tcase_add_test (tc, a_slice_is_read_again_when_its_table_has_moved);
  tcase_add_test (tc, no_error_overtakes_the_corrupt_bit);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
