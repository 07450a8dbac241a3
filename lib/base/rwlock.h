/* SPDX-License-Identifier: BSD-3-Clause */

/* Locks that many share nearly all the time, and one must have alone. */

#ifndef QCOW2_RWLOCK_H
#define QCOW2_RWLOCK_H

#include <pthread.h>

/* As pthread_rwlock_init, but who comes to share the lock does not overtake
 * one that waits to have it alone, who would wait for ever while they keep
 * coming.  So do not take it twice in a thread.
 */
static inline int
rwlock_init_fair (pthread_rwlock_t *lock)
{
  pthread_rwlockattr_t attr;
  int r;

  pthread_rwlockattr_init (&attr);
  pthread_rwlockattr_setkind_np
    (&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
  r = pthread_rwlock_init (lock, &attr);
  pthread_rwlockattr_destroy (&attr);
  return r;
}

#endif /* QCOW2_RWLOCK_H */
