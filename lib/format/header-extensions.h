/* SPDX-License-Identifier: BSD-3-Clause */

/* Between header.c and header-extensions.c alone. */

#ifndef QCOW2_HEADER_EXTENSIONS_H
#define QCOW2_HEADER_EXTENSIONS_H

#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "header.h"

/* Decode the extensions in [START, END) of the first cluster BUF into
 * *H, whose fixed fields are set.  END is where the backing file name
 * starts or the cluster ends, not before START.  DAMAGE: as in struct
 * header_damage, or NULL.
 */
int header_decode_extensions (const uint8_t *buf, size_t start, size_t end,
                              uint64_t file_size, struct header *h,
                              struct header_damage *damage,
                              struct format_error *e);

/* Refuse the incompatible features UNKNOWN (not 0) by the names that
 * the feature name table in [START, END) of BUF has for them.
 */
int header_refuse_features (const uint8_t *buf, size_t start, size_t end,
                            uint64_t unknown, struct format_error *e);

/* The rule for every table that the header points to: OFFSET, the value
 * of FIELD (a name, and where it is found), is a multiple of the cluster
 * size past the first cluster, and BYTES from there on are in the file.
 * The last cluster of a file may be cut short, so they may end there.
 */
int header_check_table (const struct header *h, const char *field,
                        uint64_t offset, uint64_t bytes,
                        uint64_t file_size, struct format_error *e);

#endif /* QCOW2_HEADER_EXTENSIONS_H */
