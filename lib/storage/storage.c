/* SPDX-License-Identifier: BSD-3-Clause */

/* The common part of every storage: conditions that hold for all kinds
 * are checked here once, the rest is passed to the kind's ops.
 *
 * No locks are taken here.  The fields of struct storage do not change
 * after the opening.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "storage-impl.h"
#include "storage-write.h"

int
storage_init (struct storage *s, const struct storage_ops *ops,
              const char *name)
{
  memset (s, 0, sizeof *s);
  s->ops = ops;
  s->block_size = 1;
  s->name = strdup (name);
  return s->name ? 0 : -ENOMEM;
}

void
storage_close (struct storage *s)
{
  if (s == NULL)
    return;
  s->ops->close (s);
  free (s->name);
  free (s);
}

/* By their scheme, so that a URI is not taken for the name of a file. */
bool
storage_is_nbd_uri (const char *name)
{
  static const char *const schemes[] = {
    "nbd://", "nbds://", "nbd+unix://", "nbds+unix://", "nbd+vsock://",
    "nbds+vsock://"
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (schemes); i++)
    if (strncmp (name, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

const char *
storage_name (const struct storage *s)
{
  return s->name;
}

bool
storage_is_writable (const struct storage *s)
{
  return s->writable;
}

bool
storage_can_grow (const struct storage *s)
{
  return s->can_grow;
}

uint32_t
storage_block_size (const struct storage *s)
{
  return s->block_size;
}

bool
storage_identity (const struct storage *s, dev_t *dev, ino_t *ino)
{
  if (!s->has_identity)
    return false;
  *dev = s->dev;
  *ino = s->ino;
  return true;
}

/* File offsets are signed in the system calls: what does not fit must
 * not come to them as a negative number.
 */
static bool
range_fits (uint64_t offset, uint64_t len)
{
  return offset <= INT64_MAX && len <= INT64_MAX - offset;
}

int
storage_size (struct storage *s, uint64_t *size)
{
  return s->ops->size (s, size);
}

int
storage_allocated (struct storage *s, uint64_t *bytes)
{
  return s->ops->allocated (s, bytes);
}

int
storage_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  if (len == 0)
    return 0;
  if (!range_fits (offset, len))
    return -EINVAL;
  return s->ops->read (s, buf, len, offset);
}

int
storage_sync (struct storage *s)
{
  return s->ops->sync (s);
}

int
storage_sync_alone (struct storage *s)
{
  return s->ops->sync_alone ? s->ops->sync_alone (s) : s->ops->sync (s);
}

bool
storage_syncs_apart (struct storage *s)
{
  return s->ops->syncs_apart && s->ops->syncs_apart (s);
}

bool
storage_writes_apart (struct storage *s, uint64_t offset, uint64_t len)
{
  return !s->ops->writes_apart || s->ops->writes_apart (s, offset, len);
}

int
storage_start_sync (struct storage *s, uint64_t offset, uint64_t len)
{
  if (!s->ops->start_sync)
    return 0;
  return range_fits (offset, len) ? s->ops->start_sync (s, offset, len)
    : -EINVAL;
}

int
storage_lock (struct storage *s, enum storage_lock want,
              enum storage_locking mode, const char **conflict)
{
  return s->ops->lock (s, want, mode, conflict);
}

int
storage_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  *hole = false;
  if (*len == 0)
    return 0;
  if (!range_fits (offset, *len))
    return -EINVAL;
  return s->ops->map (s, offset, len, hole);
}

void
storage_will_need (struct storage *s, uint64_t offset, uint64_t len)
{
  if (s->ops->will_need && len > 0 && range_fits (offset, len))
    s->ops->will_need (s, offset, len);
}

int
storage_is_rotational (struct storage *s)
{
  return s->ops->is_rotational ? s->ops->is_rotational (s) : 0;
}

/* May LEN bytes at OFFSET be changed? */
static int
check_change (const struct storage *s, uint64_t offset, uint64_t len)
{
  if (!s->writable)
    return -EROFS;
  if (!range_fits (offset, len))
    return -EFBIG;
  return 0;
}

int
storage_write (struct storage *s, const struct iovec *iov, int cnt,
               uint64_t offset, bool durable)
{
  uint64_t len = 0;
  int err, i;

  for (i = 0; i < cnt; i++) {
    if (__builtin_add_overflow (len, iov[i].iov_len, &len))
      return -EINVAL;
  }

  err = check_change (s, offset, len);
  if (err < 0 || len == 0)
    return err;
  return s->ops->write (s, iov, cnt, offset, durable);
}

int
storage_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = check_change (s, offset, len);

  if (err < 0 || len == 0)
    return err;
  return s->ops->zero (s, offset, len);
}

int
storage_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = check_change (s, offset, len);

  if (err < 0 || len == 0)
    return err;
  return s->ops->punch (s, offset, len);
}

int
storage_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  int err = check_change (s, offset, len);

  if (err < 0 || len == 0)
    return err;
  return s->ops->reserve (s, offset, len);
}

int
storage_truncate (struct storage *s, uint64_t size)
{
  int err = check_change (s, size, 0);

  return err < 0 ? err : s->ops->truncate (s, size);
}
