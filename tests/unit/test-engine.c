/* SPDX-License-Identifier: BSD-3-Clause */

/* The engine on a storage in memory: the order of its writes, the
 * quarantine, faults, and the guard.  qemu-img judges what is left.
 */

#include <config.h>

#include "engine-test.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)

/* Index of the first operation from FROM on that touches [OFFSET,
 * OFFSET+LEN) and writes; watch.n if there is none.
 */
static unsigned
find_write (unsigned from, uint64_t offset, uint64_t len)
{
  for (; from < watch.n; ++from)
    if (watch.ops[from].kind == STORAGE_MEMORY_WRITE
        && watch.ops[from].offset < offset + len
        && offset < watch.ops[from].offset + watch.ops[from].len)
      break;
  return from;
}

static unsigned
find_sync (unsigned from)
{
  while (from < watch.n && watch.ops[from].kind != STORAGE_MEMORY_SYNC)
    ++from;
  return from;
}

/* Data and counts, sync, pointers, sync. */
START_TEST (pointers_are_written_after_a_sync)
{
  uint64_t data, l2, l1, block;
  unsigned i;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (5 * M, 64 * K, 0x11), 0);
  ck_assert_int_eq (image_flush (img), 0);
  data = host_of (5 * M);
  l1 = img->header.l1_table_offset;
  l2 = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  block = refcounts_block_offset (img, 0);

  i = find_sync (MAX (find_write (0, data, 64 * K),
                      find_write (0, block, 64 * K)));
  ck_assert_uint_lt (i, watch.n);
  ck_assert_uint_gt (find_write (0, l2, 64 * K), i);
  ck_assert_uint_gt (find_write (0, l1, 64 * K), i);
  ck_assert_uint_lt (find_write (0, l2, 64 * K), watch.n);
  ck_assert_uint_lt (find_write (0, l1, 64 * K), watch.n);
  ck_assert_uint_lt (find_sync (MAX (find_write (0, l2, 64 * K),
                                     find_write (0, l1, 64 * K))), watch.n);
  /* The first was at the first write. */
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_SYNC), 3);
  stop_clean ();
}
END_TEST

START_TEST (a_flush_after_writes_in_place_is_one_sync)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  watch.n = 0;
  ck_assert_int_eq (write_byte (4096, 4096, 2), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (watch.n, 2);
  ck_assert_int_eq (watch.ops[0].kind, STORAGE_MEMORY_WRITE);
  ck_assert_int_eq (watch.ops[1].kind, STORAGE_MEMORY_SYNC);
  watch.n = 0;
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (watch.n, 0);
  stop_clean ();
}
END_TEST

START_TEST (fua_in_place_is_one_durable_write)
{
  uint8_t buf[4096] = { 1 };

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  watch.n = 0;
  /* The mapping is not durable yet: the write needs a commit. */
  ck_assert_int_eq (image_write (img, buf, sizeof buf, 0, true), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_SYNC), 2);
  watch.n = 0;
  ck_assert_int_eq (image_write (img, buf, sizeof buf, 0, true), 0);
  ck_assert_uint_eq (watch.n, 1);
  ck_assert_int_eq (watch.ops[0].kind, STORAGE_MEMORY_WRITE_DURABLE);
  stop_clean ();
}
END_TEST

START_TEST (a_trim_needs_no_sync_before_the_pointers)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, M, 1), 0);
  ck_assert_int_eq (image_stop (img), 0);
  watch.n = 0;
  ck_assert_int_eq (image_trim (img, 0, 512 * K, false), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_WRITE), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_SYNC), 1);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 1);
  ck_assert_uint_lt (find_sync (0), watch.n - 1);
  expect_byte (0, 512 * K, 0);
  expect_byte (512 * K, 512 * K, 1);
  stop_clean ();
}
END_TEST

/* A freed cluster is neither reused nor punched before the commit that
 * makes the freeing durable; afterwards it is reused.
 */
