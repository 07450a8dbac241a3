/* SPDX-License-Identifier: BSD-3-Clause */

/* What the backing file name in a header means: the spellings that QEMU
 * knows, as far as they name a file or an NBD export.  See
 * backing-name.c.  No I/O, no locks: whether the image may have what it
 * names is decided by who opens it.
 */

#ifndef QCOW2_BACKING_NAME_H
#define QCOW2_BACKING_NAME_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

/* Bytes of a name in a header. */
#define MAX_BACKING_NAME 1023

struct backing_name {
  bool is_uri;                  /* PLACE is an NBD URI, else the name of a
                                   file, to be taken as it is */
  char place[4096];             /* empty only in a BACKING, below: then it is
                                   what the header there names */
  const char *format;           /* "qcow2", "raw"; NULL: does not say */
  bool no_backing;              /* what it names in turn is not wanted */
  bool windowed;                /* a part of the place is meant: */
  uint64_t offset, size;        /* bytes; UINT64_MAX: all that follows */
  struct backing_name *backing; /* instead of what it names in turn, or NULL:
                                   then it is not raw; owned */
  struct backing_name *data_file; /* instead of the data file that it names,
                                   without a format; or NULL; owned */
};

/* Parse NAME, which is not empty and not an NBD URI (nbd://...) already.
 * 0; -ENOTSUP: something else than a file or an export; -EINVAL: the name
 * contradicts itself, or cannot be; -ENAMETOOLONG, -ENOMEM.  On failure *E
 * says why and what to do, and *N is undefined.  Else *N is to be cleared.
 */
int backing_name_parse (const char *name, struct backing_name *n,
                        struct format_error *e);

/* Free what N owns, not N. */
void backing_name_clear (struct backing_name *n);

#endif /* QCOW2_BACKING_NAME_H */
