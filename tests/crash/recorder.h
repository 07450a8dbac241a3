/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory that remembers everything that was done to it.
 * states.h then says what a disk may hold after a crash at any moment.
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

/* A second file beside the first, the external data file of the image;
 * call it before anything happens.  What was done to both is recorded in
 * one order, but a sync is for its own file only.
 */
void recorder_add_data (struct recorder *rec, const void *bytes,
                        uint64_t size);

/* A storage on it, or on its second file, writable; close it before the
 * recorder is freed.
 */
struct storage *recorder_open (struct recorder *rec);
struct storage *recorder_open_data (struct recorder *rec);

/* How many records there are: a moment between two of them, for use as
 * CRASH below.
 */
size_t recorder_now (struct recorder *rec);

/* How many of them are syncs. */
size_t recorder_syncs (struct recorder *rec);

/* The first moment after a hole was made that begins or ends within a
 * cluster of so many bytes; SIZE_MAX if there is none.
 */
size_t recorder_small_hole (struct recorder *rec, uint64_t cluster);

/* Asked before each change and each sync (a durable write is one): a
 * negative errno lets it fail.  Called with a lock held: it must not use
 * the storage.
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

/* The disk's file system keeps no journal: what gives a file blocks at new
 * places, or makes it longer, is certain only after a sync that was alone,
 * and storage_syncs_apart and storage_writes_apart say no until then.  Call
 * it before anything happens.
 */
void recorder_keep_places (struct recorder *rec);

/* The disk has so many bytes left, in blocks of 4096: what fills a hole
 * or makes the file longer than that fails with -ENOSPC, what punches
 * holes gets space back.
 */
void recorder_set_space (struct recorder *rec, uint64_t bytes);

/* From now on syncs promise nothing: a disk that lies.  For seeing that
 * a test notices.
 */
void recorder_lie (struct recorder *rec);

#endif /* QCOW2_RECORDER_H */
