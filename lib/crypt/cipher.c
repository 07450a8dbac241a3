/* SPDX-License-Identifier: BSD-3-Clause */

/* Ciphers and modes, from nettle.
 *
 * A key schedule of nettle's is only read when it is used, and the
 * changing part, the IV, is ours; so one is shared by all threads
 * without locks.
 *
 * XTS (IEEE 1619) is put together here from nettle's block ciphers:
 * nettle's own function passes them one block at a time, which makes AES
 * four times as slow.  A unit test compares the two.
 *
 * Locks: none.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include <nettle/cbc.h>
#include <nettle/ctr.h>
#include <nettle/memxor.h>
#include <nettle/nettle-meta.h>

#include "byteorder.h"
#include "checked.h"
#include "cipher.h"
#include "secret.h"

static const struct algorithm {
  const char *name;
  const struct nettle_cipher *nettle;
} algorithms[] = {
  { "aes", &nettle_aes128 },
  { "aes", &nettle_aes192 },
  { "aes", &nettle_aes256 },
  { "serpent", &nettle_serpent128 },
  { "serpent", &nettle_serpent192 },
  { "serpent", &nettle_serpent256 },
  { "twofish", &nettle_twofish128 },
  { "twofish", &nettle_twofish192 },
  { "twofish", &nettle_twofish256 },
  { "cast5", &nettle_cast128 },
  { NULL, NULL }
};

typedef void mode_fn (const struct cipher *c, uint8_t *iv, uint8_t *buf,
                      size_t len);

struct mode {
  const char *name;
  mode_fn *encrypt, *decrypt;
  unsigned keys;                /* that the key is made of */
};

struct cipher {
  const struct nettle_cipher *nettle;
  const struct mode *mode;
  void *encrypt, *decrypt;      /* key schedules; in secret memory */
  void *tweak;                  /* XTS: of the second key, to encrypt */
};

/*----------------------------------------------------------------------
 * Modes.
 */

static void
ecb_encrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf, size_t len)
{
  (void) iv;
  c->nettle->encrypt (c->encrypt, len, buf, buf);
}

static void
ecb_decrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf, size_t len)
{
  (void) iv;
  c->nettle->decrypt (c->decrypt, len, buf, buf);
}

static void
mode_cbc_encrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf,
                  size_t len)
{
  cbc_encrypt (c->encrypt, c->nettle->encrypt, c->nettle->block_size, iv,
               len, buf, buf);
}

static void
mode_cbc_decrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf,
                  size_t len)
{
  cbc_decrypt (c->decrypt, c->nettle->decrypt, c->nettle->block_size, iv,
               len, buf, buf);
}

/* Its own inverse. */
static void
ctr (const struct cipher *c, uint8_t *iv, uint8_t *buf, size_t len)
{
  ctr_crypt (c->encrypt, c->nettle->encrypt, c->nettle->block_size, iv, len,
             buf, buf);
}

#define XTS_BLOCK 16

/* The tweak of the next block: times x in GF(2^128). */
static void
next_tweak (uint64_t t[2])
{
  const uint64_t low = le64toh (t[0]), high = le64toh (t[1]);

  t[0] = htole64 (low << 1 ^ (high >> 63) * 0x87);
  t[1] = htole64 (high << 1 | low >> 63);
}

/* The tweaks of LEN bytes; the first one is in TWEAK, which moves on. */
static void
fill_tweaks (uint64_t *tweaks, size_t len, uint64_t tweak[2])
{
  size_t i;

  for (i = 0; i < len / sizeof *tweaks; i += 2) {
    tweaks[i] = tweak[0];
    tweaks[i + 1] = tweak[1];
    next_tweak (tweak);
  }
}

