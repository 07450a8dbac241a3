/* SPDX-License-Identifier: BSD-3-Clause */

/* The storage on a block device: a loop device over a nameless file, so
 * this needs the right to make one (exit status 77 without).
 */

#include <config.h>

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <linux/loop.h>

#include "storage-test.h"

#define SIZE (4 * MIB)

static char device[64];
static int loop_fd = -1;        /* keeps the device alive */
static int backing_fd = -1;

/* Another process may take the free device first, then try the next. */
static int
make_loop (void)
{
  struct loop_config config;
  char path[64];
  int control, n, tries;

  control = open ("/dev/loop-control", O_RDWR | O_CLOEXEC);
  if (control == -1)
    return -errno;
  disk_file (&backing_fd, path);
  if (ftruncate (backing_fd, (off_t) SIZE) == -1)
    return -errno;

  for (tries = 0; tries < 20; tries++) {
    n = ioctl (control, LOOP_CTL_GET_FREE);
    if (n == -1)
      break;
    snprintf (device, sizeof device, "/dev/loop%d", n);
    loop_fd = open (device, O_RDWR | O_CLOEXEC);
    if (loop_fd == -1)
      break;
    memset (&config, 0, sizeof config);
    config.fd = (uint32_t) backing_fd;
    config.block_size = 512;
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    if (ioctl (loop_fd, LOOP_CONFIGURE, &config) == 0) {
      close (control);
      return 0;
    }
    n = errno;
    close (loop_fd);
    errno = n;
    if (errno != EBUSY)
      break;
  }
  n = -errno;
  close (control);
  return n;
}

static void
fill (struct storage *s)
{
  char *buf = malloc (SIZE);

  memset (buf, 'x', SIZE);
  ck_ok (write_buf (s, buf, SIZE, 0));
  free (buf);
}

START_TEST (facts)
{
  struct storage *s = open_rw (device), *t;
  struct stat st;
  char other[64];
  dev_t dev, dev2;
  ino_t ino, ino2;

  ck_assert_uint_eq (size_of (s), SIZE);
  ck_assert (!storage_can_grow (s));
  ck_assert (storage_is_writable (s));
  ck_assert_int_ge (storage_is_rotational (s), 0);

  /* Another node of the same device is the same storage. */
  ck_ok (stat (device, &st));
  snprintf (other, sizeof other, "/tmp/qcow2-test-node.%d", (int) getpid ());
  ck_ok (mknod (other, S_IFBLK | 0600, st.st_rdev));
  ck_ok (storage_open_file (other, false, true, &t));
  ck_ok (unlink (other));
  ck_assert (storage_identity (s, &dev, &ino));
  ck_assert (storage_identity (t, &dev2, &ino2));
  ck_assert (dev == dev2 && ino == ino2);
  ck_assert (dev == st.st_rdev);
  storage_close (t);
  storage_close (s);
}
END_TEST

START_TEST (reading_and_writing)
{
  struct storage *s = open_rw (device);
  struct iovec iov = { .iov_base = (char[]) { "abc" }, .iov_len = 3 };

  fill (s);
  ck_bytes (s, 0, SIZE, 'x');
  ck_bytes (s, SIZE, 1000, 0);
  ck_ok (storage_write (s, &iov, 1, SIZE - 3, true));
  ck_assert_int_eq (storage_write (s, &iov, 1, SIZE - 2, true), -ENOSPC);
  ck_assert_int_eq (storage_write (s, &iov, 1, SIZE, false), -ENOSPC);
  ck_bytes (s, SIZE - 3, 1, 'a');
  ck_ok (storage_sync (s));
  ck_assert_uint_eq (size_of (s), SIZE);
  storage_close (s);
}
END_TEST

