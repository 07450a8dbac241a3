/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin between an engine and an nbdkit that this test plays: which
 * request becomes which call, which result which error, and which of
 * nbdkit's callbacks may be missing.  The real nbdkit never shows some of
 * this: it refuses requests of no length itself, for example.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "create.h"
#include "image.h"
#include "resize.h"
#include "run-suite.h"

struct nbdkit_plugin *plugin_init (void);

/* What nbdkit sees of the plugin. */
static struct nbdkit_plugin *p;

/* The engine: what it answers, and what it was asked last. */
static struct engine {
  int open_result, begin_result, result;
  bool writable;
  uint64_t cluster_size;
  const struct extent { uint64_t offset, len; unsigned status; } *extents;
  const struct image_snapshot *snapshots;
  uint32_t nr_snapshots;
  const struct image_bitmap *bitmaps;
  uint32_t nr_bitmaps;
  int64_t asked_bitmap;         /* -1: none */

  unsigned calls, begins, flushes, starts, stops, closes;
  uint64_t offset, len;
  unsigned flags;
  bool fua, one;
} engine;

/* nbdkit: what it was told. */
static int set_error;
static char last_error[1024];
static const char *export_name;
static struct extent added[16];
static unsigned nr_added;
static char listed[2000];       /* names, each followed by a space */

struct image { int dummy; };
static struct image the_image;
static struct image views[8];   /* of snapshots */
static int views_open[ARRAY_SIZE (views)];
static struct image *asked;     /* by the last request */

/* The engine's side. */

void
image_config_init (struct image_config *config)
{
  memset (config, 0, sizeof *config);
}

void
create_options_init (struct create_options *o)
{
  *o = (struct create_options) { .size = 0 };
}

int
image_create (const char *filename, const struct create_options *o)
{
  (void) filename;
  (void) o;
  return -EEXIST;
}

void
image_remove_created (const char *filename)
{
  ck_abort_msg ("%s was not created", filename);
}

int
image_resize (const struct image_config *config, uint64_t size, bool shrink)
{
  (void) config;
  (void) size;
  (void) shrink;
  return -EINVAL;
}

int
image_open (const struct image_config *config, struct image **img)
{
  ck_assert_str_eq (config->filename, "disk.qcow2");
  *img = &the_image;            /* not to be used if it failed */
  return engine.open_result;
}

int
image_start (struct image *img)
{
  ck_assert_ptr_eq (img, &the_image);
  engine.starts++;
  return 0;
}

int
image_stop (struct image *img)
{
  ck_assert_ptr_eq (img, &the_image);
  engine.stops++;
  return 0;
}

void
image_close (struct image *img)
{
  if (img >= views && img < views + ARRAY_SIZE (views)) {
    ck_assert_int_eq (--views_open[img - views], 0);
    ck_assert_uint_eq (engine.closes, 0);
  }
  else if (img) {
    ck_assert_uint_gt (engine.stops, 0);
    engine.closes++;
  }
}

uint64_t
image_size (const struct image *img)
{
  return img == &the_image ? UINT64_C (1) << 40
    : (uint64_t) (1 + img - views);
}

uint64_t
image_subcluster_size (const struct image *img)
{
  return image_cluster_size (img);
}

uint64_t
image_cluster_size (const struct image *img)
{
  (void) img;
  return engine.cluster_size;
}

bool
image_is_writable (const struct image *img)
{
  (void) img;
  return engine.writable;
}

int
image_is_rotational (const struct image *img)
{
  (void) img;
  return 0;
}

const char *
image_description (const struct image *img)
{
  (void) img;
  return "an image";
}

uint32_t
image_snapshots (const struct image *img)
{
  ck_assert_ptr_eq (img, &the_image);
  return engine.nr_snapshots;
}

void
image_snapshot_info (const struct image *img, uint32_t i,
                     struct image_snapshot *info)
{
  ck_assert_ptr_eq (img, &the_image);
  ck_assert_uint_lt (i, engine.nr_snapshots);
  *info = engine.snapshots[i];
}

int
image_open_snapshot (struct image *img, uint32_t i, struct image **view)
{
  ck_assert_ptr_eq (img, &the_image);
  ck_assert_uint_lt (i, engine.nr_snapshots);
  if (engine.open_result < 0)
    return engine.open_result;
  *view = &views[i];
  ck_assert_int_eq (++views_open[i], 1);
  return 0;
}

uint32_t
image_bitmaps (const struct image *img)
{
  ck_assert_ptr_eq (img, &the_image);
  return engine.nr_bitmaps;
}

