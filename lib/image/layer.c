/* SPDX-License-Identifier: BSD-3-Clause */

/* Backing files.
 *
 * What an image does not have it takes from the layer below: another
 * qcow2 image, or a raw file, either of which may be an export of an NBD
 * server; which of them is layer-name.c's matter.  Past the end of a
 * shorter layer everything is zero.
 *
 * Layers are opened read-only, locked as readers, and never change, so
 * reading them takes no range locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "depths.h"
#include "extents.h"
#include "image-internal.h"
#include "layer-name.h"
#include "read.h"
#include "report.h"

/* What S is.  An export has no identity but its URI, so a loop may be
 * found late, by its length.
 */
static struct chain_file
identify (struct storage *s)
{
  struct chain_file f = { 0 };

  if (!storage_identity (s, &f.dev, &f.ino)
      && storage_is_nbd_uri (storage_name (s)))
    f.uri = storage_name (s);
  return f;
}

static bool
is_same (const struct chain_file *a, const struct chain_file *b)
{
  if (a->uri || b->uri)
    return a->uri && b->uri && strcmp (a->uri, b->uri) == 0;
  return (a->dev != 0 || a->ino != 0) && a->dev == b->dev
    && a->ino == b->ino;
}

bool
chain_has (const struct chain *chain, struct storage *s)
{
  const struct chain_file f = identify (s);
  unsigned i;

  for (i = 0; i < chain->length; ++i)
    if (is_same (&chain->files[i], &f))
      return true;
  return false;
}

int
chain_add (struct chain *chain, struct storage *s)
{
  if (chain_has (chain, s)) {
    report_error ("%s: the chain of backing files leads back to this "
                  "file; correct it with 'qemu-img rebase -u'",
                  storage_name (s));
    return -ELOOP;
  }
  if (chain->length > MAX_CHAIN) {
    report_error ("%s: more than %d backing files in a chain",
                  storage_name (s), MAX_CHAIN);
    return -E2BIG;
  }
  chain->files[chain->length++] = identify (s);
  return 0;
}

static int
open_raw (struct layer *layer)
{
  int r = storage_size (layer->raw, &layer->size);

  if (r < 0)
    report_error ("%s: finding the size: %s", storage_name (layer->raw),
                  strerror (-r));
  return r;
}

/* The config of a layer: what concerns reading. */
static struct image_config
layer_config (const struct image *img, const char *path,
              const struct layer_name *n)
{
  struct image_config config = img->config;

  config.filename = path;
  config.readonly = true;
  config.compress = COMPRESS_OFF;
  config.backing_file = config.backing_format = NULL;
  config.no_backing = n->no_backing;
  config.data_file = NULL;
  config.names = n->names.backing || n->names.data_file ? &n->names : NULL;
  if (config.backing_passphrase)
    config.passphrase = config.backing_passphrase;
  config.l2_cache_size = MIN (config.l2_cache_size
                              ? config.l2_cache_size : UINT64_MAX,
                              UINT64_C (32) << 20);
  return config;
}

/* To others it would then be another disk than to us. */
static int
no_layer (const struct image *img)
{
  const char *file = img->config.backing_file;

  if (!file && !img->config.backing_format)
    return 0;
  report_error ("%s: backing-%s=%s was given, but the image has no backing "
                "file; leave it out", img->config.filename,
                file ? "file" : "format",
                file ? file : img->config.backing_format);
  return -EINVAL;
}

static int
fill_layer (struct image *img, struct chain *chain, struct layer *layer,
            struct storage *s, const struct layer_name *n)
{
  struct image_config config;
  int r;

  layer->raw = s;
  r = chain_add (chain, s);
  if (r < 0)
    return r;
  if (!n->qcow2)
    return open_raw (layer);
  layer->raw = NULL;
  config = layer_config (img, storage_name (s), n);
  r = image_open_in_chain (&config, s, chain, &layer->image);
  if (r == 0)
    layer->size = image_size (layer->image);
  return r;
}

static int
open_named (struct image *img, struct chain *chain, struct layer_name *n,
            struct layer **ret)
{
  struct storage *s = NULL;
  struct layer *layer;
  int r = layer_name_open (img, n, &s);

  if (r < 0)
    return r;
  /* The name is not kept meanwhile if it has said all, for a chain is
   * long.
   */
  if (!n->names.backing && !n->names.data_file)
    layer_name_clear (n);
  layer = calloc (1, sizeof *layer);
  if (!layer) {
    storage_close (s);
    return -ENOMEM;
  }
  r = fill_layer (img, chain, layer, s, n);
  if (r == 0 && img->is_top)
    r = depths_open (layer, &layer->depths);
  if (r < 0)
    layer_close (layer);
  else
    *ret = layer;
  return r;
}

int
layer_open (struct image *img, struct chain *chain, struct layer **ret)
{
  struct layer_name n = { .by = NULL };
  int r;

  *ret = NULL;
  if (!layer_is_named (img))
    return no_layer (img);
  r = layer_name_find (img, &n);
  if (r == 0)
    r = open_named (img, chain, &n, ret);
  layer_name_clear (&n);
  return r;
}

void
layer_close (struct layer *layer)
{
  if (!layer)
    return;
  depths_close (layer->depths);
  image_close (layer->image);
  storage_close (layer->raw);
  free (layer);
}

int
layer_read (struct layer *layer, void *buf, size_t len, uint64_t offset)
{
  if (layer && layer->depths)
    return depths_read (layer->depths, buf, len, offset);
  return layer_read_from (layer, buf, len, offset);
}

int
layer_read_from (struct layer *layer, void *buf, size_t len, uint64_t offset)
{
  uint64_t n;
  int r;

  n = !layer || offset >= layer->size ? 0
    : MIN ((uint64_t) len, layer->size - offset);
  memset ((uint8_t *) buf + n, 0, len - n);
  if (n == 0)
    return 0;
  if (layer->image)
    return read_range (layer->image, buf, n, offset);
  r = storage_read (layer->raw, buf, n, offset);
  if (r < 0)
    report_error ("%s: reading %" PRIu64 " bytes at offset %" PRIu64 ": %s",
                  storage_name (layer->raw), n, offset, strerror (-r));
  return r;
}

int
layer_status (struct layer *layer, uint64_t offset, uint64_t *len,
              unsigned *status)
{
  bool hole;
  int r;

  *status = IMAGE_EXTENT_HOLE | IMAGE_EXTENT_ZERO;
  if (!layer || offset >= layer->size)
    return 0;
  *len = MIN (*len, layer->size - offset);
  if (layer->image)
    return extent_status (layer->image, offset, len, status);
  r = storage_map (layer->raw, offset, len, &hole);
  if (r == 0 && !hole)
    *status = 0;
  else if (r == 0)
    *status = IMAGE_EXTENT_ZERO | IMAGE_EXTENT_HOLE;
  return r;
}
