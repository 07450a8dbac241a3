/* SPDX-License-Identifier: BSD-3-Clause */

/* What only the memory storage promises: storage-memory.h. */

#include <config.h>

#include <errno.h>

#include "storage-memory.h"
#include "storage-test.h"

struct hook_log {
  int calls;
  enum storage_memory_op op;
  uint64_t offset, len;
  int answer;
};

static int
log_hook (void *opaque, enum storage_memory_op op, uint64_t offset,
          uint64_t len)
{
  struct hook_log *log = opaque;

  log->calls++;
  log->op = op;
  log->offset = offset;
  log->len = len;
  return log->answer;
}

#define ck_hook(op_, offset_, len_)                                     \
  do {                                                                  \
    ck_assert_int_eq (log.op, (op_));                                   \
    ck_assert_uint_eq (log.offset, (offset_));                          \
    ck_assert_uint_eq (log.len, (len_));                                \
    ck_assert_int_eq (log.calls, 1);                                    \
    log.calls = 0;                                                      \
  } while (0)

START_TEST (memory_hook)
{
  struct hook_log log = { .answer = -EIO };
  struct storage *s;
  const char *conflict;
  struct iovec iov = { .iov_base = (char[]) { "abc" }, .iov_len = 3 };
  uint64_t len = 7;
  bool hole;
  char c;

  ck_ok (storage_open_memory (100, &s));
  ck_ok (write_buf (s, "xyz", 3, 10));
  storage_memory_set_hook (s, log_hook, &log);

  ck_assert_int_eq (storage_read (s, &c, 1, 10), -EIO);
  ck_hook (STORAGE_MEMORY_READ, 10, 1);
  ck_assert_int_eq (storage_write (s, &iov, 1, 10, false), -EIO);
  ck_hook (STORAGE_MEMORY_WRITE, 10, 3);
  ck_assert_int_eq (storage_write (s, &iov, 1, 1000, true), -EIO);
  ck_hook (STORAGE_MEMORY_WRITE_DURABLE, 1000, 3);
  ck_assert_int_eq (storage_zero (s, 10, 2), -EIO);
  ck_hook (STORAGE_MEMORY_ZERO, 10, 2);
  ck_assert_int_eq (storage_punch (s, 11, 2), -EIO);
  ck_hook (STORAGE_MEMORY_PUNCH, 11, 2);
  ck_assert_int_eq (storage_reserve (s, 99, 2), -EIO);
  ck_hook (STORAGE_MEMORY_RESERVE, 99, 2);
  ck_assert_int_eq (storage_truncate (s, 4), -EIO);
  ck_hook (STORAGE_MEMORY_TRUNCATE, 4, 0);
  ck_assert_int_eq (storage_sync (s), -EIO);
  ck_hook (STORAGE_MEMORY_SYNC, 0, 0);
  ck_assert_int_eq (storage_map (s, 3, &len, &hole), -EIO);
  ck_hook (STORAGE_MEMORY_MAP, 3, 7);
  ck_assert_int_eq (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_AUTO,
                                  &conflict), -EIO);
  ck_hook (STORAGE_MEMORY_LOCK, STORAGE_LOCK_WRITER, 0);
  log.answer = -EAGAIN;
  conflict = NULL;
  ck_assert_int_eq (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_ON,
                                  &conflict), -EAGAIN);
  ck_assert_ptr_nonnull (conflict);

  /* Nothing of that happened. */
  storage_memory_set_hook (s, NULL, NULL);
  ck_assert_uint_eq (size_of (s), 100);
  ck_bytes (s, 10, 1, 'x');
  ck_bytes (s, 11, 1, 'y');
  ck_bytes (s, 12, 1, 'z');
  storage_close (s);
}
END_TEST

START_TEST (memory_fixed)
{
  struct storage *s;

  ck_ok (storage_open_memory (100, &s));
  storage_memory_set_can_grow (s, false);
  ck_assert (!storage_can_grow (s));
  ck_ok (write_buf (s, "abc", 3, 97));
  ck_assert_int_eq (write_buf (s, "abc", 3, 98), -ENOSPC);
  ck_assert_int_eq (storage_zero (s, 100, 1), -ENOSPC);
  ck_assert_int_eq (storage_reserve (s, 99, 2), -ENOSPC);
  ck_assert_int_eq (storage_truncate (s, 50), -ENOTSUP);
  ck_assert_uint_eq (size_of (s), 100);
  ck_bytes (s, 100, 1, 0);
  storage_close (s);
}
END_TEST

/* A long storage costs only what is in it. */
START_TEST (memory_sparse)
{
  struct storage *s;
  uint64_t bytes;

  ck_ok (storage_open_memory (UINT64_C (1) << 60, &s));
  ck_ok (write_buf (s, "abc", 3, 1000 * MIB));
  ck_ok (storage_allocated (s, &bytes));
  ck_assert_uint_le (bytes, 64 * KIB);
  ck_ok (storage_punch (s, 0, UINT64_C (1) << 60));
  ck_ok (storage_allocated (s, &bytes));
  ck_assert_uint_eq (bytes, 0);
  ck_assert_int_eq (storage_open_memory (UINT64_MAX, &s), -EFBIG);
  storage_close (s);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("storage-memory");
  TCase *tc = tcase_create ("memory");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, memory_hook);
  tcase_add_test (tc, memory_fixed);
  tcase_add_test (tc, memory_sparse);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
