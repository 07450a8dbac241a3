/* SPDX-License-Identifier: BSD-3-Clause */

/* Encrypted sectors: the key that a passphrase opens, and sectors of 512
 * bytes encrypted and decrypted with it.  No I/O.
 *
 * A struct crypt does not change after it was opened: any number of
 * threads may use it at the same time.
 */

#ifndef QCOW2_CRYPT_H
#define QCOW2_CRYPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define CRYPT_SECTOR UINT64_C (512) /* bytes */

struct crypt;
struct luks_header;

/* Open with a LUKS header, H, which was decoded from the bytes at HEADER
 * (they hold the key material, too).  It takes h->iterations rounds of
 * key derivation at most.
 *
 * 0; -EACCES: the passphrase opens no key slot; -ENOTSUP: unknown cipher
 * or hash; -ENOMEM.  On failure *E says why.
 */
int crypt_open_luks (const struct luks_header *h, const uint8_t *header,
                     const char *passphrase, struct crypt **crypt,
                     struct format_error *e);

/* What a new LUKS header is made for; the names are those that qemu-img
 * takes as encrypt.WHAT.
 */
struct luks_options {
  const char *cipher_alg;       /* "aes-256" */
  const char *cipher_mode;      /* "xts" */
  const char *ivgen_alg;        /* "plain64" */
  const char *ivgen_hash_alg;   /* "sha256"; of essiv */
  const char *hash_alg;         /* "sha256" */
  uint64_t iter_time;           /* of key derivation, milliseconds of this
                                   machine's time */
};

/* The defaults, those of qemu-img. */
void luks_options_init (struct luks_options *o);

/* Make a header with a new key that PASSPHRASE opens: *LEN bytes, to be
 * freed.  It takes O->iter_time and a bit more.  0; -ENOTSUP: there is no
 * such cipher, or QEMU cannot open it; -EINVAL: iter_time is too long;
 * -ENOMEM, or what getrandom(2) says.  On failure *E says why.
 */
int crypt_create_luks (const struct luks_options *o, const char *passphrase,
                       uint8_t **header, size_t *len,
                       struct format_error *e);

/* Open with the passphrase itself as the key (qcow2 specification,
 * crypt_method 1).  Nothing tells whether it is the right one.  0 or
 * -ENOMEM.
 */
int crypt_open_aes (const char *passphrase, struct crypt **crypt);

/* Wipes the keys.  NULL is allowed. */
void crypt_close (struct crypt *crypt);

/* Are sectors numbered by where they are in the file (LUKS), or on the
 * guest's disk (AES)?
 */
bool crypt_counts_host_sectors (const struct crypt *crypt);

/* LEN bytes in place, a multiple of CRYPT_SECTOR; SECTOR is the number of
 * the first.
 */
void crypt_encrypt (const struct crypt *crypt, uint64_t sector,
                    uint8_t *buf, size_t len);
void crypt_decrypt (const struct crypt *crypt, uint64_t sector,
                    uint8_t *buf, size_t len);

#endif /* QCOW2_CRYPT_H */