START_TEST (a_freed_cluster_waits_in_quarantine)
{
  uint64_t freed, other;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  freed = host_of (0);
  watch.n = 0;
  ck_assert_int_eq (image_trim (img, 0, 64 * K, false), 0);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  other = host_of (M);
  ck_assert_uint_ne (other, freed);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  ck_assert_uint_eq (find_write (0, freed, 64 * K), watch.n);

  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 1);
  ck_assert_int_eq (write_byte (2 * M, 64 * K, 3), 0);
  ck_assert_uint_eq (host_of (2 * M), freed);
  stop_clean ();
}
END_TEST

/* A new refcount block is durable before the table points to it. */
START_TEST (a_refcount_block_is_durable_before_its_entry)
{
  uint64_t block;
  unsigned i;

  /* A block of 512 bytes with 64-bit counts covers 32 KiB. */
  make_image ("-o cluster_size=512,refcount_bits=64", "1M");
  watch.n = 0;
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  block = refcounts_block_offset (img, 1);
  ck_assert_uint_ne (block, 0);
  i = find_write (0, block, 512);
  ck_assert_uint_lt (i, watch.n);
  i = find_sync (i);
  ck_assert_uint_lt (i, watch.n);
  ck_assert_uint_eq (find_write (0, img->refcounts.table_offset + 8, 8),
                     find_write (i, img->refcounts.table_offset + 8, 8));
  stop_clean ();
}
END_TEST

START_TEST (the_refcount_table_grows)
{
  uint64_t old;

  make_image ("-o cluster_size=512,refcount_bits=64", "12M");
  old = img->refcounts.table_offset;
  ck_assert_int_eq (write_byte (0, 10 * M, 1), 0);
  ck_assert_uint_ne (img->refcounts.table_offset, old);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (img->refcounts.disk_table_offset,
                     img->refcounts.table_offset);
  expect_byte (0, 10 * M, 1);
  stop_clean ();
}
END_TEST

/* A failed sync is never forgiven. */
START_TEST (after_a_failed_sync_nothing_is_written)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  fail_next (STORAGE_MEMORY_SYNC, UINT64_MAX, EIO, 1);
  ck_assert_int_eq (image_flush (img), -EIO);
  watch.n = 0;
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (write_byte (0, 64 * K, 2), -EIO);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), -EIO);
  ck_assert_int_eq (image_trim (img, 0, M, false), -EIO);
  expect_byte (0, 64 * K, 1);
  ck_assert_int_lt (image_stop (img), 0);
  ck_assert_uint_eq (watch.n, 0);
  ck_assert_int_ne (qemu_check (), 2);
  image_close (img);
}
END_TEST

/* Also if nothing seems to be left to do, because only data was written,
 * in place.
 */
START_TEST (closing_tells_of_a_failed_sync)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (0, 64 * K, 2), 0);
  fail_next (STORAGE_MEMORY_SYNC, UINT64_MAX, EIO, 1);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (image_stop (img), -EIO);
  image_close (img);
}
END_TEST

/* A metadata write that failed is tried again with the next epoch. */
START_TEST (a_failed_metadata_write_is_tried_again)
{
  uint64_t l2;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  l2 = atomic_load (&img->map.l1[0]) & ENTRY_OFFSET;
  fail_next (STORAGE_MEMORY_WRITE, l2, EIO, 1);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_uint_eq (watch.fail_times, 0);
  ck_assert_int_ne (qemu_check (), 2);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  ck_assert_int_eq (image_flush (img), 0);
  expect_byte (0, 64 * K, 1);
  expect_byte (M, 64 * K, 2);
  stop_clean ();
}
END_TEST

/* Each operation of some work fails in turn: the guest is told, nothing
 * is corrupt, and in the end nothing is leaked either.
 */
