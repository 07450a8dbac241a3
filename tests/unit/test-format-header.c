/* SPDX-License-Identifier: BSD-3-Clause */

/* The fixed fields of the header: one row for each rule of the
 * specification's "Header" and each limit, and for each value that must
 * pass although it looks odd.
 */

#include <config.h>

#include "format-test.h"

/* A change to the valid header; width 0 ends a list of them. */
struct change {
  size_t offset;
  unsigned width;
  uint64_t value;
};

struct row {
  const char *what;
  uint32_t version;
  uint32_t cluster_bits;
  struct change changes[5];
  uint64_t file_size;           /* 0: as it was */
  int code;                     /* 0: accepted */
  const char *words;
};

#define C4K 12                  /* cluster_bits of 4 KiB clusters */

static const struct row rows[] = {
  { "v2 as it is", 2, C4K, {}, 0, 0, NULL },
  { "v3 as it is", 3, C4K, {}, 0, 0, NULL },
  { "512-byte clusters", 3, 9, {}, 0, 0, NULL },
  { "2 MiB clusters", 3, 21, {}, 0, 0, NULL },

  { "magic", 3, C4K, { { 0, 4, 0x514649fa } }, 0, -EINVAL,
    "not in qcow2 format|magic|0x514649fa" },
  { "version 1", 3, C4K, { { 4, 4, 1 } }, 0, -ENOTSUP,
    "version (header byte 4) is 1" },
  { "version 4", 3, C4K, { { 4, 4, 4 } }, 0, -ENOTSUP,
    "version (header byte 4) is 4" },
  { "version 0", 3, C4K, { { 4, 4, 0 } }, 0, -ENOTSUP, "version" },

  { "cluster_bits 8", 3, C4K, { { 20, 4, 8 } }, 0, -EINVAL,
    "cluster_bits (header byte 20) is 8" },
  { "cluster_bits 22", 3, C4K, { { 20, 4, 22 } }, 0, -EINVAL,
    "cluster_bits (header byte 20) is 22" },
  { "cluster_bits that would wrap a shift", 3, C4K, { { 20, 4, 76 } }, 0,
    -EINVAL, "cluster_bits|76" },
  { "cluster_bits 2^32-1", 3, C4K, { { 20, 4, UINT32_MAX } }, 0, -EINVAL,
    "cluster_bits|4294967295" },
  { "cluster larger than the file", 3, C4K, { { 20, 4, 16 } }, 0, -EINVAL,
    "shorter than its first cluster" },
  { "extended L2 with 8 KiB clusters", 3, 13, { { 72, 8, 16 } }, 0, -EINVAL,
    "cluster_bits (header byte 20) is 13|extended L2" },
  { "extended L2 with 16 KiB clusters", 3, 14, { { 72, 8, 16 } }, 0, 0,
    NULL },

  { "header_length 103", 3, C4K, { { 100, 4, 103 } }, 0, -EINVAL,
    "header_length (header byte 100) is 103" },
  { "header_length 0", 3, C4K, { { 100, 4, 0 } }, 0, -EINVAL,
    "header_length (header byte 100) is 0" },
  { "header_length 104", 3, C4K, { { 100, 4, 104 } }, 0, 0, NULL },
  /* QEMU opens it, although the specification wants a multiple of 8. */
  { "header_length 105", 3, C4K, { { 100, 4, 105 } }, 0, 0, NULL },
  { "header_length of a cluster", 3, C4K, { { 100, 4, 4096 } }, 0, 0,
    NULL },
  { "header_length of more than a cluster", 3, C4K, { { 100, 4, 4097 } }, 0,
    -EINVAL, "header_length (header byte 100) is 4097|4096" },
  { "header_length 2^32-1", 3, C4K, { { 100, 4, UINT32_MAX } }, 0, -EINVAL,
    "header_length" },
  { "v2 has no header_length", 2, C4K, { { 100, 4, 5 } }, 0, 0, NULL },
  { "unknown header bytes", 3, C4K, { { 100, 4, 120 }, { 112, 8, 77 } }, 0,
    0, NULL },
  { "padding that is not 0", 3, C4K, { { 105, 1, 1 } }, 0, 0, NULL },

  { "backing_file_offset in the header", 3, C4K,
    { { 8, 8, 111 }, { 16, 4, 3 } }, 0, -EINVAL,
    "backing_file_offset (header byte 8) is 0x6f" },
  { "backing_file_offset at the cluster's end", 3, C4K,
    { { 8, 8, 4096 }, { 16, 4, 3 } }, 0, -EINVAL,
    "backing_file_offset (header byte 8) is 0x1000|4096" },
  { "backing_file_offset 2^64-1", 3, C4K,
    { { 8, 8, UINT64_MAX }, { 16, 4, 3 } }, 0, -EINVAL,
    "backing_file_offset (header byte 8) is 0xffffffffffffffff" },
  { "backing_file_size 0", 3, C4K, { { 8, 8, 1024 }, { 16, 4, 0 } }, 0,
    -EINVAL, "backing_file_size (header byte 16) is 0" },
  { "backing_file_size 1024", 3, C4K, { { 8, 8, 1024 }, { 16, 4, 1024 } },
    0, -EINVAL, "backing_file_size (header byte 16) is 1024|1023" },
  { "backing_file_size out of the cluster", 3, C4K,
    { { 8, 8, 4090 }, { 16, 4, 7 } }, 0, -EINVAL,
    "backing_file_size (header byte 16) is 7|6" },
  { "backing_file_size 2^32-1", 3, C4K,
    { { 8, 8, 1024 }, { 16, 4, UINT32_MAX } }, 0, -EINVAL,
    "backing_file_size (header byte 16) is 4294967295" },
  { "backing_file_size without an offset", 3, C4K,
    { { 16, 4, UINT32_MAX } }, 0, 0, NULL },
  { "NUL in the backing file name", 3, C4K,
    { { 8, 8, 1024 }, { 16, 4, 3 }, { 1024, 1, 'a' }, { 1026, 1, 'b' } }, 0,
    -EINVAL, "backing file name|NUL" },

  { "size 0", 3, C4K, { { 24, 8, 0 } }, 0, 0, NULL },
  { "size that is no multiple of anything", 3, C4K, { { 24, 8, 12345 } }, 0,
    0, NULL },
  { "size that needs all of the L1 table", 3, C4K, { { 24, 8, 2 << 20 } },
    0, 0, NULL },
  { "size that needs one L1 entry more", 3, C4K,
    { { 24, 8, (2 << 20) + 1 } }, 0, -EINVAL,
    "l1_size (header byte 36) is 1|2097153|2 entries" },
  { "size 2^64-1", 3, C4K, { { 24, 8, UINT64_MAX } }, 0, -EFBIG,
    "size (header byte 24) is 18446744073709551615" },
  { "size 2^63", 3, 21, { { 24, 8, UINT64_C (1) << 63 } }, 0, -EFBIG,
    "size (header byte 24) is 9223372036854775808" },

  { "crypt_method 1", 3, C4K, { { 32, 4, 1 } }, 0, 0, NULL },
  { "crypt_method 2 without its extension", 3, C4K, { { 32, 4, 2 } }, 0,
    -EINVAL, "crypt_method (header byte 32) is 2|crypto header" },
  { "crypt_method 3", 3, C4K, { { 32, 4, 3 } }, 0, -EINVAL,
    "crypt_method (header byte 32) is 3" },
  { "crypt_method 3 in v2", 2, C4K, { { 32, 4, 3 } }, 0, -EINVAL,
    "crypt_method (header byte 32) is 3" },

  { "l1_size 0", 3, C4K, { { 36, 4, 0 } }, 0, -EINVAL,
    "l1_size (header byte 36) is 0" },
  { "l1_size 0 of an empty disk", 3, C4K,
    { { 24, 8, 0 }, { 36, 4, 0 }, { 40, 8, 0 } }, 0, 0, NULL },
  { "l1_size larger than needed", 3, C4K, { { 36, 4, 512 } }, 0, 0, NULL },
  { "l1_size out of the file", 3, C4K, { { 36, 4, 513 } }, 0, -EINVAL,
    "l1_table_offset (header byte 40) is 0x3000|4104 bytes" },
  { "l1_size at the limit", 3, C4K, { { 36, 4, 4 << 20 } }, 64 << 20, 0,
    NULL },
  { "l1_size above the limit", 3, C4K, { { 36, 4, (4 << 20) + 1 } },
    64 << 20, -EFBIG, "l1_size (header byte 36) is 4194305" },
  { "l1_size 2^32-1", 3, C4K, { { 36, 4, UINT32_MAX } },
    UINT64_C (1) << 50, -EFBIG, "l1_size (header byte 36) is 4294967295" },

  { "l1_table_offset unaligned", 3, C4K, { { 40, 8, 0x12345 } }, 0,
    -EINVAL, "l1_table_offset (header byte 40) is 0x12345|4096" },
  { "l1_table_offset unaligned, empty table", 3, C4K,
    { { 24, 8, 0 }, { 36, 4, 0 }, { 40, 8, 7 } }, 0, -EINVAL,
    "l1_table_offset (header byte 40) is 0x7" },
  { "l1_table_offset 0", 3, C4K, { { 40, 8, 0 } }, 0, -EINVAL,
    "l1_table_offset (header byte 40) is 0" },
  { "l1_table_offset at the end of the file", 3, C4K, { { 40, 8, 0x3000 } },
    0x3000, -EINVAL, "l1_table_offset (header byte 40) is 0x3000|end" },
  { "l1_table_offset past the end", 3, C4K, { { 40, 8, 0x4000 } }, 0,
    -EINVAL, "l1_table_offset (header byte 40) is 0x4000|end" },
  { "l1_table_offset near 2^56", 3, C4K,
    { { 40, 8, (UINT64_C (1) << 56) - 4096 } }, 0, -EINVAL,
    "l1_table_offset (header byte 40) is 0xfffffffffff000" },
  { "l1_table_offset that wraps", 3, C4K,
    { { 40, 8, UINT64_MAX - 4095 }, { 36, 4, 4096 } }, 0, -EINVAL,
    "l1_table_offset (header byte 40) is 0xfffffffffffff000" },

  { "refcount_table_offset unaligned", 3, C4K, { { 48, 8, 0x1001 } }, 0,
    -EINVAL, "refcount_table_offset (header byte 48) is 0x1001|4096" },
  { "refcount_table_offset 0", 3, C4K, { { 48, 8, 0 } }, 0, -EINVAL,
    "refcount_table_offset (header byte 48) is 0" },
  { "refcount_table_offset past the end", 3, C4K, { { 48, 8, 0x4000 } }, 0,
    -EINVAL, "refcount_table_offset (header byte 48) is 0x4000|end" },
  { "refcount_table_offset that wraps", 3, C4K,
    { { 48, 8, UINT64_MAX - 4095 }, { 56, 4, 2 } }, 0, -EINVAL,
    "refcount_table_offset (header byte 48) is 0xfffffffffffff000" },

  { "refcount_table_clusters 0", 3, C4K, { { 56, 4, 0 } }, 0, -EINVAL,
    "refcount_table_clusters (header byte 56) is 0" },
  { "refcount_table_clusters up to the end", 3, C4K, { { 56, 4, 3 } }, 0, 0,
    NULL },
  { "refcount_table_clusters out of the file", 3, C4K, { { 56, 4, 4 } }, 0,
    -EINVAL, "refcount_table_offset (header byte 48) is 0x1000|16384" },
  { "refcount_table_clusters at the limit", 3, C4K, { { 56, 4, 2048 } },
    64 << 20, 0, NULL },
  { "refcount_table_clusters above the limit", 3, C4K,
    { { 56, 4, 2049 } }, 64 << 20, -EFBIG,
    "refcount_table_clusters (header byte 56) is 2049|2048" },
  { "refcount_table_clusters 2^32-1", 3, 21, { { 56, 4, UINT32_MAX } },
    UINT64_C (1) << 62, -EFBIG,
    "refcount_table_clusters (header byte 56) is 4294967295" },

  { "nb_snapshots 65536", 3, C4K, { { 60, 4, 65536 }, { 64, 8, 0x4000 } },
    64 << 20, 0, NULL },
  { "nb_snapshots 65537", 3, C4K, { { 60, 4, 65537 }, { 64, 8, 0x4000 } },
    64 << 20, -EFBIG, "nb_snapshots (header byte 60) is 65537|65536" },
  { "nb_snapshots out of the file", 3, C4K,
    { { 60, 4, 103 }, { 64, 8, 0x3000 } }, 0, -EINVAL,
    "snapshots_offset (header byte 64) is 0x3000|4120" },
  { "snapshots_offset unaligned", 3, C4K,
    { { 60, 4, 1 }, { 64, 8, 0x2008 } }, 0, -EINVAL,
    "snapshots_offset (header byte 64) is 0x2008|4096" },
  { "snapshots_offset unaligned without snapshots", 3, C4K,
    { { 64, 8, 0x2008 } }, 0, -EINVAL,
    "snapshots_offset (header byte 64) is 0x2008" },
  { "snapshots_offset past the end without snapshots", 3, C4K,
    { { 64, 8, 0x200000 } }, 0, 0, NULL },
  { "snapshots_offset 0", 3, C4K, { { 60, 4, 1 } }, 0, -EINVAL,
    "snapshots_offset (header byte 64) is 0" },
  { "snapshots_offset past the end", 3, C4K,
    { { 60, 4, 1 }, { 64, 8, UINT64_MAX - 4095 } }, 0, -EINVAL,
    "snapshots_offset (header byte 64) is 0xfffffffffffff000" },

  { "dirty, corrupt, data file", 3, C4K, { { 72, 8, 7 } }, 0, 0, NULL },
  { "unknown incompatible feature", 3, C4K,
    { { 72, 8, UINT64_C (1) << 63 } }, 0, -ENOTSUP,
    "incompatible_features (header byte 72)|bit 63" },
  { "two unknown incompatible features", 3, C4K, { { 72, 8, 0x60 } }, 0,
    -ENOTSUP, "bit 5, bit 6" },
  { "all unknown incompatible features", 3, C4K, { { 72, 8, UINT64_MAX } },
    0, -ENOTSUP, "bit 5, bit 6, bit 7" },
  { "v2 has no features", 2, C4K, { { 100, 4, 0 } }, 0, 0, NULL },
  { "unknown compatible features", 3, C4K, { { 80, 8, UINT64_MAX } }, 0, 0,
    NULL },
  { "unknown autoclear features", 3, C4K, { { 88, 8, UINT64_MAX - 3 } }, 0,
    0, NULL },
  { "raw data file without a data file", 3, C4K, { { 88, 8, 2 } }, 0,
    -EINVAL, "autoclear_features (header byte 88) is 0x2|data file" },
  { "raw data file", 3, C4K, { { 88, 8, 2 }, { 72, 8, 4 } }, 0, 0, NULL },
  { "raw data file with a backing file", 3, C4K,
    { { 88, 8, 2 }, { 72, 8, 4 }, { 8, 8, 1023 }, { 16, 4, 1 },
      { 1023, 1, 'b' } }, 0, -EINVAL,
    "autoclear_features (header byte 88) is 0x2|backing file" },
  { "bitmaps without their extension", 3, C4K, { { 88, 8, 1 } }, 0, -EINVAL,
    "autoclear_features (header byte 88) is 0x1|bitmaps" },

  { "refcount_order 6", 3, C4K, { { 96, 4, 6 } }, 0, 0, NULL },
  { "refcount_order 7", 3, C4K, { { 96, 4, 7 } }, 0, -EINVAL,
    "refcount_order (header byte 96) is 7" },
  { "refcount_order 2^32-1", 3, C4K, { { 96, 4, UINT32_MAX } }, 0, -EINVAL,
    "refcount_order (header byte 96) is 4294967295" },
  { "v2 has no refcount_order", 2, C4K, { { 72, 8, 0 } }, 0, 0, NULL },

  { "zstd", 3, C4K, { { 72, 8, 8 }, { 104, 1, 1 } }, 0, 0, NULL },
  { "zstd without its feature", 3, C4K, { { 104, 1, 1 } }, 0, -EINVAL,
    "compression_type (header byte 104) is 1|bit 3" },
  { "the feature without zstd", 3, C4K, { { 72, 8, 8 } }, 0, -EINVAL,
    "compression_type (header byte 104) is 0|bit 3" },
  { "compression_type 2", 3, C4K, { { 72, 8, 8 }, { 104, 1, 2 } }, 0,
    -ENOTSUP, "compression_type (header byte 104) is 2" },
  { "compression_type out of the header", 3, C4K,
    { { 100, 4, 104 }, { 72, 8, 8 } }, 0, -EINVAL,
    "compression_type (header byte 104) is 0|bit 3" },
};

