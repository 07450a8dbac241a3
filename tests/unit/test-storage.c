/* SPDX-License-Identifier: BSD-3-Clause */

/* What storage.h and storage-write.h promise, for every kind of storage
 * that can be had without privileges: memory, a file on disk, a file on
 * tmpfs (which knows no FALLOC_FL_ZERO_RANGE).  Loop tests: _i is the
 * kind.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "storage-test.h"

enum kind { MEMORY, DISK, TMPFS, NR_KINDS };

static int the_fd;              /* of the file under test, -1 in memory */
static char the_path[64];

static struct storage *
open_kind (int kind)
{
  struct storage *s;

  the_fd = -1;
  switch ((enum kind) kind) {
  case MEMORY:
    ck_ok (storage_open_memory (0, &s));
    return s;
  case DISK:
    disk_file (&the_fd, the_path);
    return open_rw (the_path);
  case TMPFS:
    tmpfs_file (&the_fd, the_path);
    return open_rw (the_path);
  case NR_KINDS:
  default:
    abort ();
  }
}

/* The file as others see it, not through the storage. */
static void
ck_file_bytes (uint64_t offset, size_t len, int c)
{
  unsigned char *buf;

  if (the_fd == -1)
    return;
  buf = malloc (len);
  ck_assert_int_eq (pread (the_fd, buf, len, (off_t) offset), (ssize_t) len);
  ck_all (buf, len, c, offset);
  free (buf);
}

START_TEST (facts)
{
  struct storage *s = open_kind (_i), *t;
  dev_t dev, dev2;
  ino_t ino, ino2;

  ck_assert (storage_is_writable (s));
  ck_assert (storage_can_grow (s));
  ck_assert_uint_eq (size_of (s), 0);
  ck_assert_int_ge (storage_is_rotational (s), 0);
  ck_assert_int_le (storage_is_rotational (s), 1);

  if (_i == MEMORY) {
    ck_assert (!storage_identity (s, &dev, &ino));
  }
  else {
    ck_assert_str_eq (storage_name (s), the_path);
    ck_ok (storage_open_file (the_path, false, false, &t));
    ck_assert (!storage_is_writable (t));
    ck_assert (storage_identity (s, &dev, &ino));
    ck_assert (storage_identity (t, &dev2, &ino2));
    ck_assert (dev == dev2 && ino == ino2);
    storage_close (t);
  }
  storage_close (s);
  storage_close (NULL);
}
END_TEST

START_TEST (read_past_end)
{
  struct storage *s = open_kind (_i);
  char buf[100];

  ck_ok (write_buf (s, "abcde", 5, 0));
  memset (buf, 'x', sizeof buf);
  ck_ok (storage_read (s, buf, 50, 3));
  ck_assert (buf[0] == 'd' && buf[1] == 'e');
  ck_assert (buf[2] == 0 && buf[49] == 0 && buf[50] == 'x');
  ck_bytes (s, 1000 * MIB, 100, 0);
  ck_bytes (s, INT64_MAX - 100, 100, 0);
  ck_assert_int_eq (storage_read (s, buf, 100, INT64_MAX - 99), -EINVAL);
  ck_assert_int_eq (storage_read (s, buf, 1, UINT64_MAX), -EINVAL);
  ck_ok (storage_read (s, NULL, 0, UINT64_MAX));
  ck_assert_uint_eq (size_of (s), 5);
  storage_close (s);
}
END_TEST

/* More elements than one system call takes, with empty ones among them
 * and at both ends.
 */
