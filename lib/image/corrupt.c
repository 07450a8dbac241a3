/* SPDX-License-Identifier: BSD-3-Clause */

/* Corruption was met.
 *
 * Guest writes stop at once.  The incompatible corrupt bit is set by a
 * write of 8 bytes and synced before the error reaches the guest, so
 * that no later writer trusts the image (qcow2 specification,
 * "incompatible_features").  A version 2 image has no such field; that
 * is said.  One event goes out.  Reads go on, and so do commits: what was
 * acknowledged before becomes durable if every table of it can still
 * be written.
 *
 * Locks: image->corrupt_lock is held while the bit is written, so a
 * second request that meets corruption, or is refused because of it,
 * answers no earlier than the first.  It may be taken with any other lock held, and only the
 * guard's and the tracker's are taken under it.  The write of the bit may
 * itself be refused by the guard (the header's cluster not tracked as
 * header): MARKING tells this call inside the call.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "corrupt.h"
#include "event.h"
#include "guard.h"
#include "image-internal.h"
#include "report.h"

static _Thread_local bool marking;

/* Write the header's incompatible features, durably, with corrupt_lock
 * held.
 */
static int
write_incompatible (struct image *img, uint64_t value)
{
  uint8_t buf[8];
  int r;

  store_be64 (buf, value);
  marking = true;
  r = guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                       HEADER_OFFSET_INCOMPATIBLE);
  if (r == 0)
    r = guard_sync (img);
  marking = false;
  return r;
}

/* Set the bit and make it durable.  Only a writer may: a reader's lock
 * does not entitle us to change the header.
 */
static void
set_corrupt_bit (struct image *img)
{
  int r;

  if (img->header.version < 3) {
    report_warning ("%s: a version 2 image cannot store that it is corrupt; "
                    "writes are refused until the server is restarted",
                    img->config.filename);
    return;
  }
  if (!atomic_load (&img->writing))
    return;
  img->header.incompatible |= INCOMPAT_CORRUPT;
  r = write_incompatible (img, img->header.incompatible);
  if (r < 0)
    report_error ("%s: the corrupt bit could not be stored: %s",
                  img->config.filename, strerror (-r));
}

static void
send_event (struct image *img, const char *msg, uint64_t offset,
            uint64_t len)
{
  struct event event = {
    .kind = EVENT_IMAGE_CORRUPTED,
    .image = img->config.filename,
    .msg = msg,
    .has_range = len > 0,
    .offset = offset,
    .size = len,
    .fatal = image_is_writable_file (img),
  };

  if (img->config.event)
    img->config.event (img->config.event_opaque, &event);
}

int
image_corrupt (struct image *img, uint64_t offset, uint64_t len,
               const char *fs, ...)
{
  char msg[400];
  va_list args;

  if (img->parent)              /* the file is one and the same */
    img = img->parent;
  va_start (args, fs);
  vsnprintf (msg, sizeof msg, fs, args);
  va_end (args);

  if (marking) {
    report_error ("%s: %s", img->config.filename, msg);
    return -EIO;
  }

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->corrupt_lock);
  if (atomic_exchange (&img->guard.corrupt, true)) {
    if (!img->opening)
      report_error ("%s: image is corrupt: %s", img->config.filename, msg);
    else
      report_warning ("%s: image is corrupt: %s", img->config.filename, msg);
    return -EIO;
  }
  report_error ("%s: %s: %s%s", img->config.filename,
                atomic_load (&img->writing) ? "marking image as corrupt"
                : "image is corrupt", msg,
                img->config.offline ? ""
                : img->opening ? "; it is served read-only"
                : "; further writes are refused");
  if (!img->opening)
    set_corrupt_bit (img);
  send_event (img, msg, offset, len);
  return -EIO;
}

void
image_corrupt_wait (struct image *img)
{
  if (marking)
    return;
  pthread_mutex_lock (&img->corrupt_lock);
  pthread_mutex_unlock (&img->corrupt_lock);
}

void
image_corrupt_store (struct image *img)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->corrupt_lock);

  if (!atomic_load (&img->guard.corrupt)
      || (img->header.incompatible & INCOMPAT_CORRUPT))
    return;
  set_corrupt_bit (img);
}

int
image_clear_incompatible (struct image *img, uint64_t bits)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->corrupt_lock);
  const uint64_t value = img->header.incompatible & ~bits;
  int r;

  if (value == img->header.incompatible)
    return 0;
  r = write_incompatible (img, value);
  if (r < 0) {
    report_error ("%s: check: writing incompatible_features in the header: "
                  "%s", img->config.filename, strerror (-r));
    return r;
  }
  img->header.incompatible = value;
  return 0;
}
