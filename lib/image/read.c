/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading guest data.
 *
 * A range is taken apart into extents of one kind (map_lookup), each
 * read in one go.  The range lock is held, shared, until the data has
 * arrived: what a host cluster held must not be freed and reused
 * meanwhile.  A request over many slices goes slice by slice and lets go
 * between them.
 *
 * Locks: the range lock only.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "compressed.h"
#include "data.h"
#include "image-internal.h"
#include "read.h"
#include "report.h"

static int
read_failed (struct image *img, const char *what, uint64_t offset,
             uint64_t host, int r)
{
  report_error ("%s: reading %s at guest offset %" PRIu64 ", host offset "
                "%" PRIu64 ": %s", img->config.filename, what, offset, host,
                strerror (-r));
  return r;
}

static int
read_extent (struct image *img, uint8_t *buf, uint64_t offset,
             const struct map_extent *e)
{
  int r;

  switch (e->kind) {
  case L2_UNALLOCATED:
  case L2_UNALLOC_KEPT:
    return layer_read (img->backing, buf, e->len, offset);
  case L2_ZERO_PLAIN:
  case L2_ZERO_ALLOC:
    memset (buf, 0, e->len);
    return 0;
  case L2_NORMAL:
    r = data_read (img, buf, e->len, e->host, offset);
    return r < 0 ? read_failed (img, "data", offset, e->host, r) : 0;
  case L2_COMPRESSED:
    return compressed_read (img, buf, e->len, offset, e->entry);
  default:
    return -EIO;
  }
}

int
read_range (struct image *img, void *buf, size_t len, uint64_t offset)
{
  struct map_extent e;
  uint8_t *p = buf;
  int r;

  while (len > 0) {
    r = map_lookup (img, offset, len, &e);
    if (r == 0)
      r = read_extent (img, p, offset, &e);
    if (r < 0)
      return r;
    p += e.len;
    offset += e.len;
    len -= e.len;
  }
  return 0;
}

int
image_read (struct image *img, void *buf, size_t len, uint64_t offset)
{
  struct range_hold hold;
  uint8_t *p = buf;
  uint64_t cluster, n;
  const uint64_t whole_offset = offset, whole_len = len;
  int r = 0;

  while (len > 0 && r == 0) {
    cluster = offset >> img->cluster_bits;
    n = MIN ((uint64_t) len, (map_left_in_slice (img, cluster)
                              << img->cluster_bits)
             - offset_in_cluster (img, offset));
    rangelock_lock (&img->ranges, &hold, cluster,
                    ((offset + n - 1) >> img->cluster_bits) + 1, false);
    r = read_range (img, p, n, offset);
    rangelock_unlock (&img->ranges, &hold);
    p += n;
    offset += n;
    len -= n;
  }
  return image_request_end (img, "reading", whole_offset, whole_len, r);
}
