/* SPDX-License-Identifier: BSD-3-Clause */

/* The event log: what its lines look like, and what happens to them with
 * readers that are slow, never read, or have no more space.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checked.h"
#include "event-test.h"
#include "run-suite.h"

/* Check's assertions are for one thread. */
static void
must (bool condition)
{
  if (!condition)
    abort ();
}

/* What went to nbdkit's log. */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned log_lines, log_write_errors, log_undelivered;
static char last_line[1024];

static void
collect (enum report_level level, const char *text)
{
  pthread_mutex_lock (&log_lock);
  must (level == REPORT_ERROR);
  log_lines++;
  log_write_errors += strstr (text, ": write: ") != NULL;
  log_undelivered += strstr (text, "not delivered") != NULL;
  snprintf (last_line, sizeof last_line, "%s", text);
  pthread_mutex_unlock (&log_lock);
}

static char where[32];
static int reader_fd, writer_fd;

/* An event log on a pipe, given as fd:N. */
static void
open_pipe (void)
{
  int fds[2];

  ck_assert_int_eq (pipe (fds), 0);
  reader_fd = fds[0];
  writer_fd = fds[1];
  snprintf (where, sizeof where, "fd:%d", writer_fd);
  ck_assert_int_eq (events_open (where, "disk.qcow2"), 0);
}

static void
check_line (FILE *f, const char *name, const char *data)
{
  json_t *root = next_event (f);
  json_t *expected = json_loads (data, 0, NULL);

  ck_assert (root != NULL && expected != NULL);
  ck_assert_str_eq (json_string_value (json_object_get (root, "event")),
                    name);
  ck_assert_msg (json_equal (json_object_get (root, "data"), expected),
                 "%s: %s", name,
                 json_dumps (json_object_get (root, "data"), 0));
  json_decref (root);
  json_decref (expected);
}

static FILE *
reader (void)
{
  FILE *f = fdopen (reader_fd, "r");

  ck_assert_ptr_nonnull (f);
  return f;
}

static void
set_up (void)
{
  report_set_sink (collect);
  signal (SIGPIPE, SIG_IGN);    /* as in nbdkit */
}

START_TEST (test_lines)
{
  struct event corrupted = {
    .kind = EVENT_IMAGE_CORRUPTED, .image = "disk.qcow2", .msg = "met",
    .has_range = true, .offset = UINT64_C (1) << 55, .size = 512,
    .fatal = true
  };
  struct event limit = {
    .kind = EVENT_OVERLAP_MEMORY_LIMIT_REACHED, .image = "disk.qcow2",
    .has_range = true, .offset = 0, .size = 65536, .limit = UINT64_MAX,
    .used = 17, .policy = "verify", .is_protected = true
  };
  FILE *f;

  open_pipe ();
  /* Before there is a thread, which comes after the fork. */
  events_sink (NULL, &corrupted);
  ck_assert_str_eq (last_line, "BLOCK_IMAGE_CORRUPTED: disk.qcow2: met "
                    "(offset 36028797018963968, size 512, writes stop)");
  ck_assert_int_eq (events_start (), 0);
  ck_assert_int_eq (events_start (), 0);
  corrupted.has_range = corrupted.fatal = false;
  corrupted.image = "caf\xc3\xa9\n\x1b.qcow2";
  corrupted.msg = "caf\xe9 \"x\"";
  events_sink (NULL, &corrupted);
  ck_assert_ptr_null (strchr (last_line, '\n'));
  ck_assert_ptr_null (strchr (last_line, '\x1b'));
  events_sink (NULL, &limit);
  ck_assert_str_eq (last_line, "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED: "
                    "disk.qcow2: for want of memory, metadata in 65536 "
                    "bytes from host offset 0 is not tracked: writes there "
                    "are checked by searching the tables, which is slow "
                    "(17 bytes of memory used); it comes back when there "
                    "is memory");
  emit (99, 100);
  ck_assert_str_eq (last_line, "QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED: "
                    "disk.qcow2: metadata in 65536 bytes from host "
                    "offset 99 is tracked again, writes there are checked");
  events_stop ();
  events_stop ();
  events_close ();
  events_close ();
  ck_assert_uint_eq (log_lines, 4);

  f = reader ();
  check_line (f, "BLOCK_IMAGE_CORRUPTED",
              "{\"image\": \"disk.qcow2\", \"node-name\": \"\","
              " \"msg\": \"met\", \"offset\": 36028797018963968,"
              " \"size\": 512, \"fatal\": true}");
  check_line (f, "BLOCK_IMAGE_CORRUPTED",
              "{\"image\": \"caf\\u00e9\\n\\u001b.qcow2\","
              " \"node-name\": \"\","
              " \"msg\": \"caf? \\\"x\\\"\", \"fatal\": false}");
  check_line (f, "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED",
              "{\"image\": \"disk.qcow2\", \"start\": 0,"
              " \"length\": 65536, \"limit\": 9223372036854775807,"
              " \"used\": 17, \"policy\": \"verify\","
              " \"protected\": true}");
  check_line (f, "QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED",
              "{\"image\": \"disk.qcow2\", \"start\": 99,"
              " \"length\": 65536}");
  ck_assert_ptr_null (next_event (f));   /* and the descriptor is closed */
}
END_TEST

