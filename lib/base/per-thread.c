/* SPDX-License-Identifier: BSD-3-Clause */

/* Numbers of threads; see per-thread.h.  They are not given back: after
 * 2^32 threads two have the same, which only makes them meet.
 */

#include <config.h>

#include <stdatomic.h>

#include "per-thread.h"

__thread unsigned thread_number_and_1 FAST_TLS;

void
thread_number_take (void)
{
  static atomic_uint threads;

  do
    thread_number_and_1
      = 1 + atomic_fetch_add_explicit (&threads, 1, memory_order_relaxed);
  while (thread_number_and_1 == 0);
}
