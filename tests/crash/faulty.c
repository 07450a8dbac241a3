/* SPDX-License-Identifier: BSD-3-Clause */

/* Failing storage and allocator; see faulty.h.
 *
 * The allocator's functions are replaced by the linker (--wrap): the
 * calls of the library's objects come to __wrap_malloc, and so on, and
 * __real_malloc is the C library's, or the sanitizer's.  The system calls
 * of storage-file.c are replaced in the same way to give short counts.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "faulty.h"
#include "storage-impl.h"
#include "storage-write.h"

const char *const fault_names[FAULT_KINDS] = {
  "eio", "partial", "enospc", "full", "memory", "short",
};

struct faults faults;

/* Are calls counted just now? */
static bool counting;

void
faults_on (void)
{
  counting = true;
}

bool
faults_off (void)
{
  const bool was = counting;

  counting = false;
  return was;
}

/* A call that may fail with KIND is made: does it? */
static bool
hit (enum fault_kind kind)
{
  uint64_t n;

  if (!counting || faults.kind != kind)
    return false;
  n = faults.calls++;
  if (n == faults.at || (faults.forever && n > faults.at)) {
    faults.fired = true;
    return true;
  }
  return false;
}

/*----------------------------------------------------------------------
 * The storage.
 */

struct faulty {
  struct storage base;
  struct storage *below;
};

static struct storage *
below (struct storage *s)
{
  return ((struct faulty *) s)->below;
}

enum call { READS, CHANGES, SYNCS };

/* The errno with which a call fails, negative; or 0. */
static int
fails (enum call call)
{
  int err = 0;

  if (faults.sync_failed && call != READS)
    faults.changes_since++;
  if (hit (FAULT_EIO))
    err = -EIO;
  if (call == CHANGES && hit (FAULT_PARTIAL))
    err = -EIO;
  if (call != READS && hit (FAULT_ENOSPC))
    err = -ENOSPC;
  if (call == CHANGES && faults.kind == FAULT_FULL && counting
      && faults.calls++ == faults.at) {
    faults.fired = true;
    faults.full (faults.opaque);
  }
  if (err < 0 && call == SYNCS)
    faults.sync_failed = true;
  return err;
}

/* While the storage below works nothing is counted. */
#define BELOW(expression)                       \
  ({                                            \
    const bool was_ = counting;                 \
    int r_;                                     \
    counting = was_ && faults.kind == FAULT_SHORT; \
    r_ = (expression);                          \
    counting = was_;                            \
    r_;                                         \
  })

static void
faulty_close (struct storage *s)
{
  storage_close (below (s));
}

static int
faulty_size (struct storage *s, uint64_t *size)
{
  int err = fails (READS);

  return err < 0 ? err : BELOW (storage_size (below (s), size));
}

static int
faulty_allocated (struct storage *s, uint64_t *bytes)
{
  int err = fails (READS);

  return err < 0 ? err : BELOW (storage_allocated (below (s), bytes));
}

static int
faulty_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  int err = fails (READS);

  return err < 0 ? err : BELOW (storage_read (below (s), buf, len, offset));
}

static int
faulty_sync (struct storage *s)
{
  int err = fails (SYNCS);

  return err < 0 ? err : BELOW (storage_sync (below (s)));
}

static int
faulty_sync_alone (struct storage *s)
{
  int err = fails (SYNCS);

  return err < 0 ? err : BELOW (storage_sync_alone (below (s)));
}

static bool
faulty_syncs_apart (struct storage *s)
{
  return storage_syncs_apart (below (s));
}

static bool
faulty_writes_apart (struct storage *s, uint64_t offset, uint64_t len)
{
  return storage_writes_apart (below (s), offset, len);
}

static int
faulty_lock (struct storage *s, enum storage_lock want,
             enum storage_locking mode, const char **conflict)
{
  int err = fails (READS);

  return err < 0 ? err
    : BELOW (storage_lock (below (s), want, mode, conflict));
}

static int
faulty_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  int err = fails (READS);

  return err < 0 ? err
    : BELOW (storage_map (below (s), offset, len, hole));
}

/* Half of a range, but no disk changes half a sector. */
static uint64_t
half_of (uint64_t offset, uint64_t len)
{
  const uint64_t end = (offset + len / 2) / 512 * 512;

  return end > offset ? end - offset : 0;
}

/* The first half of a write. */
static void
write_half (struct storage *s, const struct iovec *iov, int cnt,
            uint64_t offset)
{
  uint64_t len = 0;
  struct iovec half;
  char *buf, *p;
  int i;

  for (i = 0; i < cnt; ++i)
    len += iov[i].iov_len;
  p = buf = malloc (len + 1);
  if (!buf)
    abort ();
  for (i = 0; i < cnt; ++i)
    if (iov[i].iov_len)
      p = mempcpy (p, iov[i].iov_base, iov[i].iov_len);
  half.iov_base = buf;
  half.iov_len = half_of (offset, len);
  if (half.iov_len > 0
      && storage_write (below (s), &half, 1, offset, false) < 0)
    abort ();
  free (buf);
}

