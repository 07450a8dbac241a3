/* SPDX-License-Identifier: BSD-3-Clause */

/* The LUKS header: one row for each limit of the format, and for what
 * would make opening it take forever.
 */

#include <config.h>

#include "format-test.h"
#include "luks.h"

#define LENGTH (4096u + 8 * 258048) /* as QEMU has it for AES-256-XTS */
#define ACTIVE 0x00ac71f3
#define SLOT(i) (208 + (i) * 48)

/* Slots 0 and 7 are active. */
static uint8_t *
make_luks (void)
{
  uint8_t *buf = calloc (1, LENGTH);
  unsigned i;

  ck_assert_ptr_nonnull (buf);
  memcpy (buf, "LUKS\xba\xbe\0\1", 8);
  strcpy ((char *) buf + 8, "aes");
  strcpy ((char *) buf + 40, "xts-plain64");
  strcpy ((char *) buf + 72, "sha256");
  poke (buf, 104, 4, 4040);
  poke (buf, 108, 4, 64);
  memset (buf + 112, 0xd1, LUKS_DIGEST);
  memset (buf + 132, 0x5a, LUKS_SALT);
  poke (buf, 164, 4, 1000);
  for (i = 0; i < LUKS_SLOTS; i++) {
    poke (buf, SLOT (i), 4, i % 7 == 0 ? ACTIVE : 0x0000dead);
    poke (buf, SLOT (i) + 4, 4, 2000 + i);
    memset (buf + SLOT (i) + 8, (int) i, LUKS_SALT);
    poke (buf, SLOT (i) + 40, 4, 8 + i * 504);
    poke (buf, SLOT (i) + 44, 4, 4000);
  }
  return buf;
}

/* From a copy that is exactly LEN bytes long. */
static int
decode_luks (const uint8_t *buf, size_t len, struct luks_header *h,
             struct format_error *e)
{
  uint8_t *exact = malloc (len ? len : 1);
  int r;

  ck_assert_ptr_nonnull (exact);
  memcpy (exact, buf, len);
  memset (e, 0, sizeof *e);
  r = luks_header_decode (exact, len, h, e);
  free (exact);
  return r;
}

START_TEST (fields)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();
  unsigned i;

  ck_accepted ("fields", decode_luks (buf, LENGTH, &h, &e), &e);
  ck_assert_str_eq (h.cipher, "aes");
  ck_assert_str_eq (h.mode, "xts-plain64");
  ck_assert_str_eq (h.hash, "sha256");
  ck_assert_uint_eq (h.key_bytes, 64);
  ck_assert_uint_eq (h.digest[0], 0xd1);
  ck_assert_uint_eq (h.digest[LUKS_DIGEST - 1], 0xd1);
  ck_assert_uint_eq (h.digest_salt[LUKS_SALT - 1], 0x5a);
  ck_assert_uint_eq (h.digest_iterations, 1000);
  ck_assert_uint_eq (luks_material_size (&h), 256000);
  for (i = 0; i < LUKS_SLOTS; i++) {
    ck_assert (h.slots[i].active == (i % 7 == 0));
    ck_assert_uint_eq (h.slots[i].iterations, 2000 + i);
    ck_assert_uint_eq (h.slots[i].salt[LUKS_SALT - 1], i);
    ck_assert_uint_eq (h.slots[i].material, (8 + i * 504) * 512);
  }
  free (buf);
}
END_TEST

/* Slots that are not active may say anything. */
START_TEST (inactive_slots)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();

  memset (buf + SLOT (3) + 4, 0xff, 44);
  memset (buf + SLOT (4) + 4, 0, 44);
  ck_accepted ("inactive", decode_luks (buf, LENGTH, &h, &e), &e);
  free (buf);
}
END_TEST