START_TEST (write_many)
{
  enum { N = 5000 };
  struct storage *s = open_kind (_i);
  struct iovec *iov = calloc (N, sizeof *iov);
  unsigned char *data = malloc (N * 7), *back;
  size_t total = 0, i;
  int durable;

  for (i = 0; i < N; i++) {
    iov[i].iov_base = data + total;
    iov[i].iov_len = i == 0 || i == N - 1 ? 0 : i % 7;
    total += iov[i].iov_len;
  }
  for (i = 0; i < total; i++)
    data[i] = (unsigned char) (i * 31 >> 3);

  for (durable = 0; durable <= 1; durable++) {
    ck_ok (storage_write (s, iov, N, 1000 + 100000u * (unsigned) durable,
                          durable));
    back = malloc (total);
    ck_ok (storage_read (s, back, total, 1000 + 100000u * (unsigned) durable));
    ck_assert_mem_eq (back, data, total);
    free (back);
  }
  ck_assert_uint_eq (size_of (s), 101000 + total);
  ck_bytes (s, 0, 1000, 0);
  ck_assert_uint_eq (iov[1].iov_len, 1);        /* untouched */

  ck_ok (storage_write (s, iov, 0, 0, true));
  ck_ok (storage_write (s, iov, 1, 0, true));
  ck_assert_uint_eq (size_of (s), 101000 + total);
  free (iov);
  free (data);
  storage_close (s);
}
END_TEST

START_TEST (bad_ranges)
{
  struct storage *s = open_kind (_i);
  struct iovec iov[2];
  char c = 'c';

  ck_assert_int_eq (write_buf (s, "ab", 2, INT64_MAX), -EFBIG);
  ck_assert_int_eq (write_buf (s, "ab", 2, UINT64_MAX), -EFBIG);
  ck_assert_int_eq (storage_zero (s, INT64_MAX, 1), -EFBIG);
  ck_assert_int_eq (storage_punch (s, UINT64_MAX, 2), -EFBIG);
  ck_assert_int_eq (storage_reserve (s, 1, INT64_MAX), -EFBIG);
  ck_assert_int_eq (storage_truncate (s, UINT64_MAX), -EFBIG);

  iov[0].iov_base = iov[1].iov_base = &c;
  iov[0].iov_len = SIZE_MAX;
  iov[1].iov_len = 2;
  ck_assert_int_eq (storage_write (s, iov, 2, 0, false), -EINVAL);
  ck_assert_uint_eq (size_of (s), 0);
  storage_close (s);
}
END_TEST

START_TEST (zero_ranges)
{
  struct storage *s = open_kind (_i);
  char *buf = malloc (4 * MIB);

  memset (buf, 'x', 4 * MIB);
  ck_ok (write_buf (s, buf, 4 * MIB, 0));

  /* One that needs several writes where there is no other way. */
  ck_ok (storage_zero (s, 1001, 3 * MIB));
  ck_bytes (s, 0, 1001, 'x');
  ck_bytes (s, 1001, 3 * MIB, 0);
  ck_bytes (s, 1001 + 3 * MIB, MIB - 1001, 'x');
  ck_file_bytes (1001, 3 * MIB, 0);
  ck_file_bytes (0, 1001, 'x');

  /* Over the end, and far beyond it: the file grows. */
  ck_ok (storage_zero (s, 4 * MIB - 1, 10));
  ck_assert_uint_eq (size_of (s), 4 * MIB + 9);
  ck_bytes (s, 4 * MIB - 2, 1, 'x');
  ck_bytes (s, 4 * MIB - 1, 10, 0);
  ck_ok (storage_zero (s, 8 * MIB + 1, 4096));
  ck_assert_uint_eq (size_of (s), 8 * MIB + 4097);
  ck_ok (storage_zero (s, 100 * MIB, 0));
  ck_assert_uint_eq (size_of (s), 8 * MIB + 4097);
  free (buf);
  storage_close (s);
}
END_TEST

