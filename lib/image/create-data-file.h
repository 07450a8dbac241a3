/* SPDX-License-Identifier: BSD-3-Clause */

/* Making the data file of a new image. */

#ifndef QCOW2_CREATE_DATA_FILE_H
#define QCOW2_CREATE_DATA_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "create.h"
#include "storage.h"

/* What is done for the space of clusters that are preallocated. */
enum storage_rest create_rest (enum preallocation preallocation);

/* A data file that is being made. */
struct new_data_file {
  char *path;
  struct storage_contents contents;
  struct storage *s;            /* locked; NULL: there is none */
};

/* Make the data file that O names, for the new image FILENAME with a disk
 * of SIZE bytes.  It is not complete before the second call, which comes
 * when the image is, but for its first sector; and belongs to this process
 * until the last.  0 or a negative errno, reported; then nothing is left.
 */
int create_data_file (const char *filename, const struct create_options *o,
                      uint64_t size, struct new_data_file *d);
int create_data_file_complete (struct new_data_file *d);
void create_data_file_end (struct new_data_file *d, bool failed);

/* Take away the data file of an image that was made. */
void create_data_file_remove (const char *filename,
                              const struct create_options *o);

#endif /* QCOW2_CREATE_DATA_FILE_H */
