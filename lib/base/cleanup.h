/* SPDX-License-Identifier: BSD-3-Clause */

/* Scope cleanup: a variable marked CLEANUP_FREE is freed, one marked
 * CLEANUP_CLOSE closed, when its scope is left by any way.  Initialise
 * it where it is declared.  ACQUIRE_LOCK_FOR_CURRENT_SCOPE holds a
 * mutex until the end of the enclosing block.
 */

#ifndef QCOW2_CLEANUP_H
#define QCOW2_CLEANUP_H

#include <pthread.h>

void cleanup_free (void *ptr);
void cleanup_close (int *fd);
void cleanup_mutex_unlock (pthread_mutex_t **lock);
void cleanup_rwlock_unlock (pthread_rwlock_t **lock);

#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free)))
#define CLEANUP_CLOSE __attribute__ ((cleanup (cleanup_close)))

#define CLEANUP_CAT_(a, b) a ## b
#define CLEANUP_CAT(a, b) CLEANUP_CAT_ (a, b)

#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(mutex)                           \
  __attribute__ ((cleanup (cleanup_mutex_unlock), unused))              \
  pthread_mutex_t *CLEANUP_CAT (scope_lock_, __LINE__) = (mutex);       \
  pthread_mutex_lock (CLEANUP_CAT (scope_lock_, __LINE__))

#define ACQUIRE_RDLOCK_FOR_CURRENT_SCOPE(rwlock)                        \
  __attribute__ ((cleanup (cleanup_rwlock_unlock), unused))             \
  pthread_rwlock_t *CLEANUP_CAT (scope_lock_, __LINE__) = (rwlock);     \
  pthread_rwlock_rdlock (CLEANUP_CAT (scope_lock_, __LINE__))

#define ACQUIRE_WRLOCK_FOR_CURRENT_SCOPE(rwlock)                        \
  __attribute__ ((cleanup (cleanup_rwlock_unlock), unused))             \
  pthread_rwlock_t *CLEANUP_CAT (scope_lock_, __LINE__) = (rwlock);     \
  pthread_rwlock_wrlock (CLEANUP_CAT (scope_lock_, __LINE__))

#endif /* QCOW2_CLEANUP_H */
