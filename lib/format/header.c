/* SPDX-License-Identifier: BSD-3-Clause */

/* The fixed fields of the header.
 *
 * They are taken in an order in which each may rely on those before:
 * the cluster size, then the features, which say how the rest is to be
 * read, then sizes against their limits, then places against the file's
 * length.  No product or sum of numbers from the image is made before
 * its terms have been bounded.  Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "header.h"
#include "header-extensions.h"

#define V2_HEADER_LENGTH 72
#define V3_HEADER_LENGTH 104    /* at least */
#define COMPRESSION_TYPE_OFFSET 104

#define MIN_EXTENDED_L2_CLUSTER_BITS 14
#define MAX_BACKING_NAME 1023
#define MAX_REFCOUNT_ORDER 6
#define V2_REFCOUNT_ORDER 4

/* Each check gets these. */
struct decoder {
  const uint8_t *buf;           /* the first cluster, or what there is */
  size_t len;
  uint64_t file_size;
  struct header *h;
  struct header_damage *damage; /* NULL: none is borne */
  struct format_error *e;
};

uint64_t
header_l1_entries (uint32_t cluster_bits, bool extended_l2, uint64_t size)
{
  /* One L2 table is a cluster of entries of 8 or 16 bytes, each of which
   * maps a cluster.
   */
  const uint32_t bits = 2 * cluster_bits - (extended_l2 ? 4 : 3);

  return div_up (size, UINT64_C (1) << bits);
}

int
header_check_table (const struct header *h, const char *field,
                    uint64_t offset, uint64_t bytes, uint64_t file_size,
                    struct format_error *e)
{
  const uint64_t end = round_up (file_size, h->cluster_size);

  if (!is_aligned (offset, h->cluster_size))
    return format_fail (e, -EINVAL, "%s is 0x%" PRIx64 ", not a multiple of"
                        " the cluster size %" PRIu64,
                        field, offset, h->cluster_size);
  if (offset == 0)
    return format_fail (e, -EINVAL, "%s is 0, the place of the header",
                        field);
  if (offset >= file_size)
    return format_fail (e, -EINVAL, "%s is 0x%" PRIx64 ", not before the"
                        " end of the file at 0x%" PRIx64,
                        field, offset, file_size);
  if (bytes > end - offset)
    return format_fail (e, -EINVAL, "%s is 0x%" PRIx64 ", where %" PRIu64
                        " bytes do not fit before the end of the file at"
                        " 0x%" PRIx64, field, offset, bytes, file_size);
  return 0;
}

int
header_probe (const uint8_t *buf, size_t len, uint64_t *cluster_size,
              struct format_error *e)
{
  uint32_t version, cluster_bits;

  if (len >= 4 && load_be32 (buf) != QCOW2_MAGIC)
    return format_fail (e, -EINVAL,
                        "not in qcow2 format: magic (header byte 0) is"
                        " 0x%08" PRIx32 ", not 0x%08" PRIx32,
                        load_be32 (buf), QCOW2_MAGIC);
  if (len < 24)
    return format_fail (e, -EINVAL,
                        "the file is %zu bytes long, shorter than a qcow2"
                        " header of %d bytes", len, V2_HEADER_LENGTH);
  version = load_be32 (buf + 4);
  if (version != 2 && version != 3)
    return format_fail (e, -ENOTSUP,
                        "version (header byte 4) is %" PRIu32
                        ", only 2 and 3 are supported", version);
  cluster_bits = load_be32 (buf + 20);
  if (cluster_bits < MIN_CLUSTER_BITS || cluster_bits > MAX_CLUSTER_BITS)
    return format_fail (e, -EINVAL,
                        "cluster_bits (header byte 20) is %" PRIu32
                        ", not from %d to %d (a cluster of 512 bytes to"
                        " 2 MiB)", cluster_bits, MIN_CLUSTER_BITS,
                        MAX_CLUSTER_BITS);
  *cluster_size = UINT64_C (1) << cluster_bits;
  return 0;
}

/* Take the fields that both versions have. */
static void
load_v2 (struct header *h, const uint8_t *buf)
{
  h->version = load_be32 (buf + 4);
  h->cluster_bits = load_be32 (buf + 20);
  h->cluster_size = UINT64_C (1) << h->cluster_bits;
  h->size = load_be64 (buf + 24);
  h->crypt_method = load_be32 (buf + 32);
  h->l1_size = load_be32 (buf + 36);
  h->l1_table_offset = load_be64 (buf + 40);
  h->refcount_table_offset = load_be64 (buf + 48);
  h->refcount_table_clusters = load_be32 (buf + 56);
  h->nb_snapshots = load_be32 (buf + 60);
  h->snapshots_offset = load_be64 (buf + 64);
  h->refcount_order = V2_REFCOUNT_ORDER;
  h->header_length = V2_HEADER_LENGTH;
}

