/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing guest data.
 *
 * A request goes slice by slice.  In each the clusters that may be
 * written in place (map_lookup_for_write) are, under the shared range
 * lock.  Where the first other one is met, or if parts of encrypted
 * sectors have to be completed, the rest of the slice's part is taken
 * under the exclusive lock:
 *
 *     look up, allocate, write the data and what else of the old
 *     clusters must survive, all in one write, then link (map_set)
 *
 * so a cluster is linked only when its data has been written, and the
 * commit syncs before it writes the link.  If the write fails, the
 * clusters go to the quarantine and nothing else has changed.
 *
 * Where the guest flushes after each write, the disk is told of one in place
 * at once (habit.c).
 *
 * What is completed with old contents is the subcluster (a cluster, if
 * the image has no extended L2 entries): the others of a new cluster
 * stay as they were, without data.  Only if they had data, in a cluster
 * that may not be written to, is the whole cluster copied.
 *
 * With config.compress whole clusters do not come this way, unless they
 * do not get smaller (compress.c).
 *
 * For want of space the quarantine is emptied by a commit, and the step
 * is tried once more.
 *
 * Locks: the range lock; commits are asked for with that alone.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "compress.h"
#include "data.h"
#include "image-internal.h"
#include "raw-data.h"
#include "read.h"
#include "report.h"
#include "sabotage.h"
#include "write.h"

/* What is left of a request, within one slice. */
struct piece {
  const uint8_t *buf;
  uint64_t len, offset;         /* guest bytes */
  bool durable;
  bool filled;                  /* see raw_data_fill */
  bool *commit;
};

static void
advance (struct piece *p, uint64_t n)
{
  p->buf += n;
  p->len -= n;
  p->offset += n;
}

static int
write_failed (struct image *img, uint64_t offset, uint64_t host, int r)
{
  if (r == -ENOSPC)
    return r;                   /* tried again; see image_request_end */
  report_error ("%s: writing data at guest offset %" PRIu64 ", host offset "
                "%" PRIu64 ": %s", img->config.filename, offset, host,
                strerror (-r));
  return r;
}

/* The first LEN bytes of the piece, over data that is there already.  What
 * cannot be durable by itself becomes so with the flush at the request's end.
 */
static int
write_in_place (struct image *img, const struct piece *p,
                const struct map_extent *e)
{
  struct iovec iov = { .iov_base = (void *) p->buf,
                       .iov_len = e->len };
  bool durable = p->durable && e->durable
    && data_writes_apart (img, e->host, e->len);
  int r;

  r = data_write (img, &iov, 1, e->host, p->offset, durable);
  if (r < 0)
    return write_failed (img, p->offset, e->host, r);
  if (!durable) {
    *p->commit = true;
    if (habit_wrote (&img->commit.habit))
      data_start_sync (img, e->host, e->len);
  }
  return 0;
}

/* What the piece's beginning is mapped to.  Only who asks for durability
 * needs to know whether the mapping is durable.
 */
static int
look_up (struct image *img, const struct piece *p, struct map_extent *e,
         bool *in_place)
{
  *in_place = true;
  if (!p->durable && map_lookup_quickly (img, p->offset, p->len, true, e))
    return 0;
  return map_lookup_for_write (img, p->offset, p->len, e, in_place);
}

/* Data in a raw data file must not be there before its entry is. */
static bool
is_ahead (const struct image *img, const struct piece *p,
          const struct map_extent *e)
{
  return img->raw_data && !e->durable && !p->filled;
}

/* As much of the piece as can be written in place, from its beginning. */
static int
write_while_in_place (struct image *img, struct piece *p)
{
  struct map_extent e;
  bool in_place;
  int r;

  while (p->len > 0) {
    r = look_up (img, p, &e, &in_place);
    if (r < 0)
      return r;
    if (!in_place || e.kind != L2_NORMAL || is_ahead (img, p, &e))
      return 0;
    r = write_in_place (img, p, &e);
    if (r < 0)
      return r;
    advance (p, e.len);
  }
  return 0;
}

/* Does the extent, not yet written, read as zeroes? */
static bool
reads_as_zeroes (const struct image *img, uint64_t offset,
                 const struct map_extent *e)
{
  return e->kind == L2_ZERO_PLAIN || e->kind == L2_ZERO_ALLOC
    || ((e->kind == L2_UNALLOCATED || e->kind == L2_UNALLOC_KEPT)
        && (!img->backing || round_down (offset, img->subcluster_size)
            >= img->backing->size));
}

/* Old contents that surround new data in its first or last unit. */
static int
old_contents (struct image *img, uint64_t offset, uint64_t len,
              bool zeroes, uint8_t **buf)
{
  *buf = NULL;
  if (len == 0)
    return 0;
  *buf = zeroes ? calloc (1, len) : malloc (len);
  if (!*buf)
    return -ENOMEM;
  return zeroes ? 0 : read_range (img, *buf, len, offset);
}

