/* SPDX-License-Identifier: BSD-3-Clause */

/* What storage-file.c does when the kernel gives less than it was asked
 * for: short counts, EINTR, file systems that lack a call.
 *
 * The system calls of the C library are replaced: the functions below
 * have the names that storage-file.c calls, and the linker prefers them
 * to those of the library.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include <linux/falloc.h>
#include <linux/magic.h>

#include "storage-test.h"

/* How the next calls go.  All is 0 when a test begins. */
static struct {
  int interrupt;                /* fail so many calls with EINTR */
  size_t at_most;               /* bytes that one call transfers */
  bool return_zero;             /* writes return 0 */
  int no_dsync;                 /* RWF_DSYNC fails with it */
  int no_mode;                  /* fallocate fails with it, for ... */
  int mode;                     /* ... this mode */
  bool unshares;                /* as if it were XFS */
  int no_seek;                  /* lseek fails with it */
  int sync_error;               /* fdatasync fails with it */
  int start_error;              /* and sync_file_range with this */
  int truncate_error;
  const char *release;          /* of the kernel; NULL: the real one */
  long file_system;             /* of all files; 0: the real one */
  const char *journal;          /* the contents of ext4's journal_task */
} fault;

static const char *swap_path;  /* what open opens instead, without O_PATH */

static struct {
  int writes, dsync_writes, reads, fallocates, syncs, seeks, truncates;
  int max_cnt;                  /* most elements in one write */
  off_t start_offset, start_len; /* of the last sync_file_range */
} calls;

static bool
interrupted (void)
{
  if (fault.interrupt == 0)
    return false;
  fault.interrupt--;
  errno = EINTR;
  return true;
}

ssize_t
readlink (const char *path, char *buf, size_t len)
{
  if (strncmp (path, "/sys/dev/block/", 15) != 0)
    return syscall (SYS_readlinkat, AT_FDCWD, path, buf, len);
  return snprintf (buf, len, "../../devices/pci/block/sda/sda1");
}

static int
journal_task (void)
{
  int fd;

  if (!fault.journal) {
    errno = ENOENT;
    return -1;
  }
  fd = (int) syscall (SYS_memfd_create, "journal_task", 0u);
  ck_assert_int_ge (fd, 0);
  ck_assert_int_eq (dprintf (fd, "%s", fault.journal),
                    (int) strlen (fault.journal));
  lseek (fd, 0, SEEK_SET);
  return fd;
}

int
open (const char *path, int flags, ...)
{
  mode_t mode = 0;
  va_list args;

  if (flags & O_CREAT) {
    va_start (args, flags);
    mode = va_arg (args, mode_t);
    va_end (args);
  }
  if (interrupted ())
    return -1;
  if (strncmp (path, "/sys/fs/ext4/", 13) == 0) {
    ck_assert_str_eq (path, "/sys/fs/ext4/sda1/journal_task");
    return journal_task ();
  }
  if (swap_path && !(flags & O_PATH))
    path = swap_path;
  return (int) syscall (SYS_openat, AT_FDCWD, path, flags, mode);
}

/* What _FORTIFY_SOURCE makes of an open without a mode. */
int __open64_2 (const char *path, int flags);

int
__open64_2 (const char *path, int flags)
{
  return open (path, flags);
}

ssize_t
pread (int fd, void *buf, size_t len, off_t offset)
{
  calls.reads++;
  if (interrupted ())
    return -1;
  if (fault.at_most && len > fault.at_most)
    len = fault.at_most;
  return syscall (SYS_pread64, fd, buf, len, offset);
}

/* Which descriptions syncs and durable writes used, and the first may be
 * made to wait.
 */
static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool wanted, held;
  int fds[30], count;
} sync_calls = { .lock = PTHREAD_MUTEX_INITIALIZER,
                 .changed = PTHREAD_COND_INITIALIZER };

