/* SPDX-License-Identifier: BSD-3-Clause */

/* The recording storage; see recorder.h.
 *
 * A record is made when an operation begins, because from then on its
 * bytes may be on their way to the disk; a sync's when it ends, because
 * before that it promises nothing.  When a write ended, and when a sync
 * began, is noted as the number of records at that moment, so that the
 * records order all of it even with many threads.
 *
 * LOCK guards everything, and is held over each operation's change of
 * the current contents; not from an operation's begin to its end, so
 * that syncs meet operations in flight.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "recorder.h"
#include "recorder-internal.h"
#include "storage-impl.h"

#define SECTOR 512u
#define BLOCK UINT64_C (4096)

struct recorder_storage {
  struct storage base;
  struct recorder *rec;
  unsigned file;
};

static void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

static void
set_size (struct content *c, uint64_t size)
{
  if (size > c->space) {
    uint64_t space = size + size / 2;

    c->bytes = check_memory (realloc (c->bytes, space));
    c->space = space;
  }
  if (size > c->size)
    memset (c->bytes + c->size, 0, size - c->size);
  c->size = size;
}

/* Do to C what the record says. */
static void
apply (struct content *c, const struct record *r)
{
  const uint64_t end = r->offset + r->len;

  switch (r->kind) {
  case RECORDER_WRITE: case RECORDER_ZERO: case RECORDER_RESERVE:
    if (end > c->size)
      set_size (c, end);
    if (r->kind == RECORDER_WRITE)
      memcpy (c->bytes + r->offset, r->data, r->len);
    if (r->kind == RECORDER_ZERO)
      memset (c->bytes + r->offset, 0, r->len);
    break;
  case RECORDER_PUNCH:
    if (r->offset < c->size)
      memset (c->bytes + r->offset, 0,
              end < c->size ? r->len : c->size - r->offset);
    break;
  case RECORDER_TRUNCATE:
    set_size (c, r->offset);
    break;
  case RECORDER_SYNC:
  default:
    break;
  }
}

/* The lock is held. */
static struct record *
add_record (struct recorder *rec, unsigned file, enum recorder_op kind)
{
  struct record *r;

  if (rec->count == rec->space) {
    rec->space = rec->space * 2 + 1000;
    rec->records = check_memory (reallocarray (rec->records, rec->space,
                                               sizeof *rec->records));
  }
  r = &rec->records[rec->count++];
  memset (r, 0, sizeof *r);
  r->kind = kind;
  r->file = file;
  r->ended = SIZE_MAX;
  return r;
}

/* Give space to the blocks of a range, if there is enough.  Past the
 * elements of HOLES everything is a hole.  The lock is held.
 */
static int
take_space (struct recorder *rec, struct content *c, uint64_t offset,
            uint64_t len)
{
  const uint64_t end = (offset + len + BLOCK - 1) / BLOCK;
  uint64_t need = 0, i;

  if (rec->space_left == UINT64_MAX)
    return 0;
  if (end > c->nr_holes) {
    c->holes = check_memory (realloc (c->holes, end));
    memset (c->holes + c->nr_holes, true, end - c->nr_holes);
    c->nr_holes = end;
  }
  for (i = offset / BLOCK; i < end; i++)
    need += c->holes[i];
  if (need > rec->space_left)
    return -ENOSPC;
  rec->space_left -= need;
  for (i = offset / BLOCK; i < end; i++)
    c->holes[i] = false;
  return 0;
}

static void
give_space (struct recorder *rec, struct content *c, uint64_t offset,
            uint64_t len)
{
  uint64_t i;

  if (rec->space_left == UINT64_MAX)
    return;
  for (i = (offset + BLOCK - 1) / BLOCK;
       i < (offset + len) / BLOCK && i < c->nr_holes; i++) {
    rec->space_left += !c->holes[i];
    c->holes[i] = true;
  }
}

/* May this happen?  A write that is durable is a sync, too.  The lock is
 * held.
 */
