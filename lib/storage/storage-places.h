/* SPDX-License-Identifier: BSD-3-Clause */

/* May the file system have new places for blocks of a file, of which it
 * does not yet know durably where they are?  See storage-places.c.
 */

#ifndef QCOW2_STORAGE_PLACES_H
#define QCOW2_STORAGE_PLACES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Changes at work, of one thread or a few, that may make places new: each in
 * a cache line that nothing else is in, since nearly each write may be one.
 */
struct changes {
  char before[64 - sizeof (atomic_uint)];
  atomic_uint at_work;
};
#define CHANGES 8u

/* All zero: of no interest, and so never new. */
struct places {
  bool kept;                    /* constant, once places_keep was called */
  atomic_bool are_new;          /* since the last sync alone began */
  atomic_uint asked;            /* writes since the last sync */
  atomic_uint alone;            /* syncs alone since one that was not */
  struct changes changes[CHANGES];
  char after[64 - sizeof (atomic_uint)];
};

/* Keep an account.  What was written before may have new places. */
void places_keep (struct places *p);

/* A change that may make places new begins, and ends. */
void places_begin_change (struct places *p);
void places_end_change (struct places *p);

/* LEN bytes at OFFSET of FD, both in bytes, are to be written: will all of
 * them stay where they are?  If not, the write is such a change.
 */
bool places_stay (struct places *p, int fd, uint64_t offset, uint64_t len);

/* The same of a write that is to be durable by itself: and are the places
 * known durably?
 */
bool places_known (struct places *p, int fd, uint64_t offset, uint64_t len);

/* A sync is about to begin; ALONE: no other and no durable write is at work
 * before it ends.
 */
void places_sync (struct places *p, bool alone);

/* False if no change is at work, and the places of all that have ended are
 * known durably, or will be when a sync alone that is at work ends.
 */
bool places_are_new (const struct places *p);

#endif /* QCOW2_STORAGE_PLACES_H */
