/* SPDX-License-Identifier: BSD-3-Clause */

/* Pages for secrets.
 *
 * They come from the allocator, which gets them back as it gave them; the
 * length stands before the bytes.  Locking them may fail for want of
 * permission (RLIMIT_MEMLOCK): then they can be swapped out like all
 * else.  Takes no locks.
 */

#include <config.h>

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "checked.h"
#include "secret.h"

struct secret {
  size_t size;                  /* of all of it, whole pages */
  alignas (max_align_t) unsigned char bytes[];
};

void *
secret_alloc (size_t size)
{
  const size_t page = (size_t) sysconf (_SC_PAGESIZE);
  struct secret *s;

  if (ADD_OVERFLOW (size, sizeof *s + page, &size))
    return NULL;
  size = round_down (size, page);
  s = aligned_alloc (page, size);
  if (!s)
    return NULL;
  memset (s, 0, size);
  madvise (s, size, MADV_DONTDUMP);
  mlock (s, size);
  s->size = size;
  return s->bytes;
}

void
secret_free (void *p)
{
  struct secret *s;
  size_t size;

  if (!p)
    return;
  s = (struct secret *) ((unsigned char *) p
                         - offsetof (struct secret, bytes));
  size = s->size;
  explicit_bzero (s, size);
  munlock (s, size);
  madvise (s, size, MADV_DODUMP);
  free (s);
}
