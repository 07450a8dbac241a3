/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image says of the layer below it.  See layer-name.c. */

#ifndef QCOW2_LAYER_NAME_H
#define QCOW2_LAYER_NAME_H

#include <stdbool.h>

#include "backing-name.h"

struct image;
struct storage;

/* What the name of a layer, in the header of an image above it, says of the
 * layer's own backing file and data file: its header is not asked then.  It
 * lives while the layer is being opened.
 */
struct layer_names {
  const struct backing_name *backing; /* or NULL */
  const struct backing_name *data_file; /* or NULL */
  const char *by;               /* the file that has the name */
  const char *name;             /* all of it */
  const char *const *rules;     /* what it may lead to, as external-files */
};

/* The layer below an image. */
struct layer_name {
  const char *by, *name;        /* the file that names it; the name, or that
                                   of which it is a part */
  const char *const *rules;     /* what the place may be */
  bool inner;                   /* it is a part */
  bool stronger;                /* its format counts more than the header's */
  bool qcow2;                   /* the format, else raw */
  bool no_backing;              /* nothing is below it in turn */
  struct layer_names names;     /* for the layer; both may be NULL */
  const struct backing_name *place; /* NULL: NAME is the user's */
  struct backing_name *own;     /* or NULL */
};

/* Is anything below IMG, by what it says itself or the name above it does? */
bool layer_is_named (const struct image *img);

/* Find out what: 0 or a negative errno (reported).  *N begins with zeroes,
 * and is to be cleared in any case.
 */
int layer_name_find (const struct image *img, struct layer_name *n);
void layer_name_clear (struct layer_name *n);

/* Open its file, or connect to it, and lock it: as other_file_open. */
int layer_name_open (const struct image *img, const struct layer_name *n,
                     struct storage **s);

#endif /* QCOW2_LAYER_NAME_H */
