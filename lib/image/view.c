/* SPDX-License-Identifier: BSD-3-Clause */

/* Internal snapshots as disks of their own (qcow2 specification,
 * "Snapshots").
 *
 * A view is an image whose active L1 table is that of a snapshot: it
 * reads by the same code as any image.  The file, and what lies below
 * it, are those of its parent, the image that the snapshot is in.
 *
 * Nothing can change under a view.  What a snapshot leads to is counted
 * at least once for it, and snapshots are neither made nor deleted while
 * an image is served.  A cluster or L2 table that the active disk shares
 * with it has a count of two or more: the active disk replaces such a
 * one, and gives up its own count only.  So a view has a cache of L2
 * slices of its own, which never goes stale, and its range locks wait
 * for nobody.
 *
 * A view has neither counts nor tracker.  Corruption that is met in it
 * is corruption of its parent (corrupt.c).
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "checked.h"
#include "compressed.h"
#include "image-internal.h"
#include "report.h"

/* More would be for reading through large snapshots at random, fast. */
#define VIEW_CACHE (UINT64_C (32) << 20)

uint32_t
image_snapshots (const struct image *img)
{
  return img->snapshots.count;
}

/* Version 2 need not store the size: then it is that of the disk. */
void
image_snapshot_info (const struct image *img, uint32_t i,
                     struct image_snapshot *info)
{
  const struct snapshot *s = &img->snapshots.v[i];

  info->id = s->id;
  info->name = s->name;
  info->size = s->has_disk_size ? s->disk_size : img->size;
  info->seconds = s->date_sec;
}

/* The header as it would be if the snapshot were the active disk. */
static int
view_header (const struct image *img, uint32_t i, struct header *h)
{
  const struct snapshot *s = &img->snapshots.v[i];
  struct image_snapshot info;

  image_snapshot_info (img, i, &info);
  *h = img->header;
  h->l1_table_offset = s->l1_table_offset;
  h->l1_size = s->l1_size;
  h->size = info.size;
  h->nb_snapshots = 0;
  if (h->size <= INT64_MAX
      && header_l1_entries (h->cluster_bits,
                            (h->incompatible & INCOMPAT_EXTL2) != 0, h->size)
      <= MAX_L1_BYTES / sizeof (uint64_t))
    return 0;
  report_error ("%s: snapshot '%.200s' (id %.50s): disk size %" PRIu64
                " is more than an L1 table can map", img->config.filename,
                s->name, s->id, h->size);
  return -EFBIG;
}

static struct image_config
view_config (const struct image *img)
{
  struct image_config config = img->config;
  const uint64_t cache = config.l2_cache_size;

  config.readonly = true;
  config.l2_cache_size = MIN (cache ? cache : VIEW_CACHE, VIEW_CACHE);
  return config;
}

int
image_open_snapshot (struct image *img, uint32_t i, struct image **ret)
{
  const struct image_config config = view_config (img);
  struct image *view;
  struct header h;
  int r = view_header (img, i, &h);

  if (r < 0)
    return r;
  view = image_new (&config, img->storage, false);
  if (!view) {
    report_error ("%s: not enough memory to open a snapshot",
                  config.filename);
    return -ENOMEM;
  }
  view->parent = img;
  view->header = h;
  view->cluster_bits = img->cluster_bits;
  view->cluster_size = img->cluster_size;
  view->size = h.size;
  view->read_only = true;
  view->backing = img->backing;
  view->data_file = img->data_file;
  view->crypt = img->crypt;
  atomic_store (&view->preallocated, -1);
  r = guard_init (view);
  if (r == 0)
    r = map_open (view);
  if (r == 0)
    r = l2cache_open (view);
  if (r == 0)
    r = compressed_open (view);
  if (r < 0) {
    report_error ("%s: opening snapshot '%.200s' failed", config.filename,
                  img->snapshots.v[i].name);
    image_close (view);
    return r;
  }
  view->opening = false;
  *ret = view;
  return 0;
}
