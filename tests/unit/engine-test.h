/* SPDX-License-Identifier: BSD-3-Clause */

/* For the tests of the engine on a storage in memory: images made by
 * qemu-img, watched and disturbed by a hook, and given back to qemu-img
 * for its opinion.
 */

#ifndef QCOW2_ENGINE_TEST_H
#define QCOW2_ENGINE_TEST_H

#include <check.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image-internal.h"
#include "qemu-img.h"
#include "report.h"
#include "storage-memory.h"
#include "storage-write.h"

#define MAX_OPS 4096

/* What the storage was asked to do, in order. */
struct op {
  enum storage_memory_op kind;
  uint64_t offset, len;
};

static struct {
  unsigned n;
  struct op ops[MAX_OPS];
  /* Fail operations of this kind with this errno, at most so often. */
  enum storage_memory_op fail_kind;
  int fail_errno;
  unsigned fail_times;
  uint64_t fail_offset;         /* only there, unless UINT64_MAX */
} watch;

static struct image *img;
static struct storage *storage;

/* Changes the configuration of the next images to be opened. */
static void (*configure) (struct image_config *config);

static inline int
watch_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
            uint64_t len)
{
  (void) opaque;
  if (watch.fail_times > 0 && kind == watch.fail_kind
      && (watch.fail_offset == UINT64_MAX || watch.fail_offset == offset)) {
    watch.fail_times--;
    return -watch.fail_errno;
  }
  if (kind != STORAGE_MEMORY_READ && watch.n < MAX_OPS)
    watch.ops[watch.n++] = (struct op) { kind, offset, len };
  return 0;
}

/* How much slower the engine runs here than usual. */
static inline unsigned
slower (void)
{
  const char *sanitizer = getenv ("QCOW2_SANITIZER");

  return getenv ("QCOW2_VALGRIND") ? 13 : sanitizer && *sanitizer ? 3 : 1;
}

static inline void
fail_next (enum storage_memory_op kind, uint64_t offset, int error,
           unsigned times)
{
  watch.fail_kind = kind;
  watch.fail_offset = offset;
  watch.fail_errno = error;
  watch.fail_times = times;
}

/* How many operations of this kind there were since watch.n was 0. */
static inline unsigned
count_ops (enum storage_memory_op kind)
{
  unsigned i, n = 0;

  for (i = 0; i < watch.n; ++i)
    n += watch.ops[i].kind == kind;
  return n;
}

static inline void
quiet_sink (enum report_level level, const char *text)
{
  (void) level;
  (void) text;
}

/* Load what is in FILE and open it. */
static inline void
open_loaded (const char *file)
{
  static struct chain chain;
  struct image_config config;
  size_t len;
  uint8_t *buf = read_file (file, &len);
  struct iovec iov = { .iov_base = buf, .iov_len = len };

  report_set_sink (quiet_sink);
  memset (&watch, 0, sizeof watch);
  ck_assert_int_eq (storage_open_memory (0, &storage), 0);
  ck_assert_int_eq (storage_write (storage, &iov, 1, 0, false), 0);
  free (buf);
  storage_memory_set_hook (storage, watch_hook, NULL);
  image_config_init (&config);
  config.filename = "memory";
  if (configure)
    configure (&config);
  chain.length = 1;
  ck_assert_int_eq (image_open_in_chain (&config, storage, &chain, &img), 0);
}

/* qemu-img create OPTIONS FILE SIZE, and open it in memory. */
static inline void
make_image (const char *options, const char *size)
{
  struct temporary t;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 %s %s %s", options, t.name, size);
  open_loaded (t.name);
  temporary_remove (&t);
}

/* What does qemu-img check say of the bytes as they are?  Its exit code:
 * 0 clean, 2 corrupt, 3 leaks.
 */
static inline int
qemu_check (void)
{
  struct temporary t;
  char command[200];
  uint64_t size;
  uint8_t *buf;
  int r;

  ck_assert_int_eq (storage_size (storage, &size), 0);
  buf = malloc (size);
  ck_assert_ptr_nonnull (buf);
  ck_assert_int_eq (storage_read (storage, buf, size, 0), 0);
  temporary_name (&t, "qcow2");
  write_file (t.name, buf, size);
  free (buf);
  snprintf (command, sizeof command, "qemu-img check -q %s >/dev/null 2>&1",
            t.name);
  r = system (command);
  temporary_remove (&t);
  return WEXITSTATUS (r);
}

/* Stop as a server does, and see that QEMU finds nothing at all. */
static inline void
stop_clean (void)
{
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 0);
  image_close (img);
}

static inline int
write_byte (uint64_t offset, uint64_t len, int c)
{
  uint8_t *buf = malloc (len);
  int r;

  ck_assert_ptr_nonnull (buf);
  memset (buf, c, len);
  r = image_write (img, buf, len, offset, false);
  free (buf);
  return r;
}

static inline void
expect_byte (uint64_t offset, uint64_t len, int c)
{
  uint8_t *buf = malloc (len);
  uint64_t i;

  ck_assert_ptr_nonnull (buf);
  ck_assert_int_eq (image_read (img, buf, len, offset), 0);
  /* One assertion for all: Check notes each in a file. */
  for (i = 0; i < len && buf[i] == c; ++i)
    ;
  if (i < len)
    ck_abort_msg ("byte %ju is 0x%02x, not 0x%02x",
                  (uintmax_t) (offset + i), buf[i], c);
  free (buf);
}

/* Host offset of a guest offset that is mapped to data. */
static inline uint64_t
host_of (uint64_t offset)
{
  struct map_extent e;

  ck_assert_int_eq (map_lookup (img, offset, 1, &e), 0);
  ck_assert_int_eq (e.kind, L2_NORMAL);
  return e.host;
}

#endif /* QCOW2_ENGINE_TEST_H */
