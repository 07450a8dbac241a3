/* SPDX-License-Identifier: BSD-3-Clause */

/* A part of another storage, which can only be read.
 *
 * It has the name and the identity of the whole, since that is what locks,
 * messages and the search for loops are about.  What lies past the end of
 * the part reads as zeroes, as it does at the end of a file, although there
 * may be something else in the whole.
 *
 * No locks are taken; nothing changes after the opening.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "storage-impl.h"

struct storage_window {
  struct storage base;
  struct storage *inner;        /* owned */
  uint64_t offset, size;        /* bytes; their sum is at most INT64_MAX */
};

static struct storage_window *
window_of (struct storage *s)
{
  return (struct storage_window *) s;
}

static void
window_close (struct storage *s)
{
  storage_close (window_of (s)->inner);
}

static int
window_size (struct storage *s, uint64_t *size)
{
  *size = window_of (s)->size;
  return 0;
}

static int
window_allocated (struct storage *s, uint64_t *bytes)
{
  (void) s;
  (void) bytes;
  return -ENOTSUP;
}

/* How much of a range is within, from its beginning on. */
static uint64_t
within (const struct storage_window *w, uint64_t offset, uint64_t len)
{
  return offset >= w->size ? 0 : MIN (len, w->size - offset);
}

static int
window_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  struct storage_window *w = window_of (s);
  const size_t n = (size_t) within (w, offset, len);

  memset ((uint8_t *) buf + n, 0, len - n);
  return n > 0 ? storage_read (w->inner, buf, n, w->offset + offset) : 0;
}

static int
window_sync (struct storage *s)
{
  return storage_sync (window_of (s)->inner);
}

static int
window_lock (struct storage *s, enum storage_lock want,
             enum storage_locking mode, const char **conflict)
{
  return storage_lock (window_of (s)->inner, want, mode, conflict);
}

static int
window_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  struct storage_window *w = window_of (s);
  const uint64_t n = within (w, offset, *len);

  *hole = n == 0;
  if (n == 0)
    return 0;
  *len = n;
  return storage_map (w->inner, w->offset + offset, len, hole);
}

static void
window_will_need (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_window *w = window_of (s);

  storage_will_need (w->inner, w->offset + offset, within (w, offset, len));
}

static int
window_is_rotational (struct storage *s)
{
  return storage_is_rotational (window_of (s)->inner);
}

/* What changes bytes is missing: storage.c does not call it, since the
 * storage is not writable.
 */
static const struct storage_ops window_ops = {
  .close = window_close,
  .size = window_size,
  .allocated = window_allocated,
  .read = window_read,
  .sync = window_sync,
  .lock = window_lock,
  .map = window_map,
  .will_need = window_will_need,
  .is_rotational = window_is_rotational,
};

int
storage_open_window (struct storage *inner, uint64_t offset, uint64_t size,
                     struct storage **s)
{
  struct storage_window *w;
  uint64_t end;
  int r;

  if (ADD_OVERFLOW (offset, size, &end) || end > INT64_MAX)
    return -EFBIG;
  w = calloc (1, sizeof *w);
  if (!w)
    return -ENOMEM;
  r = storage_init (&w->base, &window_ops, storage_name (inner));
  if (r < 0) {
    free (w);
    return r;
  }
  w->base.has_identity = inner->has_identity;
  w->base.dev = inner->dev;
  w->base.ino = inner->ino;
  w->base.block_size = inner->block_size;
  w->inner = inner;
  w->offset = offset;
  w->size = size;
  *s = &w->base;
  return 0;
}