/* The space of a zeroed range is kept, and that of a hole is not. */
START_TEST (punch)
{
  struct storage *s = open_kind (_i);
  uint64_t full, zeroed, punched;
  char *buf = malloc (MIB);

  memset (buf, 'x', MIB);
  ck_ok (write_buf (s, buf, MIB, 0));
  ck_ok (storage_sync (s));
  ck_ok (storage_allocated (s, &full));
  ck_assert_uint_ge (full, MIB);

  ck_ok (storage_zero (s, 0, MIB));
  ck_ok (storage_sync (s));
  ck_ok (storage_allocated (s, &zeroed));
  ck_assert_uint_ge (zeroed, MIB);

  ck_ok (write_buf (s, buf, MIB, 0));
  ck_ok (storage_punch (s, 256 * KIB, 512 * KIB));
  ck_ok (storage_sync (s));
  ck_ok (storage_allocated (s, &punched));
  ck_assert_uint_le (punched, full - 512 * KIB);
  ck_bytes (s, 0, 256 * KIB, 'x');
  ck_bytes (s, 256 * KIB, 512 * KIB, 0);
  ck_bytes (s, 768 * KIB, 256 * KIB, 'x');
  ck_file_bytes (256 * KIB, 512 * KIB, 0);

  /* The length stays, at the end and beyond it. */
  ck_ok (storage_punch (s, MIB - 10, 100 * MIB));
  ck_ok (storage_punch (s, 100 * MIB, MIB));
  ck_assert_uint_eq (size_of (s), MIB);
  ck_bytes (s, MIB - 11, 1, 'x');
  ck_bytes (s, MIB - 10, 10, 0);
  free (buf);
  storage_close (s);
}
END_TEST

START_TEST (reserve)
{
  struct storage *s = open_kind (_i);
  uint64_t bytes;

  ck_ok (write_buf (s, "abc", 3, 10));
  ck_ok (storage_reserve (s, 5, 2 * MIB));
  ck_assert_uint_eq (size_of (s), 2 * MIB + 5);
  ck_ok (storage_allocated (s, &bytes));
  ck_assert_uint_ge (bytes, 2 * MIB);
  ck_bytes (s, 0, 10, 0);
  ck_bytes (s, 10, 1, 'a');
  ck_bytes (s, 13, 2 * MIB, 0);
  ck_ok (storage_reserve (s, 0, 100));
  ck_assert_uint_eq (size_of (s), 2 * MIB + 5);
  storage_close (s);
}
END_TEST

START_TEST (set_length)
{
  struct storage *s = open_kind (_i);
  char *buf = malloc (MIB);

  memset (buf, 'x', MIB);
  ck_ok (write_buf (s, buf, MIB, 0));
  ck_ok (storage_truncate (s, 100001));
  ck_assert_uint_eq (size_of (s), 100001);
  ck_ok (storage_truncate (s, 3 * MIB));
  ck_assert_uint_eq (size_of (s), 3 * MIB);
  ck_bytes (s, 0, 100001, 'x');
  ck_bytes (s, 100001, 3 * MIB - 100001, 0);    /* nothing comes back */
  ck_ok (storage_truncate (s, 0));
  ck_bytes (s, 0, MIB, 0);
  free (buf);
  storage_close (s);
}
END_TEST

/* The extents of a sparse file come out exactly, whatever the steps. */
START_TEST (map_sparse)
{
  static const uint64_t steps[] = { 3, 4096, 100000, 10 * MIB };
  struct storage *s = open_kind (_i);
  char *buf = malloc (64 * KIB);
  uint64_t offset, len;
  size_t i;
  bool hole;

  memset (buf, 'x', 64 * KIB);
  ck_ok (write_buf (s, buf, 64 * KIB, 256 * KIB));
  ck_ok (write_buf (s, buf, 64 * KIB, 320 * KIB));
  ck_ok (write_buf (s, buf, 64 * KIB, MIB));
  ck_ok (storage_truncate (s, 2 * MIB));

  len = 10 * MIB;
  ck_ok (storage_map (s, 0, &len, &hole));
  ck_assert (hole);
  ck_assert_uint_eq (len, 256 * KIB);
  len = 10 * MIB;
  ck_ok (storage_map (s, 256 * KIB, &len, &hole));
  ck_assert (!hole);
  ck_assert_uint_eq (len, 128 * KIB);
  len = 10 * MIB;
  ck_ok (storage_map (s, MIB + 64 * KIB, &len, &hole));
  ck_assert (hole);
  len = 5;
  ck_ok (storage_map (s, 50 * MIB, &len, &hole));
  ck_assert (hole);
  ck_assert_uint_eq (len, 5);
  len = 0;
  ck_ok (storage_map (s, 256 * KIB, &len, &hole));
  ck_assert_uint_eq (len, 0);
  len = 2;
  ck_assert_int_eq (storage_map (s, INT64_MAX, &len, &hole), -EINVAL);

  for (i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    for (offset = 255 * KIB; offset < 400 * KIB; offset += len) {
      bool is_data = offset >= 256 * KIB && offset < 384 * KIB;

      len = steps[i];
      ck_ok (storage_map (s, offset, &len, &hole));
      ck_assert_uint_ge (len, 1);
      ck_assert_uint_le (len, steps[i]);
      ck_assert_int_eq (hole, !is_data);
      if (offset < 256 * KIB)
        ck_assert_uint_le (offset + len, 256 * KIB);
      else if (is_data)
        ck_assert_uint_le (offset + len, 384 * KIB);
    }
  }
  free (buf);
  storage_close (s);
}
END_TEST

