/* SPDX-License-Identifier: BSD-3-Clause */

/* A regular file or a block device.
 *
 * This is the only file of the library that calls anything which
 * changes a file (pwrite, pwritev2, fallocate, ftruncate): see
 * storage-write.h.
 *
 * What a file system cannot do (punch holes, say) is learned from its
 * first EOPNOTSUPP and remembered for this storage, so that it costs one
 * system call and not one per request.
 *
 * Syncs and durable writes go through file descriptions of their own, where
 * that lets them be made side by side (storage-syncers.c); on some file
 * systems it depends on what was written (storage-places.c).
 *
 * There is no lock of ours on the data path but for durable writes and
 * syncs, who hold that of their description: the system calls used take an
 * offset and are safe together.  lseek is used for what it returns, and
 * nothing depends on the file position that it changes.  lock_mutex
 * guards the state of the image locks.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <linux/falloc.h>
#include <linux/fs.h>

#include "checked.h"
#include "cleanup.h"
#include "storage-impl.h"
#include "storage-places.h"
#include "storage-syncers.h"
#include "storage-write.h"

#ifndef IOV_MAX
#define IOV_MAX 1024
#endif

struct storage_file {
  struct storage base;
  int fd;
  enum syncs_apart apart;
  struct syncers syncers;       /* some if not in turns */
  struct places places;         /* kept where syncs alone make them known */
  bool is_block;

  /* Learned: true once the file system said that it cannot. */
  atomic_bool no_dsync;
  atomic_bool no_zero_range;
  atomic_bool no_punch;
  atomic_bool no_unshare;
  atomic_bool no_reserve;
  atomic_bool no_seek;

  pthread_mutex_t lock_mutex;
  enum storage_lock held;       /* guarded by lock_mutex */
};

static struct storage_file *
file_of (struct storage *s)
{
  return (struct storage_file *) s;
}

static bool
known_missing (atomic_bool *flag)
{
  return atomic_load_explicit (flag, memory_order_relaxed);
}

static void
remember_missing (atomic_bool *flag)
{
  atomic_store_explicit (flag, true, memory_order_relaxed);
}

static bool
is_unsupported (int err)
{
  return err == -EOPNOTSUPP || err == -ENOSYS;
}

static void
file_close (struct storage *s)
{
  struct storage_file *f = file_of (s);

  syncers_close (&f->syncers);
  close (f->fd);                /* and this releases the image locks */
  pthread_mutex_destroy (&f->lock_mutex);
}

static int
file_size (struct storage *s, uint64_t *size)
{
  struct storage_file *f = file_of (s);
  struct stat st;

  if (f->is_block)
    return ioctl (f->fd, BLKGETSIZE64, size) == -1 ? -errno : 0;

  if (fstat (f->fd, &st) == -1)
    return -errno;
  *size = (uint64_t) st.st_size;
  return 0;
}

static int
file_allocated (struct storage *s, uint64_t *bytes)
{
  struct stat st;

  if (fstat (file_of (s)->fd, &st) == -1)
    return -errno;
  *bytes = (uint64_t) st.st_blocks * 512;
  return 0;
}

static int
file_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  struct storage_file *f = file_of (s);
  char *p = buf;

  while (len > 0) {
    ssize_t r = pread (f->fd, p, len, (off_t) offset);

    if (r == -1) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    if (r == 0) {               /* the end of the file */
      memset (p, 0, len);
      return 0;
    }
    p += r;
    len -= (size_t) r;
    offset += (uint64_t) r;
  }
  return 0;
}

static int
sync_fd (int fd)
{
  int r;

  /* EINTR comes from some network file systems: nothing was promised
   * and nothing was lost.
   */
  do
    r = fdatasync (fd);
  while (r == -1 && errno == EINTR);
  return r == -1 ? -errno : 0;
}

