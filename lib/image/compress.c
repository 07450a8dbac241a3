/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing clusters compressed.
 *
 * With config.compress, whole clusters of a write become compressed
 * clusters, whatever they were before:
 *
 *     all zeroes ----> a zero cluster, if entries can say that
 *     pack it -------> too long: left to the caller, who writes it plain
 *     room for it (packer.c), write, link (map_set)
 *
 * The order is that of any write to new clusters (write.c): a cluster is
 * linked only when its stream has been written, and the commit syncs
 * before it writes the link; the old host clusters go to the quarantine.
 * A stream is never written over.  A write to a part of a compressed
 * cluster makes it a plain one again.
 *
 * A stream must save at least one sector, because it begins at one.  (So
 * clusters of 512 bytes never get smaller.)  It is padded with zeroes to
 * the end of its last sector.
 *
 * Each cluster is a part of its own for the threads that help
 * (workers.c): nearly all of the time goes into packing.
 *
 * There is no compression beside encryption, which would be left out for
 * what is compressed, nor beside a data file, where guest and host
 * offsets are the same.
 *
 * Locks: the caller's range lock, exclusive, and on behalf of it in the
 * helping threads; below it those of the steps.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "compress.h"
#include "image-internal.h"
#include "report.h"
#include "write.h"

#define SECTOR 512u

bool
compress_wanted (const struct image *img)
{
  return img->config.compress != COMPRESS_OFF;
}

static int
refused (struct image *img, const char *why)
{
  report_error ("%s: compress: %s; give compress=off", img->config.filename,
                why);
  return -ENOTSUP;
}

int
compress_check (struct image *img)
{
  static const char *const names[] = { "deflate", "zstd" };
  const struct header *h = &img->header;
  const enum image_compress wanted = img->config.compress;
  const enum image_compress has = h->compression_type == COMPRESSION_ZSTD
    ? COMPRESS_ZSTD : COMPRESS_DEFLATE;

  if (wanted == COMPRESS_OFF)
    return 0;
  if (h->crypt_method != CRYPT_NONE)
    return refused (img, "the image is encrypted, and compressed clusters "
                    "would not be");
  if (h->incompatible & INCOMPAT_DATA_FILE)
    return refused (img, "an image with an external data file has no "
                    "compressed clusters");
  if (wanted == COMPRESS_IMAGE || wanted == has)
    return 0;
  report_error ("%s: compress=%s: an image has one compression type, and "
                "that of this one is %s (header byte 104); give "
                "compress=image or make a new image",
                img->config.filename, names[wanted == COMPRESS_ZSTD],
                names[has == COMPRESS_ZSTD]);
  return -ENOTSUP;
}

uint64_t
compress_split (const struct image *img, uint64_t offset, uint64_t len,
                bool *whole)
{
  const uint64_t head = offset_in_cluster (img, offset);
  const uint64_t end = offset + len;

  *whole = head == 0 && (len >= img->cluster_size || end == img->size);
  if (!*whole)
    return MIN (len, img->cluster_size - head);
  return end == img->size ? len : round_down (len, img->cluster_size);
}

/* The clusters of one call. */
struct job {
  struct image *img;
  const uint8_t *buf;
  uint64_t offset, end;         /* guest bytes */
  int result[COMPRESS_CLUSTERS]; /* 1: plain */
};

/* Write the stream of the cluster of OFFSET and link it. */
static int
write_stream (struct image *img, uint64_t offset, const uint8_t *stream,
              uint64_t len)
{
  struct iovec iov = { .iov_base = (void *) stream, .iov_len = len };
  uint64_t host, first, count, entry = 0;
  int r;

  r = alloc_packed (img, len, &host);
  if (r < 0)
    return r;
  /* With large clusters the entry cannot reach as far as others do. */
  if (!l2_compressed_entry (host, len, img->cluster_bits, &entry))
    r = 1;
  if (r == 0) {
    r = guard_write (img, GUARD_DATA, &iov, 1, host, false);
    if (r < 0 && r != -ENOSPC)
      report_error ("%s: writing a compressed cluster of guest offset "
                    "%" PRIu64 " at host offset %" PRIu64 ": %s",
                    img->config.filename, offset, host, strerror (-r));
  }
  if (r == 0)
    r = map_set (img, offset, img->cluster_size, MAP_LINK_COMPRESSED, entry);
  if (r != 0) {
    first = host >> img->cluster_bits;
    count = ((host + len - 1) >> img->cluster_bits) - first + 1;
    freed_give_back (img, first, count);
  }
  return r;
}

/* Pack the cluster of OFFSET, of which LEN bytes are on the disk. */
static int
pack_and_write (struct image *img, struct codec *codec, uint64_t offset,
                const uint8_t *buf, uint64_t len)
{
  const uint64_t size = img->cluster_size;
  uint8_t *out = codec_buffer (codec, 2 * size);
  size_t n = 0, padded;
  int r;

  if (!out)
    return -ENOMEM;
  if (len < size) {
    memcpy (out + size, buf, len);
    memset (out + size + len, 0, size - len);
    buf = out + size;
  }
  r = codec_pack (codec, buf, size, out, size - SECTOR, &n);
  if (r != 0)
    return r;
  padded = round_up (n, SECTOR);
  memset (out + n, 0, padded - n);
  return write_stream (img, offset, out, padded);
}

static int
write_cluster (struct image *img, uint64_t offset, const uint8_t *buf,
               uint64_t len)
{
  struct codec *codec;
  int r;

  if (is_all_zeroes (buf, len)) {
    r = zero_whole_cluster (img, offset);
    if (r != -ENOTSUP)
      return r;
  }
  codec = codecs_get (img->codecs);
  r = codec ? pack_and_write (img, codec, offset, buf, len) : -ENOMEM;
  codecs_put (img->codecs, codec);
  return r;
}

static void
do_cluster (void *opaque, unsigned i)
{
  struct job *job = opaque;
  const uint64_t skip = (uint64_t) i << job->img->cluster_bits;
  const uint64_t offset = job->offset + skip;

  job->result[i] = write_cluster (job->img, offset, job->buf + skip,
                                  MIN (job->end - offset,
                                       job->img->cluster_size));
}

int
compress_clusters (struct image *img, const uint8_t *buf, uint64_t len,
                   uint64_t offset, bool plain[COMPRESS_CLUSTERS])
{
  const unsigned n = (unsigned) div_up (len, img->cluster_size);
  struct job job = { .img = img, .buf = buf, .offset = offset,
                     .end = offset + len };
  unsigned i;

  workers_run (img->workers, n, do_cluster, &job);
  for (i = 0; i < n; ++i) {
    if (commit_frees_space (img, &job.result[i]))
      do_cluster (&job, i);
    if (job.result[i] < 0)
      return job.result[i];
    plain[i] = job.result[i] == 1;
  }
  return 0;
}
