/* SPDX-License-Identifier: BSD-3-Clause */

/* The event log: what the engine announces, as JSON lines in the form
 * of QEMU's machine protocol, one object a line, appended to a file or
 * sent to an inherited file descriptor.  (Readers that come and go are
 * served by event-socket.c.)
 *
 * The engine calls events_sink with its own locks held, in the middle
 * of guest I/O, so the sink only makes the line and queues it.  One
 * thread writes: a reader that is slow, or never reads, blocks that
 * thread and nobody else.  The queue is bounded in bytes.  What does not
 * fit, or cannot be written, is counted, and QCOW2_EVENTS_LOST tells the
 * number in the place where the lines are missing, as soon as there is
 * room.
 *
 * Events of before the fork wait in the queue, since the thread can only
 * be started after it.  At the end the queue is drained for at most
 * DRAIN_SECONDS; then a thread that still sits in write(2) is cancelled.
 * The descriptor is never made non-blocking: the flag would be shared
 * with whoever gave it to us.
 *
 * Each event is also one line in nbdkit's log, written by the sink, so
 * that it is in the log even if the process ends a moment later.
 *
 * Invariants: with the lock held, queued_bytes is the sum over the
 * queue and the line being written; lost counts the events that are in
 * neither and have not been announced.
 *
 * One lock, taken last: nothing is called with it held but nbdkit_error
 * and the allocator.  It is never held across a write.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "cleanup.h"
#include "event-line.h"
#include "event-socket.h"
#include "monotonic.h"
#include "plugin.h"

/* A thousand events and more, usually. */
#define MAX_QUEUED_BYTES (UINT64_C (256) << 10)

#define DRAIN_SECONDS 5

struct line {
  struct line *next;
  uint64_t events;              /* how many are lost with this line */
  bool is_lost;                 /* QCOW2_EVENTS_LOST */
  size_t len;
  char *text;                   /* with the newline */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_cond_t finished; /* on the monotonic clock */

/* For statistics. */
static _Atomic uint64_t counts[EVENT_KINDS], losses;

/* Set before the thread exists. */
static int log_fd = -1;
static const char *log_name;    /* as the user gave it */
static const char *image_name;
static bool thread_exists;
static pthread_t thread;

/* Protected by the lock. */
static struct line *head, *tail;
static uint64_t queued_bytes;
static uint64_t lost;           /* events to announce as lost */
static bool stopping;           /* the thread ends when the queue is empty */
static bool done;               /* the thread has ended by itself */
static bool stopped;            /* events_stop was called */
static bool broken;             /* the last write failed */

/* Only the thread uses these, or nobody when it has ended. */
static struct line *current;    /* being written */
static bool torn;               /* a part of a line was written */

/* A line of the queue, with a text to take over.  NULL for want of memory.
 */
static struct line *
make_line (char *text, uint64_t events)
{
  struct line *line = text ? malloc (sizeof *line) : NULL;

  if (!line) {
    free (text);
    return NULL;
  }
  *line = (struct line) {
    .events = events, .len = strlen (text), .text = text
  };
  return line;
}

static void
free_line (struct line *line)
{
  if (line)
    free (line->text);
  free (line);
}

/* What left the tracker, what happens to writes there, and what helps. */
static void
log_limit_reached (const struct event *e)
{
  const char *name = event_name (e->kind);
  const char *means = "are no longer checked";

  if (strcmp (e->policy, "verify") == 0)
    means = "are checked by searching the tables, which is slow";
  else if (strcmp (e->policy, "refuse") == 0)
    means = "are refused";
  /* Without a limit, or far below it, there was no memory at all. */
  if (e->limit / 2 > e->used && e->limit >= e->enough)
    report_error ("%s: %s: for want of memory, metadata in %" PRIu64
                  " bytes from host offset %" PRIu64 " is not tracked: "
                  "writes there %s (%" PRIu64 " bytes of memory used); it "
                  "comes back when there is memory", name, e->image, e->size,
                  e->offset, means, e->used);
  else
    report_error ("%s: %s: metadata in %" PRIu64 " bytes from host offset "
                  "%" PRIu64 " is not tracked: writes there %s (%" PRIu64
                  " bytes of memory used, the limit is %" PRIu64 "); "
                  "overlap-structures.total-size-limit=%" PRIu64
                  "k would do", name, e->image, e->size, e->offset, means,
                  e->used, e->limit, e->enough >> 10);
}

/* For humans: one line that begins with the event's name.  It goes
 * through report_error, which keeps a strange file name from breaking
 * the line.
 */
static void
log_event (const struct event *e)
{
  const char *name = event_name (e->kind);

  switch (e->kind) {
  case EVENT_IMAGE_CORRUPTED:
    if (e->has_range)
      report_error ("%s: %s: %s (offset %" PRIu64 ", size %" PRIu64 "%s)",
                    name, e->image, e->msg, e->offset, e->size,
                    e->fatal ? ", writes stop" : "");
    else
      report_error ("%s: %s: %s%s", name, e->image, e->msg,
                    e->fatal ? " (writes stop)" : "");
    break;
  case EVENT_OVERLAP_MEMORY_LIMIT_REACHED:
    log_limit_reached (e);
    break;
  case EVENT_OVERLAP_PROTECTION_RESTORED:
  default:
    report_error ("%s: %s: metadata in %" PRIu64 " bytes from host offset "
                  "%" PRIu64 " is tracked again, writes there are checked",
                  name, e->image, e->size, e->offset);
  }
}

/* Append LINE if it fits.  The lock is held. */
static bool
push (struct line *line)
{
  if (!line || queued_bytes + line->len > MAX_QUEUED_BYTES)
    return false;
  if (tail)
    tail->next = line;
  else
    head = line;
  tail = line;
  queued_bytes += line->len;
  pthread_cond_signal (&more);
  return true;
}

/* Announce the lost events, if any, behind those that are queued.  False
 * if that is not possible now.  A queue that was full is let run half
 * empty first, or every other line would be such an announcement.  The
 * lock is held.
 */
static bool
push_lost (void)
{
  struct line *line;

  if (lost == 0)
    return true;
  if (queued_bytes > MAX_QUEUED_BYTES / 2)
    return false;
  line = make_line (event_line_lost (image_name, lost), lost);
  if (!push (line)) {
    free_line (line);
    return false;
  }
  line->is_lost = true;
  lost = 0;
  return true;
}

void
events_count (uint64_t kinds[EVENT_KINDS], uint64_t *not_read)
{
  unsigned i;

  for (i = 0; i < EVENT_KINDS; i++)
    kinds[i] = atomic_load (&counts[i]);
  *not_read = atomic_load (&losses) + event_socket_losses ();
}

void
events_sink (void *opaque, const struct event *event)
{
  char *text;

  (void) opaque;
  atomic_fetch_add (&counts[event->kind], 1);
  log_event (event);
  text = event_line (event);
  event_socket_send (text);
  if (log_fd == -1)
    free (text);
  else {
    struct line *line = make_line (text, 1);
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);

    if (!push_lost () || !push (line)) {
      lost++;
      atomic_fetch_add (&losses, 1);
      free_line (line);
    }
  }
}

