/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the data file of a new image. */

#ifndef QCOW2_CREATE_DATA_FILE_H
#define QCOW2_CREATE_DATA_FILE_H

#include <stdint.h>

#include "create.h"
#include "storage.h"

/* What is done for the space of clusters that are preallocated. */
enum storage_rest create_rest (enum preallocation preallocation);

/* Make the data file that O names, for the new image FILENAME with a disk
 * of SIZE bytes.  *PATH is where it is, to be freed.  0 or a negative
 * errno, reported; nothing is left then.
 */
int create_data_file (const char *filename, const struct create_options *o,
                      uint64_t size, char **path);

#endif /* QCOW2_CREATE_DATA_FILE_H */
