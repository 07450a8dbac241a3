/* SPDX-License-Identifier: BSD-3-Clause */

/* Packing and unpacking the data of one compressed cluster.  See codec.c.
 */

#ifndef QCOW2_CODEC_H
#define QCOW2_CODEC_H

#include <stddef.h>
#include <stdint.h>

#include "header.h"

/* What one thread at a time needs for it. */
struct codec;

/* NULL for want of memory. */
struct codec *codec_create (enum compression_type type);
void codec_free (struct codec *codec);

/* SIZE bytes that belong to the codec and are lost at the next call.
 * NULL for want of memory.
 */
uint8_t *codec_buffer (struct codec *codec, size_t size);

/* Unpack the stream at IN into exactly OUT_LEN bytes, one cluster.
 * IN_LEN is what the descriptor says; the stream may end before, and
 * what follows it is ignored.
 *
 * 0, -EIO (not a stream of this type, or it ends before the cluster is
 * full) or -ENOMEM.  Nothing is reported: the caller knows the place.
 * On failure the contents of OUT are undefined.
 */
int codec_unpack (struct codec *codec, const uint8_t *in, size_t in_len,
                  uint8_t *out, size_t out_len);

/* Pack a cluster of LEN bytes at IN into OUT, at most ROOM bytes: *OUT_LEN
 * of them.  1 if that is not enough; -ENOMEM.
 */
int codec_pack (struct codec *codec, const uint8_t *in, size_t len,
                uint8_t *out, size_t room, size_t *out_len);

/* Codecs of one type that are not in use at the moment.  Any thread may
 * call these at any time.
 */
#define CODECS_KEPT 16

struct codecs;

struct codecs *codecs_create (enum compression_type type);
void codecs_free (struct codecs *codecs);

/* One of them, or a new one; NULL for want of memory. */
struct codec *codecs_get (struct codecs *codecs);

/* NULL is allowed. */
void codecs_put (struct codecs *codecs, struct codec *codec);

#endif /* QCOW2_CODEC_H */
