/* SPDX-License-Identifier: BSD-3-Clause */

/* Shared pages; see disk.h.
 *
 * PAGES has an element for each page up to the end; NULL is a page of
 * zeroes.  OWN says which of them belong to this disk alone.  Bytes of a
 * page that lie past the end are zero.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk.h"
#include "storage-impl.h"

#define PAGE UINT64_C (4096)

struct disk {
  char **pages;
  bool *own;
  uint64_t nr_pages, space;     /* elements in use, and there */
  uint64_t size;
  struct disk *data;            /* the external data file, or NULL */
};

struct disk_storage {
  struct storage base;
  struct disk *disk;
};

static void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

static void
set_pages (struct disk *d, uint64_t n)
{
  uint64_t i;

  if (n > d->space) {
    d->space = n + n / 2 + 16;
    d->pages = check_memory (reallocarray (d->pages, d->space,
                                           sizeof *d->pages));
    d->own = check_memory (reallocarray (d->own, d->space, sizeof *d->own));
  }
  for (i = d->nr_pages; i < n; i++) {
    d->pages[i] = NULL;
    d->own[i] = false;
  }
  for (i = n; i < d->nr_pages; i++) {
    if (d->own[i])
      free (d->pages[i]);
  }
  d->nr_pages = n;
}

/* Page I, to be changed. */
static char *
own_page (struct disk *d, uint64_t i)
{
  char *page = d->pages[i];

  if (d->own[i])
    return page;
  if (page == NULL)
    d->pages[i] = check_memory (calloc (1, PAGE));
  else {
    d->pages[i] = check_memory (malloc (PAGE));
    memcpy (d->pages[i], page, PAGE);
  }
  d->own[i] = true;
  return d->pages[i];
}

static void
drop_page (struct disk *d, uint64_t i)
{
  if (d->own[i])
    free (d->pages[i]);
  d->pages[i] = NULL;
  d->own[i] = false;
}

void
disk_set_size (struct disk *d, uint64_t size)
{
  set_pages (d, (size + PAGE - 1) / PAGE);
  if (size < d->size && size % PAGE && d->pages[size / PAGE])
    memset (own_page (d, size / PAGE) + size % PAGE, 0, PAGE - size % PAGE);
  d->size = size;
}

void
disk_write (struct disk *d, const char *data, uint64_t len, uint64_t offset)
{
  uint64_t n;

  if (len == 0)
    return;
  if (offset + len > d->size)
    disk_set_size (d, offset + len);
  for (; len > 0; len -= n, offset += n) {
    const uint64_t i = offset / PAGE;

    n = PAGE - offset % PAGE;
    n = n < len ? n : len;
    if (data == NULL && n == PAGE)
      drop_page (d, i);
    else if (data == NULL) {
      if (d->pages[i])
        memset (own_page (d, i) + offset % PAGE, 0, n);
    }
    else {
      memcpy (own_page (d, i) + offset % PAGE, data, n);
      data += n;
    }
  }
}

void
disk_read (const struct disk *d, void *buf, uint64_t len, uint64_t offset)
{
  char *p = buf;
  uint64_t n;

  for (; len > 0; len -= n, offset += n, p += n) {
    const uint64_t i = offset / PAGE;

    n = PAGE - offset % PAGE;
    n = n < len ? n : len;
    if (i < d->nr_pages && d->pages[i])
      memcpy (p, d->pages[i] + offset % PAGE, n);
    else
      memset (p, 0, n);
  }
}

uint64_t
disk_size (const struct disk *d)
{
  return d->size;
}

struct disk *
disk_create (const char *bytes, uint64_t size)
{
  static const char zeroes[PAGE];
  struct disk *d = check_memory (calloc (1, sizeof *d));
  uint64_t offset, n;

  disk_set_size (d, size);
  for (offset = 0; offset < size; offset += n) {
    n = size - offset < PAGE ? size - offset : PAGE;
    if (memcmp (bytes + offset, zeroes, n) != 0)
      disk_write (d, bytes + offset, n, offset);
  }
  return d;
}

struct disk *
disk_load (const char *path)
{
  const int fd = open (path, O_RDONLY | O_CLOEXEC);
  struct disk *d = NULL;
  struct stat st;
  char *bytes;
  int err;

  if (fd == -1)
    return NULL;
  if (fstat (fd, &st) == 0) {
    bytes = check_memory (malloc ((size_t) st.st_size + 1));
    if (read (fd, bytes, (size_t) st.st_size) == st.st_size)
      d = disk_create (bytes, (uint64_t) st.st_size);
    free (bytes);
  }
  err = errno;
  close (fd);
  errno = err;
  return d;
}