static void
work (unsigned *failures)
{
  static const struct { uint64_t offset; uint64_t len; } writes[] = {
    { 0, 100 * K }, { 3 * M, 4 * K }, { 40 * K, 8 * K }, { 6 * M, 70 * K },
  };
  unsigned i;

  for (i = 0; i < ARRAY_SIZE (writes); ++i)
    *failures += write_byte (writes[i].offset, writes[i].len,
                             (int) i + 1) < 0;
  *failures += image_flush (img) < 0;
  *failures += image_trim (img, 0, 64 * K, false) < 0;
  *failures += image_zero (img, 3 * M, 100 * K, 0, false) < 0;
  *failures += write_byte (5 * M, 64 * K, 9) < 0;
  *failures += image_flush (img) < 0;
}

static unsigned seen, fail_at;
static int fail_with;

static int
fail_nth (void *opaque, enum storage_memory_op kind, uint64_t offset,
          uint64_t len)
{
  (void) opaque;
  (void) offset;
  (void) len;
  if (kind == STORAGE_MEMORY_SYNC || kind == STORAGE_MEMORY_LOCK
      || kind == STORAGE_MEMORY_MAP)
    return 0;
  return seen++ == fail_at ? -fail_with : 0;
}

START_TEST (any_operation_may_fail_once)
{
  static const char *const options[] = {
    "-o cluster_size=64k", "-o cluster_size=512,refcount_bits=64",
  };
  /* Valgrind runs fewer of them. */
  const unsigned slower = getenv ("QCOW2_VALGRIND") ? 10 : 1;
  unsigned failures, total = 0;
  struct temporary t;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 %s %s 8M", options[_i / 2], t.name);
  fail_with = _i & 1 ? ENOSPC : EIO;
  for (fail_at = 0; ; fail_at += (_i < 2 ? 1u : 29u) * slower) {
    open_loaded (t.name);
    seen = 0;
    failures = 0;
    storage_memory_set_hook (storage, fail_nth, NULL);
    work (&failures);
    storage_memory_set_hook (storage, watch_hook, NULL);
    total += failures;
    ck_assert_msg (qemu_check () != 2, "corrupt after operation %u failed",
                   fail_at);
    if (seen <= fail_at) {
      ck_assert_uint_eq (failures, 0);
      stop_clean ();
      break;
    }
    stop_clean ();
  }
  temporary_remove (&t);
  ck_assert_uint_gt (total, slower > 1 ? 0 : 2);
}
END_TEST

/* On a device of fixed size: full is ENOSPC, and what was trimmed can be
 * used again at once, because the allocator commits before it gives up.
 */
START_TEST (a_full_device_gets_its_quarantine_back)
{
  uint64_t offset;
  int r = 0;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 4 * M, 1), 0);
  ck_assert_int_eq (image_stop (img), 0);
  storage_memory_set_can_grow (storage, false);
  for (offset = 8 * M; offset < 64 * M && r == 0; offset += 64 * K)
    r = write_byte (offset, 64 * K, 2);
  ck_assert_int_eq (r, -ENOSPC);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (image_trim (img, 0, M, false), 0);
  ck_assert_int_eq (write_byte (32 * M, M, 3), 0);
  ck_assert_int_eq (image_flush (img), 0);
  expect_byte (32 * M, M, 3);
  stop_clean ();
}
END_TEST

/* A zero with FUA that finds zeroes already must not answer before they
 * are durable.
 */
START_TEST (fua_zero_over_unsynced_zeroes_is_durable)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 0xaa), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (image_zero (img, 0, 64 * K, 0, false), 0);
  watch.n = 0;
  ck_assert_int_eq (image_zero (img, 100, 1000, 0, true), 0);
  ck_assert_uint_ge (count_ops (STORAGE_MEMORY_SYNC), 1);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* A durable write syncs, and its failure is a failed sync. */
