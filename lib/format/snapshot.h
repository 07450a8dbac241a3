/* SPDX-License-Identifier: BSD-3-Clause */

/* The snapshot table (qcow2 specification, "Snapshots"). */

#ifndef QCOW2_SNAPSHOT_H
#define QCOW2_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

struct snapshot {
  uint64_t l1_table_offset;     /* host offset */
  uint32_t l1_size;             /* entries */
  char *id;                     /* NUL-terminated copies, owned */
  char *name;
  uint32_t date_sec, date_nsec;
  uint64_t vm_clock_nsec;
  uint64_t vm_state_size;       /* bytes */
  bool has_disk_size;           /* v3 always; v2 where stored */
  uint64_t disk_size;           /* guest bytes */
  bool has_icount;
  uint64_t icount;
  uint8_t *extra;               /* the extra data, verbatim, owned */
  uint32_t extra_size;
};

struct snapshot_table {
  struct snapshot *v;           /* owned */
  uint32_t count;
  uint64_t bytes;               /* length of the table in the file */
};

/* Decode COUNT entries from BUF (LEN bytes, which may be more than the
 * table has, up to the end of the file or MAX_SNAPSHOT_TABLE_BYTES).
 * Checked: lengths inside LEN, extra data <= 1024 bytes, L1 tables
 * aligned to the cluster size, at most MAX_L1_BYTES, inside FILE_SIZE
 * (the end rounded up to a cluster).
 *
 * 0; -EMSGSIZE: BUF ends before the table does, call again with more;
 * -EINVAL, -EFBIG or -ENOMEM.  On failure *E says which entry and field,
 * and *T is empty.
 */
int snapshot_table_decode (const uint8_t *buf, size_t len, uint32_t count,
                           uint64_t cluster_size, uint64_t file_size,
                           struct snapshot_table *t,
                           struct format_error *e);

/* The fixed part of an entry; no entry is shorter. */
#define SNAPSHOT_MIN_ENTRY 40

/* The entries of a table that is broken, one after another, for a check.
 * All begins with zeroes.
 */
struct snapshot_walk {
  uint64_t at;                  /* the next entry's place in the table */
  uint32_t index;               /* of the next entry */
  bool sound;                   /* the L1 table is where one can be */
  struct format_error why;      /* not, or there is no entry */
};

/* The next entry, whose fixed part is in BUF: true, and of *S what has no
 * strings or extra data (so there is nothing to free).  False if none can
 * be made out.
 */
bool snapshot_walk (struct snapshot_walk *w,
                    const uint8_t buf[SNAPSHOT_MIN_ENTRY],
                    uint64_t cluster_size, uint64_t file_size,
                    struct snapshot *s);

void snapshot_table_free (struct snapshot_table *t);

#endif /* QCOW2_SNAPSHOT_H */
