/* SPDX-License-Identifier: BSD-3-Clause */

/* The files that an image needs beside its own: backing files and the
 * external data file.
 *
 * They are found (external.c), opened and locked here, one way for all of
 * them.  Takes no locks but those on the files.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name.h"
#include "checked.h"
#include "cleanup.h"
#include "external.h"
#include "image-internal.h"
#include "layer-name.h"
#include "other-file.h"
#include "report.h"

/* Open the file at PATH, or connect to it.  A server says why it cannot. */
static int
open_path (const struct image *img, const char *what, const char *path,
           bool chosen, bool writable, struct storage **s)
{
  int r = -EROFS;

  if (storage_is_nbd_uri (path)) {
    if (img->config.no_connections)
      return -EINPROGRESS;
    r = storage_open_nbd (path, writable, chosen, img->config.patience, s);
  }
  else {
    if (writable)
      r = storage_open_file (path, true, true, s);
    if (r == -EROFS || r == -EACCES || r == -EPERM || r == -ETXTBSY)
      r = storage_open_file (path, false, true, s);
  }
  if (r < 0)
    report_error ("%s: opening its %s %s: %s", img->config.filename, what,
                  path, r == -EINVAL
                  ? "neither a regular file nor a block device"
                  : strerror (-r));
  return r;
}

static int
lock (const struct image *img, const char *what, struct storage *s)
{
  char holders[STORAGE_HOLDERS];
  const char *conflict;
  int r = storage_lock (s, STORAGE_LOCK_READER, img->config.locking,
                        &conflict);

  if (r == -EAGAIN) {
    storage_lock_holders (s, holders, sizeof holders);
    report_error ("%s: %s %s is in use: %s; %s; give locking=off only if "
                  "that is safe", img->config.filename, what,
                  storage_name (s), conflict, holders);
  }
  else if (r < 0)
    report_error ("%s: locking its %s %s: %s; locking=off does without",
                  img->config.filename, what, storage_name (s),
                  strerror (-r));
  return r;
}

/* Open what was found at PATH, and lock it. */
static int
open_and_lock (const struct image *img, const char *what, const char *path,
               bool chosen, bool writable, struct storage **s)
{
  int r = open_path (img, what, path, chosen, writable, s);

  if (r < 0)
    return r;
  r = lock (img, what, *s);
  if (r < 0) {
    storage_close (*s);
    *s = NULL;
  }
  return r;
}

int
other_file_open (const struct image *img, const char *what, const char *name,
                 bool chosen, bool writable, struct storage **s)
{
  static const char *const any[] = { "any", NULL };
  CLEANUP_FREE char *path = NULL;
  int r;

  *s = NULL;
  r = external_resolve (img->config.filename, name,
                        chosen ? any : img->config.external_files, &path);
  return r < 0 ? r : open_and_lock (img, what, path, chosen, writable, s);
}

/* Let *S be the part of itself that is meant.  As with QEMU all of it must
 * be there.
 */
static int
cut_out (const char *by, const char *name, const struct backing_name *part,
         struct storage **s)
{
  uint64_t size, len;
  int r = storage_size (*s, &size);

  if (r < 0) {
    report_error ("%s: finding the size of %s: %s", by, storage_name (*s),
                  strerror (-r));
    return r;
  }
  len = part->size;
  if (part->offset > size
      || (len != UINT64_MAX && len > size - part->offset)) {
    report_error ("%s: the image names '%.256s', whose 'offset' is %" PRIu64
                  " and 'size' %" PRIu64 ", but %s has %" PRIu64 " bytes; "
                  "give backing-file= and backing-format= instead",
                  by, name, part->offset,
                  len == UINT64_MAX ? 0 : len, storage_name (*s), size);
    return -EINVAL;
  }
  return storage_open_window (*s, part->offset, MIN (len, size - part->offset),
                              s);
}

int
other_file_open_parsed (const struct image *img, const char *what,
                        const struct layer_names *names,
                        const struct backing_name *parsed,
                        struct storage **s)
{
  CLEANUP_FREE char *path = NULL;
  int r;

  *s = NULL;
  r = external_resolve_backing (names->by, names->name, parsed, names->rules,
                                &path);
  if (r == 0)
    r = open_and_lock (img, what, path, false, false, s);
  if (r < 0 || !parsed->windowed)
    return r;
  r = cut_out (names->by, names->name, parsed, s);
  if (r < 0) {
    storage_close (*s);
    *s = NULL;
  }
  return r;
}
