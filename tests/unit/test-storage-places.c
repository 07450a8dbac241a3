/* SPDX-License-Identifier: BSD-3-Clause */

/* When the syncs of a file on ext4 without a journal go side by side: where
 * its blocks are, and what is new, is made up here.
 *
 * As in test-storage-faults.c the functions below replace those of the C
 * library.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include <linux/falloc.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/magic.h>

#include "storage-test.h"

#define LEN (MIB)

static struct {
  int error;                    /* FIEMAP fails with it */
  unsigned nr;                  /* extents, of this file: */
  struct fiemap_extent extents[20];
  unsigned asked;               /* how often */
  void (*meanwhile) (void);     /* something happens while it is asked */
  bool real;                    /* ask the real file system */
} disk;

static struct storage *s;
static char file[64];           /* its name */
static int file_fd;

int
fstatfs (int fd, struct statfs *fs)
{
  const int r = (int) syscall (SYS_fstatfs, fd, fs);

  fs->f_type = EXT4_SUPER_MAGIC;
  return r;
}

/* And we cannot know whether it has a journal. */
ssize_t
readlink (const char *path, char *buf, size_t len)
{
  (void) path;
  (void) buf;
  (void) len;
  errno = ENOENT;
  return -1;
}

static int
fiemap (struct fiemap *map)
{
  const uint64_t end = map->fm_start + map->fm_length;
  unsigned i, n = 0;

  ck_assert_uint_eq (map->fm_flags, 0);
  disk.asked++;
  for (i = 0; i < disk.nr && n < map->fm_extent_count; i++) {
    const struct fiemap_extent *e = &disk.extents[i];

    if (e->fe_logical < end
        && e->fe_logical + e->fe_length > map->fm_start)
      map->fm_extents[n++] = *e;
  }
  map->fm_mapped_extents = n;
  if (disk.meanwhile)
    disk.meanwhile ();
  errno = disk.error;
  return disk.error ? -1 : 0;
}

int
ioctl (int fd, unsigned long request, ...)
{
  va_list args;
  void *arg;

  va_start (args, request);
  arg = va_arg (args, void *);
  va_end (args);
  if (request == FS_IOC_FIEMAP && !disk.real)
    return fiemap (arg);
  return (int) syscall (SYS_ioctl, fd, request, arg);
}

static unsigned times_seen;

int
fstat (int fd, struct stat *st)
{
  times_seen++;
  return (int) syscall (SYS_fstat, fd, st);
}

/* A hole is made as soon as it may be. */
static atomic_bool hold, held;
static bool no_zero_range;

int
fallocate (int fd, int mode, off_t offset, off_t len)
{
  atomic_store (&held, true);
  while (atomic_load (&hold))
    usleep (100);
  if (no_zero_range && (mode & FALLOC_FL_ZERO_RANGE)) {
    errno = EOPNOTSUPP;
    return -1;
  }
  return (int) syscall (SYS_fallocate, fd, mode, offset, len);
}

static void
extent (uint64_t offset, uint64_t len, uint32_t flags)
{
  ck_assert_uint_lt (disk.nr, 20);
  disk.extents[disk.nr++] = (struct fiemap_extent) {
    .fe_logical = offset, .fe_length = len, .fe_flags = flags };
}

static void
setup (void)
{
  memset (&disk, 0, sizeof disk);
  atomic_store (&hold, false);
  atomic_store (&held, false);
  disk_file (&file_fd, file);
  s = open_rw (file);
  ck_ok (storage_truncate (s, LEN));
  extent (0, LEN / 2, FIEMAP_EXTENT_MERGED);
  extent (LEN / 2, LEN / 2, FIEMAP_EXTENT_LAST);
}

static void
teardown (void)
{
  storage_close (s);
  close (file_fd);
}

static void
write_at (uint64_t offset, size_t len)
{
  static const char zeroes[64 * KIB];

  ck_ok (write_buf (s, zeroes, len, offset));
}

/* What was written before the file was opened may be at places that are
 * not known durably, and a sync that is beside others does not make them so.
 */
START_TEST (a_sync_alone_comes_first)
{
  ck_assert (!storage_syncs_apart (s));
  ck_assert (!storage_writes_apart (s, 0, 4 * KIB));
  ck_ok (storage_sync (s));
  ck_assert (!storage_syncs_apart (s));
  ck_ok (storage_sync_alone (s));
  ck_assert (storage_syncs_apart (s));
  ck_assert (storage_writes_apart (s, 0, 4 * KIB));
}
END_TEST

START_TEST (writes_in_place_leave_syncs_apart)
{
  ck_ok (storage_sync_alone (s));
  write_at (0, 4 * KIB);
  write_at (LEN / 2 - 512, 1024);
  write_at (LEN - 1, 1);
  ck_assert_uint_eq (disk.asked, 3);
  ck_assert (storage_syncs_apart (s));
  ck_ok (storage_sync (s));
  ck_assert (storage_syncs_apart (s));
}
END_TEST

/* The next write has to change a time that somebody has seen, which costs
 * a sync of the inode, too.
 */