static int
sync_once (struct storage_file *f, bool alone)
{
  struct syncer *syncer;
  int r;

  places_sync (&f->places, alone);
  syncer = syncers_take (&f->syncers);
  r = sync_fd (syncer ? syncer->fd : f->fd);
  syncer_give_back (syncer);
  return r;
}

static int
file_sync (struct storage *s)
{
  return sync_once (file_of (s), false);
}

static int
file_sync_alone (struct storage *s)
{
  return sync_once (file_of (s), true);
}

static bool
file_syncs_apart (struct storage *s)
{
  struct storage_file *f = file_of (s);

  return f->apart != SYNCS_IN_TURNS && !places_are_new (&f->places);
}

static bool
file_writes_apart (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_file *f = file_of (s);

  return f->apart != SYNCS_IN_TURNS
    && places_known (&f->places, f->fd, offset, len);
}

/* A write that is lost later is told by the next sync; but if pages were
 * lost in the call itself, its caller may be the only one who hears of it.
 * Without memory, or where it should wait, the kernel keeps them.  EPERM
 * comes from filters of system calls.
 */
static int
file_start_sync (struct storage *s, uint64_t offset, uint64_t len)
{
  if (sync_file_range (file_of (s)->fd, (off_t) offset, (off_t) len,
                       SYNC_FILE_RANGE_WRITE) == 0
      || errno == EINTR || errno == ENOMEM || errno == EAGAIN
      || errno == EPERM || is_unsupported (-errno))
    return 0;
  return -errno;
}

static int
file_lock (struct storage *s, enum storage_lock want,
           enum storage_locking mode, const char **conflict)
{
  struct storage_file *f = file_of (s);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock_mutex);

  return storage_lock_fd (f->fd, &f->held, want, mode, conflict);
}

/* The distance to the end of what begins at OFFSET, as SEEK_DATA and
 * SEEK_HOLE see it.  A file that changes in between may give a
 * nonsensical answer; then it is data, which is never wrong.
 */
static void
seek_map (struct storage_file *f, uint64_t offset, uint64_t *len, bool *hole)
{
  off_t next = lseek (f->fd, (off_t) offset, SEEK_DATA);

  if (next == -1 && errno == ENXIO) {
    *hole = true;               /* nothing more up to the end */
    return;
  }
  if (next == -1) {
    remember_missing (&f->no_seek);
    return;
  }
  if ((uint64_t) next > offset)
    *hole = true;
  else
    next = lseek (f->fd, (off_t) offset, SEEK_HOLE);
  if (next != -1 && (uint64_t) next > offset)
    *len = MIN (*len, (uint64_t) next - offset);
}

static int
file_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  struct storage_file *f = file_of (s);
  uint64_t size;
  int err;

  err = file_size (s, &size);
  if (err < 0)
    return err;

  if (offset >= size) {
    *hole = true;
    return 0;
  }
  if (!f->is_block && !known_missing (&f->no_seek))
    seek_map (f, offset, len, hole);
  if (!*hole)
    *len = MIN (*len, size - offset);
  return 0;
}

static void
file_will_need (struct storage *s, uint64_t offset, uint64_t len)
{
  posix_fadvise (file_of (s)->fd, (off_t) offset, (off_t) len,
                 POSIX_FADV_WILLNEED);
}

/* The disk under the file system, as the kernel describes it; a
 * partition has no queue of its own, but its parent directory is that
 * of the disk.
 */
static int
read_rotational (dev_t dev)
{
  static const char *const where[] = { "", "/.." };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (where); i++) {
    CLEANUP_CLOSE int fd = -1;
    char path[96], c;

    snprintf (path, sizeof path, "/sys/dev/block/%u:%u%s/queue/rotational",
              major (dev), minor (dev), where[i]);
    fd = open (path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0)
      return read (fd, &c, 1) == 1 && c == '1';
  }
  return 0;
}

static int
file_is_rotational (struct storage *s)
{
  struct storage_file *f = file_of (s);
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return 0;
  return read_rotational (f->is_block ? st.st_rdev : st.st_dev);
}