/* Random operations, against a flat array of bytes. */
#define SPACE (300 * KIB)

static void
ck_model (struct storage *s, const unsigned char *model, uint64_t size)
{
  unsigned char *buf = malloc (SPACE);
  uint64_t offset, len;
  bool hole;

  ck_assert_uint_eq (size_of (s), size);
  ck_ok (storage_read (s, buf, SPACE, 0));
  ck_assert_mem_eq (buf, model, SPACE);

  for (offset = 0; offset < SPACE; offset += len) {
    len = SPACE - offset;
    ck_ok (storage_map (s, offset, &len, &hole));
    ck_assert_uint_ge (len, 1);
    ck_assert_uint_le (len, SPACE - offset);
    if (hole) {
      memset (buf, 0, len);
      ck_assert_mem_eq (model + offset, buf, len);
    }
    ck_assert (hole || offset + len <= size);
  }
  free (buf);
}

static void
random_write (struct storage *s, unsigned char *model, uint64_t offset,
              size_t len)
{
  struct iovec iov[20];
  size_t done = 0, i;
  int cnt = 0;

  for (i = 0; i < len; i++)
    model[offset + i] = (unsigned char) random ();
  while (done < len) {
    size_t n = cnt == 19 ? len - done : (size_t) random () % (len - done + 1);

    iov[cnt].iov_base = model + offset + done;
    iov[cnt].iov_len = n;
    done += n;
    cnt++;
  }
  ck_ok (storage_write (s, iov, cnt, offset, random () % 8 == 0));
}

START_TEST (against_model)
{
  struct storage *s = open_kind (_i);
  unsigned char *model = calloc (1, SPACE);
  const int times = getenv ("QCOW2_VALGRIND") ? 300 : 3000;
  uint64_t size = 0;
  int n;

  srandom (1 + (unsigned) _i);
  for (n = 0; n < times; n++) {
    uint64_t offset = (uint64_t) random () % SPACE;
    uint64_t len = (uint64_t) random () % (SPACE - offset) + 1;
    int op = (int) (random () % 6);

    if (random () % 2) {        /* whole pages now and then */
      offset &= ~UINT64_C (4095);
      len = (len + 4095) & ~UINT64_C (4095);
      len = len > SPACE - offset ? SPACE - offset : len;
    }
    switch (op) {
    case 0: case 1:
      random_write (s, model, offset, len);
      break;
    case 2:
      ck_ok (storage_zero (s, offset, len));
      memset (model + offset, 0, len);
      break;
    case 3:
      ck_ok (storage_punch (s, offset, len));
      memset (model + offset, 0, len);
      break;
    case 4:
      ck_ok (storage_reserve (s, offset, len));
      break;
    case 5:
      ck_ok (storage_truncate (s, offset));
      memset (model + offset, 0, SPACE - offset);
      size = offset;
      break;
    default:
      abort ();
    }
    if (op != 5 && op != 3 && offset + len > size)
      size = offset + len;
    if (n % 10 == 0)
      ck_model (s, model, size);
  }
  ck_model (s, model, size);
  free (model);
  storage_close (s);
}
END_TEST

