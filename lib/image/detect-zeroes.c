/* SPDX-License-Identifier: BSD-3-Clause */

/* Writes that are zeroes in part (detect-zeroes).
 *
 * A request is looked at cluster by cluster, subcluster by subcluster
 * where there are any; runs of zeroes are made zero, as if the client
 * had asked for that, and the rest is written.  What the request covers
 * of a cluster only in part is looked at, too: where the disk is zero
 * already, nothing is written.
 *
 * Takes no locks: the two kinds of request do.
 */

#include <config.h>

#include <string.h>

#include "checked.h"
#include "compress.h"
#include "image-internal.h"
#include "write.h"

bool
is_all_zeroes (const uint8_t *buf, size_t len)
{
  return len == 0 || (buf[0] == 0 && memcmp (buf, buf + 1, len - 1) == 0);
}

/* How far from OFFSET on is the request all zeroes, or nowhere? */
static size_t
run_length (const struct image *img, const uint8_t *buf, size_t len,
            uint64_t offset, bool *zeroes)
{
  /* Only whole clusters are compressed. */
  const uint64_t unit = compress_wanted (img) ? img->cluster_size
    : img->subcluster_size;
  size_t n = MIN (len, unit - (offset & (unit - 1))), next;

  *zeroes = is_all_zeroes (buf, n);
  for (; n < len; n += next) {
    next = MIN (len - n, unit);
    if (is_all_zeroes (buf + n, next) != *zeroes)
      break;
  }
  return n;
}

int
write_detecting_zeroes (struct image *img, const void *buf, size_t len,
                        uint64_t offset, bool durable, bool *commit)
{
  const uint8_t *b = buf;
  bool zeroes;
  size_t n;
  int r = 0;

  for (; len > 0 && r == 0; b += n, offset += n, len -= n) {
    n = run_length (img, b, len, offset, &zeroes);
    if (zeroes) {
      /* What makes a range zero already may not be durable yet. */
      *commit = true;
      r = zero_range (img, offset, n,
                      img->config.detect_zeroes == DETECT_ZEROES_UNMAP,
                      commit);
    }
    else
      r = write_range (img, b, n, offset, durable, commit);
  }
  return r;
}
