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
  bool durable;
  bool doomed;                  /* a failed sync should have covered it */
  uint64_t offset, len;         /* TRUNCATE: offset is the length */
  char *data;                   /* WRITE */
  size_t began;                 /* SYNC: records at its begin */
  size_t ended;                 /* others: records at the end, or SIZE_MAX */
};

/* Bytes of a file; those past SIZE are not there. */
struct content {
  char *bytes;
  uint64_t size, space;
};

struct recorder {
  pthread_mutex_t lock;
  struct content first, now;
  struct record *records;
  size_t count, space;
  bool lies;
  recorder_hook *hook;
  void *opaque;
  recorder_pause *pause;
  void *pause_opaque;

  /* The blocks of NOW that have space; all that are not named do. */
  bool *holes;
  uint64_t nr_holes;            /* elements of HOLES */
  uint64_t space_left;          /* blocks, UINT64_MAX no limit */
};

/* Everything that ended among the first so many records is certain at
 * the moment CRASH.
 */
size_t recorder_certain_until (const struct recorder *rec, size_t crash);

/* Is it certain at the moment CRASH, where UNTIL is of that? */
static inline bool
record_is_certain (const struct record *r, size_t until, size_t crash)
{
  return r->ended <= until || (r->durable && r->ended <= crash);
}

#endif /* QCOW2_RECORDER_INTERNAL_H */
