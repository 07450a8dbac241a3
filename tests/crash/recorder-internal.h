/* SPDX-License-Identifier: BSD-3-Clause */

/* What the recorder keeps, for recorder.c and for states.c, which makes
 * crash states of it when nobody uses the storage any more.
 */

#ifndef QCOW2_RECORDER_INTERNAL_H
#define QCOW2_RECORDER_INTERNAL_H

#include <pthread.h>

#include "recorder.h"

struct record {
  enum recorder_op kind;
  unsigned file;                /* 1: the data file */
  bool durable;
  bool doomed;                  /* a failed sync should have covered it */
  bool moved;                   /* see recorder_keep_places */
  bool alone;                   /* SYNC: no other was at work */
  uint64_t offset, len;         /* TRUNCATE: offset is the length */
  char *data;                   /* WRITE */
  size_t began;                 /* SYNC: records at its begin */
  size_t ended;                 /* others: records at the end, or SIZE_MAX */
};

/* Bytes of a file; those past SIZE are not there. */
struct content {
  char *bytes;
  uint64_t size, space;

  /* Blocks without space; all that are not named have it. */
  bool *holes;
  uint64_t nr_holes;            /* elements of HOLES */

  /* With recorder_keep_places: blocks whose place is certain; all that are
   * not named are not.
   */
  bool *placed;
  uint64_t nr_placed;           /* elements of PLACED */
  size_t settled;               /* records before it are dealt with */
  unsigned moving;              /* changes that may move blocks, at work */
  bool moved;                   /* some have, since a sync alone began */
};

#define RECORDER_FILES 2

struct recorder {
  pthread_mutex_t lock;
  struct content first[RECORDER_FILES], now[RECORDER_FILES];
  bool has_data;
  struct record *records;
  size_t count, space;
  bool lies;
  bool keeps_places;
  recorder_hook *hook;
  void *opaque;
  recorder_pause *pause;
  void *pause_opaque;
  uint64_t space_left;          /* blocks, UINT64_MAX no limit */
};

/* What a file's records among the first so many did is certain, if it had
 * ended, and what moved no blocks; and if it did.
 */
struct certain {
  size_t until, moved_until;
};

/* At the moment CRASH. */
struct certain recorder_certain (const struct recorder *rec, unsigned file,
                                 size_t crash);

/* Is it certain at the moment CRASH, where CERTAIN is of that, for each
 * file?
 */
static inline bool
record_is_certain (const struct record *r, const struct certain *certain,
                   size_t crash)
{
  const struct certain *c = &certain[r->file];

  return r->ended <= (r->moved ? c->moved_until : c->until)
    || (r->durable && !r->moved && r->ended <= crash);
}

/* Of a disk that keeps account of places (recorder-places.c), with the lock
 * held: will an operation on C move blocks?  It begins, and has ended.
 */
bool places_move (const struct recorder *rec, const struct content *c,
                  enum recorder_op op, uint64_t offset, uint64_t len);
void places_begin (struct content *c, const struct record *r);
void places_end (struct content *c, const struct record *r);

/* A sync of FILE alone begins; and has succeeded, which began when there were
 * BEGAN records.
 */
void places_sync_begins (struct content *c);
void places_synced (struct recorder *rec, unsigned file, size_t began);

/* What storage_syncs_apart and storage_writes_apart say. */
bool places_are_certain (const struct recorder *rec,
                         const struct content *c);
bool places_are_certain_of (const struct recorder *rec,
                            const struct content *c, uint64_t offset,
                            uint64_t len);

#endif /* QCOW2_RECORDER_INTERNAL_H */