/* Take the fields of version 3, the length first: it says which others
 * there are.
 */
static int
load_v3 (const struct decoder *d)
{
  struct header *h = d->h;

  if (d->len < V3_HEADER_LENGTH)
    return format_fail (d->e, -EINVAL,
                        "the file is %zu bytes long, shorter than a version"
                        " 3 header of %d bytes", d->len, V3_HEADER_LENGTH);
  h->header_length = load_be32 (d->buf + 100);
  if (h->header_length < V3_HEADER_LENGTH
      || h->header_length > h->cluster_size)
    return format_fail (d->e, -EINVAL,
                        "header_length (header byte 100) is %" PRIu32
                        ", not from %d to the cluster size %" PRIu64,
                        h->header_length, V3_HEADER_LENGTH,
                        h->cluster_size);
  h->incompatible = load_be64 (d->buf + 72);
  h->compatible = load_be64 (d->buf + 80);
  h->autoclear = load_be64 (d->buf + 88);
  h->refcount_order = load_be32 (d->buf + 96);
  if (h->header_length > COMPRESSION_TYPE_OFFSET
      && d->len > COMPRESSION_TYPE_OFFSET)
    h->compression_type = d->buf[COMPRESSION_TYPE_OFFSET];
  return 0;
}

int
header_bear (struct header_damage *damage, const struct format_error *e,
             int r)
{
  if (!damage || r == 0)
    return r;
  if (damage->faults < MAX_HEADER_FAULTS)
    damage->fault[damage->faults] = *e;
  damage->faults++;
  return 0;
}

/* Where the extensions must end: at the backing file's name. */
static int
extensions_end (const struct decoder *d, size_t *end)
{
  const uint64_t offset = load_be64 (d->buf + 8);
  const uint32_t begin = d->h->header_length;
  int r;

  *end = (size_t) d->h->cluster_size;
  if (offset == 0)
    return 0;
  if (offset >= begin && offset < d->h->cluster_size) {
    *end = (size_t) offset;
    return 0;
  }
  r = format_fail (d->e, -EINVAL,
                   "backing_file_offset (header byte 8) is 0x%" PRIx64
                   ", not between the header's end at %" PRIu32
                   " and the end of the first cluster at %" PRIu64,
                   offset, begin, d->h->cluster_size);
  /* There is no room for any; or a name of no bytes, which QEMU takes. */
  if (offset < begin)
    *end = begin;
  else if (offset > d->h->cluster_size)
    return r;
  return header_bear (d->damage, d->e, r);
}

/* The features that are asked for go together. */
static int
check_features (const struct decoder *d)
{
  const struct header *h = d->h;

  if ((h->incompatible & INCOMPAT_EXTL2)
      && h->cluster_bits < MIN_EXTENDED_L2_CLUSTER_BITS)
    return format_fail (d->e, -EINVAL,
                        "cluster_bits (header byte 20) is %" PRIu32
                        ", but extended L2 entries need at least %d",
                        h->cluster_bits, MIN_EXTENDED_L2_CLUSTER_BITS);
  if (h->compression_type > COMPRESSION_ZSTD)
    return format_fail (d->e, -ENOTSUP,
                        "compression_type (header byte 104) is %u, only 0"
                        " (deflate) and 1 (zstd) are supported",
                        h->compression_type);
  if (!(h->incompatible & INCOMPAT_COMPRESSION) != !h->compression_type)
    return format_fail (d->e, -EINVAL,
                        "compression_type (header byte 104) is %u, but bit"
                        " 3 of incompatible_features (header byte 72) is"
                        " %d; it must be set exactly if the type is not 0",
                        h->compression_type,
                        (h->incompatible & INCOMPAT_COMPRESSION) != 0);
  if ((h->autoclear & AUTOCLEAR_DATA_FILE_RAW)
      && !(h->incompatible & INCOMPAT_DATA_FILE))
    return format_fail (d->e, -EINVAL,
                        "autoclear_features (header byte 88) is 0x%" PRIx64
                        ": bit 1 (raw external data) is only allowed with"
                        " an external data file (bit 2 of"
                        " incompatible_features)", h->autoclear);
  if (h->refcount_order > MAX_REFCOUNT_ORDER)
    return format_fail (d->e, -EINVAL,
                        "refcount_order (header byte 96) is %" PRIu32
                        ", more than %d (64 bits)", h->refcount_order,
                        MAX_REFCOUNT_ORDER);
  if (h->crypt_method > CRYPT_LUKS)
    return format_fail (d->e, -EINVAL,
                        "crypt_method (header byte 32) is %" PRIu32
                        ", not 0 (none), 1 (AES) or 2 (LUKS)",
                        h->crypt_method);
  return 0;
}

