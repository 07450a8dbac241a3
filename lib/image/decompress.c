/* SPDX-License-Identifier: BSD-3-Clause */

/* Unpacking compressed clusters.
 *
 * The descriptor of a compressed cluster gives its length in sectors, so
 * a stream is followed by anything: its own padding or the next cluster.
 * Hence both kinds are read only as far as one cluster of data goes.
 *
 * A deflate stream need not have ended there, and may use any window.  A
 * zstd cluster is one frame or several, and must be full at the end of a
 * frame.  Each frame is measured first and then unpacked in one call:
 * this needs no window besides the output, while the streaming interface
 * would allocate whatever window the frame asks for, up to 128 MiB.
 *
 * Contexts are not kept from one call to the next.  Keeping them by
 * thread would need a destructor that may run after a plugin has been
 * unloaded, and making one costs little beside the unpacking.  Takes no
 * locks.
 */

#include <config.h>

#include <errno.h>
#include <limits.h>

#include <zlib.h>
#include <zstd.h>

#include "checked.h"
#include "decompress.h"

/* Raw deflate with the largest window, which accepts all smaller ones. */
#define RAW_DEFLATE (-MAX_WBITS)

static int
inflate_cluster (const uint8_t *in, size_t in_len,
                 uint8_t *out, size_t out_len)
{
  z_stream s = {
    .next_in = (z_const Bytef *) in,
    .avail_in = (uInt) MIN (in_len, (size_t) UINT_MAX),
    .next_out = out,
    .avail_out = (uInt) MIN (out_len, (size_t) UINT_MAX),
  };
  int r;

  if (inflateInit2 (&s, RAW_DEFLATE) != Z_OK)
    return -ENOMEM;
  /* One call does it all; if the cluster is full afterwards, what the
   * stream has to say beyond it does not matter, be it even garbage.
   */
  r = inflate (&s, Z_FINISH);
  inflateEnd (&s);
  if (s.avail_out == 0)
    return 0;
  return r == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

static int
unzstd_cluster (const uint8_t *in, size_t in_len,
                uint8_t *out, size_t out_len)
{
  ZSTD_DCtx *ctx = ZSTD_createDCtx ();
  int ret = 0;

  if (ctx == NULL)
    return -ENOMEM;
  while (out_len > 0) {
    const size_t frame = ZSTD_findFrameCompressedSize (in, in_len);
    size_t n;

    if (ZSTD_isError (frame)) {
      ret = -EIO;
      break;
    }
    /* A frame with more data than there is room for fails here. */
    n = ZSTD_decompressDCtx (ctx, out, out_len, in, frame);
    if (ZSTD_isError (n)) {
      ret = -EIO;
      break;
    }
    in += frame;
    in_len -= frame;
    out += n;
    out_len -= n;
  }
  ZSTD_freeDCtx (ctx);
  return ret;
}

int
decompress_cluster (enum compression_type type,
                    const uint8_t *in, size_t in_len,
                    uint8_t *out, size_t out_len)
{
  switch (type) {
  case COMPRESSION_DEFLATE:
    return inflate_cluster (in, in_len, out, out_len);
  case COMPRESSION_ZSTD:
    return unzstd_cluster (in, in_len, out, out_len);
  default:
    return -EIO;
  }
}