void
image_bitmap_info (const struct image *img, uint32_t i,
                   struct image_bitmap *info)
{
  ck_assert_ptr_eq (img, &the_image);
  ck_assert_uint_lt (i, engine.nr_bitmaps);
  *info = engine.bitmaps[i];
}

int
image_begin_writing (struct image *img)
{
  (void) img;
  engine.begins++;
  return engine.begin_result;
}

static int
called (uint64_t offset, uint64_t len, unsigned flags, bool fua)
{
  engine.calls++;
  engine.offset = offset;
  engine.len = len;
  engine.flags = flags;
  engine.fua = fua;
  return engine.result;
}

int
image_read (struct image *img, void *buf, size_t len, uint64_t offset)
{
  (void) buf;
  asked = img;
  return called (offset, len, 0, false);
}

int
image_write (struct image *img, const void *buf, size_t len,
             uint64_t offset, bool fua)
{
  (void) img;
  (void) buf;
  return called (offset, len, 0, fua);
}

int
image_zero (struct image *img, uint64_t offset, uint64_t len,
            unsigned flags, bool fua)
{
  (void) img;
  return called (offset, len, flags, fua);
}

int
image_trim (struct image *img, uint64_t offset, uint64_t len, bool fua)
{
  (void) img;
  return called (offset, len, 0, fua);
}

int
image_flush (struct image *img)
{
  (void) img;
  engine.flushes++;
  return engine.result;
}

int
image_cache (struct image *img, uint64_t offset, uint64_t len)
{
  (void) img;
  return called (offset, len, 0, false);
}

int
image_extents (struct image *img, uint64_t offset, uint64_t len, bool one,
               image_extent_fn *add, void *opaque)
{
  const struct extent *e;

  (void) img;
  engine.one = one;
  for (e = engine.extents; e && e->len; e++) {
    int r = add (opaque, e->offset, e->len, e->status);

    if (r < 0)
      return r;
  }
  return called (offset, len, 0, false);
}

int
image_bitmap_extents (struct image *img, uint32_t i, uint64_t offset,
                      uint64_t len, bool one, image_extent_fn *add,
                      void *opaque)
{
  engine.asked_bitmap = i;
  return image_extents (img, offset, len, one, add, opaque);
}

void
image_get_stats (struct image *img, struct image_stats *stats)
{
  (void) img;
  memset (stats, 0, sizeof *stats);
}

/* nbdkit's side. */

void
nbdkit_error (const char *msg, ...)
{
  va_list args;

  va_start (args, msg);
  vsnprintf (last_error, sizeof last_error, msg, args);
  va_end (args);
}

void
nbdkit_debug (const char *msg, ...)
{
  (void) msg;
}

void
nbdkit_set_error (int err)
{
  ck_assert_int_gt (err, 0);
  set_error = err;
}

const char *
nbdkit_export_name (void)
{
  return export_name;
}

int
nbdkit_read_password (const char *value, char **password)
{
  *password = strdup (value);
  return *password ? 0 : -1;
}

int
nbdkit_stdio_safe (void)
{
  return 1;
}

char *
nbdkit_absolute_path (const char *path)
{
  return strdup (path);
}

int
nbdkit_add_extent (struct nbdkit_extents *extents, uint64_t offset,
                   uint64_t len, uint32_t type)
{
  (void) extents;
  if (nr_added == ARRAY_SIZE (added)) {
    errno = ENOMEM;
    return -1;
  }
  added[nr_added++] =
    (struct extent) { .offset = offset, .len = len, .status = type };
  return 0;
}

int
nbdkit_add_export (struct nbdkit_exports *exports, const char *name,
                   const char *description)
{
  (void) exports;
  if (!*name)
    ck_assert_str_eq (description, "an image");
  else
    ck_assert_ptr_nonnull (strstr (description, name[0] == 'b'
                                   ? "dirty bitmap"
                                   : "internal snapshot, id "));
  strncat (listed, name, sizeof listed - strlen (listed) - 2);
  strcat (listed, " ");
  return 0;
}

/* The tests. */

static void
set_up (void)
{
  engine = (struct engine) { .writable = true, .cluster_size = 65536,
                             .asked_bitmap = -1 };
  set_error = 0;
  last_error[0] = '\0';
  export_name = "";
  nr_added = 0;
  listed[0] = '\0';
  memset (views_open, 0, sizeof views_open);
  p = plugin_init ();
  p->load ();
}

