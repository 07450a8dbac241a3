/* SPDX-License-Identifier: BSD-3-Clause */

/* How much time passes, whatever is done to the clock on the wall. */

#ifndef QCOW2_MONOTONIC_H
#define QCOW2_MONOTONIC_H

#include <stdint.h>
#include <time.h>

#define NANOSECONDS UINT64_C (1000000000)

/* Nanoseconds of CLOCK_MONOTONIC.  Cannot fail (clock_gettime(2)). */
static inline uint64_t
monotonic_now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (uint64_t) ts.tv_sec * NANOSECONDS + (uint64_t) ts.tv_nsec;
}

/* The same as pthread_cond_timedwait wants it, where the condition's clock
 * is CLOCK_MONOTONIC.
 */
static inline struct timespec
monotonic_timespec (uint64_t nanoseconds)
{
  return (struct timespec) { .tv_sec = (time_t) (nanoseconds / NANOSECONDS),
                             .tv_nsec = (long) (nanoseconds % NANOSECONDS) };
}

/* So many seconds from now, for the same. */
static inline struct timespec
monotonic_deadline (unsigned seconds)
{
  return monotonic_timespec (monotonic_now () + seconds * NANOSECONDS);
}

#endif /* QCOW2_MONOTONIC_H */