START_TEST (row)
{
  const struct row *r = &rows[_i];
  struct made m = make_header (r->version, r->cluster_bits);
  const struct change *c;
  struct format_error e;
  struct header h;
  int code;

  for (c = r->changes; c < r->changes + ARRAY_SIZE (r->changes); c++) {
    if (c->width)
      poke (m.buf, c->offset, c->width, c->value);
  }
  if (r->file_size)
    m.file_size = r->file_size;
  code = decode (&m, &h, &e);
  if (r->code == 0)
    ck_accepted (r->what, code, &e);
  else
    ck_refusal (r->what, code, r->code, &e, r->words);
  free (m.buf);
}
END_TEST

/* What only a check lets pass, and says. */
START_TEST (faults)
{
  static const struct {
    struct change change;
    const char *words;          /* NULL: nobody lets it pass */
  } table[] = {
    { { 88, 8, 1 }, "bit 0 (bitmaps)" },
    { { 8, 8, 100 }, "backing_file_offset" },
    { { 8, 8, 1 }, "backing_file_offset" },
    { { 8, 8, 4096 }, "backing_file_offset" }, /* and size, 0 */
    { { 8, 8, 4097 }, NULL },
    { { 8, 8, UINT64_MAX }, NULL },
    { { 8, 8, 2048 }, "backing_file_size" }, /* which is 0 */
  };
  struct header_damage damage = { .missing = false };
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;
  unsigned i;
  int r;

  poke (m.buf, table[_i].change.offset, table[_i].change.width,
        table[_i].change.value);
  ck_assert_int_lt (decode (&m, &h, &e), 0);
  r = header_decode_damaged (m.buf, 4096, m.file_size, &h, &damage, &e);
  ck_assert_int_eq (r == 0, table[_i].words != NULL);
  if (r == 0) {
    ck_assert_uint_ge (damage.faults, 1);
    ck_assert_ptr_nonnull (strstr (damage.fault[0].text, table[_i].words));
  }
  /* More than there is room for. */
  for (i = damage.faults; i < 2 * MAX_HEADER_FAULTS; i++)
    ck_assert_int_eq (header_bear (&damage, &e, -EINVAL), 0);
  ck_assert_uint_eq (damage.faults, 2 * MAX_HEADER_FAULTS);
  ck_assert_int_eq (header_bear (NULL, &e, -EINVAL), -EINVAL);
  free (m.buf);
}
END_TEST

