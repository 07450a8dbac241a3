/* SPDX-License-Identifier: BSD-3-Clause */

/* The statistics file (stats=PATH).
 *
 * Requests are counted where nbdkit hands them over, in one of SHARDS
 * sets of counters: each thread has one for its life, so that threads
 * hardly share a cache line.  All accesses are relaxed atomics, as two
 * threads may have the same shard.  What is counted only ever grows, and
 * a request is counted as begun before it is counted as ended: who adds
 * up all that ended, and then all that began, never finds less begun
 * than ended.  The engine counts for itself (image_get_stats).
 *
 * A thread writes the file every so many seconds, always as a new file
 * beside it which then takes its name: whoever reads it finds one state,
 * whole.  The folder is held open, because nbdkit changes its directory
 * when it forks.  The last word is written when the server ends.
 *
 * The file is replaced, so that a slip of the hand could destroy
 * another: what is there and was not written by this code is refused.
 *
 * Without stats= one flag is looked at for each request, and nothing
 * else.
 *
 * Locks: one, for the thread's sleep.  The engine's are taken one by one
 * by image_get_stats, and none of those waits for I/O.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"
#include "monotonic.h"
#include "per-thread.h"
#include "plugin.h"
#include "stats.h"

#define SHARDS 16               /* nbdkit's threads of one connection */

struct counters {
  _Atomic uint64_t begun, errors, bytes, nanoseconds;
  _Atomic uint64_t ended[STATS_BUCKETS];
};

static struct shard {
  struct counters kind[STATS_KINDS];
} __attribute__ ((aligned (64))) shards[SHARDS];

/* Set before the fork, unchanged until the end. */
static atomic_bool on;
static const char *path;        /* as the user gave it */
static const char *image_name;
static unsigned interval;       /* seconds, 0 never */
static int dir = -1;
static char *base, *temporary;  /* names in DIR */
static uint64_t start_seconds;

static struct image *image;     /* NULL: not open */
static bool broken;             /* the last attempt to write failed */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake;     /* on the monotonic clock */
static pthread_t thread;
static bool thread_exists, stopping;

static struct counters *
my_counters (enum stats_kind kind)
{
  return &shards[thread_number () % SHARDS].kind[kind];
}

static void
add (_Atomic uint64_t *counter, uint64_t n)
{
  atomic_fetch_add_explicit (counter, n, memory_order_relaxed);
}

struct stats_request
stats_begin (enum stats_kind kind, uint32_t bytes)
{
  struct stats_request rq = { .kind = kind, .bytes = bytes };

  if (atomic_load_explicit (&on, memory_order_relaxed)) {
    add (&my_counters (kind)->begun, 1);
    rq.begin = monotonic_now ();
  }
  return rq;
}

void
stats_end (const struct stats_request *rq, bool failed)
{
  struct counters *c;
  uint64_t took;
  unsigned i = 0;

  if (rq->begin == 0)
    return;
  took = monotonic_now () - rq->begin;
  while (i < STATS_BUCKETS - 1 && took > stats_bounds[i])
    i++;
  c = my_counters (rq->kind);
  add (&c->nanoseconds, took);
  if (failed)
    add (&c->errors, 1);
  else
    add (&c->bytes, rq->bytes);
  /* After its beginning, whichever shard that is in. */
  atomic_fetch_add_explicit (&c->ended[i], 1, memory_order_release);
}

/* Add up one kind, what ended before what began. */
static void
total (enum stats_kind kind, struct stats_kind_total *t)
{
  uint64_t ended = 0, begun = 0;
  unsigned s, i;

  for (s = 0; s < SHARDS; s++) {
    struct counters *c = &shards[s].kind[kind];

    for (i = 0; i < STATS_BUCKETS; i++) {
      uint64_t n = atomic_load_explicit (&c->ended[i], memory_order_acquire);

      t->count[i] += n;
      ended += n;
    }
    t->errors += atomic_load_explicit (&c->errors, memory_order_relaxed);
    t->bytes += atomic_load_explicit (&c->bytes, memory_order_relaxed);
    t->nanoseconds += atomic_load_explicit (&c->nanoseconds,
                                            memory_order_relaxed);
  }
  for (s = 0; s < SHARDS; s++)
    begun += atomic_load_explicit (&shards[s].kind[kind].begun,
                                   memory_order_relaxed);
  t->in_flight = begun - ended;
}

static char *
make_text (bool serving)
{
  struct stats_snapshot s = {
    .image = image_name, .serving = serving, .start_seconds = start_seconds,
    .has_engine = image != NULL
  };
  unsigned i;

  for (i = 0; i < STATS_KINDS; i++)
    total ((enum stats_kind) i, &s.kinds[i]);
  events_count (s.events, &s.events_lost);
  if (image) {
    image_get_stats (image, &s.engine);
    s.disk_size = image_size (image);
  }
  return stats_text (&s);
}

/* Report it once, not every few seconds. */
static int
complain (const char *what, int err)
{
  if (!broken)
    report_error ("stats=%s: %s: %s", path, what, strerror (err));
  broken = true;
  return -1;
}

