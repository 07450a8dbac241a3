/* SPDX-License-Identifier: BSD-3-Clause */

/* The header extensions: one row for each rule of the specification's
 * "Header extensions" and of the sections on each of them.
 */

#include <config.h>

#include "format-test.h"

#define END            UINT32_C (0)
#define BACKING_FORMAT UINT32_C (0xe2792aca)
#define FEATURE_NAMES  UINT32_C (0x6803f857)
#define BITMAPS        UINT32_C (0x23852875)
#define CRYPTO         UINT32_C (0x0537be77)
#define DATA_FILE      UINT32_C (0x44415441)
#define UNKNOWN        UINT32_C (0x12345678)

#define C4K 12

/* Big-endian numbers as they stand in the data of an extension. */
#define BE32(v) (char) ((v) >> 24 & 255), (char) ((v) >> 16 & 255), \
    (char) ((v) >> 8 & 255), (char) ((v) & 255)
#define BE64(v) BE32 ((uint64_t) (v) >> 32), BE32 ((uint64_t) (v) & 0xffffffff)

static const char zeroes[32];
static const char long_name[1100] = { [0 ... 1099] = 'n' };

#define BITMAPS_DATA(nb, reserved, size, offset)                        \
  (const char[]) { BE32 (nb), BE32 (reserved), BE64 (size), BE64 (offset) }
#define CRYPTO_DATA(offset, length)                     \
  (const char[]) { BE64 (offset), BE64 (length) }

struct row {
  const char *what;
  struct {
    uint32_t type;
    const char *data;
    size_t len;
  } ext[3];
  uint32_t crypt_method;
  uint64_t autoclear;
  int code;
  const char *words;
};