/* Write LEN bytes, waiting as long as it takes.  The descriptor may have
 * been non-blocking when it was given to us.  0 or a negative errno.
 */
static int
write_all (const char *buf, size_t len)
{
  while (len > 0) {
    ssize_t n = write (log_fd, buf, len);

    if (n >= 0) {
      buf += n;
      len -= (size_t) n;
      torn = len > 0;
    }
    else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      struct pollfd pfd = { .fd = log_fd, .events = POLLOUT };

      poll (&pfd, 1, -1);
    }
    else if (errno != EINTR)
      return -errno;
  }
  return 0;
}

/* Write one line; no lock is held.  The only place where the thread can
 * be cancelled.  After half a line the next one starts on a new one, so
 * that a full disk costs lines but does not garble others.
 */
static int
write_line (const struct line *line)
{
  int r = 0, ignored;

  pthread_setcancelstate (PTHREAD_CANCEL_ENABLE, &ignored);
  if (torn)
    r = write_all ("\n", 1);
  if (r == 0)
    r = write_all (line->text, line->len);
  pthread_setcancelstate (PTHREAD_CANCEL_DISABLE, &ignored);
  return r;
}

/* Account for the line just written, or not.  The lock is held. */
static void
settle (int r)
{
  if (r < 0) {
    if (!broken)
      report_error ("event-log=%s: write: %s; events are lost until it "
                    "can be written to", log_name, strerror (-r));
    lost += current->events;
    if (!current->is_lost)
      atomic_fetch_add (&losses, current->events);
  }
  else if (current->is_lost)
    report_error ("QCOW2_EVENTS_LOST: %s: event-log=%s could not take "
                  "%" PRIu64 " events", image_name, log_name,
                  current->events);
  broken = r < 0;
  queued_bytes -= current->len;
  free_line (current);
  current = NULL;
}

/* The thread: write lines until told to stop and the queue is empty.  A
 * log that is broken is tried again when the next event comes.
 */
static void *
writer (void *arg)
{
  int ignored, r;

  pthread_setcancelstate (PTHREAD_CANCEL_DISABLE, &ignored);
  pthread_mutex_lock (&lock);
  for (;;) {
    if (!head && !broken)
      push_lost ();
    if (!head) {
      if (stopping)
        break;
      pthread_cond_wait (&more, &lock);
      continue;
    }
    current = head;
    head = head->next;
    if (!head)
      tail = NULL;
    pthread_mutex_unlock (&lock);
    r = write_line (current);
    pthread_mutex_lock (&lock);
    settle (r);
  }
  done = true;
  pthread_cond_signal (&finished);
  pthread_mutex_unlock (&lock);
  return arg;
}

/* fd:N as our own close-on-exec duplicate, made before the server may
 * put /dev/null in the place of the standard ones.
 */
