/* SPDX-License-Identifier: BSD-3-Clause */

/* An engine that answers as a test wants it, and notes what it is asked. */

#include <config.h>

#include "create.h"
#include "plugin-test.h"
#include "resize.h"

struct engine engine;
struct image the_image;
struct image views[8];
int views_open[ARRAY_SIZE (views)];

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
image_remove_created (const char *filename, const struct create_options *o)
{
  (void) o;
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
  engine.asked = img;
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
