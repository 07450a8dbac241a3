/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory, for tests: what storage_open_memory returns, and
 * the means to make it fail, wait or watch.
 */

#ifndef QCOW2_STORAGE_MEMORY_H
#define QCOW2_STORAGE_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "storage.h"

enum storage_memory_op {
  STORAGE_MEMORY_READ,
  STORAGE_MEMORY_WRITE,
  STORAGE_MEMORY_WRITE_DURABLE, /* a write with DURABLE set */
  STORAGE_MEMORY_ZERO,
  STORAGE_MEMORY_PUNCH,
  STORAGE_MEMORY_RESERVE,
  STORAGE_MEMORY_TRUNCATE,      /* OFFSET is the new length, LEN is 0 */
  STORAGE_MEMORY_SYNC,          /* OFFSET and LEN are 0 */
  STORAGE_MEMORY_MAP,
  STORAGE_MEMORY_LOCK,          /* OFFSET is the enum storage_lock wanted */
  STORAGE_MEMORY_START_SYNC,    /* LEN is 0: all from OFFSET on */
};

/* Called before each operation, by the thread that asked for it and
 * with no lock of the storage held, so that it may block, or use the
 * storage itself.  A negative errno makes the operation fail with it,
 * having changed nothing; 0 lets it go on.
 */
typedef int storage_memory_hook (void *opaque, enum storage_memory_op op,
                                 uint64_t offset, uint64_t len);

/* Install FN (NULL: none) in place of the hook there was.  Calls of the
 * old hook may still be running when this returns.
 */
void storage_memory_set_hook (struct storage *s, storage_memory_hook *fn,
                              void *opaque);

/* With false, writes past the length at this moment fail with -ENOSPC,
 * as on a block device.  Call it before other threads use S.
 */
void storage_memory_set_can_grow (struct storage *s, bool can_grow);

/* What storage_syncs_apart says, at first false.  The hook may be called
 * for several syncs at a time.
 */
void storage_memory_set_syncs_apart (struct storage *s, bool apart);

/* What storage_writes_apart says of any range, at first true; and of which
 * range it was asked last.
 */
void storage_memory_set_writes_apart (struct storage *s, bool apart);
void storage_memory_asked_apart (struct storage *s, uint64_t *offset,
                                 uint64_t *len);

#endif /* QCOW2_STORAGE_MEMORY_H */