static void
sync_slowly (int fd)
{
  pthread_mutex_lock (&sync_calls.lock);
  if (sync_calls.count < 30)
    sync_calls.fds[sync_calls.count++] = fd;
  if (sync_calls.wanted && !sync_calls.held) {
    sync_calls.held = true;
    pthread_cond_broadcast (&sync_calls.changed);
    while (sync_calls.wanted)
      pthread_cond_wait (&sync_calls.changed, &sync_calls.lock);
  }
  pthread_mutex_unlock (&sync_calls.lock);
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int cnt, off_t offset, int flags)
{
  size_t len = 0;
  char *buf;
  ssize_t r;
  int i;

  calls.writes++;
  calls.max_cnt = cnt > calls.max_cnt ? cnt : calls.max_cnt;
  if (interrupted ())
    return -1;
  if (flags & RWF_DSYNC) {
    calls.dsync_writes++;
    sync_slowly (fd);
    if (fault.no_dsync) {
      errno = fault.no_dsync;
      return -1;
    }
  }
  if (cnt > 1024) {             /* the kernel's limit */
    errno = EINVAL;
    return -1;
  }
  if (fault.return_zero)
    return 0;

  /* One flat write, cut where it is wanted. */
  for (i = 0; i < cnt; i++)
    len += iov[i].iov_len;
  buf = malloc (len);
  ck_assert_ptr_nonnull (buf);
  for (i = 0, len = 0; i < cnt; len += iov[i++].iov_len) {
    if (iov[i].iov_len)
      memcpy (buf + len, iov[i].iov_base, iov[i].iov_len);
  }
  if (fault.at_most && len > fault.at_most)
    len = fault.at_most;
  r = syscall (SYS_pwrite64, fd, buf, len, offset);
  free (buf);
  return r;
}

ssize_t
pwrite (int fd, const void *buf, size_t len, off_t offset)
{
  struct iovec iov = { .iov_base = (void *) buf, .iov_len = len };

  return pwritev2 (fd, &iov, 1, offset, 0);
}

int
fallocate (int fd, int mode, off_t offset, off_t len)
{
  calls.fallocates++;
  if (interrupted ())
    return -1;
  if (fault.no_mode && mode == fault.mode) {
    errno = fault.no_mode;
    return -1;
  }
  if (mode == FALLOC_FL_UNSHARE_RANGE) {
    if (!fault.unshares) {
      errno = EOPNOTSUPP;
      return -1;
    }
    mode = 0;
  }
  return (int) syscall (SYS_fallocate, fd, mode, offset, len);
}

int
uname (struct utsname *name)
{
  const int r = (int) syscall (SYS_uname, name);

  if (fault.release)
    snprintf (name->release, sizeof name->release, "%s", fault.release);
  return r;
}

int
fstatfs (int fd, struct statfs *fs)
{
  const int r = (int) syscall (SYS_fstatfs, fd, fs);

  if (fault.file_system)
    fs->f_type = fault.file_system;
  return r;
}

int
fdatasync (int fd)
{
  calls.syncs++;
  sync_slowly (fd);
  if (interrupted ())
    return -1;
  if (fault.sync_error) {
    errno = fault.sync_error;
    return -1;
  }
  return (int) syscall (SYS_fdatasync, fd);
}

int
sync_file_range (int fd, off_t offset, off_t len, unsigned flags)
{
  ck_assert_uint_eq (flags, SYNC_FILE_RANGE_WRITE);
  calls.start_offset = offset;
  calls.start_len = len;
  if (fault.start_error) {
    errno = fault.start_error;
    return -1;
  }
  return (int) syscall (SYS_sync_file_range, fd, offset, len, flags);
}

off_t
lseek (int fd, off_t offset, int whence)
{
  if (whence == SEEK_DATA || whence == SEEK_HOLE) {
    calls.seeks++;
    if (fault.no_seek) {
      errno = fault.no_seek;
      return -1;
    }
  }
  return syscall (SYS_lseek, fd, offset, whence);
}

int
ftruncate (int fd, off_t len)
{
  calls.truncates++;
  if (interrupted ())
    return -1;
  if (fault.truncate_error) {
    errno = fault.truncate_error;
    return -1;
  }
  return (int) syscall (SYS_ftruncate, fd, len);
}

