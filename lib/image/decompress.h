/* SPDX-License-Identifier: BSD-3-Clause */

/* One compressed cluster, unpacked. */

#ifndef QCOW2_DECOMPRESS_H
#define QCOW2_DECOMPRESS_H

#include <stddef.h>
#include <stdint.h>

#include "header.h"

/* Unpack the stream at IN into exactly OUT_LEN bytes, one cluster.
 * IN_LEN is what the descriptor says; the stream may end before, and
 * what follows it is ignored.
 *
 * 0, -EIO (not a stream of this type, or it ends before the cluster is
 * full) or -ENOMEM.  Nothing is reported: the caller knows the place.
 * On failure the contents of OUT are undefined.
 */
int decompress_cluster (enum compression_type type,
                        const uint8_t *in, size_t in_len,
                        uint8_t *out, size_t out_len);

#endif /* QCOW2_DECOMPRESS_H */
