/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a LUKS header (LUKS on-disk format, version 1): what unlock.c
 * opens.  A random volume key, and one slot for the passphrase.
 *
 * How many rounds of key derivation there are is a matter of time: as
 * many as this machine does in what was asked for.  The time is that of
 * this thread, so that a busy machine makes no weak keys; its clock may
 * count in ticks, so a try that took no time is repeated with more.
 *
 * Everything secret lives in one struct of secret memory.
 *
 * Locks: none.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "checked.h"
#include "crypt.h"
#include "crypt-internal.h"
#include "kdf.h"
#include "luks.h"
#include "secret.h"

#define MIN_ITERATIONS UINT64_C (1000) /* LUKS on-disk format, "Constants" */
#define MAX_ITERATIONS (LUKS_MAX_ITERATIONS / 4)
#define TRY_MSEC       UINT64_C (100) /* is long enough to tell how fast it is */
#define UUID_LENGTH    37

struct secrets {
  uint8_t volume_key[LUKS_MAX_KEY];
  uint8_t slot_key[LUKS_MAX_KEY];
  uint8_t material[LUKS_STRIPES * LUKS_MAX_KEY];
};

void
luks_options_init (struct luks_options *o)
{
  *o = (struct luks_options) {
    .cipher_alg = "aes-256", .cipher_mode = "xts", .ivgen_alg = "plain64",
    .ivgen_hash_alg = "sha256", .hash_alg = "sha256", .iter_time = 2000,
  };
}

static int
fill_random (void *buf, size_t len, struct format_error *e)
{
  uint8_t *p = buf;
  ssize_t n;

  for (; len > 0; p += n, len -= (size_t) n) {
    n = getrandom (p, len, 0);
    if (n < 0 && errno == EINTR)
      n = 0;
    if (n < 0)
      return format_fail (e, -errno, "no random bytes for a key: %s",
                          strerror (errno));
  }
  return 0;
}

/*----------------------------------------------------------------------
 * Names.
 */

/* Whether snprintf has put all of a name in a field of SIZE bytes: the
 * field on disk, a byte less, has a NUL at its end, too.
 */
static int
check_length (int n, size_t size, const char *what, struct format_error *e)
{
  if (n < 0 || (size_t) n >= size - 1)
    return format_fail (e, -ENOTSUP, "the name of the %s is too long", what);
  return 0;
}

/* "aes-256" is the cipher "aes" with a key of 32 bytes, or of two if the
 * mode is XTS.
 */
static int
set_cipher (struct luks_header *h, const struct luks_options *o,
            struct format_error *e)
{
  const char *dash = strrchr (o->cipher_alg, '-');
  const int len = dash ? (int) MIN (dash - o->cipher_alg, 30) : 0;
  const unsigned long bits = dash ? strtoul (dash + 1, NULL, 10) : 0;
  const bool essiv = strcmp (o->ivgen_alg, "essiv") == 0;
  int n;

  if (len == 0 || bits == 0 || bits > 256 || bits % 64 != 0)
    return format_fail (e, -ENOTSUP, "the cipher '%s' is not supported, "
                        "which should be one as aes-256", o->cipher_alg);
  h->key_bytes = (uint32_t) bits / 8;
  if (strcmp (o->cipher_mode, "xts") == 0)
    h->key_bytes *= 2;
  snprintf (h->cipher, sizeof h->cipher, "%.*s", len, o->cipher_alg);
  n = snprintf (h->mode, sizeof h->mode, "%s-%s%s%s", o->cipher_mode,
                o->ivgen_alg, essiv ? ":" : "",
                essiv ? o->ivgen_hash_alg : "");
  return check_length (n, sizeof h->mode, "mode or IV", e);
}

static int
set_hash (struct luks_header *h, const struct luks_options *o,
          struct format_error *e)
{
  const int n = snprintf (h->hash, sizeof h->hash, "%s", o->hash_alg);

  return check_length (n, sizeof h->hash, "hash", e);
}

/* Is there such a cipher, and such a hash?  And QEMU 7.2 ends with a
 * failed assertion where key material has no whole sectors.
 */
static int
check_names (const struct luks_header *h, const struct luks_options *o,
             struct format_error *e)
{
  static const uint8_t no_key[LUKS_MAX_KEY];
  struct crypt *c;
  int r;

  if (!kdf_hash (h->hash))
    return format_fail (e, -ENOTSUP, "the hash '%s' is not supported",
                        h->hash);
  r = crypt_new (h->cipher, h->mode, no_key, h->key_bytes, true, &c, e);
  if (r < 0)
    return r;
  crypt_close (c);
  if (luks_material_size (h) != h->key_bytes * LUKS_STRIPES)
    return format_fail (e, -ENOTSUP, "QEMU could not open it with keys of "
                        "192 bits (%s) unless the mode is XTS",
                        o->cipher_alg);
  return 0;
}

/*----------------------------------------------------------------------
 * Rounds.
 */

static uint64_t
thread_msec (void)
{
  struct timespec t;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &t);
  return (uint64_t) t.tv_sec * 1000 + (uint64_t) t.tv_nsec / 1000000;
}

