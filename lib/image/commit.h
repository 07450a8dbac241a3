/* SPDX-License-Identifier: BSD-3-Clause */

/* The commit: makes durable what was acknowledged.  See commit.c. */

#ifndef QCOW2_COMMIT_H
#define QCOW2_COMMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "habit.h"

struct image;

/* Flushes that share a commit (commit-group.c); guarded by commit.lock. */
struct commit_group {
  bool gathering;               /* a leader waits for others */
  unsigned asking;              /* flushes that the next commit will answer */
  unsigned expected;            /* flushes that may come before it */
  unsigned skip;                /* so many commits wait for nobody */
  unsigned missed;              /* what skip was after the last wait in vain */
  uint64_t usual;               /* what a commit takes, nanoseconds */
  uint64_t longest;             /* nobody is waited for longer */
};

struct commit {
  /* Changes of the map are made under this lock, shared; a commit takes
   * it alone for its cut.  Never held across I/O.
   */
  pthread_rwlock_t epoch_lock;
  uint64_t epoch;               /* the open one; the first is 1 */
  atomic_bool barrier;          /* the open epoch links new clusters */
  struct habit habit;

  pthread_mutex_t lock;         /* guards what follows */
  pthread_cond_t over[2];       /* a commit ended; by its number's parity */
  bool running;
  uint64_t started, ended;      /* number of commits */
  uint64_t good;                /* the last that succeeded */
  struct commit_group group;

  pthread_t thread;
  pthread_cond_t work;          /* the thread waits for it, and no other */
  bool has_thread, stop, kicked;
};

int commit_init (struct image *img);
void commit_destroy (struct image *img);

/* Start and stop the thread that commits every commit-interval, and when
 * kicked.
 */
int commit_start (struct image *img);
void commit_stop (struct image *img);

/* Make everything that was acknowledged before the call durable.  Shares
 * a commit with others that ask at the same time.  0 or a negative
 * errno (reported).  Hold no lock but range locks and a table_lock.
 */
int commit_now (struct image *img);

/* The same for a guest that waits for it: a flush, or a request with FUA.
 * May begin a moment later, so that other guests' flushes, if some are
 * expected, are answered by the same commit.
 */
int commit_flush (struct image *img);

/* One commit, of what waits now.  For commit-group.c, which sees to it
 * that one runs at a time; not with commit.lock held.
 */
int commit_run (struct image *img);

/* After a step of a request: if its result *R is -ENOSPC, have a commit,
 * which releases what was freed.  True: the step is worth another try.
 * Else *R is the request's: the step's, or that of a commit that failed,
 * for what was freed is space that is there and cannot be used.  Locks as
 * for commit_now.
 */
bool commit_frees_space (struct image *img, int *r);

/* Before a change of the map, without any lock: if too much is waiting
 * for a commit, have one.  0, or its failure.
 */
int commit_throttle (struct image *img);

/* The open epoch makes a pointer to something that must be durable
 * first.  With epoch_lock held for reading.
 */
void commit_needs_barrier (struct image *img);

/* Is no metadata waiting?  Of a running commit that is not known. */
bool commit_metadata_is_clean (struct image *img);

/* Is nothing waiting to be written? */
bool commit_is_idle (struct image *img);

#endif /* QCOW2_COMMIT_H */
