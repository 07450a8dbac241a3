/* SPDX-License-Identifier: BSD-3-Clause */

/* The streams of compressed clusters (qcow2 specification, "Compressed
 * Clusters Descriptor" and "Compression type").
 *
 * Unpacking: the descriptor of a compressed cluster gives its length in
 * sectors, so a stream is followed by anything: its own padding or the
 * next cluster.  Hence both kinds are read only as far as one cluster of
 * data goes.  A deflate stream need not have ended there, and may use any
 * window.  A zstd cluster is one frame or several, and must be full at
 * the end of a frame.  Each frame is measured first and then unpacked in
 * one call: this needs no window besides the output, while the streaming
 * interface would allocate whatever window the frame asks for, up to 128
 * MiB.
 *
 * libdeflate unpacks deflate about three times as fast as zlib, but only
 * streams that end where the output does; what it does not take goes to
 * zlib, which has the last word.
 *
 * Packing: one raw deflate stream with a window of 12 bits, more than
 * which older readers do not accept, or one zstd frame; both with the
 * library's default level, as QEMU does.
 *
 * What the libraries allocate is large beside a cluster (a zstd context
 * has more than 100 KiB, which malloc would get from the kernel and give
 * back each time), so a codec is used again.  Codecs are kept by image
 * and not by thread: a thread's destructor might run after a plugin has
 * been unloaded.  There are as many as threads had one at the same time;
 * CODECS_KEPT of them stay.
 *
 * Locks: that of a struct codecs, for taking and giving back.
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#ifdef HAVE_LIBDEFLATE
#include <libdeflate.h>
#endif
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "checked.h"
#include "cleanup.h"
#include "codec.h"

/* Raw deflate: with the largest window, which accepts all smaller ones. */
#define RAW_INFLATE (-MAX_WBITS)
#define RAW_DEFLATE (-12)

struct codec {
  enum compression_type type;
  struct codec *next;           /* among those that are kept */
  z_stream inflate, deflate;
  bool has_inflate, has_deflate;
#ifdef HAVE_LIBDEFLATE
  struct libdeflate_decompressor *whole;
#endif
  ZSTD_DCtx *dctx;
  ZSTD_CCtx *cctx;
  uint8_t *buffer;
  size_t size;
};

struct codec *
codec_create (enum compression_type type)
{
  struct codec *c = calloc (1, sizeof *c);

  if (c)
    c->type = type;
  return c;
}

void
codec_free (struct codec *c)
{
  if (!c)
    return;
  if (c->has_inflate)
    inflateEnd (&c->inflate);
  if (c->has_deflate)
    deflateEnd (&c->deflate);
#ifdef HAVE_LIBDEFLATE
  libdeflate_free_decompressor (c->whole);
#endif
  ZSTD_freeDCtx (c->dctx);
  ZSTD_freeCCtx (c->cctx);
  free (c->buffer);
  free (c);
}

uint8_t *
codec_buffer (struct codec *c, size_t size)
{
  if (c->size < size) {
    free (c->buffer);
    c->buffer = malloc (size);
    c->size = c->buffer ? size : 0;
  }
  return c->buffer;
}

/*----------------------------------------------------------------------
 * Unpacking.
 */

/* A stream that ends where the cluster does, which is nearly every one.
 * False for all others, and if there is no such library or no memory.
 */
static bool
inflate_whole (struct codec *c, const uint8_t *in, size_t in_len,
               uint8_t *out, size_t out_len)
{
#ifdef HAVE_LIBDEFLATE
  size_t n;

  if (!c->whole)
    c->whole = libdeflate_alloc_decompressor ();
  return c->whole
    && libdeflate_deflate_decompress (c->whole, in, in_len, out, out_len, &n)
    == LIBDEFLATE_SUCCESS && n == out_len;
#else
  (void) c;
  (void) in;
  (void) in_len;
  (void) out;
  (void) out_len;
  return false;
#endif
}

static int
inflate_cluster (struct codec *c, const uint8_t *in, size_t in_len,
                 uint8_t *out, size_t out_len)
{
  z_stream *s = &c->inflate;
  int r;

  if (inflate_whole (c, in, in_len, out, out_len))
    return 0;
  if (c->has_inflate)
    inflateReset (s);
  else if (inflateInit2 (s, RAW_INFLATE) != Z_OK)
    return -ENOMEM;
  c->has_inflate = true;
  s->next_in = (z_const Bytef *) in;
  s->avail_in = (uInt) MIN (in_len, (size_t) UINT_MAX);
  s->next_out = out;
  s->avail_out = (uInt) MIN (out_len, (size_t) UINT_MAX);
  /* One call does it all; if the cluster is full afterwards, what the
   * stream has to say beyond it does not matter, be it even garbage.
   */
  r = inflate (s, Z_FINISH);
  if (s->avail_out == 0)
    return 0;
  return r == Z_MEM_ERROR ? -ENOMEM : -EIO;
}

