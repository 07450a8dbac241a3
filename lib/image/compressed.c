/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading compressed clusters (qcow2 specification, "Compressed Clusters
 * Descriptor").
 *
 * A stream is read from the file as the descriptor has it and unpacked
 * in one go: straight into the buffer of a request that wants the whole
 * cluster, else by way of the cache (unpacked.c).  Each thread does so
 * for its own request, with a codec of its own, so that requests are
 * unpacked in parallel; those of one large request are by all threads
 * that have nothing else to do (read.c).
 *
 * Streams are neither encrypted nor in a data file: they are read from
 * the image file itself.
 *
 * Locks: the caller's range lock keeps the stream where it is; none
 * other is held while it is read and unpacked.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cleanup.h"
#include "compressed.h"
#include "corrupt.h"
#include "image-internal.h"
#include "report.h"

int
compressed_open (struct image *img)
{
  if (img->parent) {
    img->codecs = img->parent->codecs;
    img->unpacked = img->parent->unpacked;
    img->workers = img->parent->workers;
    return 0;
  }
  img->codecs = codecs_create (img->header.compression_type);
  img->unpacked = unpacked_create (img->cluster_size,
                                   img->config.compressed_cache_size);
  return img->codecs && img->unpacked ? 0 : -ENOMEM;
}

void
compressed_close (struct image *img)
{
  if (img->parent)
    return;
  codecs_free (img->codecs);
  unpacked_free (img->unpacked);
}

static int
read_stream (struct image *img, struct codec *codec,
             const struct compressed_place *place, uint8_t *out)
{
  uint8_t *in = codec_buffer (codec, place->length);
  int r;

  if (!in)
    return -ENOMEM;
  r = storage_read (img->storage, in, place->length, place->offset);
  if (r < 0)
    return r;
  return codec_unpack (codec, in, place->length, out, img->cluster_size);
}

/* All of the cluster into OUT. */
static int
read_cluster (struct image *img, uint64_t offset,
              const struct compressed_place *place, uint8_t *out)
{
  struct codec *codec = codecs_get (img->codecs);
  int r = codec ? read_stream (img, codec, place, out) : -ENOMEM;

  codecs_put (img->codecs, codec);
  if (r < 0 && r != -ENOMEM)
    report_error ("%s: reading a compressed cluster at guest offset "
                  "%" PRIu64 ", host offset %" PRIu64 ": %s",
                  img->config.filename, offset, place->offset,
                  strerror (-r));
  return r;
}

/* Without the cache: it is off, or all of its places are in use. */
static int
read_part (struct image *img, void *buf, size_t len, uint64_t offset,
           const struct compressed_place *place)
{
  CLEANUP_FREE uint8_t *cluster = malloc (img->cluster_size);
  int r;

  if (!cluster)
    return -ENOMEM;
  r = read_cluster (img, offset, place, cluster);
  if (r == 0)
    memcpy (buf, cluster + offset_in_cluster (img, offset), len);
  return r;
}

int
compressed_read (struct image *img, void *buf, size_t len, uint64_t offset,
                 uint64_t entry)
{
  const uint64_t key = entry & ~ENTRY_COPIED;
  const bool whole = len == img->cluster_size;
  struct unpacked_cluster *c;
  struct compressed_place place;
  bool load = false;
  int r = 0;

  if (!l2_compressed_place (entry, img->cluster_bits, &place)
      || place.offset >= atomic_load (&img->guard.end))
    return image_corrupt (img, 0, 0, "compressed L2 entry 0x%016" PRIx64
                          " of guest offset %" PRIu64 " points past the "
                          "end of the file", entry, offset);
  c = whole ? unpacked_peek (img->unpacked, key)
    : unpacked_get (img->unpacked, key, place.offset >> img->cluster_bits,
                    (place.offset + place.length - 1) >> img->cluster_bits,
                    &load);
  if (!c)
    return whole ? read_cluster (img, offset, &place, buf)
      : read_part (img, buf, len, offset, &place);
  if (load) {
    r = read_cluster (img, offset, &place, c->data);
    unpacked_loaded (img->unpacked, c, r == 0);
  }
  if (r < 0)
    return r;
  memcpy (buf, c->data + offset_in_cluster (img, offset), len);
  unpacked_put (img->unpacked, c);
  return 0;
}
