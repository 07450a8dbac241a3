/* SPDX-License-Identifier: BSD-3-Clause */

/* The header of a LUKS volume, version 1 (LUKS on-disk format): bytes to
 * a struct, every field checked against the format's limits and the
 * header's length; and back, for a new one.
 */

#ifndef QCOW2_LUKS_H
#define QCOW2_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

#define LUKS_SLOTS   8
#define LUKS_STRIPES 4000
#define LUKS_SALT    32         /* bytes */
#define LUKS_DIGEST  20         /* bytes */
#define LUKS_MAX_KEY 64         /* bytes; AES-256 in XTS mode */

/* Rounds of key derivation that all slots may ask for together: about a
 * minute of a fast processor, if the keys are the longest.  QEMU's default
 * are two seconds a slot.
 */
#define LUKS_MAX_ITERATIONS (UINT64_C (1) << 28)

struct luks_slot {
  bool active;
  uint32_t iterations;          /* of PBKDF2, not 0 */
  uint8_t salt[LUKS_SALT];
  uint64_t material;            /* offset in the header, bytes */
};

struct luks_header {
  char cipher[33];              /* as "aes"; NUL-terminated, like these: */
  char mode[33];                /* "xts-plain64" */
  char hash[33];                /* "sha256" */
  uint32_t key_bytes;           /* 1..LUKS_MAX_KEY */
  uint8_t digest[LUKS_DIGEST];  /* of the volume key */
  uint8_t digest_salt[LUKS_SALT];
  uint32_t digest_iterations;   /* not 0 */
  struct luks_slot slots[LUKS_SLOTS]; /* at least one is active */
  uint64_t iterations;          /* that it may take to open it, of all
                                   slots together */
};

/* Decode all LEN bytes of a header with its key slots.  Refused: what
 * the format forbids, version 2, key material that is not in the header
 * or lies upon something else, more than LUKS_MAX_ITERATIONS.  0, -EINVAL
 * or -ENOTSUP with *E filled; *H is undefined then.
 */
int luks_header_decode (const uint8_t *buf, size_t len,
                        struct luks_header *h, struct format_error *e);

/* Bytes of the key material of a slot: whole sectors. */
size_t luks_material_size (const struct luks_header *h);

/* Place the key material of all slots of a new header, for keys of
 * h->key_bytes.  Returns the length of the header with all of it.
 */
size_t luks_header_lay_out (struct luks_header *h);

/* Encode the fields; BUF is zeroed, and as long as luks_header_lay_out
 * has said.  UUID has at most 36 characters.
 */
void luks_header_encode (const struct luks_header *h, const char *uuid,
                         uint8_t *buf);

#endif /* QCOW2_LUKS_H */
