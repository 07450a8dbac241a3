/* SPDX-License-Identifier: BSD-3-Clause */

/* The bitmap directory and bitmap tables (qcow2 specification,
 * "Bitmaps").
 */

#ifndef QCOW2_BITMAP_H
#define QCOW2_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define BITMAP_IN_USE     UINT32_C (1)
#define BITMAP_AUTO       UINT32_C (2)
#define BITMAP_EXTRA_COMPATIBLE UINT32_C (4)

struct bitmap {
  uint64_t table_offset;        /* host offset */
  uint32_t table_size;          /* entries */
  uint32_t flags;
  uint8_t type;
  uint8_t granularity_bits;
  char *name;                   /* NUL-terminated copy, owned */
  uint32_t extra_size;
};

struct bitmap_directory {
  struct bitmap *v;             /* owned */
  uint32_t count;
};

/* Decode the directory of COUNT bitmaps in BUF (LEN bytes, the size
 * that the header extension gives).  Every rule of "Bitmap directory"
 * is checked, offsets against FILE_SIZE too.  0, -EINVAL or -ENOMEM;
 * on failure *E says which bitmap and field, and *D is empty.
 */
int bitmap_directory_decode (const uint8_t *buf, size_t len, uint32_t count,
                             uint64_t cluster_size, uint64_t file_size,
                             struct bitmap_directory *d,
                             struct format_error *e);

void bitmap_directory_free (struct bitmap_directory *d);

/* Host offset of the cluster of bitmap data that a table entry names;
 * 0 if it names none (all zeroes or all ones).
 */
static inline uint64_t
bitmap_entry_offset (uint64_t entry)
{
  return entry & UINT64_C (0x00fffffffffffe00);
}

#endif /* QCOW2_BITMAP_H */