/* What the log says when the limit is reached: what, where, what it
 * means, and what to do.
 */
START_TEST (test_limit_in_words)
{
  static const char *const policies[] = { "unprotected", "verify",
                                          "refuse" };
  static const char *const means[] = {
    "writes there are no longer checked",
    "writes there are checked by searching the tables, which is slow",
    "writes there are refused",
  };
  const struct event limit = {
    .kind = EVENT_OVERLAP_MEMORY_LIMIT_REACHED, .image = "disk.qcow2",
    .has_range = true, .offset = 4096, .size = 8192, .limit = 2000,
    .used = 1990, .policy = policies[_i], .enough = 65536
  };
  char expected[500];

  snprintf (expected, sizeof expected,
            "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED: disk.qcow2: metadata "
            "in 8192 bytes from host offset 4096 is not tracked: %s (1990 "
            "bytes of memory used, the limit is 2000); "
            "overlap-structures.total-size-limit=64k would do",
            means[_i]);
  events_sink (NULL, &limit);
  ck_assert_str_eq (last_line, expected);
  ck_assert_uint_eq (log_lines, 1);
}
END_TEST

/* A server that does not start: no thread was made, and what was found
 * is written all the same.
 */
START_TEST (test_never_started)
{
  FILE *f;

  events_stop ();
  events_close ();
  open_pipe ();
  emit (1, 2);
  events_stop ();
  events_close ();
  emit (2, 3);                  /* no log: only nbdkit's */
  ck_assert_uint_eq (log_lines, 2);
  f = reader ();
  check_line (f, "QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED",
              "{\"image\": \"disk.qcow2\", \"start\": 1,"
              " \"length\": 65536}");
  ck_assert_ptr_null (next_event (f));
}
END_TEST

#define MANY 8000

static _Atomic uint64_t emitted;

/* A burst that no pipe and no queue hold, a while of one at a time, and
 * a burst.
 */
static void *
bursts (void *arg)
{
  uint64_t i;

  for (i = 0; i < MANY; i++) {
    emit (i, i + 1);
    atomic_store (&emitted, i + 1);
    if (i > MANY / 2 && i < MANY / 4 * 3)
      usleep (20);
  }
  return arg;
}

/* Start the bursts and come back, however slow the machine is, when the
 * first is over.
 */
static pthread_t
first_burst (void)
{
  pthread_t thread;

  atomic_store (&emitted, 0);
  ck_assert_int_eq (pthread_create (&thread, NULL, bursts, NULL), 0);
  while (atomic_load (&emitted) < MANY / 2)
    usleep (1000);
  return thread;
}

/* A reader that cannot follow: the sender is not slowed down, every
 * event is either there or counted in its place.
 */
START_TEST (test_slow_reader)
{
  struct losses lost;
  pthread_t thread;
  FILE *f;

  open_pipe ();
  f = reader ();
  ck_assert_int_eq (events_start (), 0);
  thread = first_burst ();      /* nobody reads so far */
  lost = follow (f, 0, MANY, 50);
  ck_assert_uint_gt (lost.lines, 0);
  /* Not one for every line that found room. */
  ck_assert_uint_lt (lost.lines, 100);
  pthread_join (thread, NULL);
  events_stop ();
  events_close ();
  ck_assert_ptr_null (next_event (f));
  fclose (f);
  ck_assert_uint_eq (log_undelivered, 0);
  ck_assert_uint_eq (log_lines, MANY + lost.lines);
}
END_TEST

/* A reader that never reads costs the end a bounded time, once, and the
 * sender none: who waited for it would do so for ever.
 */
START_TEST (test_never_reads)
{
  double start;

  open_pipe ();
  ck_assert_int_eq (events_start (), 0);
  emit (0, MANY);
  start = seconds ();
  events_stop ();
  ck_assert (seconds () - start > 4 && seconds () - start < patience ());
  start = seconds ();
  events_stop ();               /* .cleanup and .unload both do this */
  ck_assert (seconds () - start < 4);
  events_close ();
  ck_assert_uint_eq (log_undelivered, 1);
}
END_TEST

/* A non-blocking descriptor is waited for, and stays as it was. */
START_TEST (test_nonblocking)
{
  pthread_t thread;
  int fds[2];
  FILE *f;

  ck_assert_int_eq (pipe (fds), 0);
  ck_assert_int_eq (fcntl (fds[1], F_SETFL, O_NONBLOCK), 0);
  reader_fd = fds[0];
  writer_fd = dup (fds[1]);     /* somebody else's */
  snprintf (where, sizeof where, "fd:%d", fds[1]);
  ck_assert_int_eq (events_open (where, "disk.qcow2"), 0);
  ck_assert_int_eq (events_start (), 0);
  thread = first_burst ();
  ck_assert_int_ne (fcntl (writer_fd, F_GETFL) & O_NONBLOCK, 0);
  close (writer_fd);
  f = reader ();
  follow (f, 0, MANY, 0);
  pthread_join (thread, NULL);
  events_stop ();
  events_close ();
  fclose (f);
  ck_assert_uint_eq (log_write_errors, 0);
}
END_TEST

