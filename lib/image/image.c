/* SPDX-License-Identifier: BSD-3-Clause */

/* The small functions of image.h: defaults, facts, starting and
 * stopping, cache hints, counters.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "compress.h"
#include "data.h"
#include "image-internal.h"
#include "report.h"

void
image_config_init (struct image_config *config)
{
  static const char *const same_dir[] = { "same-dir", NULL };

  memset (config, 0, sizeof *config);
  config->overlap_check = OVERLAP_ALL;
  config->overlap_bitmap_size = 64 * 1024;
  config->overlap_total_limit = UINT64_MAX;
  config->overlap_limit = OVERLAP_LIMIT_UNPROTECTED;
  config->compressed_cache_size = UINT64_C (16) << 20;
  config->external_files = same_dir;
  config->commit_interval = 5;
  config->patience.timeout = 600;
  config->discard = true;
  config->lazy_refcounts = LAZY_IMAGE;
  config->locking = LOCKING_AUTO;
}

uint64_t
image_size (const struct image *img)
{
  return img->size;
}

uint64_t
image_subcluster_size (const struct image *img)
{
  return img->subcluster_size;
}

uint64_t
image_cluster_size (const struct image *img)
{
  return img->cluster_size;
}

bool
image_is_writable (const struct image *img)
{
  return !img->read_only;
}

int
image_is_rotational (const struct image *img)
{
  return storage_is_rotational (img->data_file ? img->data_file
                                : img->storage);
}

const char *
image_description (const struct image *img)
{
  return img->description ? img->description : "";
}

int
image_start (struct image *img)
{
  struct layer *layer;

  img->workers = workers_create ();
  if (!img->workers) {
    report_error ("%s: not enough memory to serve it", img->config.filename);
    return -ENOMEM;
  }
  for (layer = img->backing; layer && layer->image;
       layer = layer->image->backing)
    layer->image->workers = img->workers;
  return img->read_only ? 0 : commit_start (img);
}

int
image_flush (struct image *img)
{
  if (!atomic_load (&img->writing))
    return 0;
  return commit_flush (img);
}

/* A commit's release lowers counts, which the next one writes; that one
 * releases nothing new.
 */
static int
commit_all (struct image *img)
{
  int r = 0, i;

  for (i = 0; i < 5 && r == 0 && !commit_is_idle (img); ++i)
    r = commit_now (img);
  return r;
}

int
image_stop (struct image *img)
{
  int r;

  commit_stop (img);
  if (!atomic_load (&img->writing))
    return 0;
  r = commit_all (img);
  /* After a failed sync nothing may seem to be left to do. */
  if (r == 0 && atomic_load (&img->guard.failed))
    r = -EIO;
  if (r < 0)
    report_error ("%s: closing: some of what was written last could not be "
                  "made durable", img->config.filename);
  else if (bitmaps_store (img))
    commit_all (img);           /* if that fails, the disk lost nothing */
  return r;
}

int
image_request_end (struct image *img, const char *doing, uint64_t offset,
                   uint64_t len, int r)
{
  if (r == -ENOSPC || r == -ENOMEM)
    report_error ("%s: %s %" PRIu64 " bytes at guest offset %" PRIu64 ": %s",
                  img->config.filename, doing, len, offset, strerror (-r));
  return r;
}

int
image_cache (struct image *img, uint64_t offset, uint64_t len)
{
  struct map_extent e;
  int r;

  while (len > 0) {
    r = map_lookup (img, offset, len, &e);
    if (r < 0)
      return r;
    if (e.kind == L2_NORMAL)
      data_will_need (img, e.host, e.len);
    offset += e.len;
    len -= e.len;
  }
  return 0;
}

void
image_get_stats (struct image *img, struct image_stats *stats)
{
  memset (stats, 0, sizeof *stats);
  pthread_mutex_lock (&img->commit.lock);
  stats->commits = img->commit.ended;
  pthread_mutex_unlock (&img->commit.lock);
  stats->syncs = atomic_load (&img->guard.syncs);
  stats->guard_checks = atomic_load (&img->guard.asked);
  stats->guard_refusals = atomic_load (&img->guard.refused);
  stats->outside_refusals = atomic_load (&img->guard.refused_outside);
  stats->file_size = atomic_load (&img->guard.end);
  stats->corrupt = atomic_load (&img->guard.corrupt);
  stats->failed = atomic_load (&img->guard.failed);
  stats->quarantined = atomic_load (&img->freed.quarantined);
  stats->refcount_hits = atomic_load (&img->refcounts.hits);
  stats->refcount_misses = atomic_load (&img->refcounts.misses);
  stats->clusters_allocated = atomic_load (&img->refcounts.allocated);
  stats->clusters_released = atomic_load (&img->refcounts.released);
  l2cache_counters (img, &stats->l2_hits, &stats->l2_misses);
  unpacked_counters (img->unpacked, &stats->unpacked_hits,
                     &stats->unpacked_misses);
  if (img->guard.overlap)
    overlap_get_stats (img->guard.overlap, &stats->overlap);
}
