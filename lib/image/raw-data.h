/* SPDX-License-Identifier: BSD-3-Clause */

/* A data file that is the disk, read alone.  See raw-data.c.  Ranges are
 * guest bytes inside the disk.  All functions take the range locks, and
 * return 0 or a negative errno (ENOSPC is not reported).
 */

#ifndef QCOW2_RAW_DATA_H
#define QCOW2_RAW_DATA_H

#include <stdint.h>

struct image;

/* Make a range zero, in the file alone. */
enum raw_zero {
  RAW_KEEP,                     /* its space is kept */
  RAW_MAY_TRIM,                 /* its space may be given back */
  RAW_TRIM,                     /* nothing but that, if it can be done */
  RAW_FAST,                     /* that or -ENOTSUP, not reported; a part
                                   may be done then */
};
int raw_data_zero (struct image *img, uint64_t offset, uint64_t len,
                   enum raw_zero how);

/* Let all clusters in the slice of OFFSET have data, durably, so that
 * they are written in place from then on.
 */
int raw_data_fill (struct image *img, uint64_t offset);

#endif /* QCOW2_RAW_DATA_H */
