/* SPDX-License-Identifier: BSD-3-Clause */

/* The file descriptions that syncs and durable writes of a file go
 * through.  See storage-syncers.c.
 */

#ifndef QCOW2_STORAGE_SYNCERS_H
#define QCOW2_STORAGE_SYNCERS_H

#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>

/* So many syncs and durable writes of a file at a time. */
#define SYNCERS 8u

/* A description for them only. */
struct syncer {
  pthread_mutex_t lock;         /* held by who uses it */
  int fd;
};

struct syncers {
  unsigned nr;                  /* 0 or SYNCERS */
  struct syncer syncer[SYNCERS];
};

enum syncs_apart {
  SYNCS_IN_TURNS,               /* one at a time */
  SYNCS_APART_IN_PLACE,         /* or side by side, if no places are new */
  SYNCS_APART,                  /* side by side */
};

/* Open them anew for the file that FD has open and ST describes.  How may
 * syncs and durable writes be made then?  Each with one of them, but if in
 * turns, which is no error, there are none.  To be called before the first
 * write to the file.
 */
enum syncs_apart syncers_open (struct syncers *all, int fd,
                               const struct stat *st);
void syncers_close (struct syncers *all);

/* A free one, or wait until there is one; locked until it is given back.
 * NULL, which may be given back, too, if there are none.
 */
struct syncer *syncers_take (struct syncers *all);
void syncer_give_back (struct syncer *syncer);

#endif /* QCOW2_STORAGE_SYNCERS_H */
