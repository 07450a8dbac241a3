/* SPDX-License-Identifier: BSD-3-Clause */

/* The image locks, against a second opening of the file (which to open
 * file description locks is as good as another process) and against the
 * locks that QEMU takes, byte for byte.  tests/nbd/test-locks.sh has
 * the same with QEMU itself.
 */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "storage-test.h"

/* fcntl(2) of the C library is replaced, to be a kernel without the
 * locks, to fail at one byte, or to come a moment after another process.
 */
static const char *overtaken;   /* this file is locked before we can */
static int overtaker = -1;
static int fault_errno;
static int fault_cmd;
static off_t fault_offset;      /* 0: every byte */
static int interrupts;

/* Another opening of a file, with all bytes of it locked. */
static int
open_locked (const char *name)
{
  struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
  int fd = open (name, O_RDWR | O_CLOEXEC);

  ck_assert_int_ge (fd, 0);
  ck_ok ((int) syscall (SYS_fcntl, fd, F_OFD_SETLK, &all));
  return fd;
}

int
fcntl (int fd, int cmd, ...)
{
  va_list args;
  void *arg;

  va_start (args, cmd);
  arg = va_arg (args, void *);
  va_end (args);

  if (cmd == F_OFD_SETLK || cmd == F_OFD_GETLK) {
    const struct flock *fl = arg;

    if (overtaken) {
      overtaker = open_locked (overtaken);
      overtaken = NULL;
    }
    if (interrupts > 0) {
      interrupts--;
      errno = EINTR;
      return -1;
    }
    if (fault_errno && cmd == fault_cmd && fl->l_type != F_UNLCK &&
        (fault_offset == 0 || fl->l_start == fault_offset)) {
      errno = fault_errno;
      return -1;
    }
  }
  return (int) syscall (SYS_fcntl, fd, cmd, arg);
}

static int file_fd;
static int probe;               /* another opening of the file */
static char path[64];
static struct storage *s;

static void
setup (void)
{
  fault_errno = 0;
  fault_offset = 0;
  interrupts = 0;
  disk_file (&file_fd, path);
  probe = open (path, O_RDWR | O_CLOEXEC);
  ck_assert_int_ge (probe, 0);
  s = open_rw (path);
}

static void
teardown (void)
{
  storage_close (s);
  close (probe);
  close (file_fd);
}

static int
set_byte (int fd, short type, off_t byte)
{
  struct flock fl = {
    .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };

  return fcntl (fd, F_OFD_SETLK, &fl) == -1 ? -errno : 0;
}

/* Others hold exactly the bytes of LIST, a string such as "100 201",
 * and every one shared.
 */
static void
ck_held (const char *list)
{
  char held[2000] = "";
  off_t byte;

  for (byte = 0; byte < 300; byte++) {
    struct flock fl = {
      .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
    };

    ck_ok (fcntl (probe, F_OFD_GETLK, &fl));
    if (fl.l_type == F_UNLCK)
      continue;
    ck_assert_int_eq (fl.l_type, F_RDLCK);
    snprintf (held + strlen (held), sizeof held - strlen (held), "%s%d",
              *held ? " " : "", (int) byte);
  }
  ck_assert_str_eq (held, list);
}

#define READER "100 201 203"
#define WRITER "100 101 103 201 203"

static int
lock (enum storage_lock want, const char **conflict)
{
  *conflict = "none";
  return storage_lock (s, want, LOCKING_ON, conflict);
}

START_TEST (sets)
{
  const char *c;

  ck_held ("");
  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_held (READER);
  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_held (READER);
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_held (WRITER);
  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_held (READER);
  ck_ok (lock (STORAGE_LOCK_NONE, &c));
  ck_held ("");
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_held (WRITER);
  ck_ok (lock (STORAGE_LOCK_NONE, &c));
  ck_held ("");
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_assert_str_eq (c, "none");
}
END_TEST

