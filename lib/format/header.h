/* SPDX-License-Identifier: BSD-3-Clause */

/* The header of a qcow2 image and its extensions: bytes to a struct,
 * every field checked against the format's limits and the length of
 * the file (qcow2 specification, "Header", "Feature name table",
 * "Header extensions").
 *
 * Only a new image's header is encoded as a whole: fields of an existing
 * header are changed one at a time, by writes of 8 or 12 bytes at the
 * HEADER_OFFSET_* places, which never cross a 512-byte sector.
 */

#ifndef QCOW2_HEADER_H
#define QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define QCOW2_MAGIC UINT32_C (0x514649fb) /* "QFI\xfb" */

/* Incompatible features. */
#define INCOMPAT_DIRTY       (UINT64_C (1) << 0)
#define INCOMPAT_CORRUPT     (UINT64_C (1) << 1)
#define INCOMPAT_DATA_FILE   (UINT64_C (1) << 2)
#define INCOMPAT_COMPRESSION (UINT64_C (1) << 3)
#define INCOMPAT_EXTL2       (UINT64_C (1) << 4)
#define INCOMPAT_KNOWN       UINT64_C (0x1f)

/* Compatible features. */
#define COMPAT_LAZY_REFCOUNTS (UINT64_C (1) << 0)

/* Autoclear features. */
#define AUTOCLEAR_BITMAPS       (UINT64_C (1) << 0)
#define AUTOCLEAR_DATA_FILE_RAW (UINT64_C (1) << 1)
#define AUTOCLEAR_KNOWN         UINT64_C (3)

/* Byte offsets of the fields that are rewritten in place. */
#define HEADER_OFFSET_SIZE             24
#define HEADER_OFFSET_L1_SIZE          36 /* with the offset: 12 bytes */
#define HEADER_OFFSET_REFCOUNT_TABLE   48 /* offset, clusters: 12 bytes */
#define HEADER_OFFSET_INCOMPATIBLE     72
#define HEADER_OFFSET_AUTOCLEAR        88
/* From bitmaps_at on. */
#define BITMAPS_OFFSET_DIRECTORY       16

/* Limits, those of the format or, where it sets none, QEMU's. */
#define MIN_CLUSTER_BITS 9
#define MAX_CLUSTER_BITS 21
#define MAX_CLUSTER_SIZE (UINT64_C (1) << MAX_CLUSTER_BITS)
#define MAX_L1_BYTES           (UINT64_C (32) << 20)
#define MAX_REFCOUNT_TABLE_BYTES (UINT64_C (8) << 20)
#define MAX_SNAPSHOTS          65536
#define MAX_SNAPSHOT_TABLE_BYTES (UINT64_C (64) << 20)
#define MAX_BITMAPS            65535
/* (QEMU sets none.  With eight key slots of 64 bytes it is 2 MiB long.) */
#define MAX_CRYPTO_LENGTH      (UINT64_C (16) << 20)
#define MAX_BITMAP_DIRECTORY_BYTES (UINT64_C (1024) * MAX_BITMAPS)
#define MAX_HOST_OFFSET        ((UINT64_C (1) << 56) - 1)

enum crypt_method { CRYPT_NONE = 0, CRYPT_AES = 1, CRYPT_LUKS = 2 };
enum compression_type { COMPRESSION_DEFLATE = 0, COMPRESSION_ZSTD = 1 };

struct header {
  uint32_t version;             /* 2 or 3 */
  uint32_t cluster_bits;        /* 9..21 */
  uint64_t cluster_size;        /* bytes */
  uint64_t size;                /* guest disk, bytes, any value */
  uint32_t crypt_method;        /* enum crypt_method */
  uint32_t l1_size;             /* entries */
  uint64_t l1_table_offset;     /* host offset; 0 only if l1_size is 0 */
  uint64_t refcount_table_offset; /* host offset */
  uint32_t refcount_table_clusters;
  uint32_t nb_snapshots;
  uint64_t snapshots_offset;    /* host offset */
  uint64_t incompatible;        /* v2: 0 */
  uint64_t compatible;
  uint64_t autoclear;
  uint32_t refcount_order;      /* 0..6; v2: 4 */
  uint32_t header_length;       /* bytes; v2: 72 */
  uint8_t compression_type;     /* enum compression_type */