/* What the extensions and the fixed fields say of each other. */
static int
check_against_extensions (const struct decoder *d)
{
  const struct header *h = d->h;
  int r = 0;

  if ((h->autoclear & AUTOCLEAR_BITMAPS) && !h->has_bitmaps)
    r = header_bear (d->damage, d->e, format_fail (
                       d->e, -EINVAL,
                       "autoclear_features (header byte 88) is 0x%" PRIx64
                       ": bit 0 (bitmaps) is set, but there is no bitmaps"
                       " extension", h->autoclear));
  if (r < 0)
    return r;
  if (h->crypt_method == CRYPT_LUKS && !h->has_crypto)
    return format_fail (d->e, -EINVAL,
                        "crypt_method (header byte 32) is 2 (LUKS), but"
                        " there is no crypto header extension");
  if ((h->autoclear & AUTOCLEAR_DATA_FILE_RAW) && h->backing_file[0])
    r = header_bear (d->damage, d->e, format_fail (
                       d->e, -EINVAL,
                       "autoclear_features (header byte 88) is 0x%" PRIx64
                       ": bit 1 (raw external data) is not allowed with a"
                       " backing file", h->autoclear));
  return r;
}

/* The backing file's name. */
static int
decode_backing (const struct decoder *d)
{
  const uint64_t offset = load_be64 (d->buf + 8);
  const uint32_t size = load_be32 (d->buf + 16);
  const uint64_t room = d->h->cluster_size - offset;
  int r = 0;

  if (offset == 0)
    return 0;
  if (size == 0 || size > MIN (room, (uint64_t) MAX_BACKING_NAME)) {
    r = format_fail (d->e, -EINVAL,
                     "backing_file_size (header byte 16) is %" PRIu32
                     ", not from 1 to %" PRIu64 " (the name is in the"
                     " first cluster, at most %d bytes long)", size,
                     MIN (room, (uint64_t) MAX_BACKING_NAME),
                     MAX_BACKING_NAME);
    return size == 0 ? header_bear (d->damage, d->e, r) : r;
  }
  if (memchr (d->buf + offset, 0, size) != NULL)
    r = header_bear (d->damage, d->e, format_fail (
                       d->e, -EINVAL,
                       "the backing file name (header byte %" PRIu64
                       ", %" PRIu32 " bytes) contains a NUL byte",
                       offset, size));
  if (r < 0)
    return r;
  memcpy (d->h->backing_file, d->buf + offset, size);
  d->h->backing_file[size] = '\0';
  return 0;
}

/* TABLE has been found broken. */
static int
bear (const struct decoder *d, enum header_table table, int r)
{
  if (r == 0 || !d->damage)
    return r;
  d->damage->broken[table] = true;
  d->damage->why[table] = *d->e;
  return 0;
}

/* A place that no file has, or that is not at a cluster's beginning, is
 * no damage to be borne: nothing else of the header is worth more then.
 */
static int
check_place (const struct decoder *d, enum header_table table,
             const char *field, uint64_t offset, uint64_t bytes)
{
  int r = header_check_table (d->h, field, offset, bytes, d->file_size, d->e);

  return is_aligned (offset, d->h->cluster_size) && offset <= INT64_MAX
    ? bear (d, table, r) : r;
}

/* The active L1 table. */
static int
check_l1 (const struct decoder *d)
{
  const struct header *h = d->h;
  const uint64_t bytes = (uint64_t) h->l1_size * 8;
  const uint64_t needed =
    header_l1_entries (h->cluster_bits,
                       (h->incompatible & INCOMPAT_EXTL2) != 0, h->size);

  if (needed > MAX_L1_BYTES / 8)
    return format_fail (d->e, -EFBIG,
                        "size (header byte 24) is %" PRIu64
                        ", which needs %" PRIu64 " L1 entries, more than"
                        " the %" PRIu64 " that are supported",
                        h->size, needed, MAX_L1_BYTES / 8);
  if (bytes > MAX_L1_BYTES)
    return format_fail (d->e, -EFBIG,
                        "l1_size (header byte 36) is %" PRIu32
                        ", more than the %" PRIu64
                        " entries that are supported",
                        h->l1_size, MAX_L1_BYTES / 8);
  if (h->l1_size < needed)
    return format_fail (d->e, -EINVAL,
                        "l1_size (header byte 36) is %" PRIu32
                        ", but a disk of %" PRIu64 " bytes needs %" PRIu64
                        " entries", h->l1_size, h->size, needed);
  /* An empty table has no place, but the offset is aligned all the same. */
  if (bytes == 0 && is_aligned (h->l1_table_offset, h->cluster_size)
      && h->l1_table_offset <= INT64_MAX)
    return 0;
  return check_place (d, TABLE_L1, "l1_table_offset (header byte 40)",
                      h->l1_table_offset, bytes);
}