struct disk *
disk_clone (const struct disk *from)
{
  struct disk *d = check_memory (calloc (1, sizeof *d));

  set_pages (d, from->nr_pages);
  if (from->nr_pages)
    memcpy (d->pages, from->pages, from->nr_pages * sizeof *d->pages);
  d->size = from->size;
  if (from->data)
    d->data = disk_clone (from->data);
  return d;
}

void
disk_set_data (struct disk *d, struct disk *data)
{
  d->data = data;
}

struct disk *
disk_data (const struct disk *d)
{
  return d->data;
}

void
disk_free (struct disk *d)
{
  if (d->data)
    disk_free (d->data);
  set_pages (d, 0);
  free (d->pages);
  free (d->own);
  free (d);
}

static bool
save_one (const struct disk *d, const char *path)
{
  int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), err;
  uint64_t i, n;

  if (fd == -1)
    return false;
  if (ftruncate (fd, (off_t) d->size) == -1)
    goto failed;
  for (i = 0; i < d->nr_pages; i++) {
    if (d->pages[i] == NULL)
      continue;
    n = d->size - i * PAGE < PAGE ? d->size - i * PAGE : PAGE;
    if (pwrite (fd, d->pages[i], n, (off_t) (i * PAGE)) != (ssize_t) n)
      goto failed;
  }
  return close (fd) == 0;

 failed:
  err = errno;
  close (fd);
  errno = err;
  return false;
}

bool
disk_save (const struct disk *d, const char *path)
{
  return (!d->data || save_one (d->data, NAME_DATA)) && save_one (d, path);
}

/*----------------------------------------------------------------------
 * The storage.
 */

static struct disk *
disk_of (struct storage *s)
{
  return ((struct disk_storage *) s)->disk;
}

static void
op_close (struct storage *s)
{
  (void) s;
}

static int
op_size (struct storage *s, uint64_t *size)
{
  *size = disk_of (s)->size;
  return 0;
}

static int
op_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  disk_read (disk_of (s), buf, len, offset);
  return 0;
}

static int
op_sync (struct storage *s)
{
  (void) s;
  return 0;
}

static int
op_lock (struct storage *s, enum storage_lock want, enum storage_locking mode,
         const char **conflict)
{
  (void) s;
  (void) want;
  (void) mode;
  (void) conflict;
  return 0;
}

static int
op_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  const uint64_t size = disk_of (s)->size;

  *hole = offset >= size;
  if (!*hole && *len > size - offset)
    *len = size - offset;
  return 0;
}

static int
op_write (struct storage *s, const struct iovec *iov, int cnt,
          uint64_t offset, bool durable)
{
  int i;

  (void) durable;
  for (i = 0; i < cnt; i++) {
    if (iov[i].iov_len)
      disk_write (disk_of (s), iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  return 0;
}

static int
op_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  disk_write (disk_of (s), NULL, len, offset);
  return 0;
}

static int
op_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  struct disk *d = disk_of (s);

  if (offset < d->size)
    disk_write (d, NULL, len < d->size - offset ? len : d->size - offset,
                offset);
  return 0;
}

static int
op_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  struct disk *d = disk_of (s);

  if (offset + len > d->size)
    disk_set_size (d, offset + len);
  return 0;
}

static int
op_truncate (struct storage *s, uint64_t size)
{
  disk_set_size (disk_of (s), size);
  return 0;
}

static bool
op_syncs_apart (struct storage *s)
{
  (void) s;
  return true;
}

static const struct storage_ops ops = {
  .close = op_close,
  .size = op_size,
  .allocated = op_size,
  .read = op_read,
  .sync = op_sync,
  .syncs_apart = op_syncs_apart,
  .lock = op_lock,
  .map = op_map,
  .write = op_write,
  .zero = op_zero,
  .punch = op_punch,
  .reserve = op_reserve,
  .truncate = op_truncate,
};

struct storage *
disk_open (struct disk *d, const char *name)
{
  struct disk_storage *s = check_memory (calloc (1, sizeof *s));

  if (storage_init (&s->base, &ops, name) < 0)
    abort ();
  s->base.writable = true;
  s->base.can_grow = true;
  s->disk = d;
  return &s->base;
}
