/* SPDX-License-Identifier: BSD-3-Clause */

/* What can be asked of an image that nobody serves (config.offline), by
 * one thread: facts of its file, and the metadata that it would have if
 * it were full.  The metadata that it has is walk.h's.
 */

#ifndef QCOW2_OFFLINE_H
#define QCOW2_OFFLINE_H

#include <stdbool.h>
#include <stdint.h>

#include "walk.h"

struct offline_facts {
  uint32_t version;             /* 2 or 3 */
  unsigned cluster_bits;
  unsigned refcount_bits;
  uint64_t size;                /* guest bytes */
  uint64_t file_size;           /* host bytes */
  uint64_t clusters;            /* of the file, a last part counts as one */
  uint32_t snapshots;
  bool data_file;               /* guest data is in another file */
  bool encrypted;
  bool sound;                   /* all metadata lies where it can lie, and
                                   none upon other metadata */
};
void offline_facts (const struct image *img, struct offline_facts *facts);

/* forecast.c: as walk_metadata with all types, for the image as it will be
 * when every cluster of the disk has been written to.  What is not there
 * yet is visited where it is likely to be.  IMG must be sound.  Returns
 * what FN returned, or a negative errno (reported).
 */
int forecast_metadata (struct image *img, walk_fn *fn, void *opaque);

/* L2 tables that it will have then and has not now.  No I/O; also for an
 * image that is being opened to be served.
 */
uint64_t forecast_tables (const struct image *img);

#endif /* QCOW2_OFFLINE_H */
