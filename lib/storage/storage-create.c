/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a file that was not there, or filling a block device.
 *
 * Invariants:
 *
 * - No existing file is changed: the file is created exclusively, and a
 *   symbolic link counts as there.  A block device is always there, and
 *   links to it are what its users know it by; it is filled only if it
 *   begins with a MiB of zeroes, where partition tables, file systems and
 *   images have their magic.  So a server that is started a second time
 *   does not make a second image.
 *
 * - Until all of it is durable the file does not begin with what makes
 *   it an image: its first sector, which no disk tears, is written last,
 *   after a sync.  So a crash leaves no file, or one that nobody takes for
 *   an image.  When it is there its name is made durable, too.
 *
 * - What a crash leaves can be told from all that is not to be changed:
 *   before anything else a mark is written to the first sector, and
 *   synced.  Who begins with exactly that is filled anew.  (Before that,
 *   a crash leaves an empty file, which might be anybody's.)
 *
 * - Two files that belong together, an image and its data file, cannot be
 *   completed at once.  The data file has its mark, and is locked, until
 *   of the image only the first sector is missing; then its mark goes,
 *   then the image's.  A crash between these leaves an image with the
 *   mark and a data file that is as long as it must be and zero
 *   throughout: only with both it is filled anew, and nothing is lost.
 *
 * - If anything fails the file is removed again, the beginning of the
 *   device made zero.
 *
 * - Nothing is removed but a regular file: never the name of a device.
 *   Nor what another process has opened since it was completed.
 *
 * Locks: none; the file is locked as a writer's while it is filled, so
 * that nobody serves half of it, and of two who make it one is told so and
 * touches nothing.  What exists is looked at before it is locked, since
 * what is refused is nobody's to lock, and again afterwards, since another
 * may have made an image there meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "cleanup.h"
#include "storage-impl.h"
#include "storage-write.h"

/* How much is filled and written at a time; a multiple of all cluster
 * sizes.
 */
#define PIECE (UINT64_C (2) << 20)

/* What has to be zero at the beginning of a device. */
#define BEGINNING (UINT64_C (1) << 20)

#define SECTOR UINT64_C (512)

/* What a file begins with while it is being filled. */
static const char mark[SECTOR] =
  "A disk image was being made here by nbdkit-qcow2-plugin, and is not "
  "complete.\n";

static int
write_mark (struct storage *s)
{
  const struct iovec iov = { .iov_base = (void *) mark, .iov_len = SECTOR };

  return storage_write (s, &iov, 1, 0, true);
}

static int
lock_it (struct storage *s)
{
  const char *conflict;

  return storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_AUTO, &conflict);
}

/* The piece at OFFSET; at 0 with the mark for the first sector. */
static int
write_piece (struct storage *s, const struct storage_contents *c,
             uint64_t offset, uint8_t *buf)
{
  const struct iovec iov = {
    .iov_base = buf, .iov_len = MIN (PIECE, c->filled - offset)
  };
  int r = c->fill (c->opaque, offset, buf, iov.iov_len);

  if (offset == 0)
    memcpy (buf, mark, MIN (SECTOR, iov.iov_len));
  return r < 0 ? r : storage_write (s, &iov, 1, offset, false);
}

static int
write_first_sector (struct storage *s, const struct storage_contents *c,
                    uint8_t *buf)
{
  const struct iovec iov = {
    .iov_base = buf, .iov_len = MIN (SECTOR, c->filled)
  };
  int r = c->fill (c->opaque, 0, buf, MIN (PIECE, c->filled));

  return r < 0 ? r : storage_write (s, &iov, 1, 0, false);
}

/* A device may have anything in it.  The mark stays. */
static int
fill_rest (struct storage *s, const struct storage_contents *c)
{
  const uint64_t from = MAX (c->filled, MIN (SECTOR, c->size));
  const uint64_t len = c->size - from;

  if (len == 0)
    return 0;
  if (!storage_can_grow (s))
    return c->rest == STORAGE_REST_WRITTEN
      ? storage_write_zeroes (s, from, len) : storage_zero (s, from, len);
  switch (c->rest) {
  case STORAGE_REST_HOLE: return 0;
  case STORAGE_REST_RESERVED: return storage_reserve (s, from, len);
  case STORAGE_REST_WRITTEN: return storage_write_zeroes (s, from, len);
  }
  return -EINVAL;
}

/* It is locked.  The mark stays. */
static int
fill_file (struct storage *s, const struct storage_contents *c)
{
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  uint64_t offset;
  int r = 0;

  if (!buf)
    return -ENOMEM;
  if (c->size >= SECTOR)
    r = write_mark (s);
  if (r == 0 && storage_can_grow (s))
    r = storage_truncate (s, MIN (SECTOR, c->size));
  if (r == 0 && storage_can_grow (s))
    r = storage_truncate (s, c->size);
  if (r == 0)
    r = fill_rest (s, c);
  for (offset = 0; r == 0 && offset < c->filled; offset += PIECE)
    r = write_piece (s, c, offset, buf);
  return r < 0 ? r : storage_sync (s);
}

/* Of a file that begins with zeroes.  All of the mark's block is punched,
 * so that a file without data takes no space.
 */
static int
take_mark_away (struct storage *s, const struct storage_contents *c)
{
  int r = -ENOTSUP;

  if (storage_can_grow (s) && c->rest == STORAGE_REST_HOLE)
    r = storage_punch (s, 0, MIN (BEGINNING, c->size));
  return r == -ENOTSUP ? storage_write_zeroes (s, 0, MIN (SECTOR, c->size))
    : r;
}

