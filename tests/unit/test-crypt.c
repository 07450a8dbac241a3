/* SPDX-License-Identifier: BSD-3-Clause */

/* Ciphers, modes and key derivation against published vectors, and
 * against what nettle does in another way.  That the whole opens what
 * QEMU makes is for tests/nbd/test-encrypted.py.
 */

#include <config.h>

#include <nettle/nettle-meta.h>
#include <nettle/xts.h>

#include "cipher.h"
#include "crypt.h"
#include "crypt-internal.h"
#include "format-test.h"
#include "kdf.h"

/* Hexadecimal digits to bytes; the number of bytes. */
static size_t
from_hex (const char *s, uint8_t *buf)
{
  size_t n;

  for (n = 0; s[0] && s[1]; s += 2, n++) {
    unsigned v;

    ck_assert_int_eq (sscanf (s, "%2x", &v), 1);
    buf[n] = (uint8_t) v;
  }
  return n;
}

/* NIST SP 800-38A, F.1, F.2, F.5; IEEE 1619-2007, vectors 1, 2 and 4. */
static const struct {
  const char *cipher, *mode, *key, *iv, *plain, *encrypted;
} vectors[] = {
  { "aes", "ecb", "2b7e151628aed2a6abf7158809cf4f3c", "",
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
    "3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf" },
  { "aes", "cbc", "2b7e151628aed2a6abf7158809cf4f3c",
    "000102030405060708090a0b0c0d0e0f",
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
    "7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2" },
  { "aes", "ctr", "2b7e151628aed2a6abf7158809cf4f3c",
    "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51",
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff" },
  { "aes", "xts",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "00000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e" },
  { "aes", "xts",
    "1111111111111111111111111111111122222222222222222222222222222222",
    "33333333330000000000000000000000",
    "4444444444444444444444444444444444444444444444444444444444444444",
    "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0" },
};

START_TEST (vector)
{
  uint8_t key[64], iv[CIPHER_MAX_BLOCK] = { 0 }, buf[64], expected[64];
  size_t key_len = from_hex (vectors[_i].key, key);
  size_t len = from_hex (vectors[_i].plain, buf);
  struct cipher *c;

  from_hex (vectors[_i].iv, iv);
  from_hex (vectors[_i].encrypted, expected);
  ck_assert_int_eq (cipher_new (vectors[_i].cipher, vectors[_i].mode, key,
                                key_len, &c), 0);
  cipher_encrypt (c, iv, buf, len);
  ck_assert_mem_eq (buf, expected, len);
  cipher_decrypt (c, iv, buf, len);
  from_hex (vectors[_i].plain, expected);
  ck_assert_mem_eq (buf, expected, len);
  cipher_free (c);
}
END_TEST

static void
fill (uint8_t *buf, size_t len, unsigned seed)
{
  size_t i;

  for (i = 0; i < len; i++) {
    seed = seed * 1103515245 + 12345;
    buf[i] = (uint8_t) (seed >> 16);
  }
}

/* Our XTS, of many blocks at a time, against nettle's. */
START_TEST (xts_as_nettle_has_it)
{
  static const struct {
    const char *name;
    const struct nettle_cipher *nettle;
  } ciphers[] = {
    { "aes", &nettle_aes128 }, { "aes", &nettle_aes192 },
    { "aes", &nettle_aes256 }, { "serpent", &nettle_serpent256 },
    { "twofish", &nettle_twofish192 },
  };
  const struct nettle_cipher *n = ciphers[_i].nettle;
  const size_t lengths[] = { 16, 512, 528, 4096 };
  uint8_t key[64], iv[16], buf[4096], other[4096];
  void *data = malloc (n->context_size), *tweak = malloc (n->context_size);
  struct cipher *c;
  size_t i;

  fill (key, sizeof key, 1);
  fill (iv, sizeof iv, 2);
  ck_assert_int_eq (cipher_new (ciphers[_i].name, "xts", key,
                                2 * n->key_size, &c), 0);
  n->set_encrypt_key (data, key);
  n->set_encrypt_key (tweak, key + n->key_size);
  for (i = 0; i < ARRAY_SIZE (lengths); i++) {
    fill (buf, sizeof buf, 3);
    xts_encrypt_message (data, tweak, n->encrypt, iv, lengths[i], other,
                         buf);
    cipher_encrypt (c, iv, buf, lengths[i]);
    ck_assert_mem_eq (buf, other, lengths[i]);
    cipher_decrypt (c, iv, buf, lengths[i]);
    fill (other, sizeof other, 3);
    ck_assert_mem_eq (buf, other, lengths[i]);
  }
  cipher_free (c);
  free (data);
  free (tweak);
}
END_TEST

/* What there is no cipher for is said, and nothing is guessed. */
static const struct {
  const char *cipher, *mode;
  size_t key_len;
  int code;
} combinations[] = {
  { "aes", "xts-plain64", 64, 0 },
  { "aes", "xts-plain64", 48, 0 },
  { "aes", "xts-plain64", 16, -ENOTSUP },
  { "aes", "xts-plain64", 33, -ENOTSUP },
  { "aes", "cbc-essiv:sha256", 32, 0 },
  { "aes", "cbc-essiv:sha1", 32, -ENOTSUP },
  { "aes", "cbc-essiv:", 32, -ENOTSUP },
  { "aes", "cbc-essiv:crc32", 32, -ENOTSUP },
  { "aes", "cbc-essiv", 32, -ENOTSUP },
  { "aes", "cbc-plain65", 32, -ENOTSUP },
  { "aes", "cbc-", 32, -ENOTSUP },
  { "aes", "cbc", 32, -ENOTSUP },
  { "aes", "ecb", 16, 0 },
  { "aes", "-plain", 16, -ENOTSUP },
  { "aes", "verylongmode-plain", 16, -ENOTSUP },
  { "aes", "", 16, -ENOTSUP },
  { "aesx", "cbc-plain", 16, -ENOTSUP },
  { "cast5", "cbc-plain64", 16, 0 },
  { "cast5", "xts-plain64", 32, -ENOTSUP },
};

START_TEST (combination)
{
  uint8_t key[64] = { 1 };
  struct format_error e;
  struct crypt *c;
  int r = crypt_new (combinations[_i].cipher, combinations[_i].mode, key,
                     combinations[_i].key_len, true, &c, &e);

  if (combinations[_i].code == 0) {
    ck_accepted (combinations[_i].mode, r, &e);
    crypt_close (c);
  }
  else
    ck_refusal (combinations[_i].mode, r, combinations[_i].code, &e,
                "not supported");
}
END_TEST

/* Sectors differ by their number, and by all bits of it where the IV has
 * them all.
 */
START_TEST (sector_numbers)
{
  static const struct {
    const char *mode;
    bool low, high;             /* do these halves count? */
  } modes[] = {
    { "cbc-plain64", true, true }, { "cbc-plain", true, false },
    { "cbc-essiv:sha256", true, true }, { "ecb-plain64", false, false },
  };
  const uint64_t numbers[] = { 7, 8, 7 | UINT64_C (1) << 32 };
  uint8_t key[32] = { 9 }, buf[3][CRYPT_SECTOR], two[2 * CRYPT_SECTOR];
  struct format_error e;
  struct crypt *c;
  unsigned i;

  for (i = 0; i < 3; i++)
    memset (buf[i], 0x55, CRYPT_SECTOR);
  memset (two, 0x55, sizeof two);
  ck_accepted (modes[_i].mode, crypt_new ("aes", modes[_i].mode, key, 32,
                                          true, &c, &e), &e);
  for (i = 0; i < 3; i++)
    crypt_encrypt (c, numbers[i], buf[i], CRYPT_SECTOR);
  ck_assert ((memcmp (buf[0], buf[1], CRYPT_SECTOR) != 0) == modes[_i].low);
  ck_assert ((memcmp (buf[0], buf[2], CRYPT_SECTOR) != 0) == modes[_i].high);
  crypt_encrypt (c, 7, two, sizeof two);
  ck_assert_mem_eq (two, buf[0], CRYPT_SECTOR);
  ck_assert_mem_eq (two + CRYPT_SECTOR, buf[1], CRYPT_SECTOR);
  crypt_decrypt (c, 7, two, sizeof two);
  ck_assert_uint_eq (two[0], 0x55);
  ck_assert_uint_eq (two[sizeof two - 1], 0x55);
  crypt_close (c);
}
END_TEST

/* RFC 6070, vectors 2 and 5; RFC 7914, section 11. */
START_TEST (pbkdf2_vector)
{
  static const struct {
    const char *hash, *password, *salt;
    uint32_t iterations;
    const char *key;
  } v[] = {
    { "sha1", "password", "salt", 2,
      "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957" },
    { "sha1", "passwordPASSWORDpassword",
      "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096,
      "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038" },
    { "sha256", "passwd", "salt", 1,
      "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
      "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783" },
  };
  uint8_t key[64], expected[64];
  const size_t len = from_hex (v[_i].key, expected);

  kdf_pbkdf2 (kdf_hash (v[_i].hash), (const uint8_t *) v[_i].password,
              strlen (v[_i].password), (const uint8_t *) v[_i].salt,
              strlen (v[_i].salt), v[_i].iterations, key, len);
  ck_assert_mem_eq (key, expected, len);
}
END_TEST

/* Each hash by its LUKS name, none by another. */
START_TEST (hashes)
{
  static const struct {
    const char *name;
    unsigned size;
  } known[] = {
    { "md5", 16 }, { "sha1", 20 }, { "sha224", 28 }, { "sha256", 32 },
    { "sha384", 48 }, { "sha512", 64 }, { "ripemd160", 20 },
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (known); i++) {
    ck_assert_ptr_nonnull (kdf_hash (known[i].name));
    ck_assert_uint_eq (kdf_hash (known[i].name)->digest_size, known[i].size);
    ck_assert_uint_le (known[i].size, KDF_MAX_DIGEST);
  }
  ck_assert_ptr_null (kdf_hash ("sha25"));
  ck_assert_ptr_null (kdf_hash (""));
  ck_assert_ptr_null (kdf_hash ("SHA256"));
}
END_TEST

/* crypt_method 1: the key is the passphrase, cut or filled to 16 bytes. */
START_TEST (aes_key)
{
  static const char *const passphrases[] = {
    "abc", "0123456789abcdef", "0123456789abcdefghi", "",
  };
  uint8_t key[16] = { 0 }, iv[16] = { 5 }, buf[512] = { 0 }, other[512];
  const size_t len = strlen (passphrases[_i]);
  struct cipher *cipher;
  struct crypt *c;

  memcpy (key, passphrases[_i], MIN (len, sizeof key));
  ck_assert_int_eq (cipher_new ("aes", "cbc", key, 16, &cipher), 0);
  memcpy (other, buf, sizeof buf);
  cipher_encrypt (cipher, iv, other, sizeof other);
  ck_assert_int_eq (crypt_open_aes (passphrases[_i], &c), 0);
  ck_assert (!crypt_counts_host_sectors (c));
  crypt_encrypt (c, 5, buf, sizeof buf);
  ck_assert_mem_eq (buf, other, sizeof buf);
  crypt_close (c);
  cipher_free (cipher);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("crypt");
  TCase *tc = tcase_create ("crypt");

  tcase_set_timeout (tc, 60);
  tcase_add_loop_test (tc, vector, 0, ARRAY_SIZE (vectors));
  tcase_add_loop_test (tc, xts_as_nettle_has_it, 0, 5);
  tcase_add_loop_test (tc, combination, 0, ARRAY_SIZE (combinations));
  tcase_add_loop_test (tc, sector_numbers, 0, 4);
  tcase_add_loop_test (tc, pbkdf2_vector, 0, 3);
  tcase_add_test (tc, hashes);
  tcase_add_loop_test (tc, aes_key, 0, 4);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
