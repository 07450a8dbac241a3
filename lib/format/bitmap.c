/* SPDX-License-Identifier: BSD-3-Clause */

/* The bitmap directory: entries of variable length, one after another,
 * each starting at a multiple of 8, which together fill the directory
 * exactly.
 *
 * Nothing is allocated before the bytes that it would hold are known to
 * be in the buffer.  What a bitmap's table says about the size of the
 * disk is not checked: a bitmap that was not closed properly may be out
 * of date there.  Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "header.h"

#define FIXED_PART 24           /* of an entry */
#define MIN_ENTRY 32            /* with a name, padded */
#define TYPE_DIRTY_TRACKING 1
#define MAX_GRANULARITY_BITS 63

/* Limits that QEMU sets: no image can exceed them that it opens. */
#define MAX_NAME 1023
#define MAX_TABLE_ENTRIES (UINT32_C (1) << 27)
#define MAX_DATA_BYTES (UINT64_C (512) << 20)

/* A directory being decoded. */
struct decoder {
  const uint8_t *buf;
  size_t len;
  uint64_t cluster_size, file_size;
  struct format_error *e;
};

void
bitmap_directory_free (struct bitmap_directory *d)
{
  uint32_t i;

  for (i = 0; i < d->count; i++)
    free (d->v[i].name);
  free (d->v);
  memset (d, 0, sizeof *d);
}

/* The bitmap table: its place, its length, and that of its data. */
static int
check_table (const struct decoder *d, uint32_t i, const struct bitmap *b)
{
  const uint64_t bytes = (uint64_t) b->table_size * 8;
  const uint64_t end = round_up (d->file_size, d->cluster_size);

  if (b->table_size == 0 || b->table_size > MAX_TABLE_ENTRIES
      || b->table_size * d->cluster_size > MAX_DATA_BYTES)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": bitmap_table_size is %" PRIu32
                        ", not from 1 to %" PRIu64, i, b->table_size,
                        MIN (MAX_DATA_BYTES / d->cluster_size,
                             (uint64_t) MAX_TABLE_ENTRIES));
  if (b->table_offset == 0 || !is_aligned (b->table_offset, d->cluster_size))
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": bitmap_table_offset is 0x%" PRIx64
                        ", not a positive multiple of the cluster size %"
                        PRIu64, i, b->table_offset, d->cluster_size);
  if (b->table_offset >= d->file_size || bytes > end - b->table_offset)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": bitmap_table_offset is 0x%" PRIx64 ", where %"
                        PRIu64 " bytes do not fit before the end of the"
                        " file at %" PRIu64,
                        i, b->table_offset, bytes, d->file_size);
  return 0;
}

/* The small fields of an entry. */
static int
check_fields (const struct decoder *d, uint32_t i, const struct bitmap *b,
              uint32_t name_len)
{
  if (b->flags & ~(BITMAP_IN_USE | BITMAP_AUTO | BITMAP_EXTRA_COMPATIBLE))
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": flags is 0x%" PRIx32
                        ", but bits 3 to 31 must be 0", i, b->flags);
  if (b->type != TYPE_DIRTY_TRACKING)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": type is %u, not 1 (dirty tracking bitmap)",
                        i, b->type);
  if (b->granularity_bits > MAX_GRANULARITY_BITS)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": granularity_bits is %u, more than %d",
                        i, b->granularity_bits, MAX_GRANULARITY_BITS);
  if (name_len == 0 || name_len > MAX_NAME)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": name_size is %" PRIu32 ", not from 1 to %d",
                        i, name_len, MAX_NAME);
  return 0;
}

/* The name at P, and the padding behind it up to END of the directory. */
static int
decode_name (const struct decoder *d, uint32_t i, struct bitmap *b,
             const uint8_t *p, uint32_t name_len, uint64_t end)
{
  const uint8_t *q;

  if (memchr (p, 0, name_len) != NULL)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        ": the name '%.*s' contains a NUL byte",
                        i, (int) MIN (name_len, UINT32_C (100)),
                        (const char *) p);
  for (q = p + name_len; q < d->buf + end; q++) {
    if (*q != 0)
      return format_fail (d->e, -EINVAL,
                          "bitmap directory entry %" PRIu32
                          ": the padding behind the name is 0x%02x, not 0",
                          i, *q);
  }
  b->name = strndup ((const char *) p, name_len);
  if (b->name == NULL)
    return format_fail (d->e, -ENOMEM, "bitmap directory: out of memory");
  return 0;
}

/* Decode entry I, which starts at *AT, and move *AT past it. */
static int
decode_entry (const struct decoder *d, uint32_t i, uint64_t *at,
              struct bitmap *b)
{
  const uint8_t *p = d->buf + *at;
  uint32_t name_len;
  uint64_t end;
  int r;

