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

/* Granularities that QEMU has; the format has more. */
#define MIN_BITMAP_GRANULARITY_BITS 9
#define MAX_BITMAP_GRANULARITY_BITS 31

struct bitmap {
  uint64_t table_offset;        /* host offset */
  uint32_t table_size;          /* entries */
  uint32_t flags;
  uint8_t type;
  uint8_t granularity_bits;
  char *name;                   /* NUL-terminated copy, owned */
  uint32_t extra_size;
  size_t at;                    /* byte of the directory where it starts */
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

/* Put B's table_offset, table_size and flags into its entry of the
 * directory BUF, from which it was decoded.  The rest stays as it is.
 */
void bitmap_entry_encode (uint8_t *buf, const struct bitmap *b);

/* May a bitmap have so many bits? */
bool bitmap_fits (uint64_t bits, uint64_t cluster_size);

/* An entry of a bitmap table: a cluster of bitmap data, or none. */
#define BITMAP_TABLE_ZEROES UINT64_C (0)
#define BITMAP_TABLE_ONES   UINT64_C (1)

/* Check entry INDEX of a table (qcow2 specification, "Bitmap table").  0
 * or -EINVAL with *E filled.
 */
int bitmap_table_entry_check (uint64_t entry, uint64_t index,
                              uint64_t cluster_size, uint64_t file_size,
                              struct format_error *e);

/* Host offset of the cluster of bitmap data that a table entry names;
 * 0 if it names none (all zeroes or all ones).
 */
static inline uint64_t
bitmap_entry_offset (uint64_t entry)
{
  return entry & UINT64_C (0x00fffffffffffe00);
}

#endif /* QCOW2_BITMAP_H */
