/* SPDX-License-Identifier: BSD-3-Clause */

/* The exports: the active disk, and one for each internal snapshot and
 * each persistent dirty bitmap.
 *
 * Names of snapshots need not be unique, nor be what NBD takes for a
 * name.  So 'snapshot:X' is the first snapshot of that name or, if there
 * is none, that of this ID (as qemu-nbd -l looks); 'snapshot-id:X' is
 * always an ID.  The first form is listed where it works.
 *
 * 'bitmap:X' is the active disk, read-only, with a block status of its
 * own: data where the bitmap is dirty, a hole elsewhere.  (NBD has another
 * way to say this, a metadata context of the server's own, which nbdkit
 * does not let plugins have.)
 *
 * An export is opened for its first connection, shared by all of them
 * and closed with the last, so that memory is taken only for those in
 * use.  nbdkit does not call .close for connections that are open when it
 * is told to quit; exports_close_all deals with what is left.
 *
 * Locks: views_lock guards the list of open exports.  It is held while
 * one is opened: a second connection to it waits.
 */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "cleanup.h"
#include "plugin.h"

#define BY_NAME "snapshot:"
#define BY_ID   "snapshot-id:"
#define BITMAP  "bitmap:"

/* nbdkit takes strings of up to 4096 bytes, and 10000 exports. */
#define MAX_NAME    4000
#define MAX_EXPORTS 10000

/* A snapshot or a bitmap. */
struct what {
  bool is_bitmap;
  uint32_t index;
};

/* One that is open. */
struct view {
  struct handle handle;         /* of all its connections */
  struct what what;
  unsigned users;
  char description[200];        /* of handle */
  struct view *next;
};

static pthread_mutex_t views_lock = PTHREAD_MUTEX_INITIALIZER;
static struct view *views;

/* The first snapshot with this ID or name. */
static bool
find (const struct image *image, bool by_id, const char *what,
      uint32_t *index)
{
  struct image_snapshot s;
  uint32_t i;

  for (i = 0; i < image_snapshots (image); i++) {
    image_snapshot_info (image, i, &s);
    if (strcmp (by_id ? s.id : s.name, what) == 0) {
      *index = i;
      return true;
    }
  }
  return false;
}

static bool
find_bitmap (const struct image *image, const char *name, uint32_t *index)
{
  struct image_bitmap b;
  uint32_t i;

  for (i = 0; i < image_bitmaps (image); i++) {
    image_bitmap_info (image, i, &b);
    if (strcmp (b.name, name) == 0) {
      *index = i;
      return true;
    }
  }
  return false;
}

static bool
find_export (const struct image *image, const char *name, struct what *what)
{
  const size_t by_name = strlen (BY_NAME), by_id = strlen (BY_ID);
  const size_t bitmap = strlen (BITMAP);
  uint32_t *index = &what->index;

  what->is_bitmap = strncmp (name, BITMAP, bitmap) == 0;
  if (what->is_bitmap)
    return find_bitmap (image, name + bitmap, index);
  if (strncmp (name, BY_NAME, by_name) == 0)
    return find (image, false, name + by_name, index)
      || find (image, true, name + by_name, index);
  return strncmp (name, BY_ID, by_id) == 0
    && find (image, true, name + by_id, index);
}

/* How many bytes of UTF-8 begin at P: 0 if none do, or if it is a control
 * character.  (RFC 3629; overlong forms and surrogates are let through,
 * nobody is harmed by them here.)
 */
static size_t
utf8_character (const unsigned char *p)
{
  size_t n = *p < 0x80 ? 1 : *p < 0xc2 ? 0 : *p < 0xe0 ? 2
    : *p < 0xf0 ? 3 : *p < 0xf5 ? 4 : 0;
  size_t i;

  if (*p < 0x20 || *p == 0x7f)
    return 0;
  for (i = 1; i < n; i++)
    if ((p[i] & 0xc0) != 0x80)
      return 0;
  return n;
}

/* Is TEXT what NBD takes as a name, and worth showing? */
static bool
is_presentable (const char *text)
{
  const unsigned char *p = (const unsigned char *) text;
  size_t n;

  if (!*text || strlen (text) > MAX_NAME)
    return false;
  for (; *p; p += n) {
    n = utf8_character (p);
    if (n == 0)
      return false;
  }
  return true;
}

static void
describe_bitmap (const struct image *image, uint32_t index, char *buf,
                 size_t len)
{
  struct image_bitmap b;

  image_bitmap_info (image, index, &b);
  snprintf (buf, len, "the disk, data where the dirty bitmap is set, "
            "granularity %" PRIu64 " bytes%s", b.granularity,
            b.recording ? "" : ", disabled");
}