/* The reader goes away: counted, said once, no signal. */
START_TEST (test_broken_pipe)
{
  open_pipe ();
  ck_assert_int_eq (events_start (), 0);
  close (reader_fd);
  emit (0, 100);
  events_stop ();
  events_close ();
  ck_assert_uint_eq (log_write_errors, 1);
  ck_assert_uint_eq (log_undelivered, 1);
  ck_assert_str_eq (strchr (last_line, ':') + strlen (where) - 2,
                    ": 100 events were not delivered");
}
END_TEST

static void
wait_for_size (const char *path, off_t size)
{
  struct stat st;
  double start = seconds ();

  do {
    usleep (1000);
    ck_assert_int_eq (stat (path, &st), 0);
    ck_assert (seconds () - start < patience ());
  } while (st.st_size < size);
}

static void
wait_for_write_error (void)
{
  unsigned n;

  do {
    usleep (1000);
    pthread_mutex_lock (&log_lock);
    n = log_write_errors;
    pthread_mutex_unlock (&log_lock);
  } while (n == 0);
}

/* The disk is full in the middle of a line, and has room again later:
 * one torn line, everything after it whole, the number right.
 */
START_TEST (test_disk_full)
{
  char path[] = "events-XXXXXX";
  struct rlimit limit = { .rlim_cur = 1000, .rlim_max = RLIM_INFINITY };
  uint64_t events = 0, torn = 0, lost = 0;
  char *line = NULL;
  size_t size = 0;
  FILE *f;

  signal (SIGXFSZ, SIG_IGN);
  close (mkstemp (path));
  ck_assert_int_eq (events_open (path, "disk.qcow2"), 0);
  ck_assert_int_eq (events_start (), 0);
  ck_assert_int_eq (setrlimit (RLIMIT_FSIZE, &limit), 0);
  emit (0, 50);
  wait_for_size (path, 1000);
  wait_for_write_error ();
  usleep (100000);
  limit.rlim_cur = RLIM_INFINITY;
  ck_assert_int_eq (setrlimit (RLIMIT_FSIZE, &limit), 0);
  emit (50, 60);
  events_stop ();
  events_close ();

  f = fopen (path, "r");
  unlink (path);
  while (getline (&line, &size, f) != -1) {
    json_t *root = json_loads (line, 0, NULL);

    if (!root)
      torn++;
    else if (strstr (line, "QCOW2_EVENTS_LOST"))
      lost += event_number (root, "count");
    else
      events++;
    json_decref (root);
  }
  free (line);
  fclose (f);
  ck_assert_uint_eq (torn, 1);
  ck_assert_uint_gt (events, 10);
  ck_assert_uint_eq (events + lost, 60);
  ck_assert_uint_eq (log_write_errors, 1);
  ck_assert_uint_eq (log_undelivered, 0);
}
END_TEST

#define THREADS 4
#define EACH 300

static void *
sender (void *arg)
{
  uint64_t first = *(uint64_t *) arg;

  emit (first, first + EACH);
  return arg;
}

/* Events come from any thread: none is lost, no line broken. */
START_TEST (test_threads)
{
  char path[] = "events-XXXXXX";
  bool seen[THREADS * EACH] = { false };
  pthread_t threads[THREADS];
  uint64_t firsts[THREADS];
  json_t *root;
  unsigned i, n = 0;
  FILE *f;

  close (mkstemp (path));
  ck_assert_int_eq (events_open (path, "disk.qcow2"), 0);
  ck_assert_int_eq (events_start (), 0);
  for (i = 0; i < THREADS; i++) {
    firsts[i] = i * EACH;
    ck_assert_int_eq (pthread_create (&threads[i], NULL, sender,
                                      &firsts[i]), 0);
  }
  for (i = 0; i < THREADS; i++)
    pthread_join (threads[i], NULL);
  events_stop ();
  events_close ();

  f = fopen (path, "r");
  unlink (path);
  while ((root = next_event (f)) != NULL) {
    const uint64_t number = event_number (root, "start");

    ck_assert_uint_lt (number, ARRAY_SIZE (seen));
    ck_assert (!seen[number]);
    seen[number] = true;
    n++;
    json_decref (root);
  }
  fclose (f);
  ck_assert_uint_eq (n, ARRAY_SIZE (seen));
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-events");
  TCase *tc = tcase_create ("events");

  tcase_set_timeout (tc, 300);
  tcase_add_checked_fixture (tc, set_up, NULL);
  tcase_add_test (tc, test_lines);
  tcase_add_loop_test (tc, test_limit_in_words, 0, 3);
  tcase_add_test (tc, test_never_started);
  tcase_add_test (tc, test_slow_reader);
  tcase_add_test (tc, test_never_reads);
  tcase_add_test (tc, test_nonblocking);
  tcase_add_test (tc, test_broken_pipe);
  tcase_add_test (tc, test_disk_full);
  tcase_add_test (tc, test_threads);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