static void
configure (void)
{
  ck_assert_int_eq (p->config ("file", "disk.qcow2"), 0);
  ck_assert_int_eq (p->config_complete (), 0);
}

/* As far as a client that may write. */
static void *
serve (void)
{
  void *h;

  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  ck_assert_int_eq (p->after_fork (), 0);
  h = p->open (0);
  ck_assert_ptr_nonnull (h);
  return h;
}

/* The requests, all with one shape. */
static char buffer[512];

static int
do_pread (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->pread (h, buffer, count, offset, flags);
}

static int
do_pwrite (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->pwrite (h, buffer, count, offset, flags);
}

static int
do_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->trim (h, count, offset, flags);
}

static int
do_zero (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->zero (h, count, offset, flags);
}

static int
do_extents (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->extents (h, count, offset, flags, NULL);
}

static int
do_cache (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  return p->cache (h, count, offset, flags);
}

static int
do_flush (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) count;
  (void) offset;
  return p->flush (h, flags);
}

static int (*const requests[]) (void *, uint32_t, uint64_t, uint32_t) = {
  do_pread, do_pwrite, do_trim, do_zero, do_extents, do_cache, do_flush
};

/* The engine's errors get through, but ENOTSUP only for a fast zero. */
START_TEST (test_errors)
{
  static const int errors[] = {
    EIO, ENOSPC, ENOMEM, EROFS, ENOTSUP, EOPNOTSUPP
  };
  void *h = serve ();
  size_t i, j;

  for (i = 0; i < ARRAY_SIZE (requests); i++) {
    engine.result = 0;
    ck_assert_int_eq (requests[i] (h, 512, 0, 0), 0);
    for (j = 0; j < ARRAY_SIZE (errors); j++) {
      bool notsup = errors[j] == ENOTSUP || errors[j] == EOPNOTSUPP;

      engine.result = -errors[j];
      set_error = 0;
      ck_assert_int_eq (requests[i] (h, 512, 0, 0), -1);
      ck_assert_int_eq (set_error, notsup ? EIO : errors[j]);
    }
  }
  engine.result = -ENOTSUP;
  ck_assert_int_eq (p->zero (h, 512, 0, NBDKIT_FLAG_FAST_ZERO), -1);
  ck_assert_int_eq (set_error, ENOTSUP);
}
END_TEST

START_TEST (test_flags)
{
  void *h = serve ();

  ck_assert_int_eq (p->pwrite (h, buffer, 300, 77, 0), 0);
  ck_assert (!engine.fua && engine.offset == 77 && engine.len == 300);
  ck_assert_int_eq (p->pwrite (h, buffer, 300, 77, NBDKIT_FLAG_FUA), 0);
  ck_assert (engine.fua);
  ck_assert_int_eq (p->trim (h, UINT32_MAX, 5, 0), 0);
  ck_assert (!engine.fua && engine.offset == 5 && engine.len == UINT32_MAX);
  ck_assert_int_eq (p->trim (h, 1, 5, NBDKIT_FLAG_FUA), 0);
  ck_assert (engine.fua);
  ck_assert_int_eq (p->zero (h, UINT32_MAX, 1, 0), 0);
  ck_assert (engine.flags == 0 && !engine.fua && engine.len == UINT32_MAX);
  p->zero (h, 1, 1, NBDKIT_FLAG_FUA);
  ck_assert (engine.flags == 0 && engine.fua);
  p->zero (h, 1, 1, NBDKIT_FLAG_MAY_TRIM);
  ck_assert (engine.flags == IMAGE_ZERO_MAY_TRIM && !engine.fua);
  p->zero (h, 1, 1, NBDKIT_FLAG_FAST_ZERO | NBDKIT_FLAG_MAY_TRIM);
  ck_assert (engine.flags == (IMAGE_ZERO_FAST | IMAGE_ZERO_MAY_TRIM));
  p->extents (h, 1, 1, 0, NULL);
  ck_assert (!engine.one);
  p->extents (h, 1, 1, NBDKIT_FLAG_REQ_ONE, NULL);
  ck_assert (engine.one);

  ck_assert_int_eq (p->can_fua (h), NBDKIT_FUA_NATIVE);
  ck_assert_int_eq (p->can_cache (h), NBDKIT_CACHE_NATIVE);
  ck_assert_int_eq (p->can_multi_conn (h), 1);
  ck_assert_int_eq (p->can_flush (h), 1);
  ck_assert_int_eq (p->can_zero (h), 1);
  ck_assert_int_eq (p->can_fast_zero (h), 1);
  ck_assert_int_eq (p->can_trim (h), 1);
  ck_assert_int_eq (p->can_extents (h), 1);
  ck_assert_int_eq (p->_thread_model, NBDKIT_THREAD_MODEL_PARALLEL);
}
END_TEST

