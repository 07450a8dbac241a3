/* SPDX-License-Identifier: BSD-3-Clause */

/* Preloaded into nbdkit: the N-th allocation of the plugin fails, once or
 * from then on.  Those of nbdkit, of the C library and of other libraries
 * are not touched: it counts whose code the caller is.
 *
 *   FAIL_ALLOCATION=N[+]      with + from then on
 *   FAIL_ALLOCATION_COUNT=F   the file F holds how many there were, if the
 *                             process ends by itself
 */

#include <config.h>

#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PLUGIN "nbdkit-qcow2-plugin"

static _Atomic uintptr_t first, last;   /* of the plugin's code */
static _Atomic uint64_t calls;
static uint64_t at = UINT64_MAX;
static bool forever;

static int
look (struct dl_phdr_info *info, size_t size, void *opaque)
{
  int i;

  (void) size;
  (void) opaque;
  if (!info->dlpi_name || !strstr (info->dlpi_name, PLUGIN))
    return 0;
  for (i = 0; i < info->dlpi_phnum; i++) {
    const ElfW (Phdr) *p = &info->dlpi_phdr[i];

    if (p->p_type == PT_LOAD && p->p_flags & PF_X) {
      first = info->dlpi_addr + p->p_vaddr;
      last = first + p->p_memsz;
    }
  }
  return 1;
}

static void __attribute__ ((constructor))
begin (void)
{
  const char *wanted = getenv ("FAIL_ALLOCATION");
  char *end;

  if (wanted) {
    at = strtoull (wanted, &end, 10);
    forever = *end == '+';
  }
}

static void __attribute__ ((destructor))
finish (void)
{
  const char *name = getenv ("FAIL_ALLOCATION_COUNT");
  FILE *fp = name && last ? fopen (name, "w") : NULL;

  if (fp) {
    fprintf (fp, "%llu\n", (unsigned long long) calls);
    fclose (fp);
  }
}

static bool
fails (const void *caller)
{
  const uintptr_t place = (uintptr_t) caller;
  uint64_t n;

  if (!last)
    dl_iterate_phdr (look, NULL);
  if (place < first || place >= last)
    return false;
  n = atomic_fetch_add (&calls, 1);
  if (n != at && !(forever && n > at))
    return false;
  errno = ENOMEM;
  return true;
}

/* Here is what the plugin is to meet. */
#pragma GCC visibility push (default)

/* The next definition of a function: dlsym itself may allocate, but only
 * for its error messages.
 */
#define REPLACE(type, name, parameters, arguments, result)              \
  type                                                                  \
  name parameters                                                       \
  {                                                                     \
    static type (*_Atomic real) parameters;                             \
                                                                        \
    if (fails (__builtin_return_address (0)))                           \
      return result;                                                    \
    if (!real)                                                          \
      real = (type (*) parameters) (uintptr_t) dlsym (RTLD_NEXT, #name); \
    return real arguments;                                              \
  }

extern void *__libc_malloc (size_t size);
extern void *__libc_calloc (size_t n, size_t size);
extern void *__libc_realloc (void *p, size_t size);

void *
malloc (size_t size)
{
  return fails (__builtin_return_address (0)) ? NULL : __libc_malloc (size);
}

void *
calloc (size_t n, size_t size)
{
  return fails (__builtin_return_address (0)) ? NULL
    : __libc_calloc (n, size);
}

void *
realloc (void *p, size_t size)
{
  return fails (__builtin_return_address (0)) ? NULL
    : __libc_realloc (p, size);
}

REPLACE (void *, reallocarray, (void *p, size_t n, size_t size),
         (p, n, size), NULL)
REPLACE (void *, aligned_alloc, (size_t align, size_t size), (align, size),
         NULL)
REPLACE (char *, strdup, (const char *s), (s), NULL)
REPLACE (char *, strndup, (const char *s, size_t n), (s, n), NULL)
REPLACE (char *, realpath, (const char *path, char *to), (path, to), NULL)
REPLACE (FILE *, open_memstream, (char **p, size_t *size), (p, size), NULL)
REPLACE (int, pthread_create,
         (pthread_t *thread, const pthread_attr_t *attr,
          void *(*fn) (void *), void *opaque),
         (thread, attr, fn, opaque), EAGAIN)

int
asprintf (char **p, const char *fs, ...)
{
  va_list args;
  int r;

  if (fails (__builtin_return_address (0)))
    return -1;
  va_start (args, fs);
  r = vasprintf (p, fs, args);
  va_end (args);
  return r;
}

#pragma GCC visibility pop