static int
may_change (struct recorder *rec, unsigned file, enum recorder_op op,
            bool durable, uint64_t offset, uint64_t len)
{
  struct content *c = &rec->now[file];
  int err = !rec->hook ? 0
    : rec->hook (rec->opaque, durable ? RECORDER_SYNC : op);

  if (err < 0)
    return err;
  switch (op) {
  case RECORDER_WRITE: case RECORDER_ZERO: case RECORDER_RESERVE:
    return take_space (rec, c, offset, len);
  case RECORDER_PUNCH:
    give_space (rec, c, offset, len);
    return 0;
  case RECORDER_TRUNCATE:
    give_space (rec, c, offset, INT64_MAX - offset);
    return 0;
  case RECORDER_SYNC:
  default:
    return 0;
  }
}

static struct recorder *
recorder_of (struct storage *s)
{
  return ((struct recorder_storage *) s)->rec;
}

static unsigned
file_of (struct storage *s)
{
  return ((struct recorder_storage *) s)->file;
}

/* Let other threads run, if a test wants that. */
static void
pause_here (struct recorder *rec)
{
  if (rec->pause)
    rec->pause (rec->pause_opaque);
}

/* The record, complete but for its end, takes effect. */
static void
begin_record (struct recorder *rec, struct record *r)
{
  struct content *c = &rec->now[r->file];

  r->moved = places_move (rec, c, r->kind, r->offset, r->len);
  places_begin (c, r);
  apply (c, r);
}

/* Record I, made under the lock, has taken effect: let go of the lock,
 * and say after a while that it has ended.
 */
static void
end_record (struct recorder *rec, size_t i)
{
  if (rec->pause) {
    pthread_mutex_unlock (&rec->lock);
    pause_here (rec);
    pthread_mutex_lock (&rec->lock);
  }
  if (!rec->records[i].doomed)
    rec->records[i].ended = rec->count;
  places_end (&rec->now[rec->records[i].file], &rec->records[i]);
}

static int
change (struct storage *s, enum recorder_op kind, uint64_t offset, uint64_t len)
{
  struct recorder *rec = recorder_of (s);
  struct record *r;
  int err;

  pause_here (rec);
  pthread_mutex_lock (&rec->lock);
  err = may_change (rec, file_of (s), kind, false, offset, len);
  if (err == 0) {
    r = add_record (rec, file_of (s), kind);
    r->offset = offset;
    r->len = len;
    begin_record (rec, r);
    end_record (rec, rec->count - 1);
  }
  pthread_mutex_unlock (&rec->lock);
  return err;
}

static int
record_write (struct storage *s, const struct iovec *iov, int cnt,
              uint64_t offset, bool durable)
{
  struct recorder *rec = recorder_of (s);
  struct record *r;
  uint64_t len = 0, part;
  char *data, *p;
  int i, err;

  for (i = 0; i < cnt; i++)
    len += iov[i].iov_len;
  p = data = check_memory (malloc (len));
  for (i = 0; i < cnt; i++) {
    if (iov[i].iov_len)
      p = mempcpy (p, iov[i].iov_base, iov[i].iov_len);
  }

  pause_here (rec);
  pthread_mutex_lock (&rec->lock);
  err = may_change (rec, file_of (s), RECORDER_WRITE, durable, offset,
                    len);
  if (err < 0) {
    /* A part of it happens, but no disk writes half a sector. */
    part = (offset + len / 2) / SECTOR * SECTOR;
    len = err != -ENOSPC && part > offset ? part - offset : 0;
  }
  if (len == 0)
    free (data);
  else {
    r = add_record (rec, file_of (s), RECORDER_WRITE);
    r->offset = offset;
    r->len = len;
    r->data = data;
    r->durable = durable && err == 0;
    begin_record (rec, r);
    end_record (rec, rec->count - 1);
  }
  pthread_mutex_unlock (&rec->lock);
  return err;
}

static int
record_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  return change (s, RECORDER_ZERO, offset, len);
}

static int
record_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  return change (s, RECORDER_PUNCH, offset, len);
}

static int
record_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  return change (s, RECORDER_RESERVE, offset, len);
}

static int
record_truncate (struct storage *s, uint64_t size)
{
  return change (s, RECORDER_TRUNCATE, size, 0);
}