/* What a check bears, and what it does not. */
START_TEST (damaged)
{
  static const struct {
    struct change change;
    int broken;                 /* enum header_table; -1: refused */
  } table[] = {
    { { 40, 8, 0 }, TABLE_L1 },
    { { 40, 8, UINT64_C (1) << 40 }, TABLE_L1 },
    { { 36, 4, 1 << 20 }, TABLE_L1 },
    { { 40, 8, 512 }, -1 },
    { { 40, 8, UINT64_C (1) << 63 }, -1 },
    { { 36, 4, 0 }, -1 },       /* shorter than the disk */
    { { 36, 4, UINT32_MAX }, -1 },
    { { 48, 8, 0 }, TABLE_REFCOUNTS },
    { { 48, 8, UINT64_C (1) << 40 }, TABLE_REFCOUNTS },
    { { 56, 4, 2000 }, TABLE_REFCOUNTS },
    { { 56, 4, 0 }, TABLE_REFCOUNTS },
    { { 48, 8, 512 }, -1 },
    { { 56, 4, UINT32_MAX }, -1 },
    { { 60, 4, 1 }, TABLE_SNAPSHOTS },
    { { 60, 4, UINT32_MAX }, -1 },
    { { 20, 4, 8 }, -1 },
  };
  struct header_damage damage = { .missing = false };
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;
  int i, r;

  poke (m.buf, 24, 8, 4096);
  poke (m.buf, 64, 8, 0);
  poke (m.buf, table[_i].change.offset, table[_i].change.width,
        table[_i].change.value);
  ck_assert_int_lt (decode (&m, &h, &e), 0);
  r = header_decode_damaged (m.buf, 4096, m.file_size, &h, &damage, &e);
  ck_assert_int_eq (r < 0, table[_i].broken < 0);
  for (i = 0; i < HEADER_TABLES && r == 0; i++) {
    ck_assert_int_eq (damage.broken[i], i == table[_i].broken);
    if (damage.broken[i])
      ck_assert_uint_gt (strlen (damage.why[i].text), 10);
  }
  if (table[_i].broken == TABLE_REFCOUNTS)
    ck_assert_int_eq (damage.missing, table[_i].change.width == 4
                      && table[_i].change.value == 0);
  ck_assert_uint_eq (damage.faults, 0);
  free (m.buf);
}
END_TEST

