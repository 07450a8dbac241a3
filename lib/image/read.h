/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading guest data.  See read.c. */

#ifndef QCOW2_READ_H
#define QCOW2_READ_H

#include <stddef.h>
#include <stdint.h>

struct image;

/* As image_read, but takes no range lock: the caller holds one, or the
 * image is a backing file, which nobody writes.
 */
int read_range (struct image *img, void *buf, size_t len,
                uint64_t offset);

#endif /* QCOW2_READ_H */