int
storage_complete_file (struct storage *s, const struct storage_contents *c)
{
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  int r = 0;

  if (!buf)
    return -ENOMEM;
  if (c->filled > 0)
    r = write_first_sector (s, c, buf);
  else
    r = take_mark_away (s, c);
  return r < 0 ? r : storage_sync (s);
}

/* Is all of it zero, or was it begun and not completed? */
static bool
may_be_filled (const uint8_t *beginning, bool zeroes_will_do)
{
  uint64_t i;

  if (memcmp (beginning, mark, SECTOR) == 0)
    return true;
  for (i = 0; zeroes_will_do && i < BEGINNING; ++i)
    if (beginning[i] != 0)
      return false;
  return zeroes_will_do;
}

/* 1 if all bytes of a file are zero, 0 if not, or a negative errno. */
static int
is_zero (struct storage *s, uint64_t size, uint8_t *buf)
{
  uint64_t offset, len;
  bool hole;
  int r;

  for (offset = 0; offset < size; offset += len) {
    len = size - offset;
    r = storage_map (s, offset, &len, &hole);
    if (r < 0)
      return r;
    if (hole)
      continue;
    len = MIN (len, BEGINNING);
    r = storage_read (s, buf, len, offset);
    if (r < 0)
      return r;
    if (buf[0] != 0 || memcmp (buf, buf + 1, len - 1) != 0)
      return 0;
  }
  return 1;
}

/* 0 if what is there may be filled, else -ENOSPC, -EEXIST. */
static int
check_existing (struct storage *s, const struct storage_contents *c)
{
  CLEANUP_FREE uint8_t *buf = malloc (BEGINNING);
  const bool device = !storage_can_grow (s);
  uint64_t size;
  int r = storage_size (s, &size);

  if (!buf)
    return -ENOMEM;
  if (r == 0)
    r = storage_read (s, buf, BEGINNING, 0);
  if (r == 0 && !may_be_filled (buf, device)) {
    if (!c->zeroes_too || size != c->size)
      return -EEXIST;
    r = is_zero (s, size, buf);
    if (r <= 0)
      return r < 0 ? r : -EEXIST;
    r = 0;
  }
  return r == 0 && device && size < c->size ? -ENOSPC : r;
}

static int
zero_beginning (struct storage *s)
{
  uint64_t size;
  int r = storage_size (s, &size);

  if (r == 0)
    r = storage_write_zeroes (s, 0, MIN (size, BEGINNING));
  return r < 0 ? r : storage_sync (s);
}

static int
open_existing (const char *path, struct storage **s)
{
  int r = storage_open_file (path, true, false, s);

  if (r < 0)
    *s = NULL;
  return r == -EINVAL || r == -ELOOP || r == -ENOENT ? -EEXIST : r;
}

static void
remove_it (const char *path, struct storage *s)
{
  struct stat st;

  if (s && !storage_can_grow (s))
    zero_beginning (s);
  else if (lstat (path, &st) == 0 && S_ISREG (st.st_mode))
    unlink (path);
}

/* A device has its name from others. */
static int
sync_name (const char *path, struct storage *s)
{
  return storage_can_grow (s) ? storage_sync_directory (path) : 0;
}

/* Open and lock what there is, which must be ours to fill. */
static int
begin_existing (const char *path, const struct storage_contents *c,
                struct storage **s)
{
  int r = open_existing (path, s);

  if (r < 0)
    return r;
  r = check_existing (*s, c);
  if (r == 0)
    r = lock_it (*s);
  return r == 0 ? check_existing (*s, c) : r;
}

/* Open and lock what was just made empty. */
static int
begin_new (const char *path, struct storage **s)
{
  int r = storage_open_file (path, true, true, s);

  if (r < 0)
    *s = NULL;
  else
    r = lock_it (*s);
  /* Unless it is somebody else's already. */
  if (r < 0 && r != -EAGAIN)
    unlink (path);
  return r;
}

int
storage_begin_file (const char *path, const struct storage_contents *c,
                    struct storage **s)
{
  int r = storage_create_empty (path);

  *s = NULL;
  if (r == -EEXIST)
    r = begin_existing (path, c, s);
  else if (r == 0)
    r = begin_new (path, s);
  if (r == 0) {
    r = fill_file (*s, c);
    if (r == 0)
      r = sync_name (path, *s);
    if (r < 0)
      remove_it (path, *s);
  }
  if (r < 0) {
    storage_close (*s);
    *s = NULL;
  }
  return r;
}

int
storage_create_file (const char *path, const struct storage_contents *c)
{
  struct storage *s;
  int r = storage_begin_file (path, c, &s);

  if (r == 0 && c->ready)
    r = c->ready (c->opaque);
  if (r == 0)
    r = storage_complete_file (s, c);
  if (r < 0 && s)
    remove_it (path, s);
  storage_close (s);
  return r;
}

bool
storage_is_begun (const char *path)
{
  struct storage *s = NULL;
  uint8_t buf[SECTOR];
  bool begun = storage_open_file (path, false, false, &s) == 0
    && storage_read (s, buf, sizeof buf, 0) == 0
    && memcmp (buf, mark, SECTOR) == 0;

  storage_close (s);
  return begun;
}

int
storage_remove_created (const char *path, struct storage *s)
{
  struct storage *opened = NULL;
  int r = 0;

  if (!s) {
    if (open_existing (path, &opened) == 0)
      r = lock_it (opened);
    s = opened;
  }
  if (r == 0)
    remove_it (path, s);
  storage_close (opened);
  return r;
}
