/* SPDX-License-Identifier: BSD-3-Clause */

/* Which key an image has (qcow2 specification, "crypt_method" and "Full
 * disk encryption header pointer"), and whether the user knows it.
 *
 * The image and each layer below it are encrypted or not, each for
 * itself.  passphrase= is that of the image, and that of its layers
 * unless backing-passphrase= is given.
 *
 * A passphrase for something that is not encrypted is refused: somebody
 * believes that his data is secret when it is not.
 *
 * Locks: none; nobody else knows the image yet.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "crypt.h"
#include "encryption.h"
#include "image-internal.h"
#include "luks.h"
#include "report.h"

/* Some ten seconds; somebody may wonder. */
#define MANY_ITERATIONS (UINT64_C (1) << 25)

static int
no_passphrase (struct image *img)
{
  report_error ("%s: the image is encrypted (crypt_method is %" PRIu32
                ", %s): give its passphrase as passphrase=+FILE or "
                "passphrase=-%s", img->config.filename,
                img->header.crypt_method,
                img->header.crypt_method == CRYPT_LUKS ? "LUKS" : "AES",
                img->is_top ? "" : ", or backing-passphrase= if it is not "
                "that of the image above");
  return -EACCES;
}

/* Read the header and its key material; *BUF is to be freed. */
static int
read_luks (struct image *img, uint8_t **buf)
{
  const struct header *h = &img->header;
  int r;

  *buf = malloc (h->crypto_length);
  if (!*buf)
    return -ENOMEM;
  r = storage_read (img->storage, *buf, h->crypto_length, h->crypto_offset);
  if (r < 0)
    report_error ("%s: reading the LUKS header at host offset %" PRIu64
                  ": %s", img->config.filename, h->crypto_offset,
                  strerror (-r));
  return r;
}

static int
open_luks (struct image *img)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct luks_header h;
  struct format_error e;
  int r = read_luks (img, &buf);

  if (r < 0)
    return r;
  r = luks_header_decode (buf, img->header.crypto_length, &h, &e);
  if (r == 0) {
    if (h.iterations > MANY_ITERATIONS)
      report_warning ("%s: the key slots of the LUKS header ask for %" PRIu64
                      " iterations: this takes a while",
                      img->config.filename, h.iterations);
    r = crypt_open_luks (&h, buf, img->config.passphrase, &img->crypt, &e);
  }
  if (r < 0 && r != -ENOMEM)
    report_error ("%s: %s", img->config.filename, e.text);
  return r;
}

int
encryption_open (struct image *img)
{
  const uint32_t method = img->header.crypt_method;

  if (method == CRYPT_NONE || img->config.offline)
    return 0;
  if (!img->config.passphrase)
    return no_passphrase (img);
  if (method == CRYPT_LUKS)
    return open_luks (img);
  report_warning ("%s: the image has the legacy AES encryption "
                  "(crypt_method is 1): it is weak, and a wrong passphrase "
                  "cannot be noticed, only garbage be read; convert it to "
                  "LUKS with 'qemu-img convert'", img->config.filename);
  return crypt_open_aes (img->config.passphrase, &img->crypt);
}

/* Is any layer below IMG encrypted? */
static bool
below_is_encrypted (const struct image *img)
{
  const struct layer *l;

  for (l = img->backing; l && l->image; l = l->image->backing)
    if (l->image->crypt)
      return true;
  return false;
}

int
encryption_check_passphrases (struct image *img)
{
  const struct image_config *c = &img->config;
  const bool below = below_is_encrypted (img);

  if (c->offline)
    return 0;
  if (c->passphrase && !img->crypt && (c->backing_passphrase || !below)) {
    report_error ("%s: passphrase= was given, but the image is not "
                  "encrypted (crypt_method is 0); leave it out",
                  c->filename);
    return -EINVAL;
  }
  if (c->backing_passphrase && !below) {
    report_error ("%s: backing-passphrase= was given, but %s; leave it out",
                  c->filename, img->backing
                  ? "no layer below the image is encrypted"
                  : "the image has no backing file");
    return -EINVAL;
  }
  return 0;
}