/* How many rounds for a key of KEY_LEN bytes take so long. */
static uint64_t
rounds_in (const struct nettle_hash *hash, size_t key_len, uint64_t msec)
{
  static const uint8_t salt[LUKS_SALT], password[1];
  const uint64_t enough = msec > TRY_MSEC ? TRY_MSEC : msec;
  uint8_t key[LUKS_MAX_KEY];
  uint64_t rounds = MIN_ITERATIONS, start, took;

  for (;;) {
    start = thread_msec ();
    kdf_pbkdf2 (hash, password, sizeof password, salt, sizeof salt,
                (uint32_t) rounds, key, key_len);
    took = thread_msec () - start;
    if ((took > 0 && took >= enough) || rounds >= MAX_ITERATIONS)
      break;
    rounds *= 2;
  }
  rounds = took > 0 ? rounds * msec / took : rounds;
  return MAX (rounds, MIN_ITERATIONS);
}

static int
set_iterations (struct luks_header *h, const struct luks_options *o,
                struct format_error *e)
{
  const struct nettle_hash *hash = kdf_hash (h->hash);
  uint64_t rounds = 0;

  if (o->iter_time <= 60000)
    rounds = rounds_in (hash, h->key_bytes, o->iter_time);
  if (rounds == 0 || rounds > MAX_ITERATIONS)
    return format_fail (e, -EINVAL, "the time of key derivation, %" PRIu64
                        " ms, is too long", o->iter_time);
  h->slots[0].iterations = (uint32_t) rounds;
  /* As LUKS on-disk format has it: the volume key is no passphrase. */
  h->digest_iterations = (uint32_t) MAX (rounds / 8, MIN_ITERATIONS);
  return 0;
}

/*----------------------------------------------------------------------
 * The header.
 */

static int
set_random (struct luks_header *h, struct secrets *s, char *uuid,
            struct format_error *e)
{
  uint8_t u[16];
  int r = fill_random (s, sizeof *s, e);

  if (r == 0)
    r = fill_random (h->digest_salt, sizeof h->digest_salt, e);
  if (r == 0)
    r = fill_random (h->slots[0].salt, sizeof h->slots[0].salt, e);
  if (r == 0)
    r = fill_random (u, sizeof u, e);
  if (r < 0)
    return r;
  u[6] = (u[6] & 0x0f) | 0x40;  /* RFC 4122: version 4, random */
  u[8] = (u[8] & 0x3f) | 0x80;
  snprintf (uuid, UUID_LENGTH, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
            "%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3], u[4], u[5],
            u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
  return 0;
}

/* Slot 0 takes the volume key. */
static int
lock_slot (const struct luks_header *h, const char *passphrase,
           struct secrets *s, uint8_t *header, struct format_error *e)
{
  const struct luks_slot *slot = &h->slots[0];
  const struct nettle_hash *hash = kdf_hash (h->hash);
  const size_t len = luks_material_size (h);
  struct crypt *c;
  int r;

  kdf_af_split (hash, s->volume_key, h->key_bytes, LUKS_STRIPES,
                s->material);
  kdf_pbkdf2 (hash, (const uint8_t *) passphrase, strlen (passphrase),
              slot->salt, sizeof slot->salt, slot->iterations, s->slot_key,
              h->key_bytes);
  r = crypt_new (h->cipher, h->mode, s->slot_key, h->key_bytes, true, &c, e);
  if (r < 0)
    return r;
  crypt_encrypt (c, 0, s->material, len);
  memcpy (header + slot->material, s->material, len);
  crypt_close (c);
  return 0;
}

static int
make_header (struct luks_header *h, const char *passphrase,
             struct secrets *s, uint8_t *header, struct format_error *e)
{
  char uuid[UUID_LENGTH];
  int r = set_random (h, s, uuid, e);

  if (r < 0)
    return r;
  h->slots[0].active = true;
  kdf_pbkdf2 (kdf_hash (h->hash), s->volume_key, h->key_bytes,
              h->digest_salt, sizeof h->digest_salt, h->digest_iterations,
              h->digest, sizeof h->digest);
  luks_header_encode (h, uuid, header);
  return lock_slot (h, passphrase, s, header, e);
}

int
crypt_create_luks (const struct luks_options *o, const char *passphrase,
                   uint8_t **header, size_t *len, struct format_error *e)
{
  struct luks_header h = { .key_bytes = 0 };
  struct secrets *s;
  int r = set_cipher (&h, o, e);

  if (r == 0)
    r = set_hash (&h, o, e);
  if (r == 0)
    r = check_names (&h, o, e);
  if (r == 0)
    r = set_iterations (&h, o, e);
  if (r < 0)
    return r;
  *len = luks_header_lay_out (&h);
  *header = calloc (1, *len);
  s = secret_alloc (sizeof *s);
  r = *header && s ? make_header (&h, passphrase, s, *header, e)
    : format_fail (e, -ENOMEM, "no memory for a key");
  secret_free (s);
  if (r < 0) {
    free (*header);
    *header = NULL;
  }
  return r;
}