/* Every length that a file can be cut to is refused without a byte read
 * beyond it.
 */
START_TEST (short_file)
{
  static const uint32_t versions[] = { 2, 3 };
  const uint32_t version = versions[_i];
  struct made whole = make_header (version, 9);
  size_t len;

  for (len = 0; len <= 512; len++) {
    struct made m = { .len = len, .file_size = len };
    struct format_error e;
    struct header h;
    char text[40];

    m.buf = malloc (len ? len : 1);
    ck_assert_ptr_nonnull (m.buf);
    memcpy (m.buf, whole.buf, len);
    /* With the first cluster whole, it is the tables that are missing. */
    snprintf (text, sizeof text,
              len < 512 ? "is %zu bytes long" : "end of the file", len);
    ck_refusal ("short file", decode (&m, &h, &e), -EINVAL, &e, text);
    free (m.buf);
  }
  free (whole.buf);
}
END_TEST

START_TEST (probe)
{
  struct made m = make_header (3, 16);
  struct format_error e;
  uint64_t cluster_size = 0;
  uint8_t *few = malloc (24);

  ck_assert_ptr_nonnull (few);
  memcpy (few, m.buf, 24);
  ck_assert_int_eq (header_probe (few, 24, &cluster_size, &e), 0);
  ck_assert_uint_eq (cluster_size, 65536);
  ck_refusal ("23 bytes", header_probe (few, 23, &cluster_size, &e), -EINVAL,
              &e, "23 bytes long");
  ck_refusal ("no bytes", header_probe (few, 0, &cluster_size, &e), -EINVAL,
              &e, "0 bytes long");
  few[3] = 0;
  ck_refusal ("magic", header_probe (few, 24, &cluster_size, &e), -EINVAL,
              &e, "not in qcow2 format");
  free (few);
  free (m.buf);
}
END_TEST

