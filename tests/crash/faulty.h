/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage on top of another, and an allocator, that fail at the N-th
 * call: once, or from then on.
 *
 * Calls count only between faults_on and faults_off, and only in the
 * engine: what the storage below, or the test itself, allocates is its
 * own affair.  One thread only.
 *
 * The program is linked with --wrap for the functions that are replaced:
 * see faulty.c.
 */

#ifndef QCOW2_FAULTY_H
#define QCOW2_FAULTY_H

#include <stdbool.h>
#include <stdint.h>

#include "storage.h"

enum fault_kind {
  FAULT_EIO,                    /* any call of the storage: nothing is done */
  FAULT_PARTIAL,                /* a change is made in half, then EIO */
  FAULT_ENOSPC,                 /* what changes bytes, and syncs */
  FAULT_FULL,                   /* from then on the disk is full */
  FAULT_MEMORY,                 /* an allocation */
  FAULT_SHORT,                  /* a system call transfers a part */
  FAULT_KINDS,
};
extern const char *const fault_names[FAULT_KINDS];

struct faults {
  /* What is wanted. */
  enum fault_kind kind;
  bool forever;
  uint64_t at;                  /* the number of the call, from 0 */
  void (*full) (void *opaque);  /* make the disk full */
  void *opaque;

  /* What was seen. */
  uint64_t calls;               /* that could fail in this way */
  bool fired;
  bool sync_failed;             /* a sync, or a durable write */
  uint64_t changes_since;       /* changes tried after that */
};
extern struct faults faults;

void faults_on (void);
bool faults_off (void);         /* were they on? */

/* A storage that passes everything to BELOW, and closes it. */
struct storage *faulty_open (struct storage *below);

#endif /* QCOW2_FAULTY_H */