START_TEST (the_look_does_not_see_the_times)
{
  ck_ok (storage_sync_alone (s));
  ck_assert_uint_gt (times_seen, 0); /* when it was opened */
  times_seen = 0;
  write_at (0, 4 * KIB);
  ck_assert (storage_writes_apart (s, 0, 4 * KIB));
  ck_assert_uint_eq (times_seen, 0);
}
END_TEST

/* What a range of 64 KiB at 0 is made of, none of which will do. */
static const struct {
  const char *what;
  int error;
  struct {
    uint64_t offset, len;
    uint32_t flags;
  } extents[3];
} new_places[] = {
  { "a hole", 0, { { 0, 0, 0 } } },
  { "a hole at the beginning", 0, { { 4096, LEN, 0 } } },
  { "a hole at the end", 0, { { 0, 60 * KIB, 0 } } },
  { "a hole between", 0, { { 0, 4096, 0 }, { 8192, LEN, 0 } } },
  { "unwritten", 0, { { 0, LEN, FIEMAP_EXTENT_UNWRITTEN } } },
  { "to be allocated", 0,
    { { 0, LEN, FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_UNKNOWN } } },
  { "shared", 0, { { 0, LEN, FIEMAP_EXTENT_SHARED } } },
  { "in the inode", 0, { { 0, LEN, FIEMAP_EXTENT_DATA_INLINE } } },
  { "a flag of the future", 0, { { 0, LEN, 1u << 30 } } },
  { "unwritten in part", 0, { { 0, 4096, 0 },
                              { 4096, LEN, FIEMAP_EXTENT_UNWRITTEN } } },
  { "no answer", EOPNOTSUPP, { { 0, LEN, 0 } } },
};

START_TEST (what_gets_a_new_place_wants_a_sync_alone)
{
  size_t i;

  disk.nr = 0;
  disk.error = new_places[_i].error;
  for (i = 0; i < 3 && new_places[_i].extents[i].len; ++i)
    extent (new_places[_i].extents[i].offset, new_places[_i].extents[i].len,
            new_places[_i].extents[i].flags);
  ck_ok (storage_sync_alone (s));
  ck_assert_msg (!storage_writes_apart (s, 0, 64 * KIB), "%s",
                 new_places[_i].what);
  ck_assert (storage_syncs_apart (s));
  write_at (0, 64 * KIB);
  ck_assert_msg (!storage_syncs_apart (s), "%s", new_places[_i].what);
  ck_ok (storage_sync (s));
  ck_assert (!storage_syncs_apart (s));
  ck_ok (storage_sync_alone (s));
  ck_assert (storage_syncs_apart (s));
}
END_TEST

/* A block that is there, in part behind the end of the file. */
START_TEST (a_longer_file_wants_a_sync_alone)
{
  ck_ok (storage_truncate (s, LEN - 100));
  ck_ok (storage_sync_alone (s));
  write_at (LEN - 200, 100);
  ck_assert (storage_syncs_apart (s));
  ck_assert (!storage_writes_apart (s, LEN - 200, 101));
  write_at (LEN - 200, 101);
  ck_assert (!storage_syncs_apart (s));
}
END_TEST

START_TEST (many_extents_are_not_looked_through)
{
  unsigned i;

  disk.nr = 0;
  for (i = 0; i < 16; ++i)
    extent (i * 4096, 4096, 0);
  ck_ok (storage_sync_alone (s));
  write_at (0, 32 * KIB);
  ck_assert (storage_syncs_apart (s));
  write_at (0, 64 * KIB);
  ck_assert (!storage_syncs_apart (s));
}
END_TEST

/* A guest that writes much before it flushes is not to pay for it. */
START_TEST (only_the_first_writes_after_a_sync_are_looked_up)
{
  unsigned i;

  ck_ok (storage_sync_alone (s));
  for (i = 0; i < 16; ++i) {
    write_at (i * 4096, 4096);
    ck_assert (storage_syncs_apart (s));
  }
  write_at (0, 4096);
  ck_assert (!storage_syncs_apart (s));
  write_at (0, 4096);
  ck_assert_uint_eq (disk.asked, 16);

  ck_ok (storage_sync_alone (s));
  write_at (0, 4096);
  ck_assert_uint_eq (disk.asked, 17);
  for (i = 0; i < 50; ++i) {
    write_at (0, 4096);
    ck_assert (storage_syncs_apart (s));
    ck_ok (storage_sync (s));
  }
}
END_TEST

/* Where every sync is alone, whatever is found, little is looked up. */
START_TEST (what_saves_no_sync_alone_is_seldom_looked_up)
{
  unsigned i;

  for (i = 0; i < 32; ++i) {
    ck_ok (storage_sync_alone (s));
    write_at (0, 4096);
  }
  ck_assert_uint_eq (disk.asked, 3 + 2);
  ck_assert (storage_syncs_apart (s));
  ck_ok (storage_sync (s));
  for (i = 0; i < 3; ++i) {
    write_at (0, 4096);
    ck_ok (storage_sync_alone (s));
  }
  ck_assert_uint_eq (disk.asked, 3 + 2 + 3);
}
END_TEST

