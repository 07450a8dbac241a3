/* SPDX-License-Identifier: BSD-3-Clause */

/* What changes the bytes of a storage.  ONLY lib/image/guard.c may
 * include this header, and the storages that implement it: the guard
 * is the one door through which an image file changes.
 *
 * No function here reads, merges or rounds: exactly the bytes given are
 * changed.  Conventions are those of storage.h.
 */

#ifndef QCOW2_STORAGE_WRITE_H
#define QCOW2_STORAGE_WRITE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "storage.h"

/* Write all of IOV (CNT elements, any number) at OFFSET, growing the
 * file if it may grow.  With DURABLE the bytes are on disk when it
 * returns (RWF_DSYNC): alone, as storage_sync_alone, or where
 * storage_writes_apart says that it need not be.  Short counts are dealt
 * with here; on failure any part may have been written.
 */
int storage_write (struct storage *s, const struct iovec *iov, int cnt,
                   uint64_t offset, bool durable);

/* Make a range read as zeroes, its space kept or newly reserved:
 * FALLOC_FL_ZERO_RANGE, or plain writing where that is not known.
 */
int storage_zero (struct storage *s, uint64_t offset, uint64_t len);

/* Give a range back to the file system; it reads as zeroes.
 * -ENOTSUP where there is no such thing.  Never changes the length.
 */
int storage_punch (struct storage *s, uint64_t offset, uint64_t len);

/* Reserve space for a range without changing what it reads as, growing
 * the file if the range ends beyond it (fallocate mode 0, and what the
 * range shares with other files is copied).  So that a later write there
 * does not fail for want of space.  -ENOTSUP where there is no such thing.
 */
int storage_reserve (struct storage *s, uint64_t offset, uint64_t len);

/* Set the length of the file. */
int storage_truncate (struct storage *s, uint64_t size);

#endif /* QCOW2_STORAGE_WRITE_H */