START_TEST (zeroing)
{
  struct storage *s = open_rw (device);

  fill (s);
  ck_ok (storage_zero (s, MIB, MIB));
  ck_bytes (s, MIB - 1, 1, 'x');
  ck_bytes (s, MIB, MIB, 0);
  ck_bytes (s, 2 * MIB, 1, 'x');

  /* Not made of the device's blocks: and the next one still works. */
  ck_ok (storage_zero (s, 3 * MIB + 1, 100));
  ck_bytes (s, 3 * MIB, 1, 'x');
  ck_bytes (s, 3 * MIB + 1, 100, 0);
  ck_bytes (s, 3 * MIB + 101, 1, 'x');
  ck_ok (storage_zero (s, 0, 512));
  ck_bytes (s, 0, 512, 0);
  ck_bytes (s, 512, 1, 'x');
  ck_assert_int_eq (storage_zero (s, SIZE - 512, 1024), -ENOSPC);
  storage_close (s);
}
END_TEST

START_TEST (punching)
{
  struct storage *s = open_rw (device);
  struct stat before, after;

  fill (s);
  ck_ok (storage_sync (s));
  ck_ok (fstat (backing_fd, &before));
  ck_ok (storage_punch (s, MIB, MIB));
  ck_ok (storage_sync (s));
  ck_ok (fstat (backing_fd, &after));
  ck_bytes (s, MIB - 1, 1, 'x');
  ck_bytes (s, MIB, MIB, 0);
  ck_bytes (s, 2 * MIB, 1, 'x');
  ck_assert_int_le (after.st_blocks, before.st_blocks - (int) (MIB / 512));

  ck_assert_int_eq (storage_punch (s, 3 * MIB + 1, 100), -ENOTSUP);
  ck_bytes (s, 3 * MIB, 1000, 'x');
  ck_ok (storage_punch (s, 3 * MIB, 4096));
  storage_close (s);
}
END_TEST

START_TEST (space)
{
  struct storage *s = open_rw (device);

  fill (s);
  ck_ok (storage_reserve (s, 0, SIZE));
  ck_assert_int_eq (storage_reserve (s, SIZE - 1, 2), -ENOSPC);
  ck_assert_int_eq (storage_truncate (s, SIZE / 2), -ENOTSUP);
  ck_assert_int_eq (storage_truncate (s, SIZE * 2), -ENOTSUP);
  ck_assert_uint_eq (size_of (s), SIZE);
  ck_bytes (s, 0, SIZE, 'x');
  storage_close (s);
}
END_TEST

START_TEST (map)
{
  struct storage *s = open_rw (device);
  uint64_t len = 2 * SIZE;
  bool hole;

  ck_ok (storage_map (s, 4096, &len, &hole));
  ck_assert (!hole);
  ck_assert_uint_eq (len, SIZE - 4096);
  len = 100;
  ck_ok (storage_map (s, SIZE, &len, &hole));
  ck_assert (hole);
  ck_assert_uint_eq (len, 100);
  storage_will_need (s, 0, SIZE);
  storage_close (s);
}
END_TEST

START_TEST (locks)
{
  struct storage *s = open_rw (device), *t = open_rw (device);
  const char *c;

  ck_ok (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_ON, &c));
  ck_assert_int_eq (storage_lock (t, STORAGE_LOCK_READER, LOCKING_ON, &c),
                    -EAGAIN);
  storage_close (s);
  ck_ok (storage_lock (t, STORAGE_LOCK_READER, LOCKING_ON, &c));
  storage_close (t);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("storage-block");
  TCase *tc = tcase_create ("loop device");
  int r = make_loop ();

  if (r < 0) {
    fprintf (stderr, "skipped: cannot make a loop device: %s\n",
             strerror (-r));
    return 77;
  }
  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, facts);
  tcase_add_test (tc, reading_and_writing);
  tcase_add_test (tc, zeroing);
  tcase_add_test (tc, punching);
  tcase_add_test (tc, space);
  tcase_add_test (tc, map);
  tcase_add_test (tc, locks);
  suite_add_tcase (suite, tc);
  r = run_suite (suite);
  close (loop_fd);              /* and the device goes */
  return r;
}
