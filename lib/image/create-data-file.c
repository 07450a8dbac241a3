/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the data file of a new image.
 *
 * As QEMU makes it: it is as long as the disk, and empty.  It is made
 * before the image that names it, and it must not exist: qemu-img cuts
 * off what is there, and somebody's disk may be.  What a crash left of it
 * can be told from that, see storage-create.c.
 *
 * A relative name starts at the directory of the image, since that is how
 * it will be understood when the image is opened.  The name is stored as
 * it was given.
 *
 * Locks: none; nobody else knows the file yet.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create-data-file.h"
#include "report.h"

enum storage_rest
create_rest (enum preallocation preallocation)
{
  switch (preallocation) {
  case PREALLOCATE_FALLOC: return STORAGE_REST_RESERVED;
  case PREALLOCATE_FULL: return STORAGE_REST_WRITTEN;
  case PREALLOCATE_OFF: case PREALLOCATE_METADATA:
  default: return STORAGE_REST_HOLE;
  }
}

/* NULL if memory is short. */
static char *
path_of (const char *filename, const char *name)
{
  const char *slash = strrchr (filename, '/');
  char *path;

  if (*name == '/' || !slash)
    return strdup (name);
  if (asprintf (&path, "%.*s/%s", (int) (slash - filename), filename, name)
      == -1)
    return NULL;
  return path;
}

static int
nothing (void *opaque, uint64_t offset, uint8_t *buf, size_t len)
{
  (void) opaque;
  (void) offset;
  memset (buf, 0, len);
  return 0;
}

int
create_data_file (const char *filename, const struct create_options *o,
                  uint64_t size, struct new_data_file *d)
{
  int r;

  d->contents = (struct storage_contents) {
    .size = size, .rest = create_rest (o->preallocation), .fill = nothing,
    .zeroes_too = storage_is_begun (filename),
  };
  d->path = path_of (filename, o->data_file);
  if (!d->path)
    return -ENOMEM;
  r = storage_begin_file (d->path, &d->contents, &d->s);
  if (r == -EEXIST)
    report_error ("%s: cannot create the image: the data file %s exists, "
                  "and is not to be overwritten; remove it, or give another "
                  "name", filename, d->path);
  else if (r == -EAGAIN)
    report_error ("%s: cannot create the image: another process has its "
                  "data file %s open, and may be making one there; see who "
                  "with lsof", filename, d->path);
  else if (r < 0)
    report_error ("%s: cannot create the image: making its data file %s: %s",
                  filename, d->path, strerror (-r));
  return r;
}

int
create_data_file_complete (struct new_data_file *d)
{
  return d->s ? storage_complete_file (d->s, &d->contents) : 0;
}

void
create_data_file_end (struct new_data_file *d, bool failed)
{
  if (d->s && failed)
    storage_remove_created (d->path, d->s);
  storage_close (d->s);
  free (d->path);
}

void
create_data_file_remove (const char *filename, const struct create_options *o)
{
  char *path = path_of (filename, o->data_file);

  if (path)
    storage_remove_created (path, NULL);
  free (path);
}