static struct storage *s;
static char file[64];           /* its name */
static int file_fd;

static void
setup (void)
{
  memset (&fault, 0, sizeof fault);
  swap_path = NULL;
  disk_file (&file_fd, file);
  s = open_rw (file);
  memset (&calls, 0, sizeof calls);
}

static void
teardown (void)
{
  storage_close (s);
  close (file_fd);
}

#define LEN 5000

/* An array whose elements are cut everywhere by the short counts. */
static int
write_pattern (bool durable)
{
  static char data[LEN];
  struct iovec iov[50];
  size_t i;

  for (i = 0; i < LEN; i++)
    data[i] = (char) ('a' + i % 23);
  for (i = 0; i < 50; i++) {
    iov[i].iov_base = data + i * 100;
    iov[i].iov_len = i % 2 ? 0 : 200;
  }
  return storage_write (s, iov, 50, 123, durable);
}

static void
ck_pattern (void)
{
  char back[LEN];
  size_t i;

  ck_ok (storage_read (s, back, LEN, 123));
  for (i = 0; i < LEN && back[i] == (char) ('a' + i % 23); i++)
    ;
  ck_assert_uint_eq (i, LEN);
}

static const size_t cuts[] = { 1, 7, 199, 200, 201, 400, 4999 };

START_TEST (short_writes)
{
  int durable;

  for (durable = 0; durable <= 1; durable++) {
    fault.at_most = cuts[_i];
    ck_ok (write_pattern (durable));
    fault.at_most = 0;
    ck_pattern ();
    ck_ok (storage_zero (s, 0, 2 * LEN));
  }
  ck_assert_int_gt (calls.writes, 2);
  ck_assert_int_gt (calls.dsync_writes, 1);
}
END_TEST

START_TEST (short_reads)
{
  ck_ok (write_pattern (false));
  fault.at_most = cuts[_i];
  ck_pattern ();
  ck_bytes (s, 123 + LEN, 1000, 0);
}
END_TEST

START_TEST (interrupts)
{
  const char *conflict;
  struct storage *t;

  fault.interrupt = 2;
  ck_ok (storage_open_file (file, true, false, &t));
  storage_close (t);
  fault.interrupt = 3;
  ck_ok (write_pattern (false));
  fault.interrupt = 3;
  ck_pattern ();
  fault.interrupt = 3;
  ck_ok (storage_sync (s));
  fault.interrupt = 3;
  ck_ok (storage_punch (s, 0, 4096));
  fault.interrupt = 3;
  ck_ok (storage_truncate (s, 100));
  ck_assert_uint_eq (size_of (s), 100);
  fault.interrupt = 3;
  ck_ok (storage_lock (s, STORAGE_LOCK_READER, LOCKING_AUTO, &conflict));
}
END_TEST

START_TEST (write_returns_zero)
{
  fault.return_zero = true;
  ck_assert_int_eq (write_pattern (false), -EIO);
}
END_TEST

/* To start a sync may tell of a loss that the sync then knows nothing of;
 * but that it cannot be done, or not now, is no loss.
 */
START_TEST (a_started_sync_tells_of_losses_only)
{
  static const int harmless[] = { EINTR, ENOSYS, EOPNOTSUPP, EPERM, ENOMEM,
                                  EAGAIN };
  static const int losses[] = { EIO, ENOSPC, EDQUOT, EROFS };
  size_t i;

  ck_ok (write_pattern (false));
  ck_ok (storage_start_sync (s, 0, 0));
  ck_assert_int_eq (calls.start_len, 0);
  ck_ok (storage_start_sync (s, 123, 1000));
  ck_assert_int_eq (calls.start_offset, 123);
  ck_assert_int_eq (calls.start_len, 1000);
  ck_pattern ();
  ck_assert_int_eq (calls.syncs, 0);
  for (i = 0; i < sizeof harmless / sizeof harmless[0]; ++i) {
    fault.start_error = harmless[i];
    ck_ok (storage_start_sync (s, 0, 0));
  }
  for (i = 0; i < sizeof losses / sizeof losses[0]; ++i) {
    fault.start_error = losses[i];
    ck_assert_int_eq (storage_start_sync (s, 0, 0), -losses[i]);
  }
}
END_TEST

