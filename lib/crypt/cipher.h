/* SPDX-License-Identifier: BSD-3-Clause */

/* A block cipher in a mode of operation, with its key.  It does not
 * change after it was made: any number of threads may use one at a time.
 */

#ifndef QCOW2_CIPHER_H
#define QCOW2_CIPHER_H

#include <stddef.h>
#include <stdint.h>

#define CIPHER_MAX_BLOCK 16     /* bytes */

struct cipher;

/* NAME as LUKS has it ("aes", "serpent", "twofish", "cast5"), MODE "ecb",
 * "cbc", "ctr" or "xts"; the length of KEY chooses the variant.  0,
 * -ENOTSUP if there is no such cipher, or -ENOMEM.
 */
int cipher_new (const char *name, const char *mode, const uint8_t *key,
                size_t key_len, struct cipher **cipher);

/* NULL is allowed. */
void cipher_free (struct cipher *cipher);

size_t cipher_block_size (const struct cipher *cipher);

/* LEN bytes in place, a multiple of the block size.  IV is a block (a
 * counter, a tweak, or unused, as the mode has it).
 */
void cipher_encrypt (const struct cipher *cipher, const uint8_t *iv,
                     uint8_t *buf, size_t len);
void cipher_decrypt (const struct cipher *cipher, const uint8_t *iv,
                     uint8_t *buf, size_t len);

#endif /* QCOW2_CIPHER_H */
