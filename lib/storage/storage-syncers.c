/* SPDX-License-Identifier: BSD-3-Clause */

/* Who syncs through which file description.
 *
 * The kernel tells each open file description once of pages that it could
 * not write (fsync(2), "since Linux 4.13"; complete since 4.17), so syncs
 * and durable writes in several threads must not share one: what one of
 * them is told the others would never hear.  Where that rule is known to
 * hold, and a sync is known to wait for what it needs of another, a file has
 * descriptions for them, each used by one at a time, all opened before the
 * first write.  Elsewhere (network file systems and FUSE, where a server may
 * also take a sync to be of one description only; F2FS) there is the one that
 * is written through, and the caller makes one sync at a time.  ext4 without
 * a journal is between the two.
 *
 * Locks: that of a description, from syncers_take to syncer_give_back.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>
#include <sys/sysmacros.h>
#include <sys/utsname.h>
#include <sys/vfs.h>

#include <linux/magic.h>

#include "cleanup.h"
#include "per-thread.h"
#include "storage-syncers.h"

/* Does this kernel tell every description of a loss, whenever another was
 * told?
 */
static bool
kernel_tells_all (void)
{
  struct utsname name;
  unsigned major_version, minor_version;

  return uname (&name) == 0
    && sscanf (name.release, "%u.%u", &major_version, &minor_version) == 2
    && (major_version > 4 || (major_version == 4 && minor_version >= 17));
}

/* sysfs-fs-ext4 describes journal_task.  Without a journal, or if we cannot
 * know, a sync may miss what another writes (storage-places.c); with one it
 * waits for the journal's commit.
 */
static bool
ext4_has_journal (const struct stat *st)
{
  CLEANUP_CLOSE int fd = -1;
  char link[64], disk[PATH_MAX], path[PATH_MAX + 64], task[16];
  ssize_t n;

  snprintf (link, sizeof link, "/sys/dev/block/%u:%u", major (st->st_dev),
            minor (st->st_dev));
  n = readlink (link, disk, sizeof disk - 1);
  if (n == -1)
    return false;
  disk[n] = '\0';
  snprintf (path, sizeof path, "/sys/fs/ext4/%s/journal_task",
            basename (disk));
  fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return false;
  n = read (fd, task, sizeof task - 1);
  return n > 0 && task[0] >= '1' && task[0] <= '9';
}

/* And is the file one of those to which that applies, and of which syncs at
 * the same time each cover all that was written?  F2FS is not: a sync there
 * may return while the flush of the disk that it needs is another's and has
 * not ended.
 */
static enum syncs_apart
how_apart (int fd, const struct stat *st)
{
  struct statfs fs;

  if (!kernel_tells_all ())
    return SYNCS_IN_TURNS;
  if (S_ISBLK (st->st_mode))
    return SYNCS_APART;
  if (fstatfs (fd, &fs) == -1)
    return SYNCS_IN_TURNS;
  if (fs.f_type == EXT4_SUPER_MAGIC) /* ext2 and ext3, too */
    return ext4_has_journal (st) ? SYNCS_APART : SYNCS_APART_IN_PLACE;
  return fs.f_type == XFS_SUPER_MAGIC || fs.f_type == BTRFS_SUPER_MAGIC
    || fs.f_type == TMPFS_MAGIC ? SYNCS_APART : SYNCS_IN_TURNS;
}

/* Another description of the same file, whatever its name is by now; or
 * -1.
 */
static int
open_again (int fd, const struct stat *st)
{
  char path[64];
  struct stat again;
  int other;

  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  do
    other = open (path, O_RDWR | O_CLOEXEC);
  while (other == -1 && errno == EINTR);
  if (other == -1)
    return -1;
  if (fstat (other, &again) == 0 && again.st_dev == st->st_dev
      && again.st_ino == st->st_ino)
    return other;
  close (other);
  return -1;
}

enum syncs_apart
syncers_open (struct syncers *all, int fd, const struct stat *st)
{
  const enum syncs_apart apart = how_apart (fd, st);

  if (apart == SYNCS_IN_TURNS)
    return apart;
  while (all->nr < SYNCERS) {
    struct syncer *syncer = &all->syncer[all->nr];

    syncer->fd = open_again (fd, st);
    if (syncer->fd == -1) {
      syncers_close (all);
      return SYNCS_IN_TURNS;
    }
    pthread_mutex_init (&syncer->lock, NULL);
    all->nr++;
  }
  return apart;
}

void
syncers_close (struct syncers *all)
{
  while (all->nr > 0) {
    struct syncer *syncer = &all->syncer[--all->nr];

    close (syncer->fd);
    pthread_mutex_destroy (&syncer->lock);
  }
}

struct syncer *
syncers_take (struct syncers *all)
{
  const unsigned first = thread_number ();
  unsigned i;

  for (i = 0; i < all->nr; i++) {
    struct syncer *syncer = &all->syncer[(first + i) % all->nr];

    if (pthread_mutex_trylock (&syncer->lock) == 0)
      return syncer;
  }
  if (all->nr == 0)
    return NULL;
  pthread_mutex_lock (&all->syncer[first % all->nr].lock);
  return &all->syncer[first % all->nr];
}

void
syncer_give_back (struct syncer *syncer)
{
  if (syncer)
    pthread_mutex_unlock (&syncer->lock);
}