/* Without RWF_DSYNC a durable write is a write and one sync, and what
 * the sync says counts.  The missing call is tried once only.
 */
START_TEST (no_dsync)
{
  ck_ok (write_pattern (true));
  ck_assert_int_eq (calls.syncs, 0);
  ck_assert_int_eq (calls.dsync_writes, 1);

  fault.no_dsync = EOPNOTSUPP;
  ck_ok (write_pattern (true));
  ck_assert_int_eq (calls.syncs, 1);
  ck_assert_int_eq (calls.dsync_writes, 2);
  ck_pattern ();
  ck_ok (write_pattern (true));
  ck_assert_int_eq (calls.syncs, 2);
  ck_assert_int_eq (calls.dsync_writes, 2);
  ck_ok (write_pattern (false));
  ck_assert_int_eq (calls.syncs, 2);

  fault.sync_error = EIO;
  ck_assert_int_eq (write_pattern (true), -EIO);
  ck_assert_int_eq (storage_sync (s), -EIO);
}
END_TEST

static int
sync_or_write (int i)
{
  struct iovec iov = { .iov_base = (void *) "data", .iov_len = 4 };

  return i % 2 ? storage_write (s, &iov, 1, (uint64_t) i * 8, true)
    : storage_sync (s);
}

static void *
sync_or_write_in_a_thread (void *i)
{
  static int r;

  r = sync_or_write (*(int *) i);
  return &r;
}

/* The kernel tells each description of a loss once: a durable write could
 * be told what another, or a sync, lost, and that one of nothing.
 */
START_TEST (syncs_and_durable_writes_have_descriptions_of_their_own)
{
  pthread_t thread;
  void *r;
  int i;

  storage_close (s);
  fault.file_system = XFS_SUPER_MAGIC;
  s = open_rw (file);
  ck_assert (storage_syncs_apart (s));

  sync_calls.wanted = true;
  ck_assert_int_eq (pthread_create (&thread, NULL, sync_or_write_in_a_thread,
                                    &_i), 0);
  pthread_mutex_lock (&sync_calls.lock);
  while (!sync_calls.held)
    pthread_cond_wait (&sync_calls.changed, &sync_calls.lock);
  pthread_mutex_unlock (&sync_calls.lock);
  for (i = 1; i <= 20; ++i) {
    ck_ok (sync_or_write (i));
    ck_assert_int_ne (sync_calls.fds[i], sync_calls.fds[0]);
  }
  pthread_mutex_lock (&sync_calls.lock);
  sync_calls.wanted = false;
  pthread_cond_broadcast (&sync_calls.changed);
  pthread_mutex_unlock (&sync_calls.lock);
  pthread_join (thread, &r);
  ck_ok (*(int *) r);
}
END_TEST

START_TEST (syncs_are_one_at_a_time_where_losses_are_told_once)
{
  static const struct {
    const char *release;
    long file_system;
    const char *journal;
    bool apart, after_a_sync_alone;
  } where[] = {
    { "6.1.0-18-amd64", EXT4_SUPER_MAGIC, "203\n", true, true },
    { "6.1.0-18-amd64", EXT4_SUPER_MAGIC, "<none>\n", false, true },
    { "6.1.0-18-amd64", EXT4_SUPER_MAGIC, "", false, true },
    { "6.1.0-18-amd64", EXT4_SUPER_MAGIC, NULL, false, true },
    { "4.17.0", XFS_SUPER_MAGIC, NULL, true, true },
    { "4.16.18", XFS_SUPER_MAGIC, NULL, false, false },
    { "4.16.18", EXT4_SUPER_MAGIC, "203\n", false, false },
    { "3.10.0-1160.el7", XFS_SUPER_MAGIC, NULL, false, false },
    { "unknown", XFS_SUPER_MAGIC, NULL, false, false },
    { "6.1.0", F2FS_SUPER_MAGIC, NULL, false, false },
    { "6.1.0", 0x65735546 /* FUSE */, NULL, false, false },
    { "6.1.0", 0x6969 /* NFS */, NULL, false, false },
    { "6.1.0", OVERLAYFS_SUPER_MAGIC, NULL, false, false },
  };
  size_t i;

  for (i = 0; i < sizeof where / sizeof where[0]; ++i) {
    storage_close (s);
    fault.release = where[i].release;
    fault.file_system = where[i].file_system;
    fault.journal = where[i].journal;
    s = open_rw (file);
    ck_assert_msg (storage_syncs_apart (s) == where[i].apart, "%zu", i);
    ck_assert_msg (storage_writes_apart (s, 0, 1) == where[i].apart, "%zu",
                   i);
    ck_ok (storage_sync_alone (s));
    ck_assert_msg (storage_syncs_apart (s) == where[i].after_a_sync_alone,
                   "%zu", i);
  }
}
END_TEST

