/* SPDX-License-Identifier: BSD-3-Clause */

/* The image locks that QEMU and this server share.
 *
 * A permission is a small number: 0 to read what is consistent, 1 to
 * write, 3 to resize.  A shared one-byte lock on byte 100 + i of the
 * file says "I use permission i", one on byte 200 + i "nobody else may".
 * Nobody ever takes an exclusive lock: a conflict is found by asking
 * whether one could be had.  To want permission i, byte 200 + i must be
 * free of others' locks; to forbid it to others, byte 100 + i.
 *
 * Own locks are taken first and tested afterwards: of two processes
 * that come at the same time at least one then sees the other.
 *
 * These are open file description locks (fcntl(2)): they live through a
 * fork, other descriptors of the same file in this process neither
 * release them nor are exempt from them, and shared ones only need the
 * file to be open for reading.
 *
 * storage_lock_fd is called with the storage's lock mutex held.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "storage-impl.h"

/* Every byte that is of interest here has one bit in a set. */
#define USE_READ      0x01u
#define USE_WRITE     0x02u
#define USE_RESIZE    0x04u
#define DENY_READ     0x08u
#define DENY_WRITE    0x10u
#define DENY_RESIZE   0x20u

#define READER (USE_READ | DENY_WRITE | DENY_RESIZE)
#define WRITER (READER | USE_WRITE | USE_RESIZE)

static const char WRITES[] = "another process writes to it";
static const char NO_WRITERS[] = "another process does not allow writers";
static const char NO_READERS[] = "another process does not allow readers";
static const char EXCLUSIVE[] = "another process holds an exclusive lock";

static const struct lock_byte {
  unsigned bit;
  off_t offset;
  unsigned excludes;            /* who has the bit cannot bear this one */
  const char *conflict;         /* what it means that another has it */
} bytes[] = {
  { USE_READ,    100, DENY_READ,   NULL },
  { USE_WRITE,   101, DENY_WRITE,  WRITES },
  { USE_RESIZE,  103, DENY_RESIZE, WRITES },
  { DENY_READ,   200, USE_READ,    NO_READERS },
  { DENY_WRITE,  201, USE_WRITE,   NO_WRITERS },
  { DENY_RESIZE, 203, USE_RESIZE,  NO_WRITERS },
};

static unsigned
lock_set (enum storage_lock lock)
{
  switch (lock) {
  case STORAGE_LOCK_READER:
    return READER;
  case STORAGE_LOCK_WRITER:
    return WRITER;
  case STORAGE_LOCK_NONE:
  default:
    return 0;
  }
}

/* One fcntl on one byte.  TYPE is what to set or to ask for; on return
 * from F_OFD_GETLK *FOUND says whether another holder forbids it.
 */
static int
one_byte (int fd, int cmd, short type, off_t offset, bool *found)
{
  struct flock fl;
  int r;

  memset (&fl, 0, sizeof fl);   /* l_pid must be 0 for these commands */
  fl.l_type = type;
  fl.l_whence = SEEK_SET;
  fl.l_start = offset;
  fl.l_len = 1;
  do
    r = fcntl (fd, cmd, &fl);
  while (r == -1 && errno == EINTR);
  if (r == -1)
    return -errno;
  if (found)
    *found = fl.l_type != F_UNLCK;
  return 0;
}

/* A byte that cannot be released is kept: too strict, but safe, and the
 * closing of the file ends it.
 */
static void
release (int fd, unsigned set)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (bytes); i++) {
    if (set & bytes[i].bit)
      one_byte (fd, F_OFD_SETLK, F_UNLCK, bytes[i].offset, NULL);
  }
}

static int
take (int fd, unsigned set, const char **conflict)
{
  unsigned taken = 0;
  size_t i;
  int err;

  for (i = 0; i < ARRAY_SIZE (bytes); i++) {
    if (!(set & bytes[i].bit))
      continue;
    err = one_byte (fd, F_OFD_SETLK, F_RDLCK, bytes[i].offset, NULL);
    if (err < 0) {
      release (fd, taken);
      if (err == -EACCES || err == -EAGAIN) {
        *conflict = EXCLUSIVE;
        return -EAGAIN;
      }
      return err;
    }
    taken |= bytes[i].bit;
  }
  return 0;
}

/* Does another process hold a byte that what is in SET cannot bear? */
static int
test (int fd, unsigned set, const char **conflict)
{
  unsigned unwanted = 0;
  size_t i;
  bool found;
  int err;

  for (i = 0; i < ARRAY_SIZE (bytes); i++) {
    if (set & bytes[i].bit)
      unwanted |= bytes[i].excludes;
  }

  for (i = 0; i < ARRAY_SIZE (bytes); i++) {
    if (!(unwanted & bytes[i].bit))
      continue;
    err = one_byte (fd, F_OFD_GETLK, F_WRLCK, bytes[i].offset, &found);
    if (err < 0)
      return err;
    if (found) {
      *conflict = bytes[i].conflict;
      return -EAGAIN;
    }
  }
  return 0;
}

/* Is ERR what a kernel or a file system answers that has no such locks?
 * ENOLCK is not: it is also said when a lock server is out of reach or
 * a table full, and then the others' locks may well be there.
 */
static bool
is_unknown (int err)
{
  return err == -EINVAL || err == -ENOSYS || err == -EOPNOTSUPP ||
    err == -ENOTTY;
}

int
storage_lock_fd (int fd, enum storage_lock *held, enum storage_lock want,
                 enum storage_locking mode, const char **conflict)
{
  const unsigned old_set = lock_set (*held);
  const unsigned new_set = mode == LOCKING_OFF ? 0 : lock_set (want);
  const unsigned added = new_set & ~old_set;
  int err;

  if (added) {
    err = take (fd, added, conflict);
    if (err == 0) {
      err = test (fd, new_set, conflict);
      if (err < 0)
        release (fd, added);
    }
    if (is_unknown (err))
      return mode == LOCKING_ON ? -ENOTSUP : 0;
    if (err < 0)
      return err;
  }

  release (fd, old_set & ~new_set);
  *held = mode == LOCKING_OFF ? STORAGE_LOCK_NONE : want;
  return 0;
}