/* Requests of no length succeed and do not reach the engine. */
START_TEST (test_no_length)
{
  void *h = serve ();
  size_t i;

  engine.result = -EIO;
  for (i = 0; i < ARRAY_SIZE (requests); i++)
    if (requests[i] != do_flush)
      ck_assert_int_eq (requests[i] (h, 0, 1000, 0), 0);
  ck_assert_uint_eq (engine.calls, 0);
}
END_TEST

/* Whatever the engine says, nbdkit hears of the request only. */
START_TEST (test_extents)
{
  static const struct extent from_engine[] = {
    { 0, 900, 0 },                              /* before it */
    { 900, 200, IMAGE_EXTENT_ZERO },            /* over its start */
    { 1100, 400, 0 },
    { 1500, 200, IMAGE_EXTENT_HOLE },
    { 1700, UINT64_MAX, IMAGE_EXTENT_HOLE | IMAGE_EXTENT_ZERO },
    { UINT64_MAX - 5, 100, 0 },                 /* wraps */
    { 0, 0, 0 }
  };
  static const struct extent expected[] = {
    { 1000, 100, NBDKIT_EXTENT_ZERO },
    { 1100, 400, 0 },
    { 1500, 200, NBDKIT_EXTENT_HOLE },
    { 1700, 300, NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO },
  };
  static const struct extent huge[] = {
    { 0, UINT64_C (1) << 40, IMAGE_EXTENT_HOLE }, { 0, 0, 0 }
  };
  void *h = serve ();
  size_t i;

  engine.extents = from_engine;
  ck_assert_int_eq (p->extents (h, 1000, 1000, 0, NULL), 0);
  ck_assert_uint_eq (nr_added, ARRAY_SIZE (expected));
  for (i = 0; i < nr_added; i++) {
    ck_assert_uint_eq (added[i].offset, expected[i].offset);
    ck_assert_uint_eq (added[i].len, expected[i].len);
    ck_assert_uint_eq (added[i].status, expected[i].status);
  }

  nr_added = 0;
  engine.extents = huge;
  ck_assert_int_eq (p->extents (h, UINT32_MAX, 1, 0, NULL), 0);
  ck_assert_uint_eq (nr_added, 1);
  ck_assert_uint_eq (added[0].offset, 1);
  ck_assert_uint_eq (added[0].len, UINT32_MAX);

  /* nbdkit has no memory for one more. */
  nr_added = ARRAY_SIZE (added);
  ck_assert_int_eq (p->extents (h, 1, 0, 0, NULL), -1);
  ck_assert_int_eq (set_error, ENOMEM);
}
END_TEST

/* The first connection that may write raises the lock, and only such. */
START_TEST (test_open)
{
  void *ro, *rw;

  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  ck_assert_int_eq (p->after_fork (), 0);
  ro = p->open (1);
  ck_assert_int_eq (p->can_write (ro), 0);
  ck_assert_uint_eq (engine.begins, 0);

  /* Another process writes: no connection. */
  engine.begin_result = -EAGAIN;
  ck_assert_ptr_null (p->open (0));
  ck_assert_uint_eq (engine.begins, 1);

  /* It turns out that nobody may write: read-only. */
  engine.begin_result = -EROFS;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 0);
  p->close (rw);

  engine.begin_result = 0;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 1);
  p->close (rw);

  /* It is known that nobody may write: not even tried. */
  engine.begins = 0;
  engine.writable = false;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 0);
  ck_assert_uint_eq (engine.begins, 0);
  p->close (rw);

  /* Exports. */
  export_name = "other\nname";
  ck_assert_ptr_null (p->open (0));
  ck_assert_str_eq (last_error, "export 'other?name': there is no such "
                    "export, expected '' (the active disk)");
  export_name = NULL;
  ck_assert_ptr_null (p->open (0));
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (p->default_export (0, 0), "");
  ck_assert_str_eq (p->export_description (ro), "an image");
  p->close (ro);
}
END_TEST

static const struct image_snapshot snapshots[] = {
  { .id = "1", .name = "2" },
  { .id = "2", .name = "same" },
  { .id = "3", .name = "same" },
  { .id = "4", .name = "" },
  { .id = "5", .name = "tw\no" },
  { .id = "6", .name = "\xc3\xbc" },
  { .id = "7", .name = "\xc3(" },
  { .id = "2", .name = "" },    /* cannot be named */
};

