/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory, for tests.
 *
 * The contents are an array of chunks; a chunk that is not there is a
 * hole, and the array reaches only as far as something was written, so
 * that a long and empty storage costs nothing.  Bytes past the length
 * are zero in every chunk, so that growing needs no clearing.
 *
 * LOCK guards all of it: shared to read and map, exclusive to change.
 * HOOK_LOCK guards the hook, which is called with neither held.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "storage-impl.h"
#include "storage-memory.h"
#include "storage-write.h"

#define CHUNK UINT64_C (65536)

struct storage_memory {
  struct storage base;
  atomic_bool syncs_apart, writes_in_turns;
  _Atomic uint64_t asked_offset, asked_len;

  pthread_rwlock_t lock;
  uint64_t size;
  char **chunks;
  size_t nr_chunks;             /* elements of CHUNKS */

  pthread_mutex_t hook_lock;
  storage_memory_hook *hook;
  void *hook_opaque;
};

static struct storage_memory *
memory_of (struct storage *s)
{
  return (struct storage_memory *) s;
}

static int
call_hook (struct storage_memory *m, enum storage_memory_op op,
           uint64_t offset, uint64_t len)
{
  storage_memory_hook *hook;
  void *opaque;

  pthread_mutex_lock (&m->hook_lock);
  hook = m->hook;
  opaque = m->hook_opaque;
  pthread_mutex_unlock (&m->hook_lock);

  return hook ? hook (opaque, op, offset, len) : 0;
}

void
storage_memory_set_hook (struct storage *s, storage_memory_hook *fn,
                         void *opaque)
{
  struct storage_memory *m = memory_of (s);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->hook_lock);

  m->hook = fn;
  m->hook_opaque = opaque;
}

void
storage_memory_set_syncs_apart (struct storage *s, bool apart)
{
  atomic_store (&memory_of (s)->syncs_apart, apart);
}

void
storage_memory_set_can_grow (struct storage *s, bool can_grow)
{
  s->can_grow = can_grow;
}

static void
memory_close (struct storage *s)
{
  struct storage_memory *m = memory_of (s);
  size_t i;

  for (i = 0; i < m->nr_chunks; i++)
    free (m->chunks[i]);
  free (m->chunks);
  pthread_rwlock_destroy (&m->lock);
  pthread_mutex_destroy (&m->hook_lock);
}

/* The part of [OFFSET, OFFSET + LEN) that lies in one chunk. */
static size_t
in_chunk (uint64_t offset, uint64_t len)
{
  return (size_t) MIN (len, CHUNK - offset % CHUNK);
}

/* The byte at OFFSET, or NULL in a hole. */
static char *
find (struct storage_memory *m, uint64_t offset)
{
  const uint64_t i = offset / CHUNK;

  if (i >= m->nr_chunks || m->chunks[i] == NULL)
    return NULL;
  return m->chunks[i] + offset % CHUNK;
}

/* Let the chunk with OFFSET be there. */
static int
make_chunk (struct storage_memory *m, uint64_t offset)
{
  const size_t i = (size_t) (offset / CHUNK);

  if (i >= m->nr_chunks) {
    size_t n = MAX (i + 1, m->nr_chunks * 2);
    char **p = reallocarray (m->chunks, n, sizeof *p);

    if (p == NULL)
      return -ENOSPC;
    memset (p + m->nr_chunks, 0, (n - m->nr_chunks) * sizeof *p);
    m->chunks = p;
    m->nr_chunks = n;
  }

  if (m->chunks[i] == NULL) {
    m->chunks[i] = calloc (1, CHUNK);
    if (m->chunks[i] == NULL)
      return -ENOSPC;
  }
  return 0;
}

static int
make_chunks (struct storage_memory *m, uint64_t offset, uint64_t len)
{
  int err = 0;

  while (len > 0 && err == 0) {
    size_t n = in_chunk (offset, len);

    err = make_chunk (m, offset);
    offset += n;
    len -= n;
  }
  return err;
}