/* Threads that each own every fourth block, growing the storage. */
struct worker {
  struct storage *s;
  unsigned id;
};

static void *
work (void *arg)
{
  struct worker *w = arg;
  char buf[1000], back[1000];
  uint64_t offset, len;
  unsigned i;
  bool hole;
  void *failed = arg;

  memset (buf, 'a' + (int) w->id, sizeof buf);
  for (i = 0; i < 300; i++) {
    offset = (i * 4 + w->id) * 1000;
    if (write_buf (w->s, buf, 1000, offset) < 0 ||
        storage_read (w->s, back, 1000, offset) < 0 ||
        memcmp (buf, back, 1000) != 0)
      return failed;
    len = 4096;
    if (storage_map (w->s, offset, &len, &hole) < 0 || hole)
      return failed;
    if (i % 3 == 0 && storage_zero (w->s, offset, 1000) < 0)
      return failed;
    if (i % 50 == 0 && storage_sync (w->s) < 0)
      return failed;
  }
  return NULL;
}

START_TEST (threads)
{
  struct storage *s = open_kind (_i);
  struct worker w[4];
  pthread_t t[4];
  void *failed;
  unsigned i;

  for (i = 0; i < 4; i++) {
    w[i].s = s;
    w[i].id = i;
    ck_ok (pthread_create (&t[i], NULL, work, &w[i]));
  }
  for (i = 0; i < 4; i++) {
    ck_ok (pthread_join (t[i], &failed));
    ck_assert_ptr_null (failed);
  }
  for (i = 0; i < 1200; i++)
    ck_bytes (s, i * 1000, 1000, i / 4 % 3 == 0 ? 0 : 'a' + (int) (i % 4));
  storage_close (s);
}
END_TEST

START_TEST (read_only)
{
  struct storage *s;
  char c;

  tmpfs_file (&the_fd, the_path);
  ck_assert_int_eq (write (the_fd, "abc", 3), 3);
  ck_ok (storage_open_file (the_path, false, false, &s));
  ck_assert_int_eq (write_buf (s, "x", 1, 0), -EROFS);
  ck_assert_int_eq (storage_zero (s, 0, 1), -EROFS);
  ck_assert_int_eq (storage_punch (s, 0, 1), -EROFS);
  ck_assert_int_eq (storage_reserve (s, 0, 1), -EROFS);
  ck_assert_int_eq (storage_truncate (s, 0), -EROFS);
  ck_ok (storage_read (s, &c, 1, 0));
  ck_assert_int_eq (c, 'a');
  storage_will_need (s, 0, 3);
  ck_ok (storage_sync (s));
  storage_close (s);
}
END_TEST

