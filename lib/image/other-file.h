/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening what an image needs beside its own file.  See other-file.c. */

#ifndef QCOW2_OTHER_FILE_H
#define QCOW2_OTHER_FILE_H

#include <stdbool.h>

struct image;
struct storage;

/* Open, and lock as a reader, the file (or NBD export) that NAME stands
 * for.  WHAT it is ("data file") is for messages.  CHOSEN by the user,
 * who needs no permission; else the image named it, and external-files=
 * must allow it.  WRITABLE: for writing if that is possible, else only
 * for reading.
 *
 * 0, or a negative errno, reported; -EINPROGRESS, which is not, if a
 * connection would be needed and config.no_connections is set.
 */
int other_file_open (const struct image *img, const char *what,
                     const char *name, bool chosen, bool writable,
                     struct storage **s);

/* The same, for reading, of PARSED, which the name in NAMES means or
 * contains, and for the part of it that is meant.
 */
struct backing_name;
struct layer_names;
int other_file_open_parsed (const struct image *img, const char *what,
                            const struct layer_names *names,
                            const struct backing_name *parsed,
                            struct storage **s);

#endif /* QCOW2_OTHER_FILE_H */
