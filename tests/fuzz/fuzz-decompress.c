/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: a compressed cluster.  The first byte says which kind of
 * stream the rest is, and the cluster size: few are larger than 64 KiB,
 * since packing 2 MiB takes as long as a thousand small ones.  The rest is
 * unpacked as it is; then it is the cluster's contents, over and over,
 * which packed and unpacked must come out the same.  Of the large ones
 * only some are packed, which their contents decide.  The codecs and the
 * memory are used again for the next input, whatever became of this one.
 */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#define MUST(x) do { if (!(x)) abort (); } while (0)

#define LARGEST ((size_t) 2 << 20)
#define OFTEN ((size_t) 16 << 10)       /* bytes that are always packed */

static size_t
cluster_size (unsigned n)
{
  return (size_t) 512 << (n < 120 ? n % 8 : 8 + n % 5);
}

/* The whole CLUSTER is SIZE bytes of data, over and over. */
static void
repeat (uint8_t *in, size_t cluster, const uint8_t *data, size_t size)
{
  size_t done = size < cluster ? size : cluster, n;

  memcpy (in, data, done);
  for (; done < cluster; done += n) {
    n = done < cluster - done ? done : cluster - done;
    memcpy (in + done, in, n);
  }
}

/* As if one of CLUSTER / OFTEN were chosen at random. */
static bool
is_to_be_packed (const uint8_t *data, size_t size, size_t cluster)
{
  uint32_t hash = 2166136261U;  /* FNV-1a */
  size_t i;

  for (i = 0; i < size; i++)
    hash = (hash ^ data[i]) * 16777619U;
  return cluster <= OFTEN || (hash >> 8) % (cluster / OFTEN) == 0;
}

static void
round_trip (struct codec *codec, const uint8_t *data, size_t size,
            uint8_t *out, size_t cluster)
{
  static uint8_t in[LARGEST], packed[LARGEST];
  uint8_t *exact;
  size_t n = 0;
  int r;

  repeat (in, cluster, data, size);
  r = codec_pack (codec, in, cluster, packed, cluster - 512, &n);
  MUST (r == 0 || r == 1);
  if (r == 1)
    return;
  MUST (n > 0 && n <= cluster - 512);
  /* A copy, so that a byte too many that is read is noticed. */
  exact = malloc (n);
  MUST (exact);
  memcpy (exact, packed, n);
  MUST (codec_unpack (codec, exact, n, out, cluster) == 0);
  MUST (memcmp (in, out, cluster) == 0);
  free (exact);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static struct codec *codecs[2];
  struct codec *codec;
  uint8_t *out;
  size_t cluster;
  int r;

  if (size < 1)
    return 0;
  if (!codecs[data[0] & 1])
    codecs[data[0] & 1] = codec_create (data[0] & 1 ? COMPRESSION_ZSTD
                                        : COMPRESSION_DEFLATE);
  codec = codecs[data[0] & 1];
  cluster = cluster_size (data[0] >> 1);
  out = malloc (cluster);
  MUST (codec && out);
  r = codec_unpack (codec, data + 1, size - 1, out, cluster);
  MUST (r == 0 || r == -EIO || r == -ENOMEM);
  if (size > 1 && is_to_be_packed (data + 1, size - 1, cluster))
    round_trip (codec, data + 1, size - 1, out, cluster);
  free (out);
  return 0;
}