static int
open_inherited (const char *where)
{
  const char *digits = where + strlen ("fd:");
  char *end;
  long n;
  int fd, mode;

  errno = 0;
  n = strtol (digits, &end, 10);
  if (*digits < '0' || *digits > '9' || *end || errno || n > INT32_MAX) {
    report_error ("event-log=%s: expected fd: and the number of an open "
                  "file descriptor", where);
    return -1;
  }
  fd = (int) n;
  mode = fcntl (fd, F_GETFL);
  if (mode == -1 || (mode & O_ACCMODE) == O_RDONLY) {
    report_error ("event-log=%s: expected a file descriptor that is open "
                  "for writing", where);
    return -1;
  }
  if (fd <= STDOUT_FILENO && !nbdkit_stdio_safe ()) {
    report_error ("event-log=%s: standard input and output belong to the "
                  "NBD client, expected another file descriptor", where);
    return -1;
  }
  log_fd = fcntl (fd, F_DUPFD_CLOEXEC, 3);
  if (log_fd == -1) {
    report_error ("event-log=%s: dup: %s", where, strerror (errno));
    return -1;
  }
  /* Ours alone from now on: the reader shall see the end of the stream
   * when we close it, and children of the server shall not inherit it.
   */
  if (fd > STDERR_FILENO)
    close (fd);
  return 0;
}

/* Non-blocking only for the opening: a FIFO that nobody reads must be an
 * error, not a server that never starts.
 */
static int
open_path (const char *where)
{
  int flags;

  log_fd = open (where, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC
                 | O_NOCTTY | O_NONBLOCK, 0666);
  if (log_fd == -1 && errno == ENXIO) {
    report_error ("event-log=%s: nobody reads from it, expected a file, "
                  "or a FIFO with a reader", where);
    return -1;
  }
  if (log_fd == -1) {
    report_error ("event-log=%s: open: %s", where, strerror (errno));
    return -1;
  }
  flags = fcntl (log_fd, F_GETFL);
  if (flags == -1 || fcntl (log_fd, F_SETFL, flags & ~O_NONBLOCK) == -1) {
    report_error ("event-log=%s: fcntl: %s", where, strerror (errno));
    return -1;
  }
  return 0;
}

/* A slip of the hand must not append events to a disk. */
static int
check_target (const char *where, const char *image)
{
  struct stat st, image_st;

  if (fstat (log_fd, &st) == -1) {
    report_error ("event-log=%s: fstat: %s", where, strerror (errno));
    return -1;
  }
  if (S_ISBLK (st.st_mode)) {
    report_error ("event-log=%s: expected a file, not a block device",
                  where);
    return -1;
  }
  if (image && stat (image, &image_st) == 0
      && st.st_dev == image_st.st_dev && st.st_ino == image_st.st_ino) {
    report_error ("event-log=%s: this is the image, expected another file",
                  where);
    return -1;
  }
  return 0;
}

int
events_open (const char *where, const char *image)
{
  pthread_condattr_t attr;
  int r;

  if (!where)
    return 0;
  log_name = where;
  image_name = image;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&finished, &attr);
  pthread_condattr_destroy (&attr);

  if (strncmp (where, "fd:", 3) == 0)
    r = open_inherited (where);
  else
    r = open_path (where);
  if (r == 0)
    r = check_target (where, image);
  if (r == -1)
    events_close ();
  return r;
}

int
events_start (void)
{
  int err;

  if (log_fd == -1 || thread_exists)
    return 0;
  stopping = done = stopped = false;
  err = pthread_create (&thread, NULL, writer, NULL);
  if (err) {
    report_error ("event-log=%s: pthread_create: %s", log_name,
                  strerror (err));
    return -1;
  }
  thread_exists = true;
  return 0;
}

void
events_stop (void)
{
  struct timespec deadline;
  int err = 0;

  /* A server that fails to start never came to events_start, but what it
   * found in the image is worth a line.
   */
  if (stopped || (!thread_exists && (!head || events_start () == -1)))
    return;
  stopped = true;

  deadline = monotonic_deadline (DRAIN_SECONDS);
  pthread_mutex_lock (&lock);
  stopping = true;
  pthread_cond_signal (&more);
  while (!done && err == 0)
    err = pthread_cond_timedwait (&finished, &lock, &deadline);
  pthread_mutex_unlock (&lock);

  if (err)
    pthread_cancel (thread);
  pthread_join (thread, NULL);
  thread_exists = false;
}

void
events_close (void)
{
  struct line *line;
  uint64_t undelivered = lost;

  if (current) {
    undelivered += current->events;
    free_line (current);
    current = NULL;
  }
  while ((line = head) != NULL) {
    undelivered += line->events;
    head = line->next;
    free_line (line);
  }
  tail = NULL;
  queued_bytes = lost = 0;
  if (undelivered)
    report_error ("event-log=%s: %" PRIu64 " events were not delivered",
                  log_name, undelivered);
  if (log_fd != -1) {
    close (log_fd);
    log_fd = -1;
    pthread_cond_destroy (&finished);
  }
}
