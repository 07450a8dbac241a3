/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening a LUKS header (LUKS on-disk format, version 1).
 *
 * Each active key slot holds the volume key, blown up by the
 * anti-forensic splitter and encrypted with a key that is derived from
 * its passphrase.  The slots are tried one after the other; a digest in
 * the header tells whether what comes out is the volume key.
 *
 * Why this is not left to libcryptsetup: see docs/design/engine.md.
 *
 * Everything secret lives in one struct of secret memory.
 *
 * Locks: none.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <nettle/memops.h>

#include "checked.h"
#include "crypt.h"
#include "crypt-internal.h"
#include "kdf.h"
#include "luks.h"
#include "secret.h"

struct secrets {
  uint8_t slot_key[LUKS_MAX_KEY];
  uint8_t volume_key[LUKS_MAX_KEY];
  uint8_t digest[LUKS_DIGEST];
  uint8_t material[LUKS_STRIPES * LUKS_MAX_KEY + CRYPT_SECTOR];
};

/* 1: the passphrase has opened slot I, volume_key is right; 0: it has
 * not.
 */
static int
try_slot (const struct luks_header *h, const uint8_t *header, unsigned i,
          const char *passphrase, struct secrets *s, struct format_error *e)
{
  const struct luks_slot *slot = &h->slots[i];
  const struct nettle_hash *hash = kdf_hash (h->hash);
  const size_t len = luks_material_size (h);
  struct crypt *c;
  int r;

  kdf_pbkdf2 (hash, (const uint8_t *) passphrase, strlen (passphrase),
              slot->salt, sizeof slot->salt, slot->iterations, s->slot_key,
              h->key_bytes);
  r = crypt_new (h->cipher, h->mode, s->slot_key, h->key_bytes, true, &c, e);
  if (r < 0)
    return r;
  memcpy (s->material, header + slot->material, len);
  crypt_decrypt (c, 0, s->material, len);
  crypt_close (c);
  kdf_af_merge (hash, s->material, LUKS_STRIPES, s->volume_key,
                h->key_bytes);
  kdf_pbkdf2 (hash, s->volume_key, h->key_bytes, h->digest_salt,
              sizeof h->digest_salt, h->digest_iterations, s->digest,
              sizeof s->digest);
  return memeql_sec (s->digest, h->digest, sizeof s->digest);
}

static int
find_volume_key (const struct luks_header *h, const uint8_t *header,
                 const char *passphrase, struct secrets *s,
                 struct format_error *e)
{
  unsigned i;
  int r = 0;

  for (i = 0; i < LUKS_SLOTS && r == 0; ++i)
    if (h->slots[i].active)
      r = try_slot (h, header, i, passphrase, s, e);
  if (r == 0)
    return format_fail (e, -EACCES, "the passphrase is wrong: it opens none "
                        "of the active key slots of the LUKS header");
  return r < 0 ? r : 0;
}

int
crypt_open_luks (const struct luks_header *h, const uint8_t *header,
                 const char *passphrase, struct crypt **crypt,
                 struct format_error *e)
{
  struct secrets *s;
  int r;

  if (!kdf_hash (h->hash))
    return format_fail (e, -ENOTSUP, "hash-spec in the LUKS header is '%s', "
                        "which is not supported", h->hash);
  s = secret_alloc (sizeof *s);
  if (!s)
    return format_fail (e, -ENOMEM, "no memory for the keys");
  r = find_volume_key (h, header, passphrase, s, e);
  if (r == 0)
    r = crypt_new (h->cipher, h->mode, s->volume_key, h->key_bytes, true,
                   crypt, e);
  secret_free (s);
  return r;
}