/* Fields arrive where they belong. */
START_TEST (fields_v3)
{
  struct made m = make_header (3, 12);
  struct format_error e;
  struct header h;

  poke (m.buf, 24, 8, 1000001);
  poke (m.buf, 32, 4, 1);
  poke (m.buf, 36, 4, 2);
  poke (m.buf, 60, 4, 1);
  poke (m.buf, 64, 8, 0x2000);
  poke (m.buf, 72, 8, 0x0b);
  poke (m.buf, 80, 8, 0x8001);
  poke (m.buf, 88, 8, 0xf0);
  poke (m.buf, 96, 4, 3);
  poke (m.buf, 104, 1, 1);
  set_backing (&m, "base.raw", 8);
  ck_accepted ("fields", decode (&m, &h, &e), &e);
  ck_assert_uint_eq (h.version, 3);
  ck_assert_uint_eq (h.cluster_bits, 12);
  ck_assert_uint_eq (h.cluster_size, 4096);
  ck_assert_uint_eq (h.size, 1000001);
  ck_assert_uint_eq (h.crypt_method, CRYPT_AES);
  ck_assert_uint_eq (h.l1_size, 2);
  ck_assert_uint_eq (h.l1_table_offset, 0x3000);
  ck_assert_uint_eq (h.refcount_table_offset, 0x1000);
  ck_assert_uint_eq (h.refcount_table_clusters, 1);
  ck_assert_uint_eq (h.nb_snapshots, 1);
  ck_assert_uint_eq (h.snapshots_offset, 0x2000);
  ck_assert_uint_eq (h.incompatible, 0x0b);
  ck_assert_uint_eq (h.compatible, 0x8001);
  ck_assert_uint_eq (h.autoclear, 0xf0);
  ck_assert_uint_eq (h.refcount_order, 3);
  ck_assert_uint_eq (h.header_length, 112);
  ck_assert_uint_eq (h.compression_type, COMPRESSION_ZSTD);
  ck_assert_str_eq (h.backing_file, "base.raw");
  ck_assert_str_eq (h.backing_format, "");
  ck_assert_str_eq (h.data_file, "");
  ck_assert (!h.has_crypto);
  ck_assert (!h.has_bitmaps);
  free (m.buf);
}
END_TEST

