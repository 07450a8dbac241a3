/* SPDX-License-Identifier: BSD-3-Clause */

/* Loading libnbd: see the header.  It is never unloaded; a function that
 * it lacks makes all of it unusable, since it is older than what this
 * was built for.
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "report.h"
#include "storage-nbd-library.h"

/* The library's name since its interface was declared stable. */
#define SONAME "libnbd.so.0"

struct libnbd libnbd;

static bool loaded;
static char *failure;           /* dlerror's text, kept */

static void
load (void)
{
  static const struct {
    const char *name;
    size_t offset;
  } functions[] = {
#define LIBNBD_ENTRY(name) { "nbd_" #name, offsetof (struct libnbd, name) },
    LIBNBD_FUNCTIONS (LIBNBD_ENTRY)
#undef LIBNBD_ENTRY
  };
  void *library = dlopen (SONAME, RTLD_NOW | RTLD_LOCAL);
  size_t i;

  for (i = 0; library && i < sizeof functions / sizeof functions[0]; ++i) {
    void *function = dlsym (library, functions[i].name);

    if (!function)
      break;
    /* POSIX has functions in data pointers, for dlsym. */
    memcpy ((char *) &libnbd + functions[i].offset, &function,
            sizeof function);
  }
  loaded = library && i == sizeof functions / sizeof functions[0];
  if (!loaded)
    failure = strdup (dlerror ());
}

int
libnbd_load (void)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;

  pthread_once (&once, load);
  if (loaded)
    return 0;
  report_error ("images on NBD servers need libnbd: %s",
                failure ? failure : SONAME);
  return -ENOSYS;
}