static const struct {
  const char *name;
  size_t offset;
  unsigned width;
  uint64_t value;
  int code;
  const char *words;
} rows[] = {
  { "magic", 0, 4, 0x4c554b54, -EINVAL, "magic|0x4c554b54babe" },
  { "version 0", 6, 2, 0, -ENOTSUP, "version|is 0" },
  { "version 2", 6, 2, 2, -ENOTSUP, "version|is 2" },
  { "no cipher", 8, 1, 0, -EINVAL, "cipher-name|empty" },
  { "no mode", 40, 1, 0, -EINVAL, "cipher-mode|empty" },
  { "no hash", 72, 1, 0, -EINVAL, "hash-spec|empty" },
  { "key of 0 bytes", 108, 4, 0, -EINVAL, "key-bytes|is 0" },
  { "key of 65 bytes", 108, 4, 65, -EINVAL, "key-bytes|is 65" },
  { "key of 4 GiB", 108, 4, UINT32_MAX, -EINVAL, "key-bytes|4294967295" },
  { "digest without rounds", 164, 4, 0, -EINVAL, "mk-digest-iter|0" },
  { "digest of many rounds", 164, 4, UINT32_MAX, -ENOTSUP,
    "iterations|8589938597" },
  { "slot state", SLOT (2), 4, 1, -EINVAL, "key slot 2|0x1" },
  { "slot without rounds", SLOT (0) + 4, 4, 0, -EINVAL,
    "key slot 0|iterations|0" },
  { "slot of 2^32 - 1 rounds", SLOT (7) + 4, 4, UINT32_MAX, -ENOTSUP,
    "iterations|4294971295" },
  { "slot beyond the limit", SLOT (7) + 4, 4, (1 << 28) - 2000 - 2000 + 1,
    -ENOTSUP, "iterations|268435457|268435456" },
  { "material at 0", SLOT (0) + 40, 4, 0, -EINVAL,
    "key slot 0|key-material-offset|sector 0" },
  { "material on the slots", SLOT (0) + 40, 4, 1, -EINVAL,
    "key-material-offset|sector 1" },
  { "material at the end", SLOT (7) + 40, 4, LENGTH / 512, -EINVAL,
    "key slot 7|key-material-offset" },
  { "material beyond the end", SLOT (7) + 40, 4, LENGTH / 512 - 499,
    -EINVAL, "key slot 7|key-material-offset" },
  { "material far away", SLOT (7) + 40, 4, UINT32_MAX, -EINVAL,
    "key slot 7|key-material-offset|4294967295" },
  { "material upon another's", SLOT (7) + 40, 4, 8 + 499, -EINVAL,
    "key slots 0 and 7|overlap" },
  { "stripes", SLOT (7) + 44, 4, 3999, -EINVAL, "stripes|3999|4000" },
  { "stripes of 2^32 - 1", SLOT (0) + 44, 4, UINT32_MAX, -EINVAL,
    "stripes|4294967295" },
};

START_TEST (row)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();

  poke (buf, rows[_i].offset, rows[_i].width, rows[_i].value);
  ck_refusal (rows[_i].name, decode_luks (buf, LENGTH, &h, &e),
              rows[_i].code, &e, rows[_i].words);
  free (buf);
}
END_TEST

/* The last values that are good, beside some of the rows. */
START_TEST (at_the_limit)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();

  poke (buf, SLOT (0) + 40, 4, 2);
  poke (buf, SLOT (7) + 4, 4, (1 << 28) - 2000 - 2000);
  poke (buf, SLOT (7) + 40, 4, LENGTH / 512 - 500);
  ck_accepted ("limits", decode_luks (buf, LENGTH, &h, &e), &e);
  poke (buf, SLOT (7) + 40, 4, 2 + 500);
  ck_accepted ("neighbours", decode_luks (buf, LENGTH, &h, &e), &e);
  free (buf);
}
END_TEST

START_TEST (strings)
{
  static const size_t offsets[] = { 8, 40, 72 };
  static const char *const names[] = {
    "cipher-name", "cipher-mode", "hash-spec",
  };
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();

  memset (buf + offsets[_i], 'x', 32);
  ck_refusal (names[_i], decode_luks (buf, LENGTH, &h, &e), -EINVAL, &e,
              names[_i]);
  buf[offsets[_i] + 31] = '\0';
  ck_accepted (names[_i], decode_luks (buf, LENGTH, &h, &e), &e);
  free (buf);
}
END_TEST

START_TEST (no_active_slot)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();

  poke (buf, SLOT (0), 4, 0x0000dead);
  poke (buf, SLOT (7), 4, 0x0000dead);
  ck_refusal ("none", decode_luks (buf, LENGTH, &h, &e), -EINVAL, &e,
              "no key slot|active");
  free (buf);
}
END_TEST

/* Cut at every length: never accepted, never read beyond the end. */
START_TEST (lengths)
{
  struct luks_header h;
  struct format_error e;
  uint8_t *buf = make_luks ();
  size_t len;

  for (len = 0; len < 700; len++)
    ck_refusal ("cut", decode_luks (buf, len, &h, &e), -EINVAL, &e,
                "LUKS header");
  free (buf);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("luks");
  TCase *tc = tcase_create ("luks");

  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, fields);
  tcase_add_test (tc, inactive_slots);
  tcase_add_loop_test (tc, row, 0, ARRAY_SIZE (rows));
  tcase_add_test (tc, at_the_limit);
  tcase_add_loop_test (tc, strings, 0, 3);
  tcase_add_test (tc, no_active_slot);
  tcase_add_test (tc, lengths);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