/* One element without flags is the common case, and pwrite the shorter way
 * through the kernel: there is no vector to fetch.
 */
static ssize_t
write_once (int fd, const struct iovec *iov, int cnt, uint64_t offset,
            int flags)
{
  if (cnt == 1 && flags == 0)
    return pwrite (fd, iov->iov_base, iov->iov_len, (off_t) offset);
  return pwritev2 (fd, iov, MIN (cnt, IOV_MAX), (off_t) offset, flags);
}

/* Write all of IOV with FLAGS of pwritev2.  After a short count the
 * rest of the element that it ended in is written alone, so that the
 * caller's array need not be copied or changed.
 */
static int
write_all (int fd, const struct iovec *iov, int cnt, uint64_t offset,
           int flags)
{
  size_t done = 0;              /* bytes of iov[0] that are written */

  while (cnt > 0) {
    struct iovec rest;
    ssize_t r;

    if (done == iov->iov_len) {
      iov++;
      cnt--;
      done = 0;
      continue;
    }

    rest.iov_base = (char *) iov->iov_base + done;
    rest.iov_len = iov->iov_len - done;
    if (done > 0)
      r = write_once (fd, &rest, 1, offset, flags);
    else
      r = write_once (fd, iov, cnt, offset, flags);
    if (r == -1) {
      if (errno == EINTR)
        continue;
      return -errno;
    }
    if (r == 0)
      return -EIO;              /* going on would never end */

    offset += (uint64_t) r;
    while (r > 0) {
      size_t n = MIN ((size_t) r, iov->iov_len - done);

      r -= (ssize_t) n;
      done += n;
      if (done == iov->iov_len) {
        iov++;
        cnt--;
        done = 0;
      }
    }
  }
  return 0;
}

static int
write_dsync (struct storage_file *f, const struct iovec *iov, int cnt,
             uint64_t offset)
{
  struct syncer *syncer = syncers_take (&f->syncers);
  int r = write_all (syncer ? syncer->fd : f->fd, iov, cnt, offset,
                     RWF_DSYNC);

  syncer_give_back (syncer);
  return r;
}

/* A durable write is not noted: see storage_writes_apart. */
static int
write_and_note (struct storage_file *f, const struct iovec *iov, int cnt,
                uint64_t offset)
{
  uint64_t len = 0;
  int i, err;

  for (i = 0; i < cnt; i++)
    len += iov[i].iov_len;
  if (places_stay (&f->places, f->fd, offset, len))
    return write_all (f->fd, iov, cnt, offset, 0);
  places_begin_change (&f->places);
  err = write_all (f->fd, iov, cnt, offset, 0);
  places_end_change (&f->places);
  return err;
}

static int
file_write (struct storage *s, const struct iovec *iov, int cnt,
            uint64_t offset, bool durable)
{
  struct storage_file *f = file_of (s);
  int err;

  if (!durable && f->places.kept)
    return write_and_note (f, iov, cnt, offset);

  if (durable && !known_missing (&f->no_dsync)) {
    err = write_dsync (f, iov, cnt, offset);
    if (!is_unsupported (err))
      return err;
    remember_missing (&f->no_dsync);
  }

  err = write_all (f->fd, iov, cnt, offset, 0);
  if (err == 0 && durable)
    err = file_sync (s);
  return err;
}

static int
call_fallocate (struct storage_file *f, int mode, uint64_t offset,
                uint64_t len)
{
  int r;

  places_begin_change (&f->places);
  do
    r = fallocate (f->fd, mode, (off_t) offset, (off_t) len);
  while (r == -1 && errno == EINTR);
  r = r == -1 ? -errno : 0;
  places_end_change (&f->places);
  return r;
}