START_TEST (a_failed_fua_write_is_not_forgiven)
{
  uint8_t buf[4096] = { 1 };

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  fail_next (STORAGE_MEMORY_WRITE_DURABLE, UINT64_MAX, EIO, 1);
  ck_assert_int_eq (image_write (img, buf, sizeof buf, 0, true), -EIO);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (write_byte (0, 4096, 2), -EIO);
  ck_assert_int_lt (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* Is ENOSPC the write's or the sync's?  Here the plain write that tells
 * the two apart succeeds, so it was the sync's.
 */
START_TEST (a_sync_without_space_is_not_forgiven_either)
{
  uint8_t buf[4096] = { 1 };

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  fail_next (STORAGE_MEMORY_WRITE_DURABLE, UINT64_MAX, ENOSPC, 1);
  ck_assert_int_lt (image_write (img, buf, sizeof buf, 0, true), 0);
  ck_assert (atomic_load (&img->guard.failed));
  image_stop (img);
  image_close (img);
}
END_TEST

/* What a killed server left in the page cache is synced before anything
 * counts as durable.
 */
START_TEST (the_first_write_syncs_what_was_there)
{
  size_t i = 0;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 4096, 1), 0);
  while (watch.ops[i].kind == STORAGE_MEMORY_LOCK
         || watch.ops[i].kind == STORAGE_MEMORY_MAP)
    ++i;
  ck_assert_int_eq (watch.ops[i].kind, STORAGE_MEMORY_SYNC);
  stop_clean ();
}
END_TEST

/* A commit that moved the refcount table fails after the header was
 * written.  The next one must not put entries for new blocks into that
 * table before the blocks are durable.
 */
START_TEST (a_table_that_moved_is_not_rewritten_at_a_retry)
{
  uint64_t table, l1, block;
  unsigned i, n;

  make_image ("-o cluster_size=512,refcount_bits=64", "12M");
  l1 = img->header.l1_table_offset;
  table = img->refcounts.table_offset;
  for (i = 0; img->refcounts.table_offset == table; ++i)
    ck_assert_int_eq (write_byte (i * 4 * K, 4 * K, 1), 0);
  table = img->refcounts.table_offset;
  fail_next (STORAGE_MEMORY_WRITE, l1, EIO, 1);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_uint_eq (watch.fail_times, 0);

  for (n = 0; n < 32; ++n, ++i)
    ck_assert_int_eq (write_byte (i * 4 * K, 4 * K, 1), 0);
  block = refcounts_block_offset (img, (host_of ((i - 1) * 4 * K) >> 9)
                                  >> img->refcounts.block_bits);
  watch.n = 0;
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_lt (find_write (0, block, 512), watch.n);
  ck_assert_uint_gt (find_write (0, table, img->refcounts.table_clusters
                                 * 512),
                     find_sync (find_write (0, block, 512)));
  stop_clean ();
}
END_TEST

/* What was acknowledged does not fail at the flush for want of space. */
START_TEST (a_flush_needs_no_space)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, M, 1), 0);
  ck_assert_int_eq (write_byte (40 * M, M, 1), 0);
  watch.n = 0;
  storage_memory_set_can_grow (storage, false);
  fail_next (STORAGE_MEMORY_RESERVE, UINT64_MAX, ENOSPC, 1000);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_RESERVE), 0);
  ck_assert_uint_eq (watch.fail_times, 1000);
  stop_clean ();
}
END_TEST

/* A limit on the length of files, and a quota, are full disks, too: what
 * was trimmed is used before the guest hears of it.
 */
START_TEST (other_names_for_a_full_disk)
{
  static const int names[] = { ENOSPC, EFBIG, EDQUOT };
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 128 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (image_trim (img, 0, 64 * K, false), 0);
  ck_assert_int_eq (write_byte (M, 64 * K, 2), 0);
  host = host_of (M) + 64 * K;
  fail_next (STORAGE_MEMORY_WRITE, host, names[_i], 1);
  ck_assert_int_eq (write_byte (2 * M, 64 * K, 3), 0);
  ck_assert_uint_eq (watch.fail_times, 0);
  expect_byte (2 * M, 64 * K, 3);
  stop_clean ();
}
END_TEST

