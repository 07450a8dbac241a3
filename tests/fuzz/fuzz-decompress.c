/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: unpacking a compressed cluster.  The first byte says
 * which kind of stream the rest is, and the cluster size.
 */

#include <config.h>

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "decompress.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  uint8_t *out;
  size_t cluster;
  int r;

  if (size < 1)
    return 0;
  cluster = (size_t) 512 << (data[0] >> 1) % 13;
  out = malloc (cluster);
  if (out == NULL)
    return 0;
  r = decompress_cluster (data[0] & 1 ? COMPRESSION_ZSTD
                          : COMPRESSION_DEFLATE,
                          data + 1, size - 1, out, cluster);
  if (r != 0 && r != -EIO && r != -ENOMEM)
    abort ();
  free (out);
  return 0;
}
