/* SPDX-License-Identifier: BSD-3-Clause */

/* Sectors, and where their IVs come from.
 *
 * Each sector is encrypted by itself, with an IV made from its number:
 *
 *   plain     the low 32 bits of the number, little-endian
 *   plain64   all 64 bits
 *   essiv     all 64 bits, encrypted with a hash of the key (which has to
 *             be as long as a key of the same cipher)
 *
 * filled up with zeroes to a block.  ECB uses none, and says so or names
 * one all the same.
 *
 * Locks: none.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <nettle/nettle-meta.h>

#include "byteorder.h"
#include "checked.h"
#include "cipher.h"
#include "crypt.h"
#include "crypt-internal.h"
#include "kdf.h"
#include "secret.h"

#define AES_KEY 16              /* bytes: of crypt_method 1 */

struct crypt {
  struct cipher *cipher;
  struct cipher *essiv;         /* of the IVs; NULL: not essiv */
  uint64_t iv_mask;             /* of the sector's number */
  bool host_sectors;
};

/*----------------------------------------------------------------------
 * Sectors.
 */

static void
make_iv (const struct crypt *c, uint64_t sector,
         uint8_t iv[CIPHER_MAX_BLOCK])
{
  const uint64_t number = htole64 (sector & c->iv_mask);

  memset (iv, 0, CIPHER_MAX_BLOCK);
  memcpy (iv, &number, sizeof number);
  if (c->essiv)
    cipher_encrypt (c->essiv, iv, iv, cipher_block_size (c->essiv));
}

typedef void cipher_fn (const struct cipher *cipher, const uint8_t *iv,
                        uint8_t *buf, size_t len);

static void
each_sector (const struct crypt *c, cipher_fn *fn, uint64_t sector,
             uint8_t *buf, size_t len)
{
  uint8_t iv[CIPHER_MAX_BLOCK];
  size_t i;

  for (i = 0; i < len; i += CRYPT_SECTOR) {
    make_iv (c, sector++, iv);
    fn (c->cipher, iv, buf + i, CRYPT_SECTOR);
  }
}

void
crypt_encrypt (const struct crypt *c, uint64_t sector, uint8_t *buf,
               size_t len)
{
  each_sector (c, cipher_encrypt, sector, buf, len);
}

void
crypt_decrypt (const struct crypt *c, uint64_t sector, uint8_t *buf,
               size_t len)
{
  each_sector (c, cipher_decrypt, sector, buf, len);
}

bool
crypt_counts_host_sectors (const struct crypt *c)
{
  return c->host_sectors;
}

/*----------------------------------------------------------------------
 * Making one.
 */

/* The cipher of the IVs: its key is the hash of the key. */
static int
new_essiv (const char *cipher, const char *hash, const uint8_t *key,
           size_t key_len, struct cipher **essiv)
{
  const struct nettle_hash *h = kdf_hash (hash);
  uint8_t digest[KDF_MAX_DIGEST];
  int r;

  if (!h)
    return -ENOTSUP;
  kdf_digest (h, key, key_len, digest);
  r = cipher_new (cipher, "ecb", digest, h->digest_size, essiv);
  explicit_bzero (digest, sizeof digest);
  return r;
}

static int
set_iv (struct crypt *c, const char *cipher, const char *iv,
        const uint8_t *key, size_t key_len)
{
  static const char essiv[] = "essiv:";

  c->iv_mask = UINT64_MAX;
  if (strcmp (iv, "plain64") == 0)
    return 0;
  if (strcmp (iv, "plain") == 0) {
    c->iv_mask = UINT32_MAX;
    return 0;
  }
  if (strncmp (iv, essiv, sizeof essiv - 1) == 0)
    return new_essiv (cipher, iv + sizeof essiv - 1, key, key_len,
                      &c->essiv);
  return -ENOTSUP;
}

/* MODE is "MODE-IV". */
static int
fill (struct crypt *c, const char *cipher, const char *mode,
      const uint8_t *key, size_t key_len)
{
  const char *dash = strchr (mode, '-');
  char name[8];
  int r;

  if (!dash && strcmp (mode, "ecb") == 0)
    return cipher_new (cipher, mode, key, key_len, &c->cipher);
  if (!dash || (size_t) (dash - mode) >= sizeof name)
    return -ENOTSUP;
  snprintf (name, sizeof name, "%.*s", (int) (dash - mode), mode);
  r = cipher_new (cipher, name, key, key_len, &c->cipher);
  return r < 0 ? r : set_iv (c, cipher, dash + 1, key, key_len);
}

int
crypt_new (const char *cipher, const char *mode, const uint8_t *key,
           size_t key_len, bool host_sectors, struct crypt **crypt,
           struct format_error *e)
{
  struct crypt *c = secret_alloc (sizeof *c);
  int r = c ? fill (c, cipher, mode, key, key_len) : -ENOMEM;

  if (r == 0) {
    c->host_sectors = host_sectors;
    *crypt = c;
    return 0;
  }
  crypt_close (c);
  if (r == -ENOTSUP)
    return format_fail (e, r, "the cipher %s-%s with a key of %zu bytes is "
                        "not supported", cipher, mode, key_len);
  return format_fail (e, r, "no memory for a key");
}

int
crypt_open_aes (const char *passphrase, struct crypt **crypt)
{
  uint8_t key[AES_KEY] = { 0 };
  struct format_error e;
  int r;

  /* A key has no terminator: it is filled up with zeroes. */
  memcpy (key, passphrase,      /* NOLINT(bugprone-not-null-*) */
          MIN (strlen (passphrase), sizeof key));
  r = crypt_new ("aes", "cbc-plain64", key, sizeof key, false, crypt, &e);
  explicit_bzero (key, sizeof key);
  return r;
}

void
crypt_close (struct crypt *c)
{
  if (!c)
    return;
  cipher_free (c->cipher);
  cipher_free (c->essiv);
  secret_free (c);
}