static int
faulty_write (struct storage *s, const struct iovec *iov, int cnt,
              uint64_t offset, bool durable)
{
  /* After a durable write without space the same is tried without
   * durability: if that succeeds, it was the sync that failed.
   */
  static bool asked;
  int err = fails (CHANGES);

  if (err == 0) {
    err = BELOW (storage_write (below (s), iov, cnt, offset, durable));
    faults.sync_failed |= asked;
    asked = false;
    return err;
  }
  if (faults.kind == FAULT_PARTIAL)
    (void) BELOW ((write_half (s, iov, cnt, offset), 0));
  asked = durable && err == -ENOSPC;
  faults.sync_failed |= durable && !asked;
  return err;
}

static int
faulty_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = fails (CHANGES);

  if (err < 0 && faults.kind == FAULT_PARTIAL)
    (void) BELOW (storage_zero (below (s), offset,
                                half_of (offset, len)));
  return err < 0 ? err : BELOW (storage_zero (below (s), offset, len));
}

static int
faulty_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = fails (CHANGES);

  if (err < 0 && faults.kind == FAULT_PARTIAL)
    (void) BELOW (storage_punch (below (s), offset,
                                 half_of (offset, len)));
  return err < 0 ? err : BELOW (storage_punch (below (s), offset, len));
}

static int
faulty_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = fails (CHANGES);

  return err < 0 ? err : BELOW (storage_reserve (below (s), offset, len));
}

static int
faulty_truncate (struct storage *s, uint64_t size)
{
  int err = fails (CHANGES);

  return err < 0 ? err : BELOW (storage_truncate (below (s), size));
}

static const struct storage_ops ops = {
  .close = faulty_close,
  .size = faulty_size,
  .allocated = faulty_allocated,
  .read = faulty_read,
  .sync = faulty_sync,
  .sync_alone = faulty_sync_alone,
  .syncs_apart = faulty_syncs_apart,
  .writes_apart = faulty_writes_apart,
  .lock = faulty_lock,
  .map = faulty_map,
  .write = faulty_write,
  .zero = faulty_zero,
  .punch = faulty_punch,
  .reserve = faulty_reserve,
  .truncate = faulty_truncate,
};

struct storage *
faulty_open (struct storage *storage)
{
  const bool was = counting;
  struct faulty *f;

  counting = false;
  f = calloc (1, sizeof *f);
  if (!f || storage_init (&f->base, &ops, storage_name (storage)) < 0)
    abort ();
  counting = was;
  f->base.writable = storage_is_writable (storage);
  f->base.can_grow = storage_can_grow (storage);
  f->base.has_identity = storage_identity (storage, &f->base.dev,
                                           &f->base.ino);
  f->below = storage;
  return &f->base;
}

/*----------------------------------------------------------------------
 * The allocator.
 */

#define WRAP(type, name, parameters, arguments)                 \
  type __real_##name parameters;                                \
  type __wrap_##name parameters;                                \
                                                                \
  type                                                          \
  __wrap_##name parameters                                      \
  {                                                             \
    if (hit (FAULT_MEMORY)) {                                   \
      errno = ENOMEM;                                           \
      return NULL;                                              \
    }                                                           \
    return __real_##name arguments;                             \
  }

WRAP (void *, malloc, (size_t size), (size))
WRAP (void *, calloc, (size_t n, size_t size), (n, size))
WRAP (void *, realloc, (void *p, size_t size), (p, size))
WRAP (void *, reallocarray, (void *p, size_t n, size_t size), (p, n, size))
WRAP (void *, aligned_alloc, (size_t align, size_t size), (align, size))
WRAP (char *, strdup, (const char *s), (s))
WRAP (char *, realpath, (const char *path, char *to), (path, to))

/*----------------------------------------------------------------------
 * Short counts.
 */

ssize_t __real_pread64 (int fd, void *buf, size_t len, off_t offset);
ssize_t __wrap_pread64 (int fd, void *buf, size_t len, off_t offset);
ssize_t __real_pwrite64 (int fd, const void *buf, size_t len, off_t offset);
ssize_t __wrap_pwrite64 (int fd, const void *buf, size_t len, off_t offset);
ssize_t __real_pwritev64v2 (int fd, const struct iovec *iov, int cnt,
                            off_t offset, int flags);
ssize_t __wrap_pwritev64v2 (int fd, const struct iovec *iov, int cnt,
                            off_t offset, int flags);

ssize_t
__wrap_pread64 (int fd, void *buf, size_t len, off_t offset)
{
  if (len > 1 && hit (FAULT_SHORT))
    len /= 2;
  return __real_pread64 (fd, buf, len, offset);
}

ssize_t
__wrap_pwrite64 (int fd, const void *buf, size_t len, off_t offset)
{
  if (len > 1 && hit (FAULT_SHORT))
    len /= 2;
  return __real_pwrite64 (fd, buf, len, offset);
}

ssize_t
__wrap_pwritev64v2 (int fd, const struct iovec *iov, int cnt, off_t offset,
                    int flags)
{
  struct iovec half = iov[0];

  if (half.iov_len < 2 || !hit (FAULT_SHORT))
    return __real_pwritev64v2 (fd, iov, cnt, offset, flags);
  half.iov_len /= 2;
  return __real_pwritev64v2 (fd, &half, 1, offset, flags);
}