/* The image has 3.5 clusters of 4096 bytes, its L1 table the last. */
static const struct row rows[] = {
  { "none", { { 0, NULL, 0 } }, 0, 0, 0, NULL },
  { "unknown", { { UNKNOWN, "?", 1 } }, 0, 0, 0, NULL },
  /* Only the definition of an extension could allow it to repeat. */
  { "unknown twice", { { UNKNOWN, "?", 1 }, { UNKNOWN, "?", 1 } },
    0, 0, 0, NULL },
  { "unknown, empty", { { UNKNOWN, "", 0 } }, 0, 0, 0, NULL },

  { "format of 15 bytes", { { BACKING_FORMAT, "123456789012345", 15 } },
    0, 0, 0, NULL },
  { "format of 16 bytes", { { BACKING_FORMAT, "1234567890123456", 16 } },
    0, 0, -EINVAL, "backing file format|0xe2792aca|16 bytes|15" },
  { "format with a NUL", { { BACKING_FORMAT, "ra\0w", 4 } },
    0, 0, -EINVAL, "backing file format|NUL" },
  { "format twice", { { BACKING_FORMAT, "raw", 3 },
                      { UNKNOWN, "?", 1 },
                      { BACKING_FORMAT, "raw", 3 } },
    0, 0, -EINVAL, "0xe2792aca|more than once" },
  { "feature names twice", { { FEATURE_NAMES, "", 0 },
                             { FEATURE_NAMES, "", 0 } },
    0, 0, -EINVAL, "0x6803f857|more than once" },
  { "feature names of an odd length", { { FEATURE_NAMES, zeroes, 31 } },
    0, 0, 0, NULL },

  { "data file name of 1023 bytes", { { DATA_FILE, long_name, 1023 } },
    0, 0, 0, NULL },
  { "data file name of 1024 bytes", { { DATA_FILE, long_name, 1024 } },
    0, 0, -EINVAL, "external data file name|0x44415441|1024" },
  { "data file name with a NUL", { { DATA_FILE, "a\0b", 3 } },
    0, 0, -EINVAL, "external data file name|NUL" },

  { "bitmaps", { { BITMAPS, BITMAPS_DATA (1, 0, 32, 0x2000), 24 } },
    0, 1, 0, NULL },
  { "bitmaps of 23 bytes", { { BITMAPS, zeroes, 23 } },
    0, 1, -EINVAL, "bitmaps extension|0x23852875|23 bytes|24" },
  { "bitmaps of 25 bytes, bit unset", { { BITMAPS, zeroes, 25 } },
    0, 0, -EINVAL, "bitmaps extension|0x23852875|25 bytes|24" },
  { "reserved field of bitmaps",
    { { BITMAPS, BITMAPS_DATA (1, 5, 32, 0x2000), 24 } },
    0, 1, -EINVAL, "reserved field|bitmaps|0x5" },
  { "nb_bitmaps 0", { { BITMAPS, BITMAPS_DATA (0, 0, 32, 0x2000), 24 } },
    0, 1, -EINVAL, "nb_bitmaps (bitmaps extension) is 0" },
  { "nb_bitmaps 65536",
    { { BITMAPS, BITMAPS_DATA (65536, 0, 32 << 16, 0x2000), 24 } },
    0, 1, -EFBIG, "nb_bitmaps (bitmaps extension) is 65536|65535" },
  { "bitmap_directory_size too small",
    { { BITMAPS, BITMAPS_DATA (2, 0, 63, 0x2000), 24 } },
    0, 1, -EINVAL, "bitmap_directory_size (bitmaps extension) is 63" },
  { "bitmap_directory_size too large",
    { { BITMAPS, BITMAPS_DATA (1, 0, 1024 * 65535 + 1, 0x2000), 24 } },
    0, 1, -EFBIG, "bitmap_directory_size (bitmaps extension) is 67107841" },
  { "bitmap_directory_size 2^64-1",
    { { BITMAPS, BITMAPS_DATA (1, 0, UINT64_MAX, 0x2000), 24 } },
    0, 1, -EFBIG, "bitmap_directory_size|18446744073709551615" },
  { "bitmap_directory_size out of the file",
    { { BITMAPS, BITMAPS_DATA (1, 0, 8193, 0x2000), 24 } },
    0, 1, -EINVAL, "bitmap_directory_offset (bitmaps extension) is 0x2000"
    "|8193" },
  { "bitmap_directory_offset unaligned",
    { { BITMAPS, BITMAPS_DATA (1, 0, 32, 0x2010), 24 } },
    0, 1, -EINVAL, "bitmap_directory_offset (bitmaps extension) is 0x2010" },
  { "bitmap_directory_offset 0",
    { { BITMAPS, BITMAPS_DATA (1, 0, 32, 0), 24 } },
    0, 1, -EINVAL, "bitmap_directory_offset (bitmaps extension) is 0" },
  { "bitmap_directory_offset past the end",
    { { BITMAPS, BITMAPS_DATA (1, 0, 32, UINT64_MAX - 4095), 24 } },
    0, 1, -EINVAL, "bitmap_directory_offset|0xfffffffffffff000" },
  /* Out of date, hence of no importance. */
  { "nonsense about bitmaps, bit unset",
    { { BITMAPS, BITMAPS_DATA (UINT32_MAX, 7, UINT64_MAX, 1), 24 } },
    0, 0, 0, NULL },
  { "bitmaps twice", { { BITMAPS, BITMAPS_DATA (1, 0, 32, 0x2000), 24 },
                       { BITMAPS, BITMAPS_DATA (1, 0, 32, 0x2000), 24 } },
    0, 0, -EINVAL, "0x23852875|more than once" },

  { "LUKS", { { CRYPTO, CRYPTO_DATA (0x2000, 4096), 16 } },
    2, 0, 0, NULL },
  { "crypto header without LUKS",
    { { CRYPTO, CRYPTO_DATA (0x2000, 4096), 16 } },
    0, 0, -EINVAL, "crypt_method (header byte 32) is 0|crypto header" },
  { "crypto header with AES",
    { { CRYPTO, CRYPTO_DATA (0x2000, 4096), 16 } },
    1, 0, -EINVAL, "crypt_method (header byte 32) is 1|crypto header" },
  { "crypto header of 15 bytes", { { CRYPTO, zeroes, 15 } },
    2, 0, -EINVAL, "crypto header extension|0x0537be77|15 bytes|16" },
  { "crypto header unaligned",
    { { CRYPTO, CRYPTO_DATA (0x2001, 4096), 16 } },
    2, 0, -EINVAL, "crypto header extension is 0x2001|4096" },
  { "crypto header at 0", { { CRYPTO, CRYPTO_DATA (0, 4096), 16 } },
    2, 0, -EINVAL, "crypto header extension is 0" },
  { "crypto header of no length", { { CRYPTO, CRYPTO_DATA (0x2000, 0), 16 } },
    2, 0, -EINVAL, "length in the crypto header extension is 0" },
  { "crypto header out of the file",
    { { CRYPTO, CRYPTO_DATA (0x2000, 8193), 16 } },
    2, 0, -EINVAL, "crypto header extension is 0x2000|8193" },
  { "crypto header longer than any",
    { { CRYPTO, CRYPTO_DATA (0x2000, UINT64_MAX), 16 } },
    2, 0, -EFBIG, "crypto header extension|18446744073709551615" },
  { "crypto header of 16 MiB and a byte",
    { { CRYPTO, CRYPTO_DATA (0x2000, 0x1000001), 16 } },
    2, 0, -EFBIG, "crypto header extension|16777217" },
  { "crypto header twice", { { CRYPTO, CRYPTO_DATA (0x2000, 4096), 16 },
                             { CRYPTO, CRYPTO_DATA (0x2000, 4096), 16 } },
    2, 0, -EINVAL, "0x0537be77|more than once" },
};

