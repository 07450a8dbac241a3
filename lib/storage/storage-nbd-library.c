/* SPDX-License-Identifier: BSD-3-Clause */

/* Loading libnbd: see the header.  Once it is used it is never unloaded.
 * A function that it lacks makes all of it unusable, since it is older
 * than what this was built for.
 *
 * Locks: one of this file, for loading; it is the last in any order.
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "cleanup.h"
#include "report.h"
#include "storage-nbd-library.h"

/* The library's name since its interface was declared stable. */
#define SONAME "libnbd.so.0"

struct libnbd libnbd;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

/* Find all functions in LIBRARY. */
static bool
look_up (void *library)
{
  static const struct {
    const char *name;
    size_t offset;
  } functions[] = {
#define LIBNBD_ENTRY(name) { "nbd_" #name, offsetof (struct libnbd, name) },
    LIBNBD_FUNCTIONS (LIBNBD_ENTRY)
#undef LIBNBD_ENTRY
  };
  size_t i;

  for (i = 0; i < sizeof functions / sizeof functions[0]; ++i) {
    void *function = dlsym (library, functions[i].name);

    if (!function)
      return false;
    /* POSIX has functions in data pointers, for dlsym. */
    memcpy ((char *) &libnbd + functions[i].offset, &function,
            sizeof function);
  }
  return true;
}

int
libnbd_load (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  const char *why;
  void *library;

  if (loaded)
    return 0;
  library = dlopen (SONAME, RTLD_NOW | RTLD_LOCAL);
  if (library && look_up (library)) {
    loaded = true;
    return 0;
  }
  why = dlerror ();
  report_error ("images on NBD servers need libnbd: %s", why ? why : SONAME);
  if (library)
    dlclose (library);
  return -ENOSYS;
}
