/* SPDX-License-Identifier: BSD-3-Clause */

/* The bitmap directory: one row for each rule of the specification's
 * "Bitmap directory" and each limit.
 */

#include <config.h>

#include "bitmap.h"
#include "format-test.h"

#define CLUSTER 65536
#define FILE_SIZE (20 * CLUSTER + 100) /* the last cluster is short */

/* What goes into an entry. */
struct entry {
  uint64_t table_offset;
  uint32_t table_size;
  uint32_t flags;
  uint8_t type;
  uint8_t granularity_bits;
  const char *name;
  uint32_t extra_size;
};

static void
put_entry (uint8_t *buf, size_t *at, const struct entry *x)
{
  uint8_t *p = buf + *at;

  store_be64 (p, x->table_offset);
  store_be32 (p + 8, x->table_size);
  store_be32 (p + 12, x->flags);
  p[16] = x->type;
  p[17] = x->granularity_bits;
  store_be16 (p + 18, (uint16_t) strlen (x->name));
  store_be32 (p + 20, x->extra_size);
  memset (p + 24, 0xee, x->extra_size);
  memcpy (p + 24 + x->extra_size, x->name, strlen (x->name));
  *at += (size_t) round_up (24 + x->extra_size + strlen (x->name), 8);
}

/* Decode from a copy that is exactly LEN bytes long. */
static int
decode_directory (const uint8_t *buf, size_t len, uint32_t count,
                  struct bitmap_directory *d, struct format_error *e)
{
  uint8_t *exact = malloc (len ? len : 1);
  int r;

  ck_assert_ptr_nonnull (exact);
  memcpy (exact, buf, len);
  r = bitmap_directory_decode (exact, len, count, CLUSTER, FILE_SIZE, d, e);
  free (exact);
  if (r < 0) {
    ck_assert_ptr_null (d->v);
    ck_assert_uint_eq (d->count, 0);
  }
  return r;
}

START_TEST (fields)
{
  static const struct entry entries[] = {
    { 0x50000, 3, BITMAP_IN_USE, 1, 16, "a", 0 },
    { 0x60000, 8192, BITMAP_AUTO, 1, 0, "bitmap of a longer name", 0 },
    { 0x70000, 1, BITMAP_EXTRA_COMPATIBLE, 1, 63, "x", 13 },
    { 0x80000, 1, 0, 1, 9, "eight by", 0 },
  };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[1024] = { 0 };
  size_t at = 0, i;

  for (i = 0; i < ARRAY_SIZE (entries); i++)
    put_entry (buf, &at, &entries[i]);
  ck_accepted ("fields", decode_directory (buf, at, 4, &d, &e), &e);
  ck_assert_uint_eq (d.count, 4);
  for (i = 0; i < d.count; i++) {
    ck_assert_uint_eq (d.v[i].table_offset, entries[i].table_offset);
    ck_assert_uint_eq (d.v[i].table_size, entries[i].table_size);
    ck_assert_uint_eq (d.v[i].flags, entries[i].flags);
    ck_assert_uint_eq (d.v[i].type, entries[i].type);
    ck_assert_uint_eq (d.v[i].granularity_bits, entries[i].granularity_bits);
    ck_assert_str_eq (d.v[i].name, entries[i].name);
    ck_assert_uint_eq (d.v[i].extra_size, entries[i].extra_size);
  }
  bitmap_directory_free (&d);
  ck_assert_ptr_null (d.v);
  ck_assert_uint_eq (d.count, 0);
}
END_TEST