static void
change (int i)
{
  switch (i) {
  case 0:
  case 4:
    no_zero_range = i == 4;
    ck_ok (storage_zero (s, 0, 4096));
    break;
  case 1:
    ck_ok (storage_punch (s, 0, 4096));
    break;
  case 2:
    ck_ok (storage_reserve (s, 0, 4096));
    break;
  default:
    ck_ok (storage_truncate (s, LEN + 4096));
  }
}

START_TEST (other_changes_want_a_sync_alone)
{
  if (_i == 4)
    change (_i);                /* and learns to do without */
  ck_ok (storage_sync_alone (s));
  change (_i);
  ck_assert (!storage_syncs_apart (s));
  ck_assert (!storage_writes_apart (s, 8192, 4096));
}
END_TEST

static void *
punch (void *arg)
{
  change (1);
  return arg;
}

/* A sync alone may begin while a change is at work, and end before it. */
START_TEST (a_change_at_work_is_not_covered_by_a_sync)
{
  pthread_t thread;

  ck_ok (storage_sync_alone (s));
  atomic_store (&hold, true);
  ck_assert_int_eq (pthread_create (&thread, NULL, punch, NULL), 0);
  while (!atomic_load (&held))
    usleep (100);
  ck_assert (!storage_syncs_apart (s));
  ck_ok (storage_sync_alone (s));
  ck_assert (!storage_syncs_apart (s));
  atomic_store (&hold, false);
  pthread_join (thread, NULL);
  ck_assert (!storage_syncs_apart (s));
  ck_ok (storage_sync_alone (s));
  ck_assert (storage_syncs_apart (s));
}
END_TEST

static void
change_meanwhile (void)
{
  disk.meanwhile = NULL;
  change (2);
}

/* What is found mapped may be so since a moment ago. */
START_TEST (a_change_during_the_look_is_noticed)
{
  ck_ok (storage_sync_alone (s));
  disk.meanwhile = change_meanwhile;
  ck_assert (!storage_writes_apart (s, 0, 4096));
}
END_TEST

/* A durable write is asked about before, and looked up once. */
START_TEST (durable_writes_are_not_looked_up_again)
{
  struct iovec iov = { .iov_base = (void *) "data", .iov_len = 4 };

  ck_ok (storage_sync_alone (s));
  ck_assert (storage_writes_apart (s, 0, 4));
  ck_ok (storage_write (s, &iov, 1, 0, true));
  ck_assert_uint_eq (disk.asked, 1);
  ck_assert (storage_syncs_apart (s));
}
END_TEST

/* Nothing made up: what this machine's file system says. */
START_TEST (the_real_file_system)
{
  struct fiemap map = { .fm_length = 1 };

  disk.real = true;
  write_at (0, 64 * KIB);
  ck_ok (storage_sync_alone (s));
  if (ioctl (file_fd, FS_IOC_FIEMAP, &map) == -1) {
    ck_assert (!storage_writes_apart (s, 4096, 4096));
    return;
  }
  ck_assert (storage_writes_apart (s, 4096, 4096));
  ck_assert (!storage_writes_apart (s, 64 * KIB, 4096));
  ck_assert (!storage_writes_apart (s, 60 * KIB, 8192));
  write_at (0, 32 * KIB);
  ck_assert (storage_syncs_apart (s));
  write_at (512 * KIB, 4096);
  ck_assert (!storage_syncs_apart (s));
  ck_ok (storage_sync_alone (s));
  ck_assert (storage_writes_apart (s, 512 * KIB, 4096));
  write_at (LEN, 1);
  ck_assert (!storage_syncs_apart (s));

  ck_ok (storage_reserve (s, 256 * KIB, 4096));
  ck_ok (storage_sync_alone (s));
  ck_assert (!storage_writes_apart (s, 256 * KIB, 4096));
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("storage-places");
  TCase *tc = tcase_create ("storage-places");

  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, a_sync_alone_comes_first);
  tcase_add_test (tc, writes_in_place_leave_syncs_apart);
  tcase_add_test (tc, the_look_does_not_see_the_times);
  tcase_add_loop_test (tc, what_gets_a_new_place_wants_a_sync_alone, 0,
                       sizeof new_places / sizeof new_places[0]);
  tcase_add_test (tc, a_longer_file_wants_a_sync_alone);
  tcase_add_test (tc, many_extents_are_not_looked_through);
  tcase_add_test (tc, only_the_first_writes_after_a_sync_are_looked_up);
  tcase_add_test (tc, what_saves_no_sync_alone_is_seldom_looked_up);
  tcase_add_loop_test (tc, other_changes_want_a_sync_alone, 0, 5);
  tcase_add_test (tc, a_change_at_work_is_not_covered_by_a_sync);
  tcase_add_test (tc, a_change_during_the_look_is_noticed);
  tcase_add_test (tc, durable_writes_are_not_looked_up_again);
  tcase_add_test (tc, the_real_file_system);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