/* Zeroes the long way, for tmpfs and its like. */
static int
write_zeroes (struct storage_file *f, uint64_t offset, uint64_t len)
{
  static const char zeroes[65536];
  struct iovec iov[16];
  int err = 0;

  places_begin_change (&f->places);
  while (len > 0 && err == 0) {
    uint64_t n = 0;
    int cnt;

    for (cnt = 0; cnt < (int) ARRAY_SIZE (iov) && n < len; cnt++) {
      iov[cnt].iov_base = (void *) (uintptr_t) zeroes;
      iov[cnt].iov_len = (size_t) MIN (len - n, sizeof zeroes);
      n += iov[cnt].iov_len;
    }
    err = write_all (f->fd, iov, cnt, offset, 0);
    offset += n;
    len -= n;
  }
  places_end_change (&f->places);
  return err;
}

static int
file_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_file *f = file_of (s);
  int err;

  if (!known_missing (&f->no_zero_range)) {
    err = call_fallocate (f, FALLOC_FL_ZERO_RANGE, offset, len);
    if (is_unsupported (err))
      remember_missing (&f->no_zero_range);
    else if (!(f->is_block && err == -EINVAL))
      return err;
    /* A block device says EINVAL to a range that is not made of its
     * logical blocks: this one is written, the next may do.
     */
  }
  return write_zeroes (f, offset, len);
}

static int
file_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_file *f = file_of (s);
  int err;

  if (known_missing (&f->no_punch))
    return -ENOTSUP;

  err = call_fallocate (f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                        offset, len);
  if (is_unsupported (err)) {
    remember_missing (&f->no_punch);
    return -ENOTSUP;
  }
  if (f->is_block && err == -EINVAL)
    return -ENOTSUP;            /* see file_zero */
  return err;
}

static int
file_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_file *f = file_of (s);
  uint64_t size;
  int err;

  /* All the space that a block device will ever have is there. */
  if (f->is_block) {
    err = file_size (s, &size);
    if (err < 0)
      return err;
    return offset + len > size ? -ENOSPC : 0;
  }

  /* What a copy made with "cp --reflink" shares with its original has its
   * space, but a write there needs other space.  Where files can share
   * (XFS) this mode includes the plain one.
   */
  if (!known_missing (&f->no_unshare)) {
    err = call_fallocate (f, FALLOC_FL_UNSHARE_RANGE, offset, len);
    if (!is_unsupported (err))
      return err;
    remember_missing (&f->no_unshare);
  }
  if (known_missing (&f->no_reserve))
    return -ENOTSUP;
  err = call_fallocate (f, 0, offset, len);
  if (is_unsupported (err)) {
    remember_missing (&f->no_reserve);
    return -ENOTSUP;
  }
  return err;
}

static int
file_truncate (struct storage *s, uint64_t size)
{
  struct storage_file *f = file_of (s);
  int r;

  if (f->is_block)
    return -ENOTSUP;
  places_begin_change (&f->places);
  do
    r = ftruncate (f->fd, (off_t) size);
  while (r == -1 && errno == EINTR);
  r = r == -1 ? -errno : 0;
  places_end_change (&f->places);
  return r;
}

static const struct storage_ops file_ops = {
  .close = file_close,
  .size = file_size,
  .allocated = file_allocated,
  .read = file_read,
  .sync = file_sync,
  .sync_alone = file_sync_alone,
  .syncs_apart = file_syncs_apart,
  .writes_apart = file_writes_apart,
  .start_sync = file_start_sync,
  .lock = file_lock,
  .map = file_map,
  .will_need = file_will_need,
  .is_rotational = file_is_rotational,
  .write = file_write,
  .zero = file_zero,
  .punch = file_punch,
  .reserve = file_reserve,
  .truncate = file_truncate,
};

static int
open_retry (const char *path, int flags)
{
  int fd;

  do
    fd = open (path, flags);
  while (fd == -1 && errno == EINTR);
  return fd == -1 ? -errno : fd;
}

