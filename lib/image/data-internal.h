/* SPDX-License-Identifier: BSD-3-Clause */

/* Between data.c, which knows the file, and data-crypt.c, which knows the
 * bytes.  Parameters as in data.h.
 */

#ifndef QCOW2_DATA_INTERNAL_H
#define QCOW2_DATA_INTERNAL_H

#include "data.h"

/* data.c: bytes as they lie in the file. */
int data_read_stored (struct image *img, void *buf, size_t len,
                      uint64_t host);
int data_write_stored (struct image *img, const struct iovec *iov, int cnt,
                       uint64_t host, bool durable);

/* data-crypt.c: the same of an encrypted image, where they are
 * encrypted.
 */
int data_crypt_read (struct image *img, void *buf, size_t len,
                     uint64_t host, uint64_t guest);
int data_crypt_write (struct image *img, const struct iovec *iov, int cnt,
                      uint64_t host, uint64_t guest, bool durable);

#endif /* QCOW2_DATA_INTERNAL_H */
