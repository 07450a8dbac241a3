/* SPDX-License-Identifier: BSD-3-Clause */

/* Which files can be opened as a storage, and which can be removed. */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "checked.h"
#include "storage-test.h"

static char dir[] = "tmp-storage-dir.XXXXXX";

static void
make_dir (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  if (mkdtemp (dir) == NULL || chdir (dir) == -1)
    abort ();
  fd = open ("file", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
  close (fd);
  strcpy (addr.sun_path, "socket");
  fd = socket (AF_UNIX, SOCK_STREAM, 0);
  if (mkfifo ("fifo", 0600) == -1 || mkdir ("dir", 0700) == -1 ||
      symlink ("file", "link") == -1 || symlink ("fifo", "fifolink") == -1 ||
      symlink ("loop", "loop") == -1 ||
      bind (fd, (struct sockaddr *) &addr, sizeof addr) == -1)
    abort ();
  close (fd);
}

static void
remove_dir (void)
{
  static const char *const names[] = {
    "file", "fifo", "link", "fifolink", "loop", "socket",
  };
  size_t i;

  for (i = 0; i < sizeof names / sizeof names[0]; i++)
    unlink (names[i]);
  rmdir ("dir");
  if (chdir ("..") == -1 || rmdir (dir) == -1)
    abort ();
}

static int
try_open (const char *path, bool writable, bool nofollow)
{
  struct storage *s = NULL;
  int err = storage_open_file (path, writable, nofollow, &s);

  if (err == 0)
    storage_close (s);
  return err;
}

/* Nothing of this waits for a FIFO's other end, which is for ever, or opens
 * a device.
 */
START_TEST (open_kinds)
{
  static const char *const bad[] = {
    "fifo", "fifolink", "dir", ".", "socket", "/dev/null", "/dev/zero",
  };
  bool writable = _i & 1, nofollow = _i & 2;
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    if (nofollow && strcmp (bad[i], "fifolink") == 0)
      ck_assert_int_eq (try_open (bad[i], writable, nofollow), -ELOOP);
    else
      ck_assert_int_eq (try_open (bad[i], writable, nofollow), -EINVAL);
  }
  ck_ok (try_open ("file", writable, nofollow));
  ck_assert_int_eq (try_open ("link", writable, nofollow),
                    nofollow ? -ELOOP : 0);
  ck_assert_int_eq (try_open ("loop", writable, nofollow), -ELOOP);
  ck_assert_int_eq (try_open ("none", writable, nofollow), -ENOENT);
  ck_assert_int_eq (try_open ("file/x", writable, nofollow), -ENOTDIR);
  ck_assert_int_eq (try_open ("", writable, nofollow), -ENOENT);
}
END_TEST

START_TEST (open_name_too_long)
{
  char *name = malloc (PATH_MAX + 10);

  memset (name, 'x', PATH_MAX + 9);
  name[PATH_MAX + 9] = '\0';
  ck_assert_int_eq (try_open (name, false, false), -ENAMETOOLONG);
  free (name);
}
END_TEST

/* A device that could not be opened any more lost its name. */
START_TEST (only_a_file_is_removed)
{
  static const char *const stay[] = { "fifo", "socket", "link", "dir" };
  struct stat st;
  size_t i;

  for (i = 0; i < ARRAY_SIZE (stay); i++) {
    if (strcmp (stay[i], "link") == 0)
      ck_assert_int_eq (rename ("file", "elsewhere"), 0);
    storage_remove_created (stay[i], NULL);
    ck_assert_msg (lstat (stay[i], &st) == 0, "%s is gone", stay[i]);
  }
  ck_assert_int_eq (rename ("elsewhere", "file"), 0);
  ck_assert_int_eq (close (open ("made", O_CREAT | O_RDWR, 0600)), 0);
  ck_assert_int_eq (storage_remove_created ("made", NULL), 0);
  ck_assert_int_eq (lstat ("made", &st), -1);
}
END_TEST

/* Between its making and its opening an image belongs to nobody.  Who
 * opened it then lost it, when the opening by its maker failed.
 */
START_TEST (what_another_has_opened_is_not_removed)
{
  struct storage *other;
  const char *conflict;
  struct stat st;

  ck_assert_int_eq (close (open ("made", O_CREAT | O_RDWR, 0600)), 0);
  ck_ok (storage_open_file ("made", true, false, &other));
  ck_ok (storage_lock (other, STORAGE_LOCK_WRITER, LOCKING_ON, &conflict));
  ck_assert_int_eq (storage_remove_created ("made", NULL), -EAGAIN);
  ck_assert_int_eq (lstat ("made", &st), 0);
  ck_ok (storage_lock (other, STORAGE_LOCK_READER, LOCKING_ON, &conflict));
  ck_assert_int_eq (storage_remove_created ("made", NULL), -EAGAIN);
  ck_assert_int_eq (lstat ("made", &st), 0);
  ck_ok (storage_remove_created ("made", other));
  ck_assert_int_eq (lstat ("made", &st), -1);
  storage_close (other);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("storage-open");
  TCase *tc = tcase_create ("open");

  tcase_set_timeout (tc, 120);
  tcase_add_unchecked_fixture (tc, make_dir, remove_dir);
  tcase_add_loop_test (tc, open_kinds, 0, 4);
  tcase_add_test (tc, open_name_too_long);
  tcase_add_test (tc, only_a_file_is_removed);
  tcase_add_test (tc, what_another_has_opened_is_not_removed);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