/* Which name is which snapshot? */
START_TEST (test_snapshots)
{
  static const struct { const char *name; int index; } names[] = {
    { "snapshot:2", 0 }, { "snapshot:1", 0 }, { "snapshot:same", 1 },
    { "snapshot:3", 2 }, { "snapshot-id:3", 2 }, { "snapshot-id:2", 1 },
    { "snapshot:", 3 }, { "snapshot:tw\no", 4 }, { "snapshot:nosuch", -1 },
    { "snapshot-id:same", -1 }, { "snapshot", -1 }, { "same", -1 },
    { "snapshot-id:", -1 }
  };
  void *h = serve (), *s1, *s2;
  size_t i;

  engine.snapshots = snapshots;
  engine.nr_snapshots = ARRAY_SIZE (snapshots);
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (listed, " snapshot:2 snapshot:same snapshot-id:3 "
                    "snapshot-id:4 snapshot-id:5 snapshot:\xc3\xbc "
                    "snapshot-id:7 ");
  for (i = 0; i < ARRAY_SIZE (names); i++) {
    export_name = names[i].name;
    s1 = p->open (0);
    ck_assert_msg (!s1 == (names[i].index < 0), "%s", names[i].name);
    if (!s1)
      continue;
    ck_assert_int_eq (p->can_write (s1), 0);
    ck_assert_int_eq (p->get_size (s1), names[i].index + 1);
    ck_assert_int_eq (p->pread (s1, buffer, 1, 0, 0), 0);
    ck_assert_ptr_eq (asked, &views[names[i].index]);
    ck_assert_str_ne (p->export_description (s1), "an image");
    /* One engine for all its connections. */
    s2 = p->open (1);
    ck_assert_ptr_nonnull (s2);
    p->close (s1);
    ck_assert_int_eq (views_open[names[i].index], 1);
    p->close (s2);
    ck_assert_int_eq (views_open[names[i].index], 0);
  }
  /* The writer beside them is still the last to leave. */
  ck_assert_uint_eq (engine.flushes, 0);
  p->close (h);
  ck_assert_uint_eq (engine.flushes, 1);

  /* It cannot be opened; nobody closes it. */
  export_name = "snapshot:same";
  engine.open_result = -EIO;
  ck_assert_ptr_null (p->open (0));
  engine.open_result = 0;
  ck_assert_ptr_nonnull (p->open (0));
  p->cleanup ();
  p->unload ();
  ck_assert_int_eq (views_open[1], 0);
  ck_assert_uint_eq (engine.closes, 1);
}
END_TEST

static const struct image_bitmap bitmaps[] = {
  { .name = "daily", .granularity = 65536, .recording = true },
  { .name = "lost", .unusable = "it is inconsistent" },
  { .name = "tw\no", .granularity = 512 },
  { .name = "weekly", .granularity = 4096 },
};

/* The active disk with the block status of a bitmap. */
START_TEST (test_bitmaps)
{
  static const struct extent extents[] = { { 0, 100, 1 }, { 100, 100, 0 },
                                           { 0, 0, 0 } };
  void *h = serve (), *b1, *b2;

  engine.bitmaps = bitmaps;
  engine.nr_bitmaps = ARRAY_SIZE (bitmaps);
  engine.extents = extents;
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (listed, " bitmap:daily bitmap:weekly ");
  export_name = "bitmap:nosuch";
  ck_assert_ptr_null (p->open (0));
  export_name = "bitmap:lost";
  ck_assert_ptr_null (p->open (0));
  ck_assert_str_eq (last_error, "export 'bitmap:lost': it is inconsistent");

  export_name = "bitmap:tw\no";
  b1 = p->open (0);
  export_name = "bitmap:weekly";
  b2 = p->open (0);
  ck_assert (b1 && b2 && b1 != b2);
  ck_assert_int_eq (p->can_write (b2), 0);
  ck_assert_int_eq (p->get_size (b2), INT64_C (1) << 40);
  ck_assert_int_eq (p->pread (b2, buffer, 1, 0, 0), 0);
  ck_assert_ptr_eq (asked, &the_image);
  ck_assert_int_eq (p->extents (b2, 200, 0, 0, NULL), 0);
  ck_assert_int_eq (engine.asked_bitmap, 3);
  ck_assert_uint_eq (nr_added, 2);
  ck_assert_uint_eq (added[0].status, NBDKIT_EXTENT_HOLE);
  ck_assert_uint_eq (added[1].status, 0);
  engine.asked_bitmap = -1;
  ck_assert_int_eq (p->extents (h, 200, 0, 0, NULL), 0);
  ck_assert_int_eq (engine.asked_bitmap, -1);
  p->close (b1);
  p->close (b2);
  ck_assert_uint_eq (engine.flushes, 0);
  p->close (h);
  ck_assert_uint_eq (engine.flushes, 1);
  ck_assert_uint_eq (engine.closes, 0);
}
END_TEST

