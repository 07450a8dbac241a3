/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading compressed clusters.  See compressed.c. */

#ifndef QCOW2_COMPRESSED_H
#define QCOW2_COMPRESSED_H

#include <stddef.h>
#include <stdint.h>

struct image;

/* What reading and writing them needs, or for a view: that of its
 * parent.
 */
int compressed_open (struct image *img);
void compressed_close (struct image *img);

/* LEN bytes at guest offset OFFSET, within one cluster, whose L2 entry is
 * ENTRY.  The caller holds its range lock.
 */
int compressed_read (struct image *img, void *buf, size_t len,
                     uint64_t offset, uint64_t entry);

#endif /* QCOW2_COMPRESSED_H */
