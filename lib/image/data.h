/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest data on its way to and from where the map says it is.  See
 * data.c.
 *
 * HOST is the host offset of a normal cluster's data, GUEST the guest
 * offset of the same byte; both are in bytes, of any alignment, and the
 * range lies in one contiguous run of host clusters.  The caller holds
 * the range lock of the guest clusters.  All return 0 or a negative
 * errno and report nothing but the guard's hits.
 */

#ifndef QCOW2_DATA_H
#define QCOW2_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct image;

int data_read (struct image *img, void *buf, size_t len, uint64_t host,
               uint64_t guest);

/* DURABLE: on the disk before it returns. */
int data_write (struct image *img, const struct iovec *iov, int cnt,
                uint64_t host, uint64_t guest, bool durable);

/* Would writing this range in place write again what is around it?  Then
 * the caller needs the exclusive range lock.
 */
bool data_is_partial (const struct image *img, uint64_t guest,
                      uint64_t len);

/* May LEN bytes at HOST, both in bytes, be written durably at the same time
 * as others, and as syncs?  As storage_writes_apart, of all bytes that such
 * a write changes.
 */
bool data_writes_apart (struct image *img, uint64_t host, uint64_t len);

/* LEN bytes at HOST, both in bytes, were written and will be flushed next:
 * begin to.
 */
void data_start_sync (struct image *img, uint64_t host, uint64_t len);

/* Does a cluster that was never written to read as zeroes? */
bool data_holes_are_zero (const struct image *img);

/* As storage_map: is the beginning of the range a hole below, which reads
 * as zeroes?
 */
int data_map (struct image *img, uint64_t host, uint64_t *len, bool *hole);

/* As storage_will_need. */
void data_will_need (struct image *img, uint64_t host, uint64_t len);

#endif /* QCOW2_DATA_H */