/* -EINVAL for all kinds of file that cannot hold an image. */
static int
stat_kind (int fd, struct stat *st)
{
  if (fstat (fd, st) == -1)
    return -errno;
  if (S_ISLNK (st->st_mode))
    return -ELOOP;              /* O_PATH with O_NOFOLLOW opens a link */
  if (!S_ISREG (st->st_mode) && !S_ISBLK (st->st_mode))
    return -EINVAL;
  return 0;
}

/* Linux may open a read-only device for writing, and fail each write. */
static bool
device_is_read_only (int fd, const struct stat *st)
{
  int read_only = 0;

  return S_ISBLK (st->st_mode) && ioctl (fd, BLKROGET, &read_only) == 0
    && read_only;
}

/* Opening alone can do harm: a FIFO waits for a writer, a tape rewinds,
 * a watchdog starts.  An O_PATH descriptor tells the kind of the file
 * without opening it.  The name may mean another file a moment later,
 * so the kind is asked again, and O_NONBLOCK keeps that from waiting.
 */
static int
open_fd (const char *path, bool writable, bool nofollow, struct stat *st)
{
  const int common = O_CLOEXEC | (nofollow ? O_NOFOLLOW : 0);
  int fd, err;

  fd = open_retry (path, O_PATH | common);
  if (fd < 0)
    return fd;
  err = stat_kind (fd, st);
  close (fd);
  if (err < 0)
    return err;

  fd = open_retry (path, (writable ? O_RDWR : O_RDONLY) | O_NONBLOCK | common);
  if (fd < 0)
    return fd;
  err = stat_kind (fd, st);
  if (err == 0 && fcntl (fd, F_SETFL, 0) == -1)
    err = -errno;
  if (err == 0 && writable && device_is_read_only (fd, st))
    err = -EROFS;
  if (err < 0) {
    close (fd);
    return err;
  }
  return fd;
}

static void
open_syncers (struct storage_file *f, const struct stat *st)
{
  f->apart = syncers_open (&f->syncers, f->fd, st);
  if (f->apart == SYNCS_APART_IN_PLACE)
    places_keep (&f->places);
}

int
storage_create_empty (const char *path)
{
  CLEANUP_CLOSE int fd = open (path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC,
                               0666);

  return fd == -1 ? -errno : 0;
}

int
storage_sync_directory (const char *path)
{
  CLEANUP_FREE char *copy = strdup (path);
  CLEANUP_CLOSE int fd = -1;

  if (!copy)
    return -ENOMEM;
  fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    return errno == EACCES ? 0 : -errno;
  return fsync (fd) == -1 && errno != EINVAL ? -errno : 0;
}

int
storage_write_zeroes (struct storage *s, uint64_t offset, uint64_t len)
{
  return write_zeroes (file_of (s), offset, len);
}

int
storage_open_file (const char *path, bool writable, bool nofollow,
                   struct storage **s)
{
  CLEANUP_CLOSE int fd = -1;
  CLEANUP_FREE struct storage_file *f = NULL;
  struct stat st;
  int err;

  fd = open_fd (path, writable, nofollow, &st);
  if (fd < 0)
    return fd;

  f = calloc (1, sizeof *f);
  if (f == NULL)
    return -ENOMEM;
  err = storage_init (&f->base, &file_ops, path);
  if (err < 0)
    return err;
  pthread_mutex_init (&f->lock_mutex, NULL);

  f->fd = fd;
  f->is_block = S_ISBLK (st.st_mode);
  f->held = STORAGE_LOCK_NONE;
  f->base.writable = writable;
  f->base.can_grow = !f->is_block;

  /* Two device nodes can name one device, and no file has inode 0. */
  f->base.has_identity = true;
  f->base.dev = f->is_block ? st.st_rdev : st.st_dev;
  f->base.ino = f->is_block ? 0 : st.st_ino;
  if (writable)
    open_syncers (f, &st);

  *s = &f->base;
  f = NULL;
  fd = -1;
  return 0;
}