/* The guard's two questions, for each type of metadata. */
START_TEST (the_guard_refuses_what_is_not_the_writers)
{
  const uint64_t place[] = {
    [OVERLAP_MAIN_HEADER] = 0,
    [OVERLAP_REFCOUNT_TABLE] = 64 * K,
    [OVERLAP_REFCOUNT_BLOCK] = 128 * K,
    [OVERLAP_ACTIVE_L1] = 192 * K,
  };
  static const enum overlap_type types[] = {
    OVERLAP_MAIN_HEADER, OVERLAP_REFCOUNT_TABLE, OVERLAP_REFCOUNT_BLOCK,
    OVERLAP_ACTIVE_L1,
  };
  const enum overlap_type type = types[_i];
  struct iovec iov = { .iov_base = (void *) "12345678", .iov_len = 8 };

  make_image ("", "64M");
  ck_assert_int_eq (image_begin_writing (img), 0);
  watch.n = 0;
  /* Its own type may write; it is the right place. */
  ck_assert_int_eq (guard_check (img, (int) type, place[type] + 8, 8), 0);
  ck_assert (!atomic_load (&img->guard.corrupt));
  ck_assert_uint_eq (watch.n, 0);
  /* Neither guest data, */
  ck_assert_int_eq (guard_write (img, GUARD_DATA, &iov, 1, place[type] + 8,
                                 false), -EIO);
  ck_assert (atomic_load (&img->guard.corrupt));
  /* nor another type, */
  ck_assert_int_eq (guard_write (img, OVERLAP_ACTIVE_L2, &iov, 1,
                                 place[type] + 8, false), -EIO);
  ck_assert_int_eq (guard_zero (img, OVERLAP_ACTIVE_L2, place[type], 8),
                    -EIO);
  ck_assert_int_eq (guard_punch (img, GUARD_DATA, place[type], 64 * K),
                    -EIO);
  ck_assert_int_eq (guard_reserve (img, OVERLAP_ACTIVE_L2, place[type], 8,
                                   false), -EIO);
  /* nor the right type in the wrong place, */
  ck_assert_int_eq (guard_write (img, (int) type, &iov, 1, 10 * M, false),
                    -EIO);
  /* nor a range that begins outside and reaches in. */
  if (place[type] > 0)
    ck_assert_int_eq (guard_check (img, GUARD_DATA, place[type] - 1, 2),
                      -EIO);
  ck_assert_int_eq (guard_claim (img, OVERLAP_ACTIVE_L2, place[type],
                                 64 * K), -EIO);
  /* Only the corrupt bit was written. */
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_WRITE), 1);
  ck_assert_uint_eq (watch.ops[0].offset, HEADER_OFFSET_INCOMPATIBLE);
  ck_assert_uint_eq (watch.ops[0].len, 8);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_SYNC), 1);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_ZERO), 0);
  ck_assert_uint_eq (count_ops (STORAGE_MEMORY_PUNCH), 0);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* What was acknowledged before corruption was met becomes durable. */
START_TEST (acknowledged_writes_survive_a_hit)
{
  struct iovec iov = { .iov_base = (void *) "x", .iov_len = 1 };

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 7), 0);
  ck_assert_int_eq (guard_write (img, GUARD_DATA, &iov, 1, 64 * K, false),
                    -EIO);
  ck_assert_int_eq (write_byte (M, 64 * K, 8), -EIO);
  ck_assert_int_eq (image_flush (img), 0);
  expect_byte (0, 64 * K, 7);
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 0);
  image_close (img);
}
END_TEST

/* Set the count of a cluster in the file behind the engine's back. */
static void
poke_count (uint64_t host, uint16_t value)
{
  uint8_t buf[2] = { (uint8_t) (value >> 8), (uint8_t) value };
  struct iovec iov = { .iov_base = buf, .iov_len = 2 };

  ck_assert_int_eq (storage_write (storage, &iov, 1,
                                   128 * K + host / (64 * K) * 2, false), 0);
}

/* The bytes of the storage as a new image. */
static void
reopen (uint64_t poked, uint16_t count)
{
  struct temporary t;
  uint64_t size;
  uint8_t *buf;

  ck_assert_int_eq (image_stop (img), 0);
  poke_count (poked, count);
  ck_assert_int_eq (storage_size (storage, &size), 0);
  buf = malloc (size);
  ck_assert_ptr_nonnull (buf);
  ck_assert_int_eq (storage_read (storage, buf, size, 0), 0);
  image_close (img);
  temporary_name (&t, "qcow2");
  write_file (t.name, buf, size);
  free (buf);
  open_loaded (t.name);
  temporary_remove (&t);
}