/* Write LEN bytes of the piece to HOST, completed to whole units (a power
 * of two) unless everything around reads as zeroes both before
 * (OLD_ZEROES) and after (NEW_ZEROES: the clusters were never written to).
 */
static int
write_whole (struct image *img, const struct piece *p, uint64_t len,
             uint64_t host, uint64_t unit, bool old_zeroes, bool new_zeroes)
{
  CLEANUP_FREE uint8_t *head = NULL, *tail = NULL;
  uint64_t head_len = p->offset & (unit - 1);
  uint64_t end = p->offset + len;
  uint64_t tail_len = round_up (end, unit) - end;
  struct iovec iov[3];
  int r;

  if (old_zeroes && new_zeroes && data_holes_are_zero (img))
    head_len = tail_len = 0;
  /* A data file is not to become longer than the disk. */
  if (img->data_file)
    tail_len = MIN (tail_len, img->size - end);
  r = old_contents (img, p->offset - head_len, head_len, old_zeroes, &head);
  if (r == 0)
    r = old_contents (img, end, tail_len, old_zeroes, &tail);
  if (r < 0)
    return r;
  iov[0].iov_base = head;
  iov[0].iov_len = head_len;
  iov[1].iov_base = (void *) p->buf;
  iov[1].iov_len = len;
  iov[2].iov_base = tail;
  iov[2].iov_len = tail_len;
  return data_write (img, iov, 3, host - head_len, p->offset - head_len,
                     false);
}

/* Clusters that the guest range touches. */
static uint64_t
clusters_of (const struct image *img, uint64_t offset, uint64_t len)
{
  return ((offset + len - 1) >> img->cluster_bits)
    - (offset >> img->cluster_bits) + 1;
}

/* The beginning of the extent has no data, or has it in a data file
 * without the COPIED flag, which should be there: its place is known.
 * *LEN bytes done.
 */
static int
write_external (struct image *img, const struct piece *p,
                const struct map_extent *e, uint64_t *len)
{
  int r;

  *len = e->len;
  r = write_whole (img, p, e->len, p->offset, img->subcluster_size,
                   reads_as_zeroes (img, p->offset, e), false);
  if (r < 0)
    return r;
  return map_set (img, p->offset, e->len, MAP_LINK,
                  round_down (p->offset, img->cluster_size));
}

/* New clusters for the beginning of the extent: *LEN bytes done. */
static int
write_allocating (struct image *img, const struct piece *p,
                  const struct map_extent *e, uint64_t *len)
{
  const bool whole = e->kind == L2_COMPRESSED || l2_has_host (e->kind);
  const uint64_t unit = whole ? img->cluster_size : img->subcluster_size;
  const uint64_t in_cluster = offset_in_cluster (img, p->offset);
  uint64_t first, count, host;
  bool old_zeroes, zeroes;
  int r;

  r = alloc_data (img, clusters_of (img, p->offset, e->len), &first, &count,
                  &zeroes);
  if (r < 0)
    return r;
  host = first << img->cluster_bits;
  *len = MIN (e->len, (count << img->cluster_bits) - in_cluster);
  /* Other subclusters of a unit may not be what this one is. */
  old_zeroes = (unit == img->subcluster_size
                && reads_as_zeroes (img, p->offset, e));
  r = write_whole (img, p, *len, host + in_cluster, unit, old_zeroes,
                   zeroes);
  if (r == 0)
    r = map_set (img, p->offset, *len, MAP_LINK, host);
  if (r < 0)
    freed_give_back (img, first, count);
  return r;
}

/* The extent has no data, but clusters of its own: fill them. */
static int
write_filling (struct image *img, const struct piece *p,
               const struct map_extent *e, uint64_t *len)
{
  int r;

  *len = e->len;
  r = write_whole (img, p, e->len, e->host, img->subcluster_size,
                   reads_as_zeroes (img, p->offset, e), false);
  if (r < 0)
    return r;
  return map_set (img, p->offset, e->len, MAP_FILL, 0);
}

/* One step under the exclusive lock. */
static int
write_step (struct image *img, struct piece *p)
{
  struct map_extent e;
  uint64_t done = 0;
  bool in_place;
  int r;

  r = map_lookup_for_write (img, p->offset, p->len, &e, &in_place);
  if (r < 0)
    return r;
  if (in_place && e.kind == L2_NORMAL) {
    done = e.len;
    r = write_in_place (img, p, &e);
  }
  else {
    r = in_place ? write_filling (img, p, &e, &done)
      : img->data_file ? write_external (img, p, &e, &done)
      : write_allocating (img, p, &e, &done);
    *p->commit = true;
  }
  if (r == 0)
    advance (p, done);
  return r;
}