struct certain
recorder_certain (const struct recorder *rec, unsigned file, size_t crash)
{
  struct certain c = { 0, 0 };
  size_t i;

  for (i = 0; i < crash; i++) {
    const struct record *r = &rec->records[i];

    if (r->kind != RECORDER_SYNC || r->file != file)
      continue;
    if (r->began > c.until)
      c.until = r->began;
    if (r->alone && r->began > c.moved_until)
      c.moved_until = r->began;
  }
  return c;
}

/* A sync of a file failed: what is not certain of it will never be.  The
 * lock is held.
 */
static void
doom (struct recorder *rec, unsigned file)
{
  struct certain certain[RECORDER_FILES];
  size_t i;

  certain[file] = recorder_certain (rec, file, rec->count);
  for (i = 0; i < rec->count; i++) {
    struct record *r = &rec->records[i];

    if (r->file == file && r->kind != RECORDER_SYNC
        && !record_is_certain (r, certain, rec->count)) {
      r->ended = SIZE_MAX;
      r->doomed = true;
    }
  }
}

static int
sync_file (struct storage *s, bool alone)
{
  struct recorder *rec = recorder_of (s);
  struct record *r;
  size_t began;
  int err;

  pthread_mutex_lock (&rec->lock);
  began = rec->lies ? 0 : rec->count;
  if (alone)
    places_sync_begins (&rec->now[file_of (s)]);
  pthread_mutex_unlock (&rec->lock);
  pause_here (rec);
  pthread_mutex_lock (&rec->lock);
  err = may_change (rec, file_of (s), RECORDER_SYNC, false, 0, 0);
  if (err < 0)
    doom (rec, file_of (s));
  else {
    r = add_record (rec, file_of (s), RECORDER_SYNC);
    r->began = began;
    r->alone = alone;
    if (alone && rec->keeps_places)
      places_synced (rec, file_of (s), began);
  }
  pthread_mutex_unlock (&rec->lock);
  return err;
}

static int
record_sync (struct storage *s)
{
  return sync_file (s, false);
}

static int
record_sync_alone (struct storage *s)
{
  return sync_file (s, true);
}

static bool
record_syncs_apart (struct storage *s)
{
  struct recorder *rec = recorder_of (s);
  bool apart;

  pthread_mutex_lock (&rec->lock);
  apart = places_are_certain (rec, &rec->now[file_of (s)]);
  pthread_mutex_unlock (&rec->lock);
  return apart;
}

static bool
record_writes_apart (struct storage *s, uint64_t offset, uint64_t len)
{
  struct recorder *rec = recorder_of (s);
  bool apart;

  pthread_mutex_lock (&rec->lock);
  apart = places_are_certain_of (rec, &rec->now[file_of (s)], offset, len);
  pthread_mutex_unlock (&rec->lock);
  return apart;
}

static int
record_size (struct storage *s, uint64_t *size)
{
  struct recorder *rec = recorder_of (s);

  pthread_mutex_lock (&rec->lock);
  *size = rec->now[file_of (s)].size;
  pthread_mutex_unlock (&rec->lock);
  return 0;
}

static int
record_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  struct recorder *rec = recorder_of (s);
  const struct content *c = &rec->now[file_of (s)];
  uint64_t there = 0;

  pause_here (rec);
  pthread_mutex_lock (&rec->lock);
  if (offset < c->size) {
    there = c->size - offset < len ? c->size - offset : len;
    memcpy (buf, c->bytes + offset, there);
  }
  pthread_mutex_unlock (&rec->lock);
  memset ((char *) buf + there, 0, len - there);
  return 0;
}

static int
record_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  uint64_t size;

  record_size (s, &size);
  *hole = offset >= size;
  if (!*hole && *len > size - offset)
    *len = size - offset;
  return 0;
}

/* Nobody else can know this storage. */
static int
record_lock (struct storage *s, enum storage_lock want,
             enum storage_locking mode, const char **conflict)
{
  (void) s;
  (void) want;
  (void) mode;
  (void) conflict;
  return 0;
}

static void
record_close (struct storage *s)
{
  (void) s;
}