/* Closing releases; other descriptors of the file do not matter. */
START_TEST (closing)
{
  const char *c;
  int fd;

  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  fd = open (path, O_RDWR | O_CLOEXEC);
  close (fd);
  ck_held (WRITER);
  storage_close (s);
  ck_held ("");
  s = NULL;
}
END_TEST

/* The locks are still there after the daemon's fork, when the parent
 * has ended.
 */
START_TEST (forking)
{
  const char *c;
  int pipefd[2], status;
  pid_t pid;
  char done;

  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_ok (pipe (pipefd));
  pid = fork ();
  if (pid == 0) {
    close (pipefd[1]);
    status = (int) read (pipefd[0], &done, 1);
    _exit (status == 0 ? 0 : 1);
  }
  storage_close (s);            /* the parent's end */
  s = NULL;
  ck_held (WRITER);
  close (pipefd[1]);
  ck_assert_int_eq (waitpid (pid, &status, 0), pid);
  ck_assert_int_eq (status, 0);
  ck_held ("");
}
END_TEST

/* What others hold, and what then becomes of us. */
static const struct {
  off_t bytes[6];
  int reader, writer;           /* expected results */
} others[] = {
  { { 100, 101, 103, 201, 203 }, -EAGAIN, -EAGAIN },    /* QEMU, r/w */
  { { 100, 201, 203 },           0,       -EAGAIN },    /* QEMU, r/o */
  { { 100 },                     0,       0 },          /* force-share */
  { { 100, 101, 203 },           -EAGAIN, -EAGAIN },    /* raw, r/w */
  { { 101 },                     -EAGAIN, -EAGAIN },
  { { 103 },                     -EAGAIN, -EAGAIN },
  { { 102 },                     0,       0 },
  { { 200 },                     -EAGAIN, -EAGAIN },
  { { 201 },                     0,       -EAGAIN },
  { { 202 },                     0,       0 },
  { { 203 },                     0,       -EAGAIN },
  { { 0, 99, 104, 204 },         0,       0 },          /* libvirt, old */
};
#define NR_OTHERS ((int) (sizeof others / sizeof others[0]))

static void
hold_others (int i)
{
  size_t n;

  for (n = 0; n < 6; n++)
    ck_ok (set_byte (probe, F_RDLCK, others[i].bytes[n]));
}

START_TEST (conflicts)
{
  const char *c;
  int err;

  hold_others (_i);

  err = lock (STORAGE_LOCK_READER, &c);
  ck_assert_int_eq (err, others[_i].reader);
  if (err)
    ck_assert_ptr_nonnull (strstr (c, "another process"));
  ck_ok (lock (STORAGE_LOCK_NONE, &c));

  err = lock (STORAGE_LOCK_WRITER, &c);
  ck_assert_int_eq (err, others[_i].writer);
  if (err)
    ck_assert_ptr_nonnull (strstr (c, "another process"));
}
END_TEST

/* A failure leaves what was held, seen once the others have gone. */
START_TEST (failure_keeps_state)
{
  const char *c;

  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_ok (set_byte (probe, F_RDLCK, 201));
  ck_assert_int_eq (lock (STORAGE_LOCK_WRITER, &c), -EAGAIN);
  ck_assert_str_eq (c, "another process does not allow writers");
  ck_ok (set_byte (probe, F_UNLCK, 201));
  ck_held (READER);

  ck_ok (lock (STORAGE_LOCK_NONE, &c));
  ck_ok (set_byte (probe, F_RDLCK, 101));
  ck_assert_int_eq (lock (STORAGE_LOCK_READER, &c), -EAGAIN);
  ck_assert_str_eq (c, "another process writes to it");
  ck_ok (set_byte (probe, F_UNLCK, 101));
  ck_held ("");

  /* Lowering succeeds whatever others hold. */
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_ok (set_byte (probe, F_RDLCK, 101));
  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_ok (set_byte (probe, F_UNLCK, 101));
  ck_held (READER);
}
END_TEST