START_TEST (row)
{
  const struct row *r = &rows[_i];
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;
  size_t i;

  poke (m.buf, 32, 4, r->crypt_method);
  poke (m.buf, 88, 8, r->autoclear);
  for (i = 0; i < ARRAY_SIZE (r->ext); i++) {
    if (r->ext[i].type)
      add_extension (&m, r->ext[i].type, r->ext[i].data, r->ext[i].len);
  }
  if (r->code)
    ck_refusal (r->what, decode (&m, &h, &e), r->code, &e, r->words);
  else
    ck_accepted (r->what, decode (&m, &h, &e), &e);
  free (m.buf);
}
END_TEST

/* All extensions at once arrive where they belong. */
START_TEST (fields)
{
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;

  poke (m.buf, 32, 4, 2);
  poke (m.buf, 72, 8, INCOMPAT_DATA_FILE);
  poke (m.buf, 88, 8, AUTOCLEAR_BITMAPS);
  add_extension (&m, BACKING_FORMAT, "qcow2", 5);
  add_extension (&m, UNKNOWN, long_name, 77);
  add_extension (&m, CRYPTO, CRYPTO_DATA (0x1000, 5000), 16);
  add_extension (&m, BITMAPS, BITMAPS_DATA (3, 0, 100, 0x2000), 24);
  add_extension (&m, DATA_FILE, "data", 4);
  set_backing (&m, "back", 4);
  ck_accepted ("all", decode (&m, &h, &e), &e);
  ck_assert_str_eq (h.backing_format, "qcow2");
  ck_assert_str_eq (h.backing_file, "back");
  ck_assert_str_eq (h.data_file, "data");
  ck_assert (h.has_crypto);
  ck_assert_uint_eq (h.crypto_offset, 0x1000);
  ck_assert_uint_eq (h.crypto_length, 5000);
  ck_assert (h.has_bitmaps);
  ck_assert_uint_eq (h.nb_bitmaps, 3);
  ck_assert_uint_eq (h.bitmap_directory_size, 100);
  ck_assert_uint_eq (h.bitmap_directory_offset, 0x2000);
  free (m.buf);
}
END_TEST

/* Nobody can use a directory that may be out of date. */
START_TEST (stale_bitmaps)
{
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;

  add_extension (&m, BITMAPS, BITMAPS_DATA (3, 0, 100, 0x2000), 24);
  ck_accepted ("stale", decode (&m, &h, &e), &e);
  ck_assert (h.has_bitmaps);
  ck_assert_uint_eq (h.nb_bitmaps, 0);
  ck_assert_uint_eq (h.bitmap_directory_size, 0);
  ck_assert_uint_eq (h.bitmap_directory_offset, 0);
  free (m.buf);
}
END_TEST

/* An end mark hides what follows it. */
START_TEST (end_mark)
{
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;

  add_extension (&m, BACKING_FORMAT, "raw", 3);
  add_extension (&m, END, NULL, 0);
  add_extension (&m, BACKING_FORMAT, "qcow2", 5);
  ck_accepted ("end", decode (&m, &h, &e), &e);
  ck_assert_str_eq (h.backing_format, "raw");
  free (m.buf);
}
END_TEST

/* The length field of the last extension, for every length up to the end
 * of the cluster and past it, without an end mark.
 */
START_TEST (last_length)
{
  const size_t room = 512 - 112 - 8;
  size_t len;

  for (len = room - 16; len < room + 16; len++) {
    struct made m = make_header (3, 9);
    struct format_error e;
    struct header h;

    poke (m.buf, 112, 4, UNKNOWN);
    poke (m.buf, 116, 4, len);
    if (len <= room)
      ck_accepted ("fits", decode (&m, &h, &e), &e);
    else
      ck_refusal ("too long", decode (&m, &h, &e), -EINVAL, &e,
                  "0x12345678|(header byte 112)|392 bytes are left");
    free (m.buf);
  }
}
END_TEST

START_TEST (huge_length)
{
  static const uint32_t lengths[] = {
    UINT32_MAX, UINT32_MAX - 6, UINT32_MAX - 7, UINT32_MAX - 119,
    UINT32_C (0x80000000),
  };
  struct made m = make_header (3, 9);
  struct format_error e;
  struct header h;
  char words[60];

  poke (m.buf, 112, 4, BACKING_FORMAT);
  poke (m.buf, 116, 4, lengths[_i]);
  snprintf (words, sizeof words, "0xe2792aca|is %u bytes long", lengths[_i]);
  ck_refusal ("huge", decode (&m, &h, &e), -EINVAL, &e, words);
  free (m.buf);
}
END_TEST

