/* SPDX-License-Identifier: BSD-3-Clause */

/* What happens when corruption is met.  See corrupt.c. */

#ifndef QCOW2_CORRUPT_H
#define QCOW2_CORRUPT_H

#include <stdint.h>

struct image;

/* Corruption was met at LEN host bytes from OFFSET on (LEN 0: no range to
 * tell).  The first call stops guest writes, sets the corrupt bit in
 * the header and syncs it, sends BLOCK_IMAGE_CORRUPTED with the message
 * and reports it; later calls only report it.  When it returns, the bit
 * is on disk, or it was said why not.  Always returns -EIO.
 */
int image_corrupt (struct image *img, uint64_t offset, uint64_t len,
                   const char *fs, ...)
  __attribute__ ((format (printf, 4, 5)));

/* A request is refused because of corruption that was met before: wait
 * until the bit is on disk, since the error must not overtake it.
 */
void image_corrupt_wait (struct image *img);

/* The image has just got a writer's lock: if corruption was met before,
 * by a reader, set the bit now.
 */
void image_corrupt_store (struct image *img);

/* After a repair: take away BITS of the header's incompatible features
 * (dirty, corrupt), durably.  0 or a negative errno, reported.
 */
int image_clear_incompatible (struct image *img, uint64_t bits);

#endif /* QCOW2_CORRUPT_H */