static int
write_exclusively (struct image *img, struct piece *p)
{
  int r = 0;

  while (p->len > 0 && r == 0) {
    r = write_step (img, p);
    if (commit_frees_space (img, &r))
      r = write_step (img, p);
  }
  return r;
}

/* The last cluster of the piece, and one more. */
static uint64_t
end_of (const struct image *img, const struct piece *p)
{
  return ((p->offset + p->len - 1) >> img->cluster_bits) + 1;
}

static int
write_shared (struct image *img, struct piece *p)
{
  struct range_hold hold;
  int r;

  rangelock_lock (&img->ranges, &hold, p->offset >> img->cluster_bits,
                  end_of (img, p), false);
  r = write_while_in_place (img, p);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}

/* Clusters that get data in a raw data file keep it. */
static int
write_raw (struct image *img, struct piece *p)
{
  int r = write_shared (img, p);

  if (r < 0 || p->len == 0)
    return r;
  r = raw_data_fill (img, p->offset);
  p->filled = r == 0;
  if (r == 0)
    r = write_shared (img, p);
  return r == 0 && p->len > 0 ? -EIO : r;
}

static int
write_piece (struct image *img, struct piece *p)
{
  struct range_hold hold;
  int r = 0;

  if (img->raw_data)
    return write_raw (img, p);
  if (!data_is_partial (img, p->offset, p->len))
    r = write_shared (img, p);
  /* A hole below a cluster in place needs space, too. */
  if ((r < 0 && r != -ENOSPC) || p->len == 0)
    return r;

  r = commit_throttle (img);
  if (r < 0)
    return r;
  rangelock_lock (&img->ranges, &hold, p->offset >> img->cluster_bits,
                  end_of (img, p), true);
  r = write_exclusively (img, p);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}

/* What did not get smaller, cluster by cluster: neighbours together. */
static int
write_plain (struct image *img, const struct piece *p, const bool *plain)
{
  const unsigned n = (unsigned) div_up (p->len, img->cluster_size);
  unsigned i, next;
  int r = 0;

  for (i = 0; i < n && r == 0; i = next) {
    struct piece sub = *p;

    for (next = i + 1; next < n && plain[next] == plain[i]; ++next)
      ;
    if (!plain[i])
      continue;
    sub.len = MIN (p->len, (uint64_t) next << img->cluster_bits);
    advance (&sub, (uint64_t) i << img->cluster_bits);
    r = write_exclusively (img, &sub);
  }
  return r;
}

/* Whole clusters, which are to be compressed. */
static int
write_compressed (struct image *img, struct piece *p)
{
  const uint64_t first = p->offset >> img->cluster_bits;
  bool plain[COMPRESS_CLUSTERS];
  struct range_hold hold;
  int r;

  r = commit_throttle (img);
  if (r < 0)
    return r;
  *p->commit = true;
  rangelock_lock (&img->ranges, &hold, first,
                  first + clusters_of (img, p->offset, p->len), true);
  r = compress_clusters (img, p->buf, p->len, p->offset, plain);
  if (r == 0)
    r = write_plain (img, p, plain);
  rangelock_unlock (&img->ranges, &hold);
  return r;
}

int
write_range (struct image *img, const void *buf, uint64_t len,
             uint64_t offset, bool durable, bool *commit)
{
  const uint8_t *b = buf;
  bool whole = false;
  uint64_t n;
  int r = 0;

  while (len > 0 && r == 0) {
    struct piece p = { .buf = b, .offset = offset, .durable = durable,
                       .commit = commit };

    n = MIN (len, (map_left_in_slice (img, offset >> img->cluster_bits)
                   << img->cluster_bits)
             - offset_in_cluster (img, offset));
    if (compress_wanted (img))
      n = compress_split (img, offset, n, &whole);
    p.len = n;
    r = whole ? write_compressed (img, &p) : write_piece (img, &p);
    b += n;
    offset += n;
    len -= n;
  }
  return r;
}

int
image_write (struct image *img, const void *buf, size_t len,
             uint64_t offset, bool fua)
{
  bool commit = false;
  int r;

  if (len == 0)
    return 0;
  r = guard_may_write (img);
  if (r == 0)
    r = image_prepare_change (img, offset, len);
  if (r == 0)
    r = img->config.detect_zeroes != DETECT_ZEROES_OFF
      ? write_detecting_zeroes (img, buf, len, offset, fua, &commit)
      : write_range (img, buf, len, offset, fua, &commit);
  if (r == 0 && fua && commit && !SABOTAGED (SABOTAGE_FUA))
    r = commit_flush (img);
  return image_request_end (img, "writing", offset, len, r);
}