/* Another process that holds a lock is named; we ourselves are not. */
START_TEST (holders)
{
  char text[STORAGE_HOLDERS], name[32];
  const char *c;
  int pipefd[2], status;
  pid_t pid;
  char done;

  ck_ok (lock (STORAGE_LOCK_READER, &c));
  storage_lock_holders (s, text, sizeof text);
  ck_assert_ptr_nonnull (strstr (text, "fuser"));

  ck_ok (pipe (pipefd));
  pid = fork ();
  if (pid == 0) {
    close (pipefd[1]);
    status = (int) read (pipefd[0], &done, 1);
    _exit (status == 0 ? 0 : 1);
  }
  storage_lock_holders (s, text, sizeof text);
  snprintf (name, sizeof name, "(pid %d)", (int) pid);
  ck_assert_ptr_nonnull (strstr (text, name));
  ck_assert_ptr_nonnull (strstr (text, "held by"));
  close (pipefd[1]);
  ck_assert_int_eq (waitpid (pid, &status, 0), pid);

  /* What does not fit is cut. */
  storage_lock_holders (s, text, 8);
  ck_assert_uint_lt (strlen (text), 8);
}
END_TEST

/* Somebody (a record lock over the whole file, say) excludes all. */
START_TEST (exclusive_lock)
{
  const char *c;

  ck_ok (set_byte (probe, F_WRLCK, 203));
  ck_assert_int_eq (lock (STORAGE_LOCK_READER, &c), -EAGAIN);
  ck_assert_str_eq (c, "another process holds an exclusive lock");
  ck_ok (set_byte (probe, F_UNLCK, 203));
  ck_held ("");
}
END_TEST

/* Two of us: readers share, a writer does not. */
START_TEST (two_storages)
{
  struct storage *t;
  const char *c;

  ck_ok (storage_open_file (path, false, false, &t));
  ck_ok (lock (STORAGE_LOCK_READER, &c));
  ck_ok (storage_lock (t, STORAGE_LOCK_READER, LOCKING_ON, &c));
  ck_assert_int_eq (lock (STORAGE_LOCK_WRITER, &c), -EAGAIN);
  ck_ok (storage_lock (t, STORAGE_LOCK_NONE, LOCKING_ON, &c));
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_assert_int_eq (storage_lock (t, STORAGE_LOCK_READER, LOCKING_ON, &c),
                    -EAGAIN);
  ck_assert_int_eq (storage_lock (t, STORAGE_LOCK_WRITER, LOCKING_ON, &c),
                    -EAGAIN);
  ck_ok (storage_lock (t, STORAGE_LOCK_READER, LOCKING_OFF, &c));
  storage_close (t);
  ck_held (WRITER);
}
END_TEST

START_TEST (locking_off)
{
  const char *c;

  ck_ok (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_OFF, &c));
  ck_held ("");
  hold_others (0);
  ck_ok (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_OFF, &c));
}
END_TEST

/* A kernel or a file system without such locks. */
START_TEST (no_such_locks)
{
  static const int errnos[] = { EINVAL, ENOSYS, EOPNOTSUPP };
  const char *c;
  size_t i;

  for (i = 0; i < 3; i++) {
    fault_errno = errnos[i];
    fault_cmd = _i ? F_OFD_GETLK : F_OFD_SETLK;
    ck_assert_int_eq (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_ON, &c),
                      -ENOTSUP);
    ck_ok (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_AUTO, &c));
    fault_errno = 0;
    ck_held ("");
  }
}
END_TEST

/* A failure half way gives back what was taken; and a lock server that
 * does not answer (ENOLCK) is no reason to go on without.
 */