  if (FIXED_PART > d->len - *at)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        " starts at byte %" PRIu64 " of the directory, too"
                        " near its end (bitmap_directory_size is %zu)",
                        i, *at, d->len);
  b->at = *at;
  b->table_offset = load_be64 (p);
  b->table_size = load_be32 (p + 8);
  b->flags = load_be32 (p + 12);
  b->type = p[16];
  b->granularity_bits = p[17];
  name_len = load_be16 (p + 18);
  b->extra_size = load_be32 (p + 20);

  end = *at + round_up (FIXED_PART + (uint64_t) b->extra_size + name_len, 8);
  if (end > d->len)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory entry %" PRIu32
                        " ends at byte %" PRIu64 " of the directory, past"
                        " its end (bitmap_directory_size is %zu)",
                        i, end, d->len);
  r = check_fields (d, i, b, name_len);
  if (r == 0)
    r = check_table (d, i, b);
  if (r == 0)
    r = decode_name (d, i, b, p + FIXED_PART + b->extra_size, name_len, end);
  *at = end;
  return r;
}

static int
compare_names (const void *a, const void *b)
{
  return strcmp (*(const char *const *) a, *(const char *const *) b);
}

/* Names must be unique.  There may be 65535, so they are sorted. */
static int
check_names (const struct decoder *d, const struct bitmap_directory *dir)
{
  CLEANUP_FREE const char **names = NULL;
  uint32_t i;

  names = calloc (dir->count, sizeof *names);
  if (names == NULL)
    return format_fail (d->e, -ENOMEM, "bitmap directory: out of memory");
  for (i = 0; i < dir->count; i++)
    names[i] = dir->v[i].name;
  qsort (names, dir->count, sizeof *names, compare_names);
  for (i = 1; i < dir->count; i++) {
    if (strcmp (names[i - 1], names[i]) == 0)
      return format_fail (d->e, -EINVAL,
                          "bitmap directory: two bitmaps have the name"
                          " '%.100s'", names[i]);
  }
  return 0;
}

/* All entries, into an array that is large enough. */
static int
decode_entries (const struct decoder *d, uint32_t count,
                struct bitmap_directory *dir)
{
  uint64_t at = 0;
  uint32_t i;
  int r;

  for (i = 0; i < count; i++) {
    dir->count = i + 1;         /* so that a half-made entry is freed */
    r = decode_entry (d, i, &at, &dir->v[i]);
    if (r < 0)
      return r;
  }
  if (at != d->len)
    return format_fail (d->e, -EINVAL,
                        "bitmap directory: its %" PRIu32 " entries end at"
                        " byte %" PRIu64 ", but bitmap_directory_size is"
                        " %zu", count, at, d->len);
  return check_names (d, dir);
}

int
bitmap_directory_decode (const uint8_t *buf, size_t len, uint32_t count,
                         uint64_t cluster_size, uint64_t file_size,
                         struct bitmap_directory *dir,
                         struct format_error *e)
{
  const struct decoder d = {
    .buf = buf, .len = len, .cluster_size = cluster_size,
    .file_size = file_size, .e = e,
  };
  int r;

  memset (dir, 0, sizeof *dir);
  if (count == 0 || count > MAX_BITMAPS)
    return format_fail (e, -EINVAL, "nb_bitmaps is %" PRIu32
                        ", not from 1 to %d", count, MAX_BITMAPS);
  if (len / MIN_ENTRY < count)
    return format_fail (e, -EINVAL, "nb_bitmaps is %" PRIu32
                        ", but bitmap_directory_size is %zu, less than %d"
                        " bytes for each", count, len, MIN_ENTRY);
  dir->v = calloc (count, sizeof *dir->v);
  if (dir->v == NULL)
    return format_fail (e, -ENOMEM, "bitmap directory: out of memory");
  r = decode_entries (&d, count, dir);
  if (r < 0)
    bitmap_directory_free (dir);
  return r;
}

void
bitmap_entry_encode (uint8_t *buf, const struct bitmap *b)
{
  uint8_t *p = buf + b->at;

  store_be64 (p, b->table_offset);
  store_be32 (p + 8, b->table_size);
  store_be32 (p + 12, b->flags);
}

bool
bitmap_fits (uint64_t bits, uint64_t cluster_size)
{
  const uint64_t entries = div_up (div_up (bits, 8), cluster_size);

  return entries <= MAX_TABLE_ENTRIES
    && entries <= MAX_DATA_BYTES / cluster_size;
}

#define TABLE_RESERVED UINT64_C (0xff000000000001fe)

int
bitmap_table_entry_check (uint64_t entry, uint64_t index,
                          uint64_t cluster_size, uint64_t file_size,
                          struct format_error *e)
{
  const uint64_t offset = bitmap_entry_offset (entry);

  if (entry & TABLE_RESERVED)
    return format_fail (e, -EINVAL, "bitmap table entry %" PRIu64 " is 0x%"
                        PRIx64 ", but bits 1 to 8 and 56 to 63 must be 0",
                        index, entry);
  if (offset == 0)
    return 0;
  if (entry & BITMAP_TABLE_ONES)
    return format_fail (e, -EINVAL, "bitmap table entry %" PRIu64 " is 0x%"
                        PRIx64 ", but bit 0 must be 0 beside an offset",
                        index, entry);
  if (!is_aligned (offset, cluster_size) || offset >= file_size)
    return format_fail (e, -EINVAL, "bitmap table entry %" PRIu64 " is 0x%"
                        PRIx64 ", not a multiple of the cluster size %"
                        PRIu64 " before the end of the file at %" PRIu64,
                        index, entry, cluster_size, file_size);
  return 0;
}
