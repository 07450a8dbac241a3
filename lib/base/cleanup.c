/* SPDX-License-Identifier: BSD-3-Clause */

/* What the scope macros of cleanup.h call. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "cleanup.h"

/* PTR points to the variable; errno is kept, so that a function may
 * set it before it returns.
 */
void
cleanup_free (void *ptr)
{
  int saved_errno = errno;

  free (*(void **) ptr);
  errno = saved_errno;
}

void
cleanup_close (int *fd)
{
  int saved_errno = errno;

  if (*fd >= 0)
    close (*fd);
  errno = saved_errno;
}

void
cleanup_mutex_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

void
cleanup_rwlock_unlock (pthread_rwlock_t **lock)
{
  pthread_rwlock_unlock (*lock);
}