/* A version 2 header ends at byte 72: what follows is extensions. */
START_TEST (fields_v2)
{
  struct made m = make_header (2, 12);
  struct format_error e;
  struct header h;

  add_extension (&m, 0xe2792aca, "raw", 3);
  set_backing (&m, "b", 1);
  ck_accepted ("v2", decode (&m, &h, &e), &e);
  ck_assert_uint_eq (h.version, 2);
  ck_assert_uint_eq (h.incompatible, 0);
  ck_assert_uint_eq (h.compatible, 0);
  ck_assert_uint_eq (h.autoclear, 0);
  ck_assert_uint_eq (h.refcount_order, 4);
  ck_assert_uint_eq (h.header_length, 72);
  ck_assert_uint_eq (h.compression_type, COMPRESSION_DEFLATE);
  ck_assert_str_eq (h.backing_file, "b");
  ck_assert_str_eq (h.backing_format, "raw");
  free (m.buf);
}
END_TEST

/* The longest backing file name, ending with the cluster. */
START_TEST (longest_backing)
{
  struct made m = make_header (3, 12);
  struct format_error e;
  struct header h;

  memset (m.buf + 4096 - 1023, 'n', 1023);
  poke (m.buf, 8, 8, 4096 - 1023);
  poke (m.buf, 16, 4, 1023);
  ck_accepted ("longest name", decode (&m, &h, &e), &e);
  ck_assert_uint_eq (strlen (h.backing_file), 1023);
  free (m.buf);
}
END_TEST

