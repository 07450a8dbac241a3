/* SPDX-License-Identifier: BSD-3-Clause */

/* The event socket with several readers: one that follows, one that is
 * slow, one that never reads, one that leaves, one that comes late.  None
 * of them costs another an event, nor the sender time.
 */

#include <config.h>

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "event-socket.h"
#include "event-test.h"
#include "run-suite.h"

#define MANY 8000

/* What went to nbdkit's log, by what it is about. */
static atomic_uint log_events, log_lost, log_full, log_other;

static void
collect (enum report_level level, const char *text)
{
  if (level != REPORT_ERROR)
    abort ();
  if (strstr (text, "PROTECTION_RESTORED"))
    log_events++;
  else if (strncmp (text, "QCOW2_EVENTS_LOST: ", 19) == 0)
    log_lost++;
  else if (strstr (text, "are turned away"))
    log_full++;
  else
    log_other++;
}

static char folder[] = "/tmp/events.XXXXXX";
static char path[sizeof folder + 8];

static void
set_up (void)
{
  report_set_sink (collect);
  ck_assert_ptr_nonnull (mkdtemp (folder));
  snprintf (path, sizeof path, "%s/sock", folder);
  ck_assert_int_eq (event_socket_open (path, "disk.qcow2"), 0);
}

static void
tear_down (void)
{
  event_socket_stop ();
  event_socket_stop ();
  ck_assert_int_eq (access (path, F_OK), -1);
  ck_assert_int_eq (rmdir (folder), 0);
  ck_assert_uint_eq (log_other, 0);
}

static FILE *
join (void)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  FILE *f;

  strcpy (addr.sun_path, path);
  ck_assert_int_eq (connect (fd, (struct sockaddr *) &addr, sizeof addr), 0);
  f = fdopen (fd, "r+");
  ck_assert_ptr_nonnull (f);
  return f;
}

/* How many descriptors this process has, of readers and of the socket's
 * thread alike.
 */
static unsigned
descriptors (void)
{
  DIR *dir = opendir ("/proc/self/fd");
  unsigned n = 0;

  ck_assert_ptr_nonnull (dir);
  while (readdir (dir))
    n++;
  closedir (dir);
  return n;
}

/* Until the thread has let somebody in, or seen that he has gone. */
static void
wait_for_descriptors (unsigned n)
{
  while (descriptors () != n)
    usleep (1000);
}

static void
expect_end (FILE *f)
{
  ck_assert_int_eq (fgetc (f), EOF);
  fclose (f);
}

/* Everyone gets what is sent after he connected, from the very first, also
 * if that was before there was a thread to accept him.
 */
START_TEST (test_from_connecting_on)
{
  FILE *a, *b, *c;

  a = join ();
  emit (0, 2);
  ck_assert_int_eq (event_socket_start (), 0);
  ck_assert_int_eq (event_socket_start (), 0);
  follow_all (a, 0, 2);
  b = join ();
  emit (2, 3);
  follow_all (b, 2, 3);
  /* The next ones are sent at the end. */
  c = join ();
  emit (3, 6);
  event_socket_stop ();
  follow_all (a, 2, 6);
  follow_all (b, 3, 6);
  follow_all (c, 3, 6);
  expect_end (a);
  expect_end (b);
  expect_end (c);
  ck_assert_uint_eq (event_socket_losses (), 0);
}
END_TEST

static void *
burst (void *arg)
{
  emit (0, MANY);
  return arg;
}

START_TEST (test_slow_beside_prompt)
{
  FILE *prompt = join (), *slow = join (), *never = join ();
  FILE *leaves = join ();
  pthread_t thread;
  uint64_t lost, late_from = MANY;
  double start;

  ck_assert_int_eq (event_socket_start (), 0);
  /* Small pieces for the one that follows: what is lost there was too
   * fast for anybody.
   */
  while (late_from < MANY + 800) {
    emit (late_from, late_from + 100);
    follow_all (prompt, late_from, late_from + 100);
    late_from += 100;
    if (late_from == MANY + 400) {
      follow_all (leaves, MANY, MANY + 3);
      fclose (leaves);          /* in the middle of a line, perhaps */
    }
  }
  ck_assert_uint_eq (event_socket_losses (), 0);

  /* Now more than buffers hold, while the slow one reads a little.  Who
   * waited for the one that never reads would do so for ever.
   */
  ck_assert_int_eq (pthread_create (&thread, NULL, burst, NULL), 0);
  ck_assert_uint_eq (follow (slow, MANY, MANY + 800, 20).events, 0);
  pthread_join (thread, NULL);
  lost = follow (slow, 0, MANY, 20).events;
  ck_assert_uint_gt (lost, 0);
  ck_assert_uint_ge (event_socket_losses (), lost);
  follow (prompt, 0, MANY, 0);

  /* The one that never reads costs the end a bounded time. */
  start = seconds ();
  event_socket_stop ();
  ck_assert (seconds () - start > 4 && seconds () - start < patience ());
  fclose (never);
  expect_end (prompt);
  expect_end (slow);
  ck_assert_uint_gt (log_lost, 0);
  ck_assert_uint_lt (log_lost, 200);
  ck_assert_uint_eq (log_events, MANY + 800);
}
END_TEST