/* The second of two entries is what the row says. */
static const struct {
  const char *what;
  struct entry entry;
  int code;
  const char *words;
} rows[] = {
  { "good", { 0x50000, 1, 0, 1, 16, "b", 0 }, 0, NULL },
  { "table in the last cluster", { 20 * CLUSTER, 8192, 0, 1, 16, "b", 0 },
    0, NULL },
  { "table past the file", { 21 * CLUSTER, 1, 0, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|bitmap_table_offset is 0x150000|end" },
  { "table that wraps", { UINT64_MAX - CLUSTER + 1, 8192, 0, 1, 16, "b", 0 },
    -EINVAL, "entry 1|bitmap_table_offset is 0xffffffffffff0000" },
  { "table unaligned", { 0x50200, 1, 0, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|bitmap_table_offset is 0x50200|65536" },
  { "table at 0", { 0, 1, 0, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|bitmap_table_offset is 0x0" },
  { "table of no entries", { 0x50000, 0, 0, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|bitmap_table_size is 0" },
  { "table too large", { 0x50000, 8193, 0, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|bitmap_table_size is 8193|8192" },
  { "table of 2^32-1 entries", { 0x50000, UINT32_MAX, 0, 1, 16, "b", 0 },
    -EINVAL, "entry 1|bitmap_table_size is 4294967295" },
  { "flags bit 3", { 0x50000, 1, 8, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|flags is 0x8" },
  { "flags bit 31", { 0x50000, 1, 0x80000001, 1, 16, "b", 0 }, -EINVAL,
    "entry 1|flags is 0x80000001" },
  { "type 0", { 0x50000, 1, 0, 0, 16, "b", 0 }, -EINVAL,
    "entry 1|type is 0" },
  { "type 2", { 0x50000, 1, 0, 2, 16, "b", 0 }, -EINVAL,
    "entry 1|type is 2" },
  { "granularity_bits 64", { 0x50000, 1, 0, 1, 64, "b", 0 }, -EINVAL,
    "entry 1|granularity_bits is 64|63" },
  { "no name", { 0x50000, 1, 0, 1, 16, "", 0 }, -EINVAL,
    "entry 1|name_size is 0" },
  { "name of the first", { 0x50000, 1, 0, 1, 16, "first", 0 }, -EINVAL,
    "two bitmaps|'first'" },
};

START_TEST (row)
{
  const struct entry first = { 0x50000, 1, 0, 1, 16, "first", 0 };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[512] = { 0 };
  size_t at = 0;
  int r;

  put_entry (buf, &at, &first);
  put_entry (buf, &at, &rows[_i].entry);
  if (rows[_i].entry.name[0] == '\0')
    at += 8;                    /* so that it is not the length */
  r = decode_directory (buf, at, 2, &d, &e);
  if (rows[_i].code)
    ck_refusal (rows[_i].what, r, rows[_i].code, &e, rows[_i].words);
  else {
    ck_accepted (rows[_i].what, r, &e);
    bitmap_directory_free (&d);
  }
}
END_TEST

/* Into the entry from which it was decoded, and nothing else. */
START_TEST (encode)
{
  static const struct entry entries[] = {
    { 0x50000, 3, BITMAP_IN_USE, 1, 16, "a", 0 },
    { 0x70000, 1, BITMAP_EXTRA_COMPATIBLE, 1, 63, "x", 13 },
  };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[256] = { 0 }, before[256];
  size_t at = 0, second, i;

  put_entry (buf, &at, &entries[0]);
  second = at;
  put_entry (buf, &at, &entries[1]);
  memcpy (before, buf, sizeof buf);
  ck_accepted ("encode", decode_directory (buf, at, 2, &d, &e), &e);
  bitmap_entry_encode (buf, &d.v[0]);
  bitmap_entry_encode (buf, &d.v[1]);
  ck_assert_mem_eq (buf, before, sizeof buf);

  d.v[1].table_offset = 0x60000;
  d.v[1].table_size = 2;
  d.v[1].flags = BITMAP_AUTO;
  bitmap_entry_encode (buf, &d.v[1]);
  for (i = 0; i < sizeof buf; i++) {
    if (i < second || i >= second + 16)
      ck_assert_uint_eq (buf[i], before[i]);
  }
  bitmap_directory_free (&d);
  ck_accepted ("again", decode_directory (buf, at, 2, &d, &e), &e);
  ck_assert_uint_eq (d.v[1].table_offset, 0x60000);
  ck_assert_uint_eq (d.v[1].table_size, 2);
  ck_assert_uint_eq (d.v[1].flags, BITMAP_AUTO);
  ck_assert_uint_eq (d.v[1].extra_size, 13);
  bitmap_directory_free (&d);
}
END_TEST

static const struct {
  uint64_t entry;
  int code;
  const char *words;
} table_rows[] = {
  { 0, 0, NULL },
  { 1, 0, NULL },
  { 0x50000, 0, NULL },
  { 20 * CLUSTER, 0, NULL },    /* the last one, which is short */
  { 2, -EINVAL, "entry 7|0x2|bits 1 to 8" },
  { 0x50100, -EINVAL, "entry 7|0x50100|bits 1 to 8" },
  { UINT64_C (1) << 56, -EINVAL, "entry 7|0x100000000000000|56" },
  { UINT64_C (1) << 63, -EINVAL, "entry 7|0x8000000000000000" },
  { 0x50001, -EINVAL, "entry 7|0x50001|bit 0" },
  { 0x50200, -EINVAL, "entry 7|0x50200|65536" },
  { 21 * CLUSTER, -EINVAL, "entry 7|0x150000|end of the file" },
};

START_TEST (table_row)
{
  struct format_error e;
  const int r = bitmap_table_entry_check (table_rows[_i].entry, 7, CLUSTER,
                                          FILE_SIZE, &e);

  if (table_rows[_i].code)
    ck_refusal ("table entry", r, table_rows[_i].code, &e,
                table_rows[_i].words);
  else
    ck_accepted ("table entry", r, &e);
}
END_TEST

START_TEST (name_length)
{
  struct bitmap_directory d;
  struct format_error e;
  char name[1025];
  uint8_t buf[2048] = { 0 };
  size_t at = 0;
  struct entry x = { 0x50000, 1, 0, 1, 16, name, 0 };

  memset (name, 'n', 1024);
  name[1023] = '\0';
  put_entry (buf, &at, &x);
  ck_accepted ("1023", decode_directory (buf, at, 1, &d, &e), &e);
  bitmap_directory_free (&d);

  memset (name, 'n', 1024);
  name[1024] = '\0';
  at = 0;
  put_entry (buf, &at, &x);
  ck_refusal ("1024", decode_directory (buf, at, 1, &d, &e), -EINVAL, &e,
              "entry 0|name_size is 1024|1023");

  buf[24 + 5] = '\0';
  store_be16 (buf + 18, 1016);
  ck_refusal ("NUL", decode_directory (buf, 24 + 1016, 1, &d, &e), -EINVAL,
              &e, "entry 0|nnnnn|NUL");
}
END_TEST

START_TEST (padding)
{
  const struct entry x = { 0x50000, 1, 0, 1, 16, "abc", 0 };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[64] = { 0 };
  size_t at = 0, i;

  put_entry (buf, &at, &x);
  for (i = 24 + 3; i < at; i++) {
    buf[i] = 9;
    ck_refusal ("padding", decode_directory (buf, at, 1, &d, &e), -EINVAL,
                &e, "entry 0|padding|0x09");
    buf[i] = 0;
  }
}
END_TEST

/* The entries fill the directory exactly; no length is good but one. */
START_TEST (directory_length)
{
  const struct entry entries[] = {
    { 0x50000, 1, 0, 1, 16, "one", 0 },
    { 0x50000, 1, 0, 1, 16, "a second one", 20 },
  };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[256] = { 0 };
  size_t at = 0, len;

  put_entry (buf, &at, &entries[0]);
  put_entry (buf, &at, &entries[1]);
  for (len = 0; len < at; len++)
    ck_refusal ("short", decode_directory (buf, len, 2, &d, &e), -EINVAL,
                &e, "bitmap_directory_size is");
  for (len = at + 1; len < at + 100; len++)
    ck_refusal ("long", decode_directory (buf, len, 2, &d, &e), -EINVAL, &e,
                "2 entries end at byte|bitmap_directory_size is");
  ck_accepted ("exact", decode_directory (buf, at, 2, &d, &e), &e);
  bitmap_directory_free (&d);
  ck_refusal ("fewer", decode_directory (buf, at, 1, &d, &e), -EINVAL, &e,
              "1 entries end at byte 32");
  ck_refusal ("more", decode_directory (buf, at, 3, &d, &e), -EINVAL, &e,
              "nb_bitmaps is 3|bitmap_directory_size is 88");
  ck_refusal ("none", decode_directory (buf, at, 0, &d, &e), -EINVAL, &e,
              "nb_bitmaps is 0");
  ck_refusal ("too many", decode_directory (buf, at, 65536, &d, &e),
              -EINVAL, &e, "nb_bitmaps is 65536|65535");
}
END_TEST

/* Lengths that would wrap when added up. */
START_TEST (huge_extra)
{
  static const uint32_t sizes[] = {
    UINT32_MAX, UINT32_MAX - 24, UINT32_MAX - 31, UINT32_C (0x80000000),
  };
  const struct entry x = { 0x50000, 1, 0, 1, 16, "abc", 0 };
  struct bitmap_directory d;
  struct format_error e;
  uint8_t buf[64] = { 0 };
  size_t at = 0;

  put_entry (buf, &at, &x);
  store_be32 (buf + 20, sizes[_i]);
  ck_refusal ("extra", decode_directory (buf, at, 1, &d, &e), -EINVAL, &e,
              "entry 0|ends at byte|past its end"
              "|bitmap_directory_size is 32");
}
END_TEST

/* As many as there may be, then two of the same name among them: this
 * must not take long.
 */
START_TEST (many)
{
  struct bitmap_directory d;
  struct format_error e;
  size_t at = 0;
  uint8_t *buf = calloc (MAX_BITMAPS, 40);
  char name[16];
  unsigned i;
  struct entry x = { 0x50000, 1, 0, 1, 16, name, 0 };

  ck_assert_ptr_nonnull (buf);
  for (i = 0; i < MAX_BITMAPS; i++) {
    snprintf (name, sizeof name, "%u", i * 7 % MAX_BITMAPS);
    put_entry (buf, &at, &x);
  }
  ck_accepted ("many", decode_directory (buf, at, MAX_BITMAPS, &d, &e), &e);
  bitmap_directory_free (&d);
  /* The last becomes "0", which is the name of the first. */
  store_be16 (buf + at - 32 + 18, 1);
  memcpy (buf + at - 8, "0\0\0\0\0\0\0", 8);
  ck_refusal ("same", decode_directory (buf, at, MAX_BITMAPS, &d, &e),
              -EINVAL, &e, "two bitmaps|'0'");
  free (buf);
}
END_TEST

START_TEST (entry_offset)
{
  ck_assert_uint_eq (bitmap_entry_offset (0), 0);
  ck_assert_uint_eq (bitmap_entry_offset (1), 0);
  ck_assert_uint_eq (bitmap_entry_offset (UINT64_MAX),
                     UINT64_C (0x00fffffffffffe00));
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("bitmap");
  TCase *tc = tcase_create ("bitmap");

  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, fields);
  tcase_add_loop_test (tc, row, 0, ARRAY_SIZE (rows));
  tcase_add_test (tc, name_length);
  tcase_add_test (tc, encode);
  tcase_add_loop_test (tc, table_row, 0, ARRAY_SIZE (table_rows));
  tcase_add_test (tc, padding);
  tcase_add_test (tc, directory_length);
  tcase_add_loop_test (tc, huge_extra, 0, 4);
  tcase_add_test (tc, many);
  tcase_add_test (tc, entry_offset);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