static void
xts (const struct cipher *c, nettle_cipher_func *fn, const void *key,
     const uint8_t *iv, uint8_t *buf, size_t len)
{
  uint64_t tweak[2], tweaks[512 / sizeof (uint64_t)];
  size_t n;

  c->nettle->encrypt (c->tweak, XTS_BLOCK, (uint8_t *) tweak, iv);
  for (; len > 0; buf += n, len -= n) {
    n = MIN (len, sizeof tweaks);
    fill_tweaks (tweaks, n, tweak);
    memxor (buf, tweaks, n);
    fn (key, n, buf, buf);
    memxor (buf, tweaks, n);
  }
}

static void
xts_encrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf, size_t len)
{
  xts (c, c->nettle->encrypt, c->encrypt, iv, buf, len);
}

static void
xts_decrypt (const struct cipher *c, uint8_t *iv, uint8_t *buf, size_t len)
{
  xts (c, c->nettle->decrypt, c->decrypt, iv, buf, len);
}

static const struct mode modes[] = {
  { "ecb", ecb_encrypt, ecb_decrypt, 1 },
  { "cbc", mode_cbc_encrypt, mode_cbc_decrypt, 1 },
  { "ctr", ctr, ctr, 1 },
  { "xts", xts_encrypt, xts_decrypt, 2 },
  { NULL, NULL, NULL, 0 }
};

/*----------------------------------------------------------------------
 * Making one.
 */

static const struct mode *
find_mode (const char *name)
{
  const struct mode *m;

  for (m = modes; m->name; ++m)
    if (strcmp (m->name, name) == 0)
      return m;
  return NULL;
}

static const struct nettle_cipher *
find_algorithm (const char *name, size_t key_len)
{
  const struct algorithm *a;

  for (a = algorithms; a->name; ++a)
    if (strcmp (a->name, name) == 0 && a->nettle->key_size == key_len)
      return a->nettle;
  return NULL;
}

static int
set_keys (struct cipher *c, const uint8_t *key)
{
  const unsigned size = c->nettle->context_size;

  c->encrypt = secret_alloc (size);
  c->decrypt = secret_alloc (size);
  c->tweak = secret_alloc (size);
  if (!c->encrypt || !c->decrypt || !c->tweak)
    return -ENOMEM;
  c->nettle->set_encrypt_key (c->encrypt, key);
  c->nettle->set_decrypt_key (c->decrypt, key);
  if (c->mode->keys > 1)
    c->nettle->set_encrypt_key (c->tweak, key + c->nettle->key_size);
  return 0;
}

int
cipher_new (const char *name, const char *mode, const uint8_t *key,
            size_t key_len, struct cipher **cipher)
{
  const struct mode *m = find_mode (mode);
  const struct nettle_cipher *n = NULL;
  struct cipher *c;
  int r;

  if (m && key_len % m->keys == 0)
    n = find_algorithm (name, key_len / m->keys);
  if (!n || (m->keys > 1 && n->block_size != XTS_BLOCK))
    return -ENOTSUP;
  c = secret_alloc (sizeof *c);
  if (!c)
    return -ENOMEM;
  c->nettle = n;
  c->mode = m;
  r = set_keys (c, key);
  if (r < 0) {
    cipher_free (c);
    return r;
  }
  *cipher = c;
  return 0;
}

void
cipher_free (struct cipher *c)
{
  if (!c)
    return;
  secret_free (c->encrypt);
  secret_free (c->decrypt);
  secret_free (c->tweak);
  secret_free (c);
}

size_t
cipher_block_size (const struct cipher *c)
{
  return c->nettle->block_size;
}

void
cipher_encrypt (const struct cipher *c, const uint8_t *iv, uint8_t *buf,
                size_t len)
{
  uint8_t copy[CIPHER_MAX_BLOCK];

  memcpy (copy, iv, sizeof copy);
  c->mode->encrypt (c, copy, buf, len);
}

void
cipher_decrypt (const struct cipher *c, const uint8_t *iv, uint8_t *buf,
                size_t len)
{
  uint8_t copy[CIPHER_MAX_BLOCK];

  memcpy (copy, iv, sizeof copy);
  c->mode->decrypt (c, copy, buf, len);
}
