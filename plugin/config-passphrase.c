/* SPDX-License-Identifier: BSD-3-Clause */

/* Passphrases: passphrase=, backing-passphrase=.
 *
 * The value is understood by nbdkit, as by its luks filter: the
 * passphrase itself, "+FILE", "-FD", or "-" for a prompt.  It is kept no
 * longer than until the image is open, and no error says it.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "config-internal.h"

static char *passphrase, *backing_passphrase;

static void
wipe (char **p)
{
  if (*p)
    explicit_bzero (*p, strlen (*p));
  free (*p);
  *p = NULL;
}

static int
set (const char *key, const char *value, char **p)
{
  if (*p) {
    report_error ("%s was given already, expected it once", key);
    return -1;
  }
  return nbdkit_read_password (value, p); /* says what went wrong */
}

int
config_set_passphrase (const char *key, const char *value)
{
  int r = set (key, value, &passphrase);

  config.image.passphrase = passphrase;
  return r;
}

int
config_set_backing_passphrase (const char *key, const char *value)
{
  int r = set (key, value, &backing_passphrase);

  config.image.backing_passphrase = backing_passphrase;
  return r;
}

void
config_wipe_passphrases (void)
{
  config.image.passphrase = config.image.backing_passphrase = NULL;
  config.create_options.passphrase = NULL;
  wipe (&passphrase);
  wipe (&backing_passphrase);
}