/* The refcount table. */
static int
check_refcount_table (const struct decoder *d)
{
  const struct header *h = d->h;
  const uint64_t bytes = h->refcount_table_clusters * h->cluster_size;

  if (h->refcount_table_clusters == 0) {
    if (d->damage)
      d->damage->missing = true;
    return bear (d, TABLE_REFCOUNTS, format_fail (
                   d->e, -EINVAL,
                   "refcount_table_clusters (header byte 56) is 0: the image"
                   " has no refcount table; 'qcow2-overlap check --repair"
                   " all' can make one"));
  }
  if (bytes > MAX_REFCOUNT_TABLE_BYTES)
    return format_fail (d->e, -EFBIG,
                        "refcount_table_clusters (header byte 56) is %"
                        PRIu32 ", more than the %" PRIu64
                        " that are supported with clusters of %" PRIu64
                        " bytes", h->refcount_table_clusters,
                        MAX_REFCOUNT_TABLE_BYTES / h->cluster_size,
                        h->cluster_size);
  return check_place (d, TABLE_REFCOUNTS,
                      "refcount_table_offset (header byte 48)",
                      h->refcount_table_offset, bytes);
}

/* The snapshot table, whose length is not known yet. */
static int
check_snapshots (const struct decoder *d)
{
  const struct header *h = d->h;
  int r;

  if (h->nb_snapshots > MAX_SNAPSHOTS)
    return format_fail (d->e, -EFBIG,
                        "nb_snapshots (header byte 60) is %" PRIu32
                        ", more than the %d that are supported",
                        h->nb_snapshots, MAX_SNAPSHOTS);
  /* The least that the entries take: 40 bytes each. */
  if (h->nb_snapshots == 0
      && is_aligned (h->snapshots_offset, h->cluster_size))
    return 0;
  r = header_check_table (h, "snapshots_offset (header byte 64)",
                          h->snapshots_offset,
                          h->nb_snapshots * UINT64_C (40), d->file_size,
                          d->e);
  /* If it begins in the file it is their number that is wrong. */
  return h->snapshots_offset == 0
    || (is_aligned (h->snapshots_offset, h->cluster_size)
        && h->snapshots_offset >= d->file_size
        && h->snapshots_offset <= INT64_MAX)
    ? bear (d, TABLE_SNAPSHOTS, r) : r;
}

/* The length of the file against the header's, then the first cluster,
 * which no valid image lacks a part of: its tables lie behind it.
 */
static int
load_fields (const struct decoder *d)
{
  int r;

  if (d->len < V2_HEADER_LENGTH)
    return format_fail (d->e, -EINVAL,
                        "the file is %zu bytes long, shorter than a qcow2"
                        " header of %d bytes", d->len, V2_HEADER_LENGTH);
  load_v2 (d->h, d->buf);
  if (d->h->version >= 3) {
    r = load_v3 (d);
    if (r < 0)
      return r;
  }
  if (d->len < d->h->cluster_size)
    return format_fail (d->e, -EINVAL,
                        "the file is %zu bytes long, shorter than its first"
                        " cluster of %" PRIu64 " bytes",
                        d->len, d->h->cluster_size);
  return 0;
}

int
header_decode_damaged (const uint8_t *buf, size_t len, uint64_t file_size,
                       struct header *h, struct header_damage *damage,
                       struct format_error *e)
{
  const struct decoder d = {
    .buf = buf, .len = len, .file_size = file_size, .h = h,
    .damage = damage, .e = e,
  };
  uint64_t cluster_size, unknown;
  size_t end = 0;
  int r;

  memset (h, 0, sizeof *h);
  r = header_probe (buf, len, &cluster_size, e);
  if (r == 0)
    r = load_fields (&d);
  if (r == 0)
    r = extensions_end (&d, &end);
  if (r < 0)
    return r;
  unknown = h->incompatible & ~INCOMPAT_KNOWN;
  if (unknown)
    return header_refuse_features (buf, h->header_length, end, unknown, e);

  r = check_features (&d);
  if (r == 0)
    r = header_decode_extensions (buf, h->header_length, end, file_size, h,
                                  damage, e);
  if (r == 0)
    r = decode_backing (&d);
  if (r == 0)
    r = check_against_extensions (&d);
  if (r == 0)
    r = check_l1 (&d);
  if (r == 0)
    r = check_refcount_table (&d);
  if (r == 0)
    r = check_snapshots (&d);
  return r;
}

int
header_decode (const uint8_t *buf, size_t len, uint64_t file_size,
               struct header *h, struct format_error *e)
{
  return header_decode_damaged (buf, len, file_size, h, NULL, e);
}
