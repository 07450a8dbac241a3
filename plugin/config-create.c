/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters that make a new image: create=SIZE, and create.WHAT for
 * what "qemu-img create" takes as -o WHAT (with - for _); and resize=SIZE,
 * which changes the disk of one that is there.
 *
 * Locks: none, as in config.c.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "checked.h"
#include "config-internal.h"
#include "storage.h"

/* Something of the options was given, so create must be, too. */
static const char *given;

/* Something of the encryption was given, so its format must be, too. */
static const char *encrypt_given;

static const struct choice versions[] = {
  { "v2", 2 }, { "0.10", 2 }, { "v3", 3 }, { "1.1", 3 }, { NULL, 0 }
};
static const struct choice compressions[] = {
  { "zlib", COMPRESSION_DEFLATE }, { "zstd", COMPRESSION_ZSTD }, { NULL, 0 }
};
static const struct choice preallocations[] = {
  { "off", PREALLOCATE_OFF }, { "metadata", PREALLOCATE_METADATA },
  { "falloc", PREALLOCATE_FALLOC }, { "full", PREALLOCATE_FULL }, { NULL, 0 }
};
static const struct choice formats[] = {
  { "qcow2", 0 }, { "raw", 1 }, { NULL, 0 }
};

static struct create_options *
options (void)
{
  return &config.create_options;
}

static int
set_create (const char *key, const char *value)
{
  config.create = true;
  return config_size (key, value, &options ()->size);
}

static int
set_backing_file (const char *key, const char *value)
{
  if (!*value)
    return config_bad_value (key, value, "the name of a file");
  options ()->backing_file = value;
  return 0;
}

static int
set_backing_format (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, formats, &v) == -1)
    return -1;
  options ()->backing_format = value;
  return 0;
}

static int
set_cluster_size (const char *key, const char *value)
{
  return config_size (key, value, &options ()->cluster_size);
}

static int
set_compat (const char *key, const char *value)
{
  return config_choice (key, value, versions, &options ()->version);
}

static int
set_compression_type (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, compressions, &v) == -1)
    return -1;
  options ()->compression_type = (enum compression_type) v;
  return 0;
}

static int
set_flag (const char *key, const char *value, bool *r)
{
  uint32_t v;

  if (config_choice (key, value, config_on_off, &v) == -1)
    return -1;
  *r = v;
  return 0;
}

/* One format: QEMU's AES is too weak to make more of it. */
static int
set_encrypt_format (const char *key, const char *value)
{
  static const struct choice encryptions[] = { { "luks", 1 }, { NULL, 0 } };
  uint32_t v;

  if (config_choice (key, value, encryptions, &v) == -1)
    return -1;
  options ()->encrypt = true;
  return 0;
}

/* What is not a name of theirs is said when the header is made. */
static int
set_encrypt_name (const char *key, const char *value, const char **r)
{
  if (!*value)
    return config_bad_value (key, value, "a name");
  encrypt_given = key;
  *r = value;
  return 0;
}

static int
set_encrypt_cipher_alg (const char *key, const char *value)
{
  return set_encrypt_name (key, value, &options ()->luks.cipher_alg);
}

static int
set_encrypt_cipher_mode (const char *key, const char *value)
{
  return set_encrypt_name (key, value, &options ()->luks.cipher_mode);
}

static int
set_encrypt_hash_alg (const char *key, const char *value)
{
  return set_encrypt_name (key, value, &options ()->luks.hash_alg);
}

static int
set_encrypt_iter_time (const char *key, const char *value)
{
  encrypt_given = key;
  return config_size (key, value, &options ()->luks.iter_time);
}

static int
set_encrypt_ivgen_alg (const char *key, const char *value)
{
  return set_encrypt_name (key, value, &options ()->luks.ivgen_alg);
}

static int
set_encrypt_ivgen_hash_alg (const char *key, const char *value)
{
  return set_encrypt_name (key, value, &options ()->luks.ivgen_hash_alg);
}

static int
set_data_file (const char *key, const char *value)
{
  if (!*value || storage_is_nbd_uri (value))
    return config_bad_value (key, value, "the name of a file");
  options ()->data_file = value;
  return 0;
}

static int
set_data_file_raw (const char *key, const char *value)
{
  return set_flag (key, value, &options ()->data_file_raw);
}

static int
set_extended_l2 (const char *key, const char *value)
{
  return set_flag (key, value, &options ()->extended_l2);
}

static int
set_lazy_refcounts (const char *key, const char *value)
{
  return set_flag (key, value, &options ()->lazy_refcounts);
}

static int
set_preallocation (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, preallocations, &v) == -1)
    return -1;
  options ()->preallocation = (enum preallocation) v;
  return 0;
}

static int
set_refcount_bits (const char *key, const char *value)
{
  return config_size (key, value, &options ()->refcount_bits);
}

static int
set_resize (const char *key, const char *value)
{
  if (config_size (key, value, &config.new_size) == -1)
    return -1;
  if (config.new_size > INT64_MAX - 511)
    return config_bad_value (key, value, "a size of at most 2^63 - 512");
  config.resize = true;
  return 0;
}

static int
set_resize_shrink (const char *key, const char *value)
{
  return set_flag (key, value, &config.resize_shrink);
}

static const struct parameter parameters[] = {
  { "create", set_create },
  { "create.backing-file", set_backing_file },
  { "create.backing-fmt", set_backing_format },
  { "create.cluster-size", set_cluster_size },
  { "create.compat", set_compat },
  { "create.compression-type", set_compression_type },
  { "create.data-file", set_data_file },
  { "create.data-file-raw", set_data_file_raw },
  { "create.encrypt.cipher-alg", set_encrypt_cipher_alg },
  { "create.encrypt.cipher-mode", set_encrypt_cipher_mode },
  { "create.encrypt.format", set_encrypt_format },
  { "create.encrypt.hash-alg", set_encrypt_hash_alg },
  { "create.encrypt.iter-time", set_encrypt_iter_time },
  { "create.encrypt.ivgen-alg", set_encrypt_ivgen_alg },
  { "create.encrypt.ivgen-hash-alg", set_encrypt_ivgen_hash_alg },
  { "create.extended-l2", set_extended_l2 },
  { "create.lazy-refcounts", set_lazy_refcounts },
  { "create.preallocation", set_preallocation },
  { "create.refcount-bits", set_refcount_bits },
  { "resize", set_resize },
  { "resize-shrink", set_resize_shrink },
  { NULL, NULL }
};

const struct parameter *
config_create_find (const char *key)
{
  const struct parameter *p = config_find (parameters, key);

  if (p && strncmp (key, "create.", strlen ("create.")) == 0)
    given = p->key;
  return p;
}

void
config_create_init (void)
{
  create_options_init (&config.create_options);
  given = encrypt_given = NULL;
}

int
config_create_complete (void)
{
  if (given && !config.create) {
    report_error ("%s: expected create=SIZE, too; without it no image is "
                  "made", given);
    return -1;
  }
  if (encrypt_given && !options ()->encrypt) {
    report_error ("%s: expected create.encrypt.format=luks, too; without it "
                  "the image is not encrypted", encrypt_given);
    return -1;
  }
  if (options ()->encrypt && !config.image.passphrase) {
    report_error ("create.encrypt.format: expected passphrase=, too, which "
                  "will open the image");
    return -1;
  }
  options ()->passphrase = config.image.passphrase;
  if (config.resize_shrink && !config.resize) {
    report_error ("resize-shrink: expected resize=SIZE, too; without it the "
                  "disk keeps its size");
    return -1;
  }
  return 0;
}
