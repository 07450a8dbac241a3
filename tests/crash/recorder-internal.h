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
};

#define RECORDER_FILES 2

struct recorder {
  pthread_mutex_t lock;
  struct content first[RECORDER_FILES], now[RECORDER_FILES];
  bool has_data;
  struct record *records;
  size_t count, space;
  bool lies;
  recorder_hook *hook;
  void *opaque;
  recorder_pause *pause;
  void *pause_opaque;
  uint64_t space_left;          /* blocks, UINT64_MAX no limit */
};

/* What a file's records among the first so many did is certain at the
 * moment CRASH, if it had ended.
 */
size_t recorder_certain_until (const struct recorder *rec, unsigned file,
                               size_t crash);

/* Is it certain at the moment CRASH, where UNTIL is of that, for each
 * file?
 */
static inline bool
record_is_certain (const struct record *r, const size_t *until, size_t crash)
{
  return r->ended <= until[r->file] || (r->durable && r->ended <= crash);
}

#endif /* QCOW2_RECORDER_INTERNAL_H */