/* Any other failure of a durable write is no reason to do without. */
START_TEST (dsync_fails)
{
  fault.no_dsync = EIO;
  ck_assert_int_eq (write_pattern (true), -EIO);
  fault.no_dsync = 0;
  ck_ok (write_pattern (true));
  ck_assert_int_eq (calls.dsync_writes, 2);
  ck_assert_int_eq (calls.syncs, 0);
}
END_TEST

START_TEST (no_zero_range)
{
  int n;

  ck_ok (write_pattern (false));
  ck_ok (storage_zero (s, 0, 200));
  ck_assert_int_eq (calls.writes, 1);
  ck_assert_int_eq (calls.fallocates, 1);

  fault.no_mode = EOPNOTSUPP;
  fault.mode = FALLOC_FL_ZERO_RANGE;
  fault.at_most = 1000;
  ck_ok (storage_zero (s, 300, 100000));
  ck_assert_int_eq (calls.fallocates, 2);
  ck_assert_int_ge (calls.writes, 101);
  n = calls.writes;
  ck_ok (storage_zero (s, 500, 1000));
  ck_assert_int_eq (calls.fallocates, 2);
  ck_assert_int_eq (calls.writes, n + 1);
  ck_bytes (s, 0, 200, 0);
  ck_bytes (s, 300, 100000, 0);
  ck_assert_uint_eq (size_of (s), 100300);

  /* Holes are another matter. */
  fault.mode = FALLOC_FL_PUNCH_HOLE;
  ck_ok (storage_punch (s, 0, 4096));
}
END_TEST

START_TEST (fallocate_fails)
{
  fault.no_mode = ENOSPC;
  fault.mode = FALLOC_FL_ZERO_RANGE;
  ck_assert_int_eq (storage_zero (s, 0, 100), -ENOSPC);
  fault.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  ck_assert_int_eq (storage_punch (s, 0, 100), -ENOSPC);
  fault.mode = 0;
  ck_assert_int_eq (storage_reserve (s, 0, 100), -ENOSPC);
  fault.no_mode = 0;
  ck_ok (storage_zero (s, 0, 100));
  ck_ok (storage_punch (s, 0, 100));
  ck_ok (storage_reserve (s, 0, 100));
  ck_assert_int_eq (calls.writes, 0);
}
END_TEST

START_TEST (no_punch)
{
  ck_ok (write_pattern (false));
  fault.no_mode = _i ? ENOSYS : EOPNOTSUPP;
  fault.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  ck_assert_int_eq (storage_punch (s, 123, LEN), -ENOTSUP);
  ck_assert_int_eq (storage_punch (s, 123, LEN), -ENOTSUP);
  ck_assert_int_eq (calls.fallocates, 1);
  ck_pattern ();
  ck_ok (storage_reserve (s, 0, 100));
}
END_TEST

START_TEST (no_reserve)
{
  fault.no_mode = EOPNOTSUPP;
  fault.mode = 0;
  ck_assert_int_eq (storage_reserve (s, 0, LEN), -ENOTSUP);
  ck_assert_int_eq (storage_reserve (s, 0, LEN), -ENOTSUP);
  ck_assert_int_eq (calls.fallocates, 2); /* of two modes */
  ck_assert_uint_eq (size_of (s), 0);
}
END_TEST

