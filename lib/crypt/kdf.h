/* SPDX-License-Identifier: BSD-3-Clause */

/* What keys are derived and put together with: hashes (from nettle) by
 * the names that LUKS uses, PBKDF2, and the anti-forensic splitter.
 */

#ifndef QCOW2_KDF_H
#define QCOW2_KDF_H

#include <stddef.h>
#include <stdint.h>

#define KDF_MAX_DIGEST 64       /* bytes */

struct nettle_hash;

/* NULL if there is none of that NAME. */
const struct nettle_hash *kdf_hash (const char *name);

/* The digest of BUF: digest_size bytes, at most KDF_MAX_DIGEST. */
void kdf_digest (const struct nettle_hash *hash, const uint8_t *buf,
                 size_t len, uint8_t *digest);

/* PBKDF2 (RFC 8018) with HMAC.  ITERATIONS is not 0. */
void kdf_pbkdf2 (const struct nettle_hash *hash, const uint8_t *password,
                 size_t password_len, const uint8_t *salt, size_t salt_len,
                 uint32_t iterations, uint8_t *key, size_t key_len);

/* Put a key of LEN bytes together again from STRIPES times as many (LUKS
 * on-disk format, "AFmerge").
 */
void kdf_af_merge (const struct nettle_hash *hash, const uint8_t *material,
                   uint32_t stripes, uint8_t *key, size_t len);

/* The other way round ("AFsplit"): MATERIAL, which is random, becomes
 * what kdf_af_merge makes KEY of.
 */
void kdf_af_split (const struct nettle_hash *hash, const uint8_t *key,
                   size_t len, uint32_t stripes, uint8_t *material);

#endif /* QCOW2_KDF_H */
