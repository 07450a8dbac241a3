/* SPDX-License-Identifier: BSD-3-Clause */

/* For the tests that decode what qemu-img made: files that are removed
 * again, and running the program.
 */

#ifndef QCOW2_QEMU_IMG_H
#define QCOW2_QEMU_IMG_H

#include <check.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

/* Where qemu-img is missing, say so on standard error: the tests that
 * need it are then left out.
 */
static inline bool
have_qemu_img (void)
{
  if (system ("qemu-img --version >/dev/null 2>&1") == 0)
    return true;
  fprintf (stderr, "qemu-img is not installed: its images are not tested\n");
  return false;
}

/* Run qemu-img with these arguments; it must succeed. */
static inline void qemu_img (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

static inline void
qemu_img (const char *fs, ...)
{
  char args[1000], command[1100];
  va_list ap;

  va_start (ap, fs);
  vsnprintf (args, sizeof args, fs, ap);
  va_end (ap);
  snprintf (command, sizeof command, "qemu-img %s >/dev/null", args);
  ck_assert_msg (system (command) == 0, "failed: %s", command);
}

/* A name for a file in the directory of the tests. */
struct temporary {
  char name[40];
};

static inline void
temporary_name (struct temporary *t, const char *suffix)
{
  static unsigned n;

  snprintf (t->name, sizeof t->name, "tmp-%ld-%u.%s", (long) getpid (), n++,
            suffix);
}

static inline void
temporary_remove (const struct temporary *t)
{
  ck_assert_int_eq (unlink (t->name), 0);
}

static inline void
write_file (const char *name, const void *buf, size_t len)
{
  FILE *f = fopen (name, "wb");

  ck_assert_ptr_nonnull (f);
  ck_assert_uint_eq (fwrite (buf, 1, len, f), len);
  ck_assert_int_eq (fclose (f), 0);
}

/* At most the first 16 MiB of a file, in memory that the caller frees. */
static inline uint8_t *
read_file (const char *name, size_t *len)
{
  const size_t most = 16 << 20;
  uint8_t *buf = malloc (most);
  FILE *f = fopen (name, "rb");

  ck_assert (buf && f);
  *len = fread (buf, 1, most, f);
  ck_assert_int_eq (fclose (f), 0);
  return buf;
}

static inline uint64_t
file_size (const char *name)
{
  struct stat st;

  ck_assert_int_eq (stat (name, &st), 0);
  return (uint64_t) st.st_size;
}

#endif /* QCOW2_QEMU_IMG_H */
