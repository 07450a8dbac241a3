/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: a compressed cluster.  The first byte says which kind of
 * stream the rest is, and the cluster size: few are larger than 64 KiB,
 * since packing 2 MiB takes as long as a thousand small ones.  The rest is
 * unpacked as it is; then it is the cluster's contents, over and over,
 * which packed and unpacked must come out the same.  The codecs are used
 * again for the next input, whatever became of this one.
 */

#include <config.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#define MUST(x) do { if (!(x)) abort (); } while (0)

static size_t
cluster_size (unsigned n)
{
  return (size_t) 512 << (n < 120 ? n % 8 : 8 + n % 5);
}

static void
round_trip (struct codec *codec, const uint8_t *data, size_t size,
            uint8_t *out, size_t cluster)
{
  uint8_t *in = malloc (cluster), *packed = malloc (cluster);
  size_t i, n = 0;
  int r;

  MUST (in && packed);
  for (i = 0; i < cluster; i++)
    in[i] = data[i % size];
  r = codec_pack (codec, in, cluster, packed, cluster - 512, &n);
  MUST (r == 0 || r == 1);
  if (r == 0) {
    MUST (n > 0 && n <= cluster - 512);
    MUST (codec_unpack (codec, packed, n, out, cluster) == 0);
    MUST (memcmp (in, out, cluster) == 0);
  }
  free (in);
  free (packed);
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
  if (size > 1)
    round_trip (codec, data + 1, size - 1, out, cluster);
  free (out);
  return 0;
}
