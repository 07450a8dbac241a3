/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory that remembers everything that was done to it, and
 * can then say what a disk may hold after a crash at any moment.
 *
 * The disk it stands for promises as little as a disk may: of all that
 * was written since the last sync, any part may have arrived, in sectors
 * of 512 bytes, and in any order.  Only a sync that succeeded, and began
 * after a write had ended, makes that write certain; and a write with
 * DURABLE is certain itself once it has ended.
 *
 * It can also fail like one.  A write that fails may have been done in
 * part; and what a failed sync was to make certain stays uncertain for
 * ever, since the kernel drops such pages and says so once only.
 *
 * All functions may be called from any thread, but the crash states are
 * asked for when the threads that use the storage have ended.
 */

#ifndef QCOW2_RECORDER_H
#define QCOW2_RECORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage.h"

struct recorder;

/* A recorder that begins with SIZE bytes (copied) which are durable.
 * Aborts when memory is short, as everything here does.
 */
struct recorder *recorder_create (const void *bytes, uint64_t size);
void recorder_free (struct recorder *rec);

/* A storage on it, writable; close it before the recorder is freed. */
struct storage *recorder_open (struct recorder *rec);

/* How many records there are: a moment between two of them, for use as
 * CRASH below.
 */
size_t recorder_now (struct recorder *rec);

/* How many of them are syncs, and the moment before each, when most can
 * be lost (N from 0).
 */
size_t recorder_syncs (struct recorder *rec);
size_t recorder_before_sync (struct recorder *rec, size_t n);

/* Asked before each change and each sync: a negative errno lets it fail.
 * Called with a lock held: it must not use the storage.
 */
enum recorder_op {
  RECORDER_WRITE, RECORDER_ZERO, RECORDER_PUNCH, RECORDER_RESERVE,
  RECORDER_TRUNCATE, RECORDER_SYNC,
};
typedef int recorder_hook (void *opaque, enum recorder_op op);
void recorder_set_hook (struct recorder *rec, recorder_hook *hook,
                        void *opaque);

/* Called without any lock before every operation, a second time before
 * a change has ended, and while a sync is under way: a test with threads
 * can let others run there.  Set it before they begin.
 */
typedef void recorder_pause (void *opaque);
void recorder_set_pause (struct recorder *rec, recorder_pause *pause,
                         void *opaque);

/* The disk has so many bytes left, in blocks of 4096: what fills a hole
 * or makes the file longer than that fails with -ENOSPC, what punches
 * holes gets space back.
 */
void recorder_set_space (struct recorder *rec, uint64_t bytes);

/* From now on syncs promise nothing: a disk that lies.  For seeing that
 * a test notices.
 */
void recorder_lie (struct recorder *rec);

enum recorder_loss {
  RECORDER_LOSE_NOTHING,        /* all arrived that was begun */
  RECORDER_LOSE_ALL,            /* only what is certain */
  RECORDER_LOSE_SOME,           /* whole writes, at random */
  RECORDER_TEAR,                /* sectors, at random */
};

/* What the disk may hold after a crash at the moment CRASH (0 to
 * recorder_now).  SEED chooses among the possibilities.  Sets *SIZE;
 * the caller frees the result.
 */
char *recorder_crash (struct recorder *rec, size_t crash,
                      enum recorder_loss loss, uint64_t seed,
                      uint64_t *size);

/* A line on each record before CRASH that is not certain, for the report
 * of a failure.
 */
void recorder_print (struct recorder *rec, size_t crash);

#endif /* QCOW2_RECORDER_H */