/* Make a range read as zeroes; with GIVE_BACK, free whole chunks. */
static void
clear (struct storage_memory *m, uint64_t offset, uint64_t len,
       bool give_back)
{
  /* Nothing is there to clear beyond the array. */
  const uint64_t end = MIN (offset + len, m->nr_chunks * CHUNK);

  while (offset < end) {
    size_t n = in_chunk (offset, end - offset);
    char *p = find (m, offset);

    if (p && give_back && n == CHUNK) {
      free (p);
      m->chunks[offset / CHUNK] = NULL;
    }
    else if (p)
      memset (p, 0, n);
    offset += n;
  }
}

/* Room for a change that ends at END?  Grows the length. */
static int
grow_to (struct storage_memory *m, uint64_t end)
{
  if (end <= m->size)
    return 0;
  if (!m->base.can_grow)
    return -ENOSPC;
  m->size = end;
  return 0;
}

static int
memory_size (struct storage *s, uint64_t *size)
{
  struct storage_memory *m = memory_of (s);
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&m->lock);

  *size = m->size;
  return 0;
}

static int
memory_allocated (struct storage *s, uint64_t *bytes)
{
  struct storage_memory *m = memory_of (s);
  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&m->lock);
  size_t i;

  *bytes = 0;
  for (i = 0; i < m->nr_chunks; i++)
    *bytes += m->chunks[i] ? CHUNK : 0;
  return 0;
}

static int
memory_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  struct storage_memory *m = memory_of (s);
  char *to = buf;
  int err;

  err = call_hook (m, STORAGE_MEMORY_READ, offset, len);
  if (err < 0)
    return err;

  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&m->lock);
  while (len > 0) {
    size_t n = in_chunk (offset, len);
    const char *from = find (m, offset);

    if (from)
      memcpy (to, from, n);
    else
      memset (to, 0, n);
    to += n;
    offset += n;
    len -= n;
  }
  return 0;
}

void
storage_memory_set_writes_apart (struct storage *s, bool apart)
{
  atomic_store (&memory_of (s)->writes_in_turns, !apart);
}

void
storage_memory_asked_apart (struct storage *s, uint64_t *offset,
                            uint64_t *len)
{
  *offset = atomic_load (&memory_of (s)->asked_offset);
  *len = atomic_load (&memory_of (s)->asked_len);
}

static bool
memory_syncs_apart (struct storage *s)
{
  return atomic_load (&memory_of (s)->syncs_apart);
}

static bool
memory_writes_apart (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_memory *m = memory_of (s);

  atomic_store (&m->asked_offset, offset);
  atomic_store (&m->asked_len, len);
  return !atomic_load (&m->writes_in_turns);
}

static int
memory_sync (struct storage *s)
{
  return call_hook (memory_of (s), STORAGE_MEMORY_SYNC, 0, 0);
}

static int
memory_start_sync (struct storage *s, uint64_t offset, uint64_t len)
{
  return call_hook (memory_of (s), STORAGE_MEMORY_START_SYNC, offset, len);
}

static int
memory_lock (struct storage *s, enum storage_lock want,
             enum storage_locking mode, const char **conflict)
{
  int err;

  if (mode == LOCKING_OFF)
    return 0;
  err = call_hook (memory_of (s), STORAGE_MEMORY_LOCK, want, 0);
  if (err == -EAGAIN)
    *conflict = "another process writes to it";
  return err;
}

static int
memory_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  struct storage_memory *m = memory_of (s);
  uint64_t n;
  int err;

  err = call_hook (m, STORAGE_MEMORY_MAP, offset, *len);
  if (err < 0)
    return err;

  ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (offset >= m->size || offset / CHUNK >= m->nr_chunks) {
    *hole = true;
    return 0;
  }

  *hole = find (m, offset) == NULL;
  n = in_chunk (offset, *len);
  while (n < *len && offset + n < m->size &&
         (find (m, offset + n) == NULL) == *hole)
    n += in_chunk (offset + n, *len - n);
  *len = *hole ? n : MIN (n, m->size - offset);
  return 0;
}

