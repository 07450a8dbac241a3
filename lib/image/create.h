/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a new image, as "qemu-img create" does. */

#ifndef QCOW2_CREATE_H
#define QCOW2_CREATE_H

#include <stdbool.h>
#include <stdint.h>

#include "crypt.h"
#include "header.h"

/* Where guest data will be, before it is written (qemu-img(1),
 * "preallocation").
 */
enum preallocation {
  PREALLOCATE_OFF,
  PREALLOCATE_METADATA,         /* every cluster has its place; if it is
                                   encrypted as one that reads as zeroes */
  PREALLOCATE_FALLOC,           /* and its space is reserved */
  PREALLOCATE_FULL,             /* and zeroes are written to it */
};

struct create_options {
  uint64_t size;                /* guest disk, bytes; rounded up to 512 */
  uint64_t cluster_size;        /* bytes */
  uint64_t refcount_bits;       /* 1, 2, 4, ... 64 */
  uint32_t version;             /* 2 or 3 */
  bool lazy_refcounts;
  bool extended_l2;
  enum compression_type compression_type;
  enum preallocation preallocation;
  const char *data_file;        /* guest data is there; stored as it is,
                                   and made, too; or NULL */
  bool data_file_raw;           /* it is the disk, read alone */
  const char *backing_file;     /* stored as it is; or NULL */
  const char *backing_format;   /* "qcow2" or "raw"; with a backing file */
  bool encrypt;                 /* with LUKS */
  struct luks_options luks;
  const char *passphrase;       /* of an encrypted image */
};

/* qemu-img's defaults; the size is 0. */
void create_options_init (struct create_options *o);

/* Make the image FILENAME, and its data file, which must not exist
 * (-EEXIST) unless a crash ended this half way.  Nothing is left of them on
 * failure, which has been reported: -EINVAL for options that do not go
 * together or are out of range, -EFBIG for a size that needs a larger
 * cluster size, and what the file system says.
 */
int image_create (const char *filename, const struct create_options *o);

/* Take away what image_create made, unless somebody else has opened it
 * since, which is reported.
 */
void image_remove_created (const char *filename,
                           const struct create_options *o);

#endif /* QCOW2_CREATE_H */