static int
unzstd_cluster (struct codec *c, const uint8_t *in, size_t in_len,
                uint8_t *out, size_t out_len)
{
  size_t frame, n;

  if (!c->dctx)
    c->dctx = ZSTD_createDCtx ();
  if (!c->dctx)
    return -ENOMEM;
  while (out_len > 0) {
    frame = ZSTD_findFrameCompressedSize (in, in_len);
    if (ZSTD_isError (frame))
      return -EIO;
    /* A frame with more data than there is room for fails here. */
    n = ZSTD_decompressDCtx (c->dctx, out, out_len, in, frame);
    if (ZSTD_isError (n))
      return -EIO;
    in += frame;
    in_len -= frame;
    out += n;
    out_len -= n;
  }
  return 0;
}

int
codec_unpack (struct codec *c, const uint8_t *in, size_t in_len,
              uint8_t *out, size_t out_len)
{
  switch (c->type) {
  case COMPRESSION_DEFLATE:
    return inflate_cluster (c, in, in_len, out, out_len);
  case COMPRESSION_ZSTD:
    return unzstd_cluster (c, in, in_len, out, out_len);
  default:
    return -EIO;
  }
}

/*----------------------------------------------------------------------
 * Packing.
 */

static int
deflate_cluster (struct codec *c, const uint8_t *in, size_t len,
                 uint8_t *out, size_t room, size_t *out_len)
{
  z_stream *s = &c->deflate;

  if (c->has_deflate)
    deflateReset (s);
  else if (deflateInit2 (s, Z_DEFAULT_COMPRESSION, Z_DEFLATED, RAW_DEFLATE,
                         MAX_MEM_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK)
    return -ENOMEM;
  c->has_deflate = true;
  s->next_in = (z_const Bytef *) in;
  s->avail_in = (uInt) len;
  s->next_out = out;
  s->avail_out = (uInt) room;
  if (deflate (s, Z_FINISH) != Z_STREAM_END)
    return 1;
  *out_len = room - s->avail_out;
  return 0;
}

static int
zstd_cluster (struct codec *c, const uint8_t *in, size_t len,
              uint8_t *out, size_t room, size_t *out_len)
{
  size_t n;

  if (!c->cctx)
    c->cctx = ZSTD_createCCtx ();
  if (!c->cctx)
    return -ENOMEM;
  n = ZSTD_compress2 (c->cctx, out, room, in, len);
  if (ZSTD_getErrorCode (n) == ZSTD_error_memory_allocation)
    return -ENOMEM;
  if (ZSTD_isError (n))
    return 1;
  *out_len = n;
  return 0;
}

int
codec_pack (struct codec *c, const uint8_t *in, size_t len,
            uint8_t *out, size_t room, size_t *out_len)
{
  if (room == 0)
    return 1;
  return c->type == COMPRESSION_ZSTD
    ? zstd_cluster (c, in, len, out, room, out_len)
    : deflate_cluster (c, in, len, out, room, out_len);
}

/*----------------------------------------------------------------------
 * Codecs that are not in use.
 */

struct codecs {
  pthread_mutex_t lock;
  enum compression_type type;
  struct codec *kept;           /* list through next */
  unsigned count;
};

struct codecs *
codecs_create (enum compression_type type)
{
  struct codecs *p = calloc (1, sizeof *p);

  if (!p)
    return NULL;
  pthread_mutex_init (&p->lock, NULL);
  p->type = type;
  return p;
}

void
codecs_free (struct codecs *p)
{
  struct codec *c;

  if (!p)
    return;
  while ((c = p->kept)) {
    p->kept = c->next;
    codec_free (c);
  }
  pthread_mutex_destroy (&p->lock);
  free (p);
}

struct codec *
codecs_get (struct codecs *p)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);
    struct codec *c = p->kept;

    if (c) {
      p->kept = c->next;
      p->count--;
      return c;
    }
  }
  return codec_create (p->type);
}

void
codecs_put (struct codecs *p, struct codec *c)
{
  if (!c)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->lock);

    if (p->count < CODECS_KEPT) {
      c->next = p->kept;
      p->kept = c;
      p->count++;
      return;
    }
  }
  codec_free (c);
}
