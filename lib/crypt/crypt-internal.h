/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a struct crypt; for the files of this directory. */

#ifndef QCOW2_CRYPT_INTERNAL_H
#define QCOW2_CRYPT_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct crypt;

/* CIPHER and MODE as in a LUKS header: "aes", "xts-plain64", "cbc-plain",
 * "ctr-essiv:sha256", "ecb".  0, or -ENOTSUP, -ENOMEM with *E filled.
 */
int crypt_new (const char *cipher, const char *mode, const uint8_t *key,
               size_t key_len, bool host_sectors, struct crypt **crypt,
               struct format_error *e);

#endif /* QCOW2_CRYPT_INTERNAL_H */
