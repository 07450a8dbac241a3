/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading guest data.
 *
 * A range is taken apart into extents of one kind (map_lookup), each
 * read in one go.  The range lock is held, shared, until the data has
 * arrived: what a host cluster held must not be freed and reused
 * meanwhile.  A request over many slices goes slice by slice and lets go
 * between them.
 *
 * Compressed clusters that follow one another are unpacked in parallel
 * (workers.c): a client with one large request at a time would else have
 * no more of the machine than one processor.
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

/* Clusters of a request that are unpacked at a time: 1 MiB of 64 KiB. */
#define BATCH 16

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

/* Compressed clusters, each a part for a thread. */
struct batch {
  struct image *img;
  unsigned n;
  struct {
    uint8_t *buf;
    uint64_t offset;
    struct map_extent extent;
    int result;
  } part[BATCH];
};

static void
read_part (void *opaque, unsigned i)
{
  struct batch *b = opaque;

  b->part[i].result = read_extent (b->img, b->part[i].buf, b->part[i].offset,
                                   &b->part[i].extent);
}

/* From a compressed extent on, as many as follow it within LEN bytes;
 * *DONE says how many bytes they are.  What else follows, and be it that
 * it cannot be looked up, is left to the caller.
 */
static int
read_compressed (struct image *img, uint8_t *buf, uint64_t offset,
                 uint64_t len, struct map_extent e, uint64_t *done)
{
  struct batch b;
  unsigned i;
  int r = 0;

  b.img = img;
  b.n = 0;
  *done = 0;
  do {
    b.part[b.n].buf = buf + *done;
    b.part[b.n].offset = offset + *done;
    b.part[b.n++].extent = e;
    *done += e.len;
  } while (b.n < BATCH && *done < len
           && map_lookup (img, offset + *done, len - *done, &e) == 0
           && e.kind == L2_COMPRESSED);
  workers_run (img->workers, b.n, read_part, &b);
  for (i = 0; i < b.n && r == 0; ++i)
    r = b.part[i].result;
  return r;
}

int
read_range (struct image *img, void *buf, size_t len, uint64_t offset)
{
  struct map_extent e;
  uint8_t *p = buf;
  uint64_t done;
  int r;

  while (len > 0) {
    r = map_lookup_quickly (img, offset, len, false, &e)
      ? 0 : map_lookup (img, offset, len, &e);
    if (r < 0)
      return r;
    done = e.len;
    if (e.kind == L2_COMPRESSED)
      r = read_compressed (img, p, offset, len, e, &done);
    else
      r = read_extent (img, p, offset, &e);
    if (r < 0)
      return r;
    p += done;
    offset += done;
    len -= done;
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
