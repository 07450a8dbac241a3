/* SPDX-License-Identifier: BSD-3-Clause */

/* Deriving keys.  All state that depends on a secret is wiped.  Takes no
 * locks.
 */

#include <config.h>

#include <string.h>

#include <nettle/hmac.h>
#include <nettle/memxor.h>
#include <nettle/nettle-meta.h>
#include <nettle/pbkdf2.h>

#include "byteorder.h"
#include "checked.h"
#include "kdf.h"

/* Large enough, and aligned, for each of those below. */
union state {
  struct md5_ctx md5;
  struct ripemd160_ctx ripemd160;
  struct sha1_ctx sha1;
  struct sha256_ctx sha256;
  struct sha512_ctx sha512;
};

const struct nettle_hash *
kdf_hash (const char *name)
{
  static const struct nettle_hash *const hashes[] = {
    &nettle_sha256, &nettle_sha1, &nettle_sha512, &nettle_ripemd160,
    &nettle_sha224, &nettle_sha384, &nettle_md5,
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (hashes); ++i)
    if (strcmp (hashes[i]->name, name) == 0)
      return hashes[i];
  return NULL;
}

void
kdf_digest (const struct nettle_hash *hash, const uint8_t *buf, size_t len,
            uint8_t *digest)
{
  union state state;

  hash->init (&state);
  hash->update (&state, len, buf);
  hash->digest (&state, hash->digest_size, digest);
  explicit_bzero (&state, sizeof state);
}

/* A keyed hash, as nettle's PBKDF2 wants it. */
struct prf {
  const struct nettle_hash *hash;
  union state outer, inner, state;
};

static void
prf_update (void *opaque, size_t len, const uint8_t *data)
{
  struct prf *prf = opaque;

  hmac_update (&prf->state, prf->hash, len, data);
}

static void
prf_digest (void *opaque, size_t len, uint8_t *digest)
{
  struct prf *prf = opaque;

  hmac_digest (&prf->outer, &prf->inner, &prf->state, prf->hash, len,
               digest);
}

void
kdf_pbkdf2 (const struct nettle_hash *hash, const uint8_t *password,
            size_t password_len, const uint8_t *salt, size_t salt_len,
            uint32_t iterations, uint8_t *key, size_t key_len)
{
  struct prf prf = { .hash = hash };

  hmac_set_key (&prf.outer, &prf.inner, &prf.state, hash, password_len,
                password);
  pbkdf2 (&prf, prf_update, prf_digest, hash->digest_size, iterations,
          salt_len, salt, key_len, key);
  explicit_bzero (&prf, sizeof prf);
}

/* Spread every bit of KEY over a digest's length around it. */
static void
diffuse (const struct nettle_hash *hash, uint8_t *key, size_t len)
{
  const size_t size = hash->digest_size;
  union state state;
  uint8_t number[4], digest[KDF_MAX_DIGEST];
  size_t at, n;
  uint32_t i;

  for (i = 0, at = 0; at < len; ++i, at += n) {
    n = MIN (size, len - at);
    store_be32 (number, i);
    hash->init (&state);
    hash->update (&state, sizeof number, number);
    hash->update (&state, n, key + at);
    hash->digest (&state, size, digest);
    memcpy (key + at, digest, n);
  }
  explicit_bzero (&state, sizeof state);
  explicit_bzero (digest, sizeof digest);
}

/* All of the stripes but the last, in D. */
static void
diffuse_all_but_last (const struct nettle_hash *hash,
                      const uint8_t *material, uint32_t stripes, uint8_t *d,
                      size_t len)
{
  uint32_t i;

  memset (d, 0, len);
  for (i = 0; i + 1 < stripes; ++i) {
    memxor (d, material + i * len, len);
    diffuse (hash, d, len);
  }
}

void
kdf_af_merge (const struct nettle_hash *hash, const uint8_t *material,
              uint32_t stripes, uint8_t *key, size_t len)
{
  diffuse_all_but_last (hash, material, stripes, key, len);
  memxor (key, material + (stripes - 1) * len, len);
}

void
kdf_af_split (const struct nettle_hash *hash, const uint8_t *key,
              size_t len, uint32_t stripes, uint8_t *material)
{
  uint8_t *last = material + (stripes - 1) * len;

  diffuse_all_but_last (hash, material, stripes, last, len);
  memxor (last, key, len);
}