static void
describe (const struct image *image, uint32_t index, char *buf, size_t len)
{
  struct image_snapshot s;
  char when[32] = "";
  struct tm tm;
  time_t t;

  image_snapshot_info (image, index, &s);
  t = (time_t) s.seconds;
  if (gmtime_r (&t, &tm))
    strftime (when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
  snprintf (buf, len, "internal snapshot, id %.40s, made %s, %" PRIu64
            " bytes", is_presentable (s.id) ? s.id : "?", when, s.size);
}

/* The name under which a snapshot is listed; false if it has none. */
static bool
listed_name (const struct image *image, uint32_t index, char *buf,
             size_t len)
{
  struct image_snapshot s;
  uint32_t found;

  image_snapshot_info (image, index, &s);
  if (is_presentable (s.name) && find (image, false, s.name, &found)
      && found == index) {
    snprintf (buf, len, BY_NAME "%s", s.name);
    return true;
  }
  if (is_presentable (s.id) && find (image, true, s.id, &found)
      && found == index) {
    snprintf (buf, len, BY_ID "%s", s.id);
    return true;
  }
  return false;
}

/* Add the snapshots; *N exports are there already. */
static int
list_snapshots (struct image *image, struct nbdkit_exports *exports,
                uint32_t *n)
{
  char name[MAX_NAME + 20], description[200];
  uint32_t i;

  for (i = 0; i < image_snapshots (image) && *n < MAX_EXPORTS; i++) {
    if (!listed_name (image, i, name, sizeof name))
      continue;
    describe (image, i, description, sizeof description);
    if (nbdkit_add_export (exports, name, description) == -1)
      return -1;
    ++*n;
  }
  return 0;
}

/* The same for bitmaps that can be used. */
static int
list_bitmaps (struct image *image, struct nbdkit_exports *exports,
              uint32_t *n)
{
  char name[MAX_NAME + 20], description[200];
  struct image_bitmap b;
  uint32_t i;

  for (i = 0; i < image_bitmaps (image) && *n < MAX_EXPORTS; i++) {
    image_bitmap_info (image, i, &b);
    if (b.unusable || !is_presentable (b.name))
      continue;
    snprintf (name, sizeof name, BITMAP "%s", b.name);
    describe_bitmap (image, i, description, sizeof description);
    if (nbdkit_add_export (exports, name, description) == -1)
      return -1;
    ++*n;
  }
  return 0;
}

int
exports_list (struct image *image, struct nbdkit_exports *exports)
{
  uint32_t n = 1;

  if (nbdkit_add_export (exports, "", image_description (image)) == -1
      || list_snapshots (image, exports, &n) == -1)
    return -1;
  return list_bitmaps (image, exports, &n);
}

static int
open_bitmap (struct image *image, uint32_t index, struct view *v)
{
  struct image_bitmap b;

  image_bitmap_info (image, index, &b);
  if (b.unusable) {
    report_error ("export 'bitmap:%.200s': %s", b.name, b.unusable);
    return -1;
  }
  v->handle.image = image;
  v->handle.by_bitmap = true;
  v->handle.bitmap = index;
  describe_bitmap (image, index, v->description, sizeof v->description);
  return 0;
}

static int
open_snapshot (struct image *image, uint32_t index, struct view *v)
{
  describe (image, index, v->description, sizeof v->description);
  return image_open_snapshot (image, index, &v->handle.image);
}

static void
free_view (struct view *v)
{
  if (!v->what.is_bitmap)
    image_close (v->handle.image);
  free (v);
}

/* With views_lock held: the open export, opened now if need be. */
static struct view *
get_view (struct image *image, const struct what *what)
{
  struct view *v;
  int r;

  for (v = views; v; v = v->next)
    if (v->what.is_bitmap == what->is_bitmap
        && v->what.index == what->index)
      return v;
  v = calloc (1, sizeof *v);
  if (!v) {
    report_error ("not enough memory to open an export");
    return NULL;
  }
  r = what->is_bitmap ? open_bitmap (image, what->index, v)
    : open_snapshot (image, what->index, v);
  if (r < 0) {
    free (v);
    return NULL;
  }
  v->handle.readonly = true;
  v->handle.description = v->description;
  v->what = *what;
  v->next = views;
  views = v;
  return v;
}

struct handle *
exports_open (struct image *image, const char *name)
{
  struct view *v;
  struct what what;

  if (!find_export (image, name, &what)) {
    report_error ("export '%.200s': there is no such export, expected '' "
                  "(the active disk)%s%s%s", name,
                  image_snapshots (image) ? " or snapshot:NAME" : "",
                  image_bitmaps (image) ? " or bitmap:NAME" : "",
                  image_snapshots (image) + image_bitmaps (image)
                  ? ", see nbdinfo --list" : "");
    return NULL;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&views_lock);
  v = get_view (image, &what);
  if (!v)
    return NULL;
  v->users++;
  return &v->handle;
}

void
exports_close (const struct handle *handle)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&views_lock);
  struct view **p, *v;

  for (p = &views; (v = *p); p = &v->next) {
    if (&v->handle != handle)
      continue;
    if (--v->users == 0) {
      *p = v->next;
      free_view (v);
    }
    return;
  }
}

void
exports_close_all (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&views_lock);
  struct view *v;

  while ((v = views)) {
    views = v->next;
    free_view (v);
  }
}