START_TEST (l1_entries)
{
  /* A table of 512-byte clusters maps 64 * 512 bytes, and so on. */
  ck_assert_uint_eq (header_l1_entries (9, false, 0), 0);
  ck_assert_uint_eq (header_l1_entries (9, false, 1), 1);
  ck_assert_uint_eq (header_l1_entries (9, false, 64 * 512), 1);
  ck_assert_uint_eq (header_l1_entries (9, false, 64 * 512 + 1), 2);
  ck_assert_uint_eq (header_l1_entries (16, false, 512 << 20), 1);
  ck_assert_uint_eq (header_l1_entries (16, true, 512 << 20), 2);
  ck_assert_uint_eq (header_l1_entries (21, false, UINT64_MAX), 1 << 25);
  ck_assert_uint_eq (header_l1_entries (14, true, UINT64_MAX),
                     UINT64_C (1) << 40);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("format-header");
  TCase *tc = tcase_create ("header");

  tcase_add_loop_test (tc, row, 0, ARRAY_SIZE (rows));
  tcase_add_loop_test (tc, short_file, 0, 2);
  tcase_add_loop_test (tc, damaged, 0, 16);
  tcase_add_loop_test (tc, faults, 0, 7);
  tcase_add_test (tc, probe);
  tcase_add_test (tc, fields_v3);
  tcase_add_test (tc, fields_v2);
  tcase_add_test (tc, longest_backing);
  tcase_add_test (tc, l1_entries);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