/* COPIED is not believed over a count that says otherwise. */
START_TEST (copied_is_checked_against_the_count)
{
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  host = host_of (0);
  reopen (host, 2);
  ck_assert_int_eq (write_byte (0, 4 * K, 2), 0);
  ck_assert_uint_ne (host_of (0), host);
  expect_byte (0, 4 * K, 2);
  expect_byte (4 * K, 60 * K, 1);
  /* The one reference that was too many remains, as a leak. */
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 3);
  image_close (img);
}
END_TEST

/* The counts of neighbours are looked up with that of the cluster that is
 * written to: those that are one, and no others, need no second look.
 */
START_TEST (neighbours_are_counted_each_for_itself)
{
  uint64_t host, lookups;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 192 * K, 1), 0);
  host = host_of (64 * K);
  reopen (host, 2);
  ck_assert_int_eq (write_byte (0, 4 * K, 2), 0);
  lookups = atomic_load (&img->refcounts.hits);
  ck_assert_int_eq (write_byte (128 * K, 4 * K, 2), 0);
  ck_assert_uint_eq (atomic_load (&img->refcounts.hits), lookups);
  ck_assert_int_eq (write_byte (64 * K, 4 * K, 2), 0);
  ck_assert_uint_ne (host_of (64 * K), host);
  expect_byte (64 * K, 4 * K, 2);
  expect_byte (68 * K, 60 * K, 1);
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 3);
  image_close (img);
}
END_TEST

START_TEST (a_cluster_in_use_with_count_zero_is_corruption)
{
  uint64_t host;

  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  host = host_of (0);
  reopen (host, 0);
  ck_assert_int_eq (write_byte (0, 4 * K, 2), -EIO);
  ck_assert (atomic_load (&img->guard.corrupt));
  expect_byte (0, 64 * K, 1);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine");
  TCase *tc = tcase_create ("engine");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 300);
  tcase_add_test (tc, pointers_are_written_after_a_sync);
  tcase_add_test (tc, a_flush_after_writes_in_place_is_one_sync);
  tcase_add_test (tc, fua_in_place_is_one_durable_write);
  tcase_add_test (tc, a_trim_needs_no_sync_before_the_pointers);
  tcase_add_test (tc, a_freed_cluster_waits_in_quarantine);
  tcase_add_test (tc, a_refcount_block_is_durable_before_its_entry);
  tcase_add_test (tc, the_refcount_table_grows);
  tcase_add_test (tc, after_a_failed_sync_nothing_is_written);
  tcase_add_test (tc, closing_tells_of_a_failed_sync);
  tcase_add_test (tc, a_failed_metadata_write_is_tried_again);
  tcase_add_loop_test (tc, any_operation_may_fail_once, 0, 4);
  tcase_add_test (tc, a_full_device_gets_its_quarantine_back);
  tcase_add_test (tc, a_flush_needs_no_space);
  tcase_add_loop_test (tc, other_names_for_a_full_disk, 0, 3);
  tcase_add_test (tc, fua_zero_over_unsynced_zeroes_is_durable);
  tcase_add_test (tc, a_failed_fua_write_is_not_forgiven);
  tcase_add_test (tc, a_sync_without_space_is_not_forgiven_either);
  tcase_add_test (tc, the_first_write_syncs_what_was_there);
  tcase_add_test (tc, a_table_that_moved_is_not_rewritten_at_a_retry);
  tcase_add_loop_test (tc, the_guard_refuses_what_is_not_the_writers, 0, 4);
  tcase_add_test (tc, acknowledged_writes_survive_a_hit);
  tcase_add_test (tc, copied_is_checked_against_the_count);
  tcase_add_test (tc, neighbours_are_counted_each_for_itself);
  tcase_add_test (tc, a_cluster_in_use_with_count_zero_is_corruption);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