static int
memory_write (struct storage *s, const struct iovec *iov, int cnt,
              uint64_t offset, bool durable)
{
  struct storage_memory *m = memory_of (s);
  uint64_t len = 0;
  int err, i;

  for (i = 0; i < cnt; i++)
    len += iov[i].iov_len;
  err = call_hook (m, durable ? STORAGE_MEMORY_WRITE_DURABLE :
                   STORAGE_MEMORY_WRITE, offset, len);
  if (err < 0)
    return err;

  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&m->lock);
  err = make_chunks (m, offset, len);
  if (err == 0)
    err = grow_to (m, offset + len);
  if (err < 0)
    return err;

  for (i = 0; i < cnt; i++) {
    const char *from = iov[i].iov_base;
    size_t left = iov[i].iov_len;

    while (left > 0) {
      size_t n = in_chunk (offset, left);

      memcpy (find (m, offset), from, n);
      from += n;
      offset += n;
      left -= n;
    }
  }
  return 0;
}

/* zero and reserve: the range gets space; zero clears it too. */
static int
fill (struct storage_memory *m, enum storage_memory_op op, uint64_t offset,
      uint64_t len)
{
  int err;

  err = call_hook (m, op, offset, len);
  if (err < 0)
    return err;

  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&m->lock);
  err = make_chunks (m, offset, len);
  if (err == 0)
    err = grow_to (m, offset + len);
  if (err == 0 && op == STORAGE_MEMORY_ZERO)
    clear (m, offset, len, false);
  return err;
}

static int
memory_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  return fill (memory_of (s), STORAGE_MEMORY_ZERO, offset, len);
}

static int
memory_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  return fill (memory_of (s), STORAGE_MEMORY_RESERVE, offset, len);
}

static int
memory_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_memory *m = memory_of (s);
  int err;

  err = call_hook (m, STORAGE_MEMORY_PUNCH, offset, len);
  if (err < 0)
    return err;

  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&m->lock);
  clear (m, offset, len, true);
  return 0;
}

static int
memory_truncate (struct storage *s, uint64_t size)
{
  struct storage_memory *m = memory_of (s);
  int err;

  err = call_hook (m, STORAGE_MEMORY_TRUNCATE, size, 0);
  if (err < 0)
    return err;

  ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (!m->base.can_grow)
    return -ENOTSUP;
  clear (m, size, INT64_MAX - size, true);
  m->size = size;
  return 0;
}

static const struct storage_ops memory_ops = {
  .close = memory_close,
  .size = memory_size,
  .allocated = memory_allocated,
  .read = memory_read,
  .sync = memory_sync,
  .start_sync = memory_start_sync,
  .syncs_apart = memory_syncs_apart,
  .writes_apart = memory_writes_apart,
  .lock = memory_lock,
  .map = memory_map,
  .write = memory_write,
  .zero = memory_zero,
  .punch = memory_punch,
  .reserve = memory_reserve,
  .truncate = memory_truncate,
};

int
storage_open_memory (uint64_t size, struct storage **s)
{
  CLEANUP_FREE struct storage_memory *m = NULL;
  int err;

  if (size > INT64_MAX)
    return -EFBIG;
  m = calloc (1, sizeof *m);
  if (m == NULL)
    return -ENOMEM;
  err = storage_init (&m->base, &memory_ops, "memory");
  if (err < 0)
    return err;

  pthread_rwlock_init (&m->lock, NULL);
  pthread_mutex_init (&m->hook_lock, NULL);
  m->size = size;
  m->base.writable = true;
  m->base.can_grow = true;
  *s = &m->base;
  m = NULL;
  return 0;
}
