/* SPDX-License-Identifier: BSD-3-Clause */

/* Preloaded into nbdkit together with the runtime of a sanitizer, and
 * initialised before all other libraries (-z initfirst), so that the
 * first allocation, in which the runtime initialises itself, is this
 * one.  Otherwise it is that of a library of nbdkit's (p11-kit) which
 * calls newlocale.  The runtime's initialisation then asks for a message
 * of dlerror's within newlocale's lock, glibc unlocks that lock once too
 * often, and nbdkit hangs in freelocale at its end if it has printed an
 * error in between.
 */

#include <config.h>

#include <stdlib.h>

static void __attribute__ ((constructor))
allocate_early (void)
{
  void *volatile p = malloc (1);

  free (p);
}