  char backing_file[1024];      /* NUL-terminated; "" is none */
  char backing_format[16];      /* from the extension; "" is none */
  char data_file[1024];         /* name from the extension; "" is none */

  bool has_crypto;              /* crypto header extension present */
  uint64_t crypto_offset;       /* host offset */
  uint64_t crypto_length;       /* bytes */

  bool has_bitmaps;             /* bitmaps extension present */
  uint32_t nb_bitmaps;          /* these are 0 without AUTOCLEAR_BITMAPS:
                                   then the directory is out of date */
  uint64_t bitmap_directory_size; /* bytes */
  uint64_t bitmap_directory_offset; /* host offset */
  uint64_t bitmaps_at;          /* of the extension's fields in the file */
};

/* Bytes of the file that header_decode wants: learn the cluster size
 * from the first LEN bytes (at least 24; pass what the file has, up to
 * 512).  0, or -EINVAL/-ENOTSUP with *E filled: wrong magic, version,
 * cluster_bits, file too short.
 */
int header_probe (const uint8_t *buf, size_t len, uint64_t *cluster_size,
                  struct format_error *e);

/* Decode and check the header and its extensions.  BUF holds the first
 * LEN bytes of the file: the first cluster, or less where the file is
 * shorter.  FILE_SIZE bounds every offset and table.
 *
 * Refused: everything of "Header", "Feature bits" and "Header
 * extensions" that the specification forbids, unknown incompatible
 * features (named from the feature name table, if it has them).  Not
 * refused, because the caller decides: known features that the engine
 * does not serve, the corrupt and the dirty bit, encryption.
 *
 * 0, -EINVAL (bad image), -ENOTSUP (unknown feature or version),
 * -EFBIG; on failure *E says why and *H is undefined.
 */
int header_decode (const uint8_t *buf, size_t len, uint64_t file_size,
                   struct header *h, struct format_error *e);

/* Tables that cannot be where the header says: upon the header, past the
 * end of the file, or, the refcount table, nowhere.
 */
enum header_table { TABLE_L1, TABLE_REFCOUNTS, TABLE_SNAPSHOTS };
#define HEADER_TABLES 3
#define MAX_HEADER_FAULTS 6
struct header_damage {
  bool broken[HEADER_TABLES];
  bool missing;                 /* the refcount table, and not misplaced */
  struct format_error why[HEADER_TABLES]; /* of those that are */

  /* What is forbidden, or contradicts itself, and leaves no doubt which
   * clusters are referred to, if it is read as QEMU reads it.
   */
  unsigned faults;
  struct format_error fault[MAX_HEADER_FAULTS]; /* the first ones */
};

/* One fault more, E: 0 if DAMAGE (*, or NULL) bears it, else R. */
int header_bear (struct header_damage *damage, const struct format_error *e,
                 int r);

/* The same for a check, which wants to tell what else is wrong.  BUF is
 * the whole first cluster, with zeroes for what the file lacks.  Broken
 * tables and faults are not refused, but noted in *DAMAGE.  Of a broken
 * table *H has what the file says, though there may be none.
 */
int header_decode_damaged (const uint8_t *buf, size_t len,
                           uint64_t file_size, struct header *h,
                           struct header_damage *damage,
                           struct format_error *e);

/* Encode the first cluster of a new image from *H into BUF, a whole
 * cluster.  0, or -ENAMETOOLONG with *E filled: the backing file's name
 * does not fit.
 */
int header_encode (const struct header *h, uint8_t *buf,
                   struct format_error *e);

/* L1 entries that a disk of SIZE guest bytes needs. */
uint64_t header_l1_entries (uint32_t cluster_bits, bool extended_l2,
                            uint64_t size);

#endif /* QCOW2_HEADER_H */
