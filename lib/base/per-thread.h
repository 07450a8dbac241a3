/* SPDX-License-Identifier: BSD-3-Clause */

/* What each thread has of its own, so that threads which do the same thing
 * do not meet over it.
 */

#ifndef QCOW2_PER_THREAD_H
#define QCOW2_PER_THREAD_H

/* For "static __thread" words on paths where a call to find them would
 * count.  A library that is loaded late has room for a few of them next to
 * those of the program (glibc's static TLS surplus), so use it sparingly.
 */
#ifdef __GLIBC__
#define FAST_TLS __attribute__ ((tls_model ("initial-exec")))
#else
#define FAST_TLS
#endif

/* Private to thread_number. */
extern __thread unsigned thread_number_and_1 FAST_TLS;
void thread_number_take (void);

/* Which thread of the process this is, from 0 on in the order of their
 * first calls: modulo the number of places that there are, neighbours in
 * time have different places.  Cannot fail; takes no lock.
 */
static inline unsigned
thread_number (void)
{
  if (__builtin_expect (thread_number_and_1 == 0, 0))
    thread_number_take ();
  return thread_number_and_1 - 1;
}

#endif /* QCOW2_PER_THREAD_H */
