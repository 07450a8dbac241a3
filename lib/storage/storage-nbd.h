/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of the NBD storage offer each other.  Nothing of
 * libnbd shows here: only the files of storage-nbd-impl.h know it.
 */

#ifndef QCOW2_STORAGE_NBD_H
#define QCOW2_STORAGE_NBD_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage.h"

/* storage-nbd-connection.c: a server, and requests to it. */

struct nbdconn;

/* What the server said of its export, the same for every connection. */
struct nbdconn_export {
  uint64_t size;
  uint32_t block;               /* alignment of all requests, 2^n */
  uint32_t max;                 /* longest request, a multiple of BLOCK */
  bool read_only;
  bool can_flush, can_fua, can_zero, can_fast_zero, can_map;
  bool rotational;
};

/* Connect to URI, and start the thread that serves the connection.
 * TRUSTED: the user chose the URI, so it may name files of his (TLS
 * keys).  Failures are reported.
 */
int nbdconn_open (const char *uri, bool trusted,
                  struct storage_patience patience, struct nbdconn **conn);
void nbdconn_close (struct nbdconn *conn);
const struct nbdconn_export *nbdconn_export (const struct nbdconn *conn);

/* One request each; OFFSET and LEN are multiples of the export's block,
 * 0 < LEN <= max.  They wait for the answer; many may be under way.
 * Failures: -ENOSPC, -ENOMEM, for fast zeroes -ENOTSUP, else -EIO.
 */
#define NBDCONN_FUA       1     /* only if the server can */
#define NBDCONN_NO_HOLE   2     /* zero: keep the space */
#define NBDCONN_FAST_ZERO 4     /* -ENOTSUP rather than slowly */
int nbdconn_read (struct nbdconn *conn, void *buf, size_t len,
                  uint64_t offset);
int nbdconn_write (struct nbdconn *conn, const void *buf, size_t len,
                   uint64_t offset, unsigned flags);
int nbdconn_zero (struct nbdconn *conn, uint64_t offset, uint64_t len,
                  unsigned flags);
int nbdconn_flush (struct nbdconn *conn);

/* The first part of the range that is alike: *LEN becomes its length,
 * *HOLE whether it reads as zeroes.
 */
int nbdconn_map (struct nbdconn *conn, uint64_t offset, uint64_t *len,
                 bool *hole);

/* storage-nbd-blocks.c: who is changing which blocks. */

struct nbdblocks {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  struct nbdblocks_range *first;
};

struct nbdblocks_range {
  uint64_t begin, end;          /* whole blocks */
  bool alone;
  struct nbdblocks_range *next;
};

void nbdblocks_init (struct nbdblocks *b);
void nbdblocks_destroy (struct nbdblocks *b);

/* Wait until the range may be changed, and enter it.  ALONE: no other
 * change may overlap it; else those that are not ALONE may.
 */
void nbdblocks_enter (struct nbdblocks *b, struct nbdblocks_range *range,
                      uint64_t begin, uint64_t end, bool alone);
void nbdblocks_leave (struct nbdblocks *b, struct nbdblocks_range *range);

#endif /* QCOW2_STORAGE_NBD_H */