/* The descriptor is not for programs that we start, and blocks. */
START_TEST (descriptor_flags)
{
  struct storage *s;
  struct stat st, st2;
  int fd, found = 0;

  disk_file (&the_fd, the_path);
  ck_ok (fstat (the_fd, &st));
  s = open_rw (the_path);
  for (fd = 0; fd < 1000; fd++) {
    if (fd == the_fd || fstat (fd, &st2) == -1 || st2.st_ino != st.st_ino ||
        st2.st_dev != st.st_dev)
      continue;
    found++;
    ck_assert_int_eq (fcntl (fd, F_GETFD), FD_CLOEXEC);
    ck_assert_int_eq (fcntl (fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_RDWR);
  }
  ck_assert (found == 1 || found == 9); /* eight of them for syncs */
  storage_close (s);
}
END_TEST

/* Part of the write fits and the rest does not. */
START_TEST (too_large)
{
  struct rlimit old, limit;
  char *buf = malloc (200000);
  struct storage *s;

  disk_file (&the_fd, the_path);
  s = open_rw (the_path);
  memset (buf, 'x', 200000);
  signal (SIGXFSZ, SIG_IGN);
  ck_ok (getrlimit (RLIMIT_FSIZE, &old));
  limit = old;
  limit.rlim_cur = 100000;
  ck_ok (setrlimit (RLIMIT_FSIZE, &limit));
  ck_assert_int_eq (write_buf (s, buf, 200000, 0), -EFBIG);
  ck_assert_uint_eq (size_of (s), 100000);
  ck_assert_int_eq (storage_truncate (s, 100001), -EFBIG);
  ck_ok (setrlimit (RLIMIT_FSIZE, &old));
  free (buf);
  storage_close (s);
}
END_TEST

/* A part of another storage, at its ends and beyond. */
START_TEST (window)
{
  struct storage *inner = open_kind (_i), *s, *t;
  uint64_t len;
  bool hole;
  char c;

  ck_ok (write_buf (inner, "abcdefgh", 8, 100));
  ck_ok (write_buf (inner, "x", 1, MIB));
  ck_assert_int_eq (storage_open_window (inner, 1, INT64_MAX, &s), -EFBIG);
  ck_assert_int_eq (storage_open_window (inner, UINT64_MAX, 2, &s), -EFBIG);
  ck_ok (storage_open_window (inner, 102, 4, &s));

  ck_assert (!storage_is_writable (s));
  ck_assert_int_eq (write_buf (s, "x", 1, 0), -EROFS);
  ck_assert_int_eq (storage_truncate (s, 1), -EROFS);
  ck_assert_str_eq (storage_name (s), storage_name (inner));
  ck_assert_uint_eq (size_of (s), 4);
  ck_ok (storage_read (s, &c, 1, 3));
  ck_assert_int_eq (c, 'f');
  ck_bytes (s, 4, 1000, 0);
  ck_bytes (s, INT64_MAX - 100, 100, 0);

  len = 1000;
  ck_ok (storage_map (s, 0, &len, &hole));
  ck_assert (!hole && len == 4);
  len = 1000;
  ck_ok (storage_map (s, 4, &len, &hole));
  ck_assert (hole && len == 1000);
  storage_will_need (s, 0, 1000);
  storage_will_need (s, 1000, 1000);

  /* A part of a part; and what is beyond the end of the whole. */
  ck_ok (storage_open_window (s, 2, 2 * MIB, &t));
  ck_ok (storage_read (t, &c, 1, 1));
  ck_assert_int_eq (c, 'f');
  ck_bytes (t, 2, 2 * MIB - 2, 0);
  storage_close (t);
}
END_TEST

static Suite *
make_suite (void)
{
  Suite *suite = suite_create ("storage");
  TCase *tc = tcase_create ("each kind");

  tcase_set_timeout (tc, 120);
  tcase_add_loop_test (tc, facts, 0, NR_KINDS);
  tcase_add_loop_test (tc, read_past_end, 0, NR_KINDS);
  tcase_add_loop_test (tc, write_many, 0, NR_KINDS);
  tcase_add_loop_test (tc, bad_ranges, 0, NR_KINDS);
  tcase_add_loop_test (tc, zero_ranges, 0, NR_KINDS);
  tcase_add_loop_test (tc, punch, 0, NR_KINDS);
  tcase_add_loop_test (tc, reserve, 0, NR_KINDS);
  tcase_add_loop_test (tc, set_length, 0, NR_KINDS);
  tcase_add_loop_test (tc, map_sparse, 0, NR_KINDS);
  tcase_add_loop_test (tc, against_model, 0, NR_KINDS);
  tcase_add_loop_test (tc, threads, 0, NR_KINDS);
  tcase_add_loop_test (tc, window, 0, NR_KINDS);
  suite_add_tcase (suite, tc);

  tc = tcase_create ("files");
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, read_only);
  tcase_add_test (tc, descriptor_flags);
  tcase_add_test (tc, too_large);
  suite_add_tcase (suite, tc);
  return suite;
}

int
main (void)
{
  return run_suite (make_suite ());
}
