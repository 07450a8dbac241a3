/* SPDX-License-Identifier: BSD-3-Clause */

/* The external data file of an image.  See data-file.c. */

#ifndef QCOW2_DATA_FILE_H
#define QCOW2_DATA_FILE_H

#include <stdint.h>

struct image;
struct chain;

/* Open the data file, if the image has one, and set img->data_file and
 * img->raw_data.  0, or a negative errno (reported, but -EINPROGRESS).
 */
int data_file_open (struct image *img, struct chain *chain);

/* Guest bytes that become zero by their entries, under their exclusive
 * range lock: give their space in a data file back.
 */
void data_file_discard (struct image *img, uint64_t offset, uint64_t len);

#endif /* QCOW2_DATA_FILE_H */