/* When the last writer leaves there is a flush, at no other time. */
START_TEST (test_close)
{
  void *w1 = serve (), *w2 = p->open (0), *r = p->open (1);

  p->close (w1);
  ck_assert_uint_eq (engine.flushes, 0);
  engine.result = -EIO;         /* nobody is there to be told */
  p->close (w2);
  ck_assert_uint_eq (engine.flushes, 1);
  p->close (r);
  ck_assert_uint_eq (engine.flushes, 1);
  engine.result = 0;
  w1 = p->open (0);
  p->close (w1);
  ck_assert_uint_eq (engine.flushes, 2);
}
END_TEST

/* Any of the callbacks that make up the image's life may be missing. */
START_TEST (test_life)
{
  /* nbdkit --dump-plugin, or a bad parameter */
  p->unload ();

  set_up ();
  configure ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  /* no image */
  set_up ();
  configure ();
  engine.open_result = -ENOENT;
  ck_assert_int_eq (p->get_ready (), -1);
  p->cleanup ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  /* no .after_fork */
  set_up ();
  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  p->cleanup ();
  p->unload ();
  ck_assert (engine.starts == 0 && engine.stops > 0 && engine.closes == 1);

  /* an image over NBD: opened after the fork */
  set_up ();
  configure ();
  engine.open_result = -EINPROGRESS;
  ck_assert_int_eq (p->get_ready (), 0);
  engine.open_result = 0;
  ck_assert_int_eq (p->after_fork (), 0);
  p->cleanup ();
  p->unload ();
  ck_assert (engine.starts == 1 && engine.stops > 0 && engine.closes == 1);

  set_up ();
  configure ();
  engine.open_result = -EINPROGRESS;
  ck_assert_int_eq (p->get_ready (), 0);
  p->cleanup ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  set_up ();
  configure ();
  engine.open_result = -EINPROGRESS;
  ck_assert_int_eq (p->get_ready (), 0);
  engine.open_result = -EIO;
  ck_assert_int_eq (p->after_fork (), -1);
  p->unload ();
  ck_assert_uint_eq (engine.starts + engine.stops + engine.closes, 0);

  /* no .cleanup and no .close */
  set_up ();
  serve ();
  p->unload ();
  ck_assert (engine.starts == 1 && engine.stops > 0 && engine.closes == 1);

  /* no .close */
  set_up ();
  serve ();
  p->cleanup ();
  ck_assert (engine.stops == 1 && engine.closes == 0);
  p->unload ();
  ck_assert_uint_eq (engine.closes, 1);
}
END_TEST

START_TEST (test_block_size)
{
  static const uint64_t sizes[][2] = {
    { 512, 512 }, { 65536, 65536 }, { 2 << 20, 2 << 20 },
    { 1, 512 }, { UINT64_C (1) << 40, 32 << 20 }
  };
  uint32_t minimum, preferred, maximum;
  void *h = serve ();
  size_t i;

  for (i = 0; i < ARRAY_SIZE (sizes); i++) {
    engine.cluster_size = sizes[i][0];
    ck_assert_int_eq (p->block_size (h, &minimum, &preferred, &maximum), 0);
    ck_assert_uint_eq (minimum, 1);
    ck_assert_uint_eq (preferred, sizes[i][1]);
    ck_assert_uint_eq (maximum, UINT32_MAX);
  }
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-glue");
  TCase *tc = tcase_create ("glue");

  tcase_add_checked_fixture (tc, set_up, NULL);
  tcase_add_test (tc, test_errors);
  tcase_add_test (tc, test_flags);
  tcase_add_test (tc, test_no_length);
  tcase_add_test (tc, test_extents);
  tcase_add_test (tc, test_open);
  tcase_add_test (tc, test_snapshots);
  tcase_add_test (tc, test_bitmaps);
  tcase_add_test (tc, test_close);
  tcase_add_test (tc, test_life);
  tcase_add_test (tc, test_block_size);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