/* What readers say is not listened to; one that will say nothing more is
 * not one that has gone.
 */
START_TEST (test_talkative)
{
  FILE *a = join (), *b = join ();

  ck_assert_int_eq (event_socket_start (), 0);
  fputs ("{\"execute\": \"qmp_capabilities\"}\n", a);
  fflush (a);
  ck_assert_int_eq (shutdown (fileno (b), SHUT_WR), 0);
  emit (0, 3);
  follow_all (a, 0, 3);
  follow_all (b, 0, 3);
  fclose (a);
  fclose (b);
}
END_TEST

/* More readers than there is room for are turned away; when others leave
 * there is room again.
 */
START_TEST (test_crowd)
{
  FILE *f[70];
  unsigned i, before;

  ck_assert_int_eq (event_socket_start (), 0);
  before = descriptors ();
  for (i = 0; i < 70; i++)
    f[i] = join ();
  emit (0, 2);
  for (i = 0; i < 64; i++)
    follow_all (f[i], 0, 2);
  for (; i < 70; i++)
    expect_end (f[i]);
  ck_assert_uint_eq (log_full, 1);
  for (i = 0; i < 64; i++)
    fclose (f[i]);
  wait_for_descriptors (before);
  f[0] = join ();
  emit (2, 4);
  follow_all (f[0], 2, 4);
  fclose (f[0]);
}
END_TEST

/* Without descriptors nobody is let in, and the processor is not kept
 * busy with it; later they are, without an event that would wake anybody.
 */
START_TEST (test_no_descriptors)
{
  struct rlimit was, none;
  unsigned before;
  clock_t busy;
  FILE *f;

  ck_assert_int_eq (event_socket_start (), 0);
  before = descriptors ();
  f = join ();
  emit (0, 1);
  follow_all (f, 0, 1);
  fclose (f);
  f = join ();
  ck_assert_int_eq (getrlimit (RLIMIT_NOFILE, &was), 0);
  none = was;
  none.rlim_cur = 3;
  /* It may have been accepted already: the next one is not. */
  ck_assert_int_eq (setrlimit (RLIMIT_NOFILE, &none), 0);
  emit (1, 2);
  busy = clock ();
  usleep (300000);
  ck_assert ((double) (clock () - busy) / CLOCKS_PER_SEC < 0.25);
  ck_assert_int_eq (setrlimit (RLIMIT_NOFILE, &was), 0);
  fclose (f);
  f = join ();
  wait_for_descriptors (before + 2);
  emit (2, 3);
  follow_all (f, 2, 3);
  fclose (f);
}
END_TEST

/* Nobody else may connect, and nothing is harmed that was there. */
START_TEST (test_address)
{
  struct stat st;
  char other[sizeof path + 8], nowhere[200];
  FILE *f;

  ck_assert_int_eq (stat (path, &st), 0);
  ck_assert_uint_eq (st.st_mode, S_IFSOCK | 0600);
  event_socket_stop ();

  /* Another server's. */
  ck_assert_int_eq (event_socket_open (path, "disk.qcow2"), 0);
  f = join ();
  fclose (f);
  event_socket_stop ();

  /* A file. */
  snprintf (other, sizeof other, "%s/file", folder);
  f = fopen (other, "w");
  ck_assert_ptr_nonnull (f);
  fclose (f);
  ck_assert_int_eq (event_socket_open (other, "disk.qcow2"), -1);
  ck_assert_int_eq (unlink (other), 0);

  snprintf (nowhere, sizeof nowhere, "%s/no/sock", folder);
  ck_assert_int_eq (event_socket_open (nowhere, "disk.qcow2"), -1);
  memset (nowhere, 'n', 108);
  nowhere[108] = '\0';
  ck_assert_int_eq (event_socket_open (nowhere, "disk.qcow2"), -1);
  ck_assert_uint_eq (log_other, 3);
  log_other = 0;
}
END_TEST

/* None was asked for. */
START_TEST (test_none)
{
  event_socket_stop ();
  ck_assert_int_eq (event_socket_open (NULL, "disk.qcow2"), 0);
  ck_assert_int_eq (event_socket_start (), 0);
  emit (0, 1);
  event_socket_stop ();
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-event-socket");
  TCase *tc = tcase_create ("readers");

  tcase_add_checked_fixture (tc, set_up, tear_down);
  tcase_add_test (tc, test_from_connecting_on);
  tcase_add_test (tc, test_slow_beside_prompt);
  tcase_add_test (tc, test_talkative);
  tcase_add_test (tc, test_crowd);
  tcase_add_test (tc, test_no_descriptors);
  tcase_add_test (tc, test_address);
  tcase_add_test (tc, test_none);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