START_TEST (half_way)
{
  const char *c;

  ck_ok (lock (STORAGE_LOCK_READER, &c));
  fault_errno = ENOLCK;
  fault_cmd = F_OFD_SETLK;
  fault_offset = 103;
  ck_assert_int_eq (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_AUTO, &c),
                    -ENOLCK);
  ck_held (READER);
  fault_cmd = F_OFD_GETLK;
  ck_assert_int_eq (storage_lock (s, STORAGE_LOCK_WRITER, LOCKING_AUTO, &c),
                    -ENOLCK);
  fault_errno = 0;
  ck_held (READER);
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  ck_held (WRITER);
}
END_TEST

START_TEST (interrupted)
{
  const char *c;

  interrupts = 20;
  ck_ok (lock (STORAGE_LOCK_WRITER, &c));
  interrupts = 0;
  ck_held (WRITER);
}
END_TEST

/* Read-only descriptors can hold the locks of a reader. */
START_TEST (read_only_descriptor)
{
  struct storage *t;
  const char *c;

  ck_ok (storage_open_file (path, false, false, &t));
  ck_ok (storage_lock (t, STORAGE_LOCK_READER, LOCKING_ON, &c));
  ck_held (READER);
  storage_close (t);
}
END_TEST

static int
fill_nothing (void *opaque, uint64_t offset, uint8_t *buf, size_t len)
{
  (void) opaque;
  (void) offset;
  memset (buf, 0, len);
  return 0;
}

static const struct storage_contents new_contents = {
  .filled = 4096, .size = 65536, .fill = fill_nothing
};

/* A new file is anybody's until it is locked.  One that another process
 * has locked first is his, and must not lose its name.
 */
START_TEST (a_new_file_that_another_has_locked_stays)
{
  struct storage *t;
  struct stat st;
  char name[40];

  snprintf (name, sizeof name, "tmp-storage.%d.new", (int) getpid ());
  overtaken = name;
  if (_i)
    ck_assert_int_eq (storage_create_file (name, &new_contents), -EAGAIN);
  else {
    ck_assert_int_eq (storage_begin_file (name, &new_contents, &t), -EAGAIN);
    ck_assert_ptr_null (t);
  }
  ck_assert_int_ge (overtaker, 0);
  ck_ok (stat (name, &st));
  ck_assert_int_eq (st.st_size, 0);
  ck_ok (close (overtaker));
  ck_ok (unlink (name));
  /* With nobody there it is made. */
  ck_ok (storage_create_file (name, &new_contents));
  ck_ok (unlink (name));
}
END_TEST

/* One that cannot be locked for another reason is still ours alone. */
START_TEST (a_new_file_that_cannot_be_locked_goes)
{
  struct stat st;
  char name[40];

  snprintf (name, sizeof name, "tmp-storage.%d.new", (int) getpid ());
  fault_errno = ENOLCK;
  fault_cmd = F_OFD_SETLK;
  ck_assert_int_eq (storage_create_file (name, &new_contents), -ENOLCK);
  ck_assert_int_eq (stat (name, &st), -1);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("storage-lock");
  TCase *tc = tcase_create ("locks");

  tcase_set_timeout (tc, 60);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, sets);
  tcase_add_test (tc, closing);
  tcase_add_test (tc, forking);
  tcase_add_loop_test (tc, conflicts, 0, NR_OTHERS);
  tcase_add_test (tc, failure_keeps_state);
  tcase_add_test (tc, holders);
  tcase_add_test (tc, exclusive_lock);
  tcase_add_test (tc, two_storages);
  tcase_add_test (tc, locking_off);
  tcase_add_loop_test (tc, no_such_locks, 0, 2);
  tcase_add_test (tc, half_way);
  tcase_add_test (tc, interrupted);
  tcase_add_test (tc, read_only_descriptor);
  tcase_add_loop_test (tc, a_new_file_that_another_has_locked_stays, 0, 2);
  tcase_add_test (tc, a_new_file_that_cannot_be_locked_goes);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