/* What is shared with another file has space, but not for a write. */
START_TEST (shared_space_is_not_reserved_space)
{
  fault.unshares = true;
  ck_ok (storage_reserve (s, 0, LEN));
  ck_assert_int_eq (calls.fallocates, 1);
  fault.no_mode = ENOSPC;
  fault.mode = FALLOC_FL_UNSHARE_RANGE;
  ck_assert_int_eq (storage_reserve (s, 0, LEN), -ENOSPC);
  fault.no_mode = EOPNOTSUPP;
  ck_ok (storage_reserve (s, 0, LEN));
  ck_ok (storage_reserve (s, 0, LEN));
  ck_assert_int_eq (calls.fallocates, 5);
}
END_TEST

/* Who cannot tell answers data, and not beyond the end. */
START_TEST (no_seek)
{
  uint64_t len;
  bool hole;
  int i;

  ck_ok (storage_truncate (s, 100000));
  fault.no_seek = EINVAL;
  for (i = 0; i < 3; i++) {
    len = 200000;
    ck_ok (storage_map (s, 1000, &len, &hole));
    ck_assert (!hole);
    ck_assert_uint_eq (len, 99000);
  }
  ck_assert_int_eq (calls.seeks, 1);
  len = 200000;
  ck_ok (storage_map (s, 100000, &len, &hole));
  ck_assert (hole);
}
END_TEST

/* The name means a FIFO by the time it is opened: that must not wait
 * for somebody who writes to it.
 */
START_TEST (swapped_name)
{
  struct storage *t = NULL;
  char fifo[64];
  int err;

  snprintf (fifo, sizeof fifo, "tmp-storage.%d.fifo", (int) getpid ());
  ck_ok (mkfifo (fifo, 0600));
  swap_path = fifo;
  err = storage_open_file (file, false, false, &t);
  unlink (fifo);
  ck_assert_int_eq (err, -EINVAL);
  ck_assert_ptr_null (t);
}
END_TEST

START_TEST (truncate_fails)
{
  fault.truncate_error = ENOSPC;
  ck_assert_int_eq (storage_truncate (s, 100), -ENOSPC);
}
END_TEST

START_TEST (many_elements)
{
  struct iovec iov[3000];
  char c = 'x';
  int i;

  for (i = 0; i < 3000; i++) {
    iov[i].iov_base = &c;
    iov[i].iov_len = 1;
  }
  ck_ok (storage_write (s, iov, 3000, 0, false));
  ck_assert_int_eq (calls.max_cnt, 1024);
  ck_assert_int_eq (calls.writes, 3);
  ck_bytes (s, 0, 3000, 'x');
}
END_TEST

int
main (void)
{
  const int nr_cuts = sizeof cuts / sizeof cuts[0];
  Suite *suite = suite_create ("storage-faults");
  TCase *tc = tcase_create ("faults");

  tcase_set_timeout (tc, 60);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_loop_test (tc, short_writes, 0, nr_cuts);
  tcase_add_loop_test (tc, short_reads, 0, nr_cuts);
  tcase_add_test (tc, interrupts);
  tcase_add_test (tc, write_returns_zero);
  tcase_add_test (tc, a_started_sync_tells_of_losses_only);
  tcase_add_test (tc, no_dsync);
  tcase_add_test (tc, dsync_fails);
  tcase_add_loop_test (tc,
                       syncs_and_durable_writes_have_descriptions_of_their_own,
                       0, 2);
  tcase_add_test (tc, syncs_are_one_at_a_time_where_losses_are_told_once);
  tcase_add_test (tc, no_zero_range);
  tcase_add_test (tc, fallocate_fails);
  tcase_add_loop_test (tc, no_punch, 0, 2);
  tcase_add_test (tc, no_reserve);
  tcase_add_test (tc, shared_space_is_not_reserved_space);
  tcase_add_test (tc, no_seek);
  tcase_add_test (tc, swapped_name);
  tcase_add_test (tc, truncate_fails);
  tcase_add_test (tc, many_elements);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
