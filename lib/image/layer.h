/* SPDX-License-Identifier: BSD-3-Clause */

/* A backing file: a qcow2 image or a raw file below another image, never
 * written.  See layer.c.
 */

#ifndef QCOW2_LAYER_H
#define QCOW2_LAYER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct depths;
struct image;
struct image_config;
struct storage;

struct chain_file {
  dev_t dev;
  ino_t ino;
  const char *uri;              /* instead of these, over NBD */
};

/* The files from the top image down to the one being opened. */
struct chain {
  unsigned length;
  struct chain_file files[201];
};
#define MAX_CHAIN 200

/* Add a file to the chain: -ELOOP if it is in it already, -E2BIG if the
 * chain is too long (both reported).
 */
int chain_add (struct chain *chain, struct storage *s);

bool chain_has (const struct chain *chain, struct storage *s);

struct layer {
  struct image *image;          /* one of the two is set */
  struct storage *raw;
  uint64_t size;                /* bytes */
  struct depths *depths;        /* of this and all below it, or NULL */
};

/* Open what lies below IMG, if anything does: *LAYER may become NULL. */
int layer_open (struct image *img, struct chain *chain,
                struct layer **layer);
void layer_close (struct layer *layer);

/* Read LEN bytes at OFFSET; zeroes past the layer's end, or where LAYER
 * is NULL.
 */
int layer_read (struct layer *layer, void *buf, size_t len,
                uint64_t offset);

/* The same, without a look at its depths. */
int layer_read_from (struct layer *layer, void *buf, size_t len,
                     uint64_t offset);

/* The status (IMAGE_EXTENT_*) of OFFSET and how far it reaches (*LEN in:
 * at most).  Without a layer: hole and zero.
 */
int layer_status (struct layer *layer, uint64_t offset, uint64_t *len,
                  unsigned *status);

/* open.c: open a qcow2 file as part of a chain.  PATH is kept as the
 * config's filename.
 */
int image_open_in_chain (const struct image_config *config,
                         struct storage *storage, struct chain *chain,
                         struct image **img);

#endif /* QCOW2_LAYER_H */
