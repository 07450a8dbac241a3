/* SPDX-License-Identifier: BSD-3-Clause */

/* The entries of a table in the file that are not 0.  See entries.c. */

#ifndef QCOW2_ENTRIES_H
#define QCOW2_ENTRIES_H

#include <stdint.h>

#include "storage.h"

#define ENTRIES_PIECE 4096      /* read at a time: 32 KiB */

struct entries {
  struct storage *storage;
  uint64_t offset;              /* host offset of the table */
  uint64_t count;               /* entries of the table */
  uint64_t next;                /* entry behind those in BUF */
  uint64_t data_end;            /* entries before this one are not in a hole,
                                 * as far as is known */
  unsigned at, n;               /* in BUF: next to look at, all */
  uint64_t buf[ENTRIES_PIECE];  /* big-endian */
};

/* COUNT entries of 8 bytes each at host offset OFFSET (bytes). */
void entries_init (struct entries *e, struct storage *storage,
                   uint64_t offset, uint64_t count);

/* The next entry that is not 0: *INDEX in the table, *ENTRY in the byte
 * order of the host.  Returns 1, or 0 if there is none, or a negated errno
 * value of storage_read, which is not reported.  No lock is needed; who
 * lets others write to the table meanwhile sees old and new entries.
 */
int entries_next (struct entries *e, uint64_t *index, uint64_t *entry);

#endif /* QCOW2_ENTRIES_H */