/* The new file, in the place of one that a server left that was killed
 * while it wrote.  (Not through a symbolic link that somebody laid there.)
 */
static int
write_temporary (const char *text)
{
  CLEANUP_CLOSE int fd = -1;
  size_t len = strlen (text), done = 0;

  if (unlinkat (dir, temporary, 0) == -1 && errno != ENOENT)
    return complain ("remove the old temporary file beside it", errno);
  fd = openat (dir, temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC
               | O_NOFOLLOW, 0644);
  if (fd == -1)
    return complain ("create a temporary file beside it", errno);
  while (done < len) {
    ssize_t n = write (fd, text + done, len - done);

    if (n == -1 && errno != EINTR)
      return complain ("write", errno);
    done += n > 0 ? (size_t) n : 0;
  }
  return 0;
}

static int
write_file (bool serving)
{
  CLEANUP_FREE char *text = make_text (serving);
  int r;

  if (!text)
    return complain ("making the text", ENOMEM);
  r = write_temporary (text);
  if (r == 0 && renameat (dir, temporary, dir, base) == -1)
    r = complain ("rename", errno);
  if (r == -1)
    unlinkat (dir, temporary, 0);
  else
    broken = false;
  return r;
}

/* What will be replaced must be ours, or nothing. */
static int
check_target (void)
{
  static const char ours[] = "# HELP nbdkit_qcow2_";
  char begin[sizeof ours - 1];
  CLEANUP_CLOSE int fd = -1;
  struct stat st;

  if (fstatat (dir, base, &st, AT_SYMLINK_NOFOLLOW) == -1)
    return errno == ENOENT ? 0 : complain ("stat", errno);
  if (!S_ISREG (st.st_mode)) {
    report_error ("stats=%s: this is not a file, expected a file of "
                  "statistics or the name of a new one", path);
    return -1;
  }
  if (st.st_size == 0)
    return 0;
  fd = openat (dir, base, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd == -1)
    return complain ("open", errno);
  if (pread (fd, begin, sizeof begin, 0) != (ssize_t) sizeof begin
      || memcmp (begin, ours, sizeof begin) != 0) {
    report_error ("stats=%s: this file has something else in it and would "
                  "be replaced, expected a file of statistics or the name of "
                  "a new one", path);
    return -1;
  }
  return 0;
}

/* Split the path, hold its folder. */
static int
open_folder (void)
{
  const char *slash = strrchr (path, '/');
  const char *name = slash ? slash + 1 : path;
  CLEANUP_FREE char *folder = slash
    ? strndup (path, slash == path ? 1 : (size_t) (slash - path))
    : strdup (".");

  if (!*name) {
    report_error ("stats=%s: expected the name of a file, not of a folder",
                  path);
    return -1;
  }
  base = strdup (name);
  if (!folder || !base || asprintf (&temporary, "%s.tmp", name) == -1)
    return complain ("names", ENOMEM);
  dir = open (folder, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir == -1) {
    report_error ("stats=%s: open the folder %s: %s", path, folder,
                  strerror (errno));
    return -1;
  }
  return 0;
}

static void
forget (void)
{
  if (dir != -1)
    close (dir);
  dir = -1;
  free (base);
  free (temporary);
  base = temporary = NULL;
  on = false;
}

int
stats_open (const char *where, unsigned seconds, const char *name)
{
  if (!where)
    return 0;
  path = where;
  interval = seconds;
  image_name = name;
  image = NULL;
  broken = false;
  start_seconds = (uint64_t) time (NULL);
  if (open_folder () == -1 || check_target () == -1) {
    forget ();
    return -1;
  }
  return 0;
}

int
stats_publish (struct image *img)
{
  if (dir == -1)
    return 0;
  image = img;
  if (write_file (true) == -1) {
    image = NULL;
    forget ();
    return -1;
  }
  on = true;
  return 0;
}

/* The thread: write the file, sleep. */
static void *
writer (void *arg)
{
  for (;;) {
    const struct timespec next = monotonic_deadline (interval);
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
      int err = 0;

      while (!stopping && err != ETIMEDOUT)
        err = pthread_cond_timedwait (&wake, &lock, &next);
      if (stopping)
        return arg;
    }
    write_file (true);
  }
}

int
stats_start (struct image *img)
{
  pthread_condattr_t attr;
  int err;

  if (!on || thread_exists)
    return 0;
  image = img;
  if (interval == 0)
    return 0;
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&wake, &attr);
  pthread_condattr_destroy (&attr);
  stopping = false;
  err = pthread_create (&thread, NULL, writer, NULL);
  if (err) {
    report_error ("stats=%s: pthread_create: %s", path, strerror (err));
    pthread_cond_destroy (&wake);
    return -1;
  }
  thread_exists = true;
  return 0;
}

void
stats_stop (void)
{
  if (thread_exists) {
    pthread_mutex_lock (&lock);
    stopping = true;
    pthread_cond_signal (&wake);
    pthread_mutex_unlock (&lock);
    pthread_join (thread, NULL);
    pthread_cond_destroy (&wake);
    thread_exists = false;
  }
  if (on)
    write_file (false);
  image = NULL;
  forget ();
}