static const struct storage_ops ops = {
  .close = record_close,
  .size = record_size,
  .allocated = record_size,
  .read = record_read,
  .sync = record_sync,
  .sync_alone = record_sync_alone,
  .syncs_apart = record_syncs_apart,
  .writes_apart = record_writes_apart,
  .lock = record_lock,
  .map = record_map,
  .write = record_write,
  .zero = record_zero,
  .punch = record_punch,
  .reserve = record_reserve,
  .truncate = record_truncate,
};

static struct storage *
open_file (struct recorder *rec, unsigned file)
{
  struct recorder_storage *s = check_memory (calloc (1, sizeof *s));

  if (storage_init (&s->base, &ops, "recorder") < 0)
    abort ();
  s->base.writable = true;
  s->base.can_grow = true;
  s->rec = rec;
  s->file = file;
  return &s->base;
}

struct storage *
recorder_open (struct recorder *rec)
{
  return open_file (rec, 0);
}

struct storage *
recorder_open_data (struct recorder *rec)
{
  return open_file (rec, 1);
}

static void
copy_content (struct content *c, const void *bytes, uint64_t size)
{
  memset (c, 0, sizeof *c);
  set_size (c, size);
  if (size)
    memcpy (c->bytes, bytes, size);
}

struct recorder *
recorder_create (const void *bytes, uint64_t size)
{
  struct recorder *rec = check_memory (calloc (1, sizeof *rec));

  pthread_mutex_init (&rec->lock, NULL);
  rec->space_left = UINT64_MAX;
  copy_content (&rec->first[0], bytes, size);
  copy_content (&rec->now[0], bytes, size);
  return rec;
}

void
recorder_add_data (struct recorder *rec, const void *bytes, uint64_t size)
{
  rec->has_data = true;
  copy_content (&rec->first[1], bytes, size);
  copy_content (&rec->now[1], bytes, size);
}

void
recorder_free (struct recorder *rec)
{
  size_t i;

  for (i = 0; i < rec->count; i++)
    free (rec->records[i].data);
  free (rec->records);
  for (i = 0; i < RECORDER_FILES; i++) {
    free (rec->first[i].bytes);
    free (rec->now[i].bytes);
    free (rec->now[i].holes);
    free (rec->now[i].placed);
  }
  pthread_mutex_destroy (&rec->lock);
  free (rec);
}

size_t
recorder_now (struct recorder *rec)
{
  size_t n;

  pthread_mutex_lock (&rec->lock);
  n = rec->count;
  pthread_mutex_unlock (&rec->lock);
  return n;
}

size_t
recorder_syncs (struct recorder *rec)
{
  size_t i, n = 0;

  for (i = 0; i < rec->count; i++)
    n += rec->records[i].kind == RECORDER_SYNC;
  return n;
}

size_t
recorder_small_hole (struct recorder *rec, uint64_t cluster)
{
  size_t i;

  for (i = 0; i < rec->count; i++)
    if (rec->records[i].kind == RECORDER_PUNCH
        && (rec->records[i].offset | rec->records[i].len) % cluster != 0)
      return i + 1;
  return SIZE_MAX;
}

void
recorder_set_hook (struct recorder *rec, recorder_hook *hook, void *opaque)
{
  pthread_mutex_lock (&rec->lock);
  rec->hook = hook;
  rec->opaque = opaque;
  pthread_mutex_unlock (&rec->lock);
}

void
recorder_set_pause (struct recorder *rec, recorder_pause *pause, void *opaque)
{
  rec->pause = pause;
  rec->pause_opaque = opaque;
}

void
recorder_set_space (struct recorder *rec, uint64_t bytes)
{
  unsigned i;

  for (i = 0; i < RECORDER_FILES; i++) {
    struct content *c = &rec->now[i];

    free (c->holes);
    c->nr_holes = (c->size + BLOCK - 1) / BLOCK;
    c->holes = check_memory (calloc (c->nr_holes + 1, 1));
  }
  rec->space_left = bytes / BLOCK;
}

void
recorder_lie (struct recorder *rec)
{
  rec->lies = true;
}
