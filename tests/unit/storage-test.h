/* SPDX-License-Identifier: BSD-3-Clause */

/* What the tests of the storages share: files that vanish by
 * themselves, however the test ends, and short names for common calls.
 */

#ifndef QCOW2_STORAGE_TEST_H
#define QCOW2_STORAGE_TEST_H

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/mman.h>

#include "run-suite.h"
#include "storage.h"
#include "storage-write.h"

#define KIB UINT64_C (1024)
#define MIB (1024 * KIB)

#define ck_ok(expr) ck_assert_int_eq ((expr), 0)

/* A nameless file on the disk of the build tree, open in *FD, which can
 * be opened again under the name PATH.  For use outside of tests, too,
 * where Check's assertions do not work.
 */
static inline void
disk_file (int *fd, char path[64])
{
  char name[] = "tmp-storage.XXXXXX";

  *fd = mkstemp (name);
  if (*fd == -1 || unlink (name) == -1)
    abort ();
  snprintf (path, 64, "/proc/self/fd/%d", *fd);
}

/* The same on tmpfs, which does less than a file system on disk. */
static inline void
tmpfs_file (int *fd, char path[64])
{
  *fd = memfd_create ("test", MFD_CLOEXEC);
  if (*fd == -1)
    abort ();
  snprintf (path, 64, "/proc/self/fd/%d", *fd);
}

static inline struct storage *
open_rw (const char *path)
{
  struct storage *s = NULL;

  ck_ok (storage_open_file (path, true, false, &s));
  ck_assert_ptr_nonnull (s);
  return s;
}

static inline int
write_buf (struct storage *s, const void *buf, size_t len, uint64_t offset)
{
  struct iovec iov;

  iov.iov_base = (void *) (uintptr_t) buf;
  iov.iov_len = len;
  return storage_write (s, &iov, 1, offset, false);
}

static inline uint64_t
size_of (struct storage *s)
{
  uint64_t size;

  ck_ok (storage_size (s, &size));
  return size;
}

/* Each assertion of Check writes a message, so that one for every byte
 * would take minutes.
 */
static inline void
ck_all (const unsigned char *buf, size_t len, int c, uint64_t offset)
{
  size_t i = 0;

  while (i < len && buf[i] == c)
    i++;
  ck_assert_msg (i == len, "byte %llu is %d, not %d",
                 (unsigned long long) (offset + i), buf[i], c);
}

/* All LEN bytes at OFFSET are C, read through S. */
static inline void
ck_bytes (struct storage *s, uint64_t offset, size_t len, int c)
{
  unsigned char *buf = malloc (len);

  ck_assert_ptr_nonnull (buf);
  ck_ok (storage_read (s, buf, len, offset));
  ck_all (buf, len, c, offset);
  free (buf);
}

#endif /* QCOW2_STORAGE_TEST_H */
