/* SPDX-License-Identifier: BSD-3-Clause */

/* Encrypted images: getting the key.  See encryption.c. */

#ifndef QCOW2_ENCRYPTION_H
#define QCOW2_ENCRYPTION_H

struct image;

/* Open the encryption that the header names, with the passphrase of the
 * configuration: sets img->crypt.  0, -EACCES (no passphrase, or the
 * wrong one), -EINVAL, -ENOTSUP, -EIO, -ENOMEM; all but the last are
 * reported.
 */
int encryption_open (struct image *img);

/* Of the top image, when its layers are open: a passphrase that nothing
 * needs is a mistake.  0 or -EINVAL (reported).
 */
int encryption_check_passphrases (struct image *img);

#endif /* QCOW2_ENCRYPTION_H */