/* Nor may an extension reach into the backing file's name. */
START_TEST (meets_backing)
{
  struct made m = make_header (3, C4K);
  struct format_error e;
  struct header h;

  add_extension (&m, UNKNOWN, "12345678", 8);
  poke (m.buf, 8, 8, 128);
  poke (m.buf, 16, 4, 1);
  m.buf[128] = 'b';
  ck_accepted ("up to the name", decode (&m, &h, &e), &e);
  poke (m.buf, 116, 4, 9);
  ck_refusal ("into the name", decode (&m, &h, &e), -EINVAL, &e,
              "0x12345678|9 bytes long|8 bytes are left");
  free (m.buf);
}
END_TEST

/* The header may fill the first cluster: then there are no extensions. */
START_TEST (no_room)
{
  struct made m = make_header (3, 9);
  struct format_error e;
  struct header h;
  uint32_t length;

  memset (m.buf + 112, 0xff, 512 - 112);
  for (length = 505; length <= 512; length++) {
    poke (m.buf, 100, 4, length);
    ck_accepted ("no room", decode (&m, &h, &e), &e);
  }
  poke (m.buf, 100, 4, 504);
  ck_refusal ("room for one", decode (&m, &h, &e), -EINVAL, &e,
              "0xffffffff|header byte 504");
  free (m.buf);
}
END_TEST

/* One entry of the feature name table. */
static void
feature (uint8_t *p, uint8_t type, uint8_t bit, const char *name, size_t len)
{
  p[0] = type;
  p[1] = bit;
  memset (p + 2, 0, 46);
  memcpy (p + 2, name, len);
}

START_TEST (feature_names)
{
  struct made m = make_header (3, C4K);
  uint8_t table[5 * 48];
  struct format_error e;
  struct header h;

  feature (table, 1, 40, "wrong kind", 10);
  feature (table + 48, 0, 40, "time travel", 11);
  feature (table + 96, 0, 41, long_name, 46);
  feature (table + 144, 0, 42, "two\nlines\x1b[1m", 13);
  feature (table + 192, 0, 200, "no such bit", 11);
  add_extension (&m, UNKNOWN, "x", 1);
  add_extension (&m, FEATURE_NAMES, table, sizeof table);

  poke (m.buf, 72, 8, UINT64_C (1) << 40);
  ck_refusal ("named", decode (&m, &h, &e), -ENOTSUP, &e,
              "bit 40 (time travel)");
  poke (m.buf, 72, 8, UINT64_C (1) << 41 | 1);
  ck_refusal ("full length", decode (&m, &h, &e), -ENOTSUP, &e,
              "bit 41 (nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn)");
  poke (m.buf, 72, 8, UINT64_C (1) << 42);
  ck_refusal ("unprintable", decode (&m, &h, &e), -ENOTSUP, &e,
              "bit 42 (two?lines?[1m)");
  poke (m.buf, 72, 8, UINT64_C (1) << 43);
  ck_refusal ("unnamed", decode (&m, &h, &e), -ENOTSUP, &e, ": bit 43");
  poke (m.buf, 72, 8, UINT64_C (7) << 40);
  ck_refusal ("several", decode (&m, &h, &e), -ENOTSUP, &e,
              "bit 40 (time travel), bit 41 (nnn|bit 42 (two");
  free (m.buf);
}
END_TEST

/* A broken list of extensions does not keep the feature from being
 * named: it may be what the feature changed.
 */
START_TEST (feature_in_broken_list)
{
  struct made m = make_header (3, 9);
  uint8_t table[48];
  struct format_error e;
  struct header h;

  feature (table, 0, 9, "chaos", 5);
  add_extension (&m, FEATURE_NAMES, table, sizeof table);
  poke (m.buf, m.ext, 8, UINT64_MAX);
  poke (m.buf, 72, 8, 1 << 9);
  ck_refusal ("broken after", decode (&m, &h, &e), -ENOTSUP, &e,
              "bit 9 (chaos)");
  poke (m.buf, 112, 8, UINT64_MAX);
  ck_refusal ("broken before", decode (&m, &h, &e), -ENOTSUP, &e, ": bit 9");
  free (m.buf);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("format-extensions");
  TCase *tc = tcase_create ("extensions");

  tcase_add_loop_test (tc, row, 0, ARRAY_SIZE (rows));
  tcase_add_test (tc, fields);
  tcase_add_test (tc, stale_bitmaps);
  tcase_add_test (tc, end_mark);
  tcase_add_test (tc, last_length);
  tcase_add_loop_test (tc, huge_length, 0, 5);
  tcase_add_test (tc, meets_backing);
  tcase_add_test (tc, no_room);
  tcase_add_test (tc, feature_names);
  tcase_add_test (tc, feature_in_broken_list);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
