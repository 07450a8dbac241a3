/* SPDX-License-Identifier: BSD-3-Clause */

/* The event socket (event-socket=PATH): several readers follow the
 * events at once.
 *
 * Who connects gets every event that is announced from then on, as lines
 * of JSON; what was before is not repeated.  Nothing that a reader sends
 * is looked at.
 *
 *     engine's threads --send--> queue --thread--> a buffer for each reader
 *                                                    --> its socket
 *
 * The engine announces with locks held, so a sender only appends to the
 * queue.  One thread does the rest, and never blocks but in poll(2): it
 * takes what is queued, lets in those who wait to be accepted (they
 * connected before those lines came, or may as well have), and appends
 * the lines to each reader's buffer.  A reader that is slow fills its own
 * buffer and no other.  What does not fit is counted, and
 * QCOW2_EVENTS_LOST tells the number in the place where the lines are
 * missing, as soon as the buffer is half empty.  A reader that has gone is
 * met as an error of its socket.
 *
 * The socket is made with mode 0600, before anybody can connect.  A
 * socket that a killed server left is removed; one that somebody listens
 * on is not, and anything that is no socket is not either.
 *
 * Events of before the fork wait in the queue.  At the end, readers have
 * DRAIN_SECONDS together to take what is in their buffers.
 *
 * Lock: one, for the queue, taken last (the engine's are held by senders)
 * and never held across a system call other than that which wakes the
 * thread.  The readers belong to the thread.
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
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "cleanup.h"
#include "event-line.h"
#include "event-socket.h"
#include "monotonic.h"
#include "report.h"

#define MAX_READERS 64
#define MAX_BYTES (UINT64_C (256) << 10) /* of the queue, and per reader */
#define DRAIN_SECONDS 5

/* Bytes that wait, and how many events did not fit behind them. */
struct buffer {
  char *bytes;
  size_t begin, end, size;
  uint64_t lost;
};

struct reader {
  int fd;
  struct buffer out;
};

/* Set before the thread exists. */
static const char *path;        /* as the user gave it */
static const char *image_name;
static char *absolute;          /* for removing it */
static int listener = -1, wakeup = -1;
static pthread_t thread;
static bool thread_exists;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct buffer queue;     /* with the lock */
static bool stopping;           /* with the lock */

static _Atomic uint64_t losses;

/* The thread's own. */
static struct reader readers[MAX_READERS];
static unsigned n_readers;
static bool told_full;
static bool no_more;            /* for want of descriptors, or at the end */

static size_t
used (const struct buffer *b)
{
  return b->end - b->begin;
}

static void
buffer_free (struct buffer *b)
{
  free (b->bytes);
  *b = (struct buffer) { .bytes = NULL };
}

/* Append LEN bytes, if they fit. */
static bool
append (struct buffer *b, const char *bytes, size_t len)
{
  if (used (b) + len > MAX_BYTES)
    return false;
  if (b->end + len > b->size) {
    size_t size = MAX ((used (b) + len) * 2, (size_t) 4096);
    char *grown = malloc (size);

    if (!grown)
      return false;
    if (b->bytes)
      memcpy (grown, b->bytes + b->begin, used (b));
    free (b->bytes);
    b->bytes = grown;
    b->end -= b->begin;
    b->begin = 0;
    b->size = size;
  }
  memcpy (b->bytes + b->end, bytes, len);
  b->end += len;
  return true;
}

/* Announce what a reader has lost, once there is room for more than
 * that.  False if something is lost and that is not possible now.
 */
static bool
append_lost (struct reader *r)
{
  CLEANUP_FREE char *line = NULL;

  if (r->out.lost == 0)
    return true;
  if (used (&r->out) > MAX_BYTES / 2)
    return false;
  line = event_line_lost (image_name, r->out.lost);
  if (!line || !append (&r->out, line, strlen (line)))
    return false;
  report_error ("QCOW2_EVENTS_LOST: %s: a reader of event-socket=%s was too "
                "slow for %" PRIu64 " events", image_name, path,
                r->out.lost);
  r->out.lost = 0;
  return true;
}

static void
lose (struct reader *r, uint64_t n)
{
  r->out.lost += n;
  atomic_fetch_add (&losses, n);
}

/* Give the lines of Q to one reader. */
static void
deliver (struct reader *r, const struct buffer *q)
{
  const char *line = q->bytes + q->begin, *end = q->bytes + q->end;

  while (line < end) {
    const char *next = (const char *) memchr (line, '\n',
                                              (size_t) (end - line)) + 1;

    if (!append_lost (r) || !append (&r->out, line, (size_t) (next - line)))
      lose (r, 1);
    line = next;
  }
  if (q->lost)
    lose (r, q->lost);
  append_lost (r);
}

static void
dismiss (unsigned i)
{
  close (readers[i].fd);
  buffer_free (&readers[i].out);
  readers[i] = readers[--n_readers];
}

/* Send what the socket takes.  False if the reader has gone. */
static bool
flush_reader (struct reader *r)
{
  while (used (&r->out) > 0) {
    ssize_t n = send (r->fd, r->out.bytes + r->out.begin, used (&r->out),
                      MSG_DONTWAIT | MSG_NOSIGNAL);

    if (n >= 0)
      r->out.begin += (size_t) n;
    else if (errno == EAGAIN || errno == EWOULDBLOCK)
      break;
    else if (errno != EINTR)
      return false;
    append_lost (r);
  }
  return true;
}

static void
flush_readers (void)
{
  unsigned i;

  for (i = n_readers; i-- > 0; )
    if (!flush_reader (&readers[i]))
      dismiss (i);
}

/* Let in everybody who waits.  One too many is turned away at once; for
 * want of descriptors they wait for a second.
 */
static void
accept_all (void)
{
  int fd;

  no_more = false;
  /* cppcheck-suppress nullPointer */
  while ((fd = accept4 (listener, NULL, NULL, SOCK_CLOEXEC)) != -1
         || errno == EINTR || errno == ECONNABORTED) {
    if (fd == -1)
      continue;
    if (n_readers < MAX_READERS) {
      readers[n_readers++] = (struct reader) { .fd = fd };
      continue;
    }
    close (fd);
    if (!told_full)
      report_error ("event-socket=%s: there are %d readers, others are "
                    "turned away", path, MAX_READERS);
    told_full = true;
  }
  no_more = errno != EAGAIN && errno != EWOULDBLOCK;
}

/* Take the queue, then let in who waits: in this order nobody misses a
 * line that came after he had connected.  True if it is time to stop.
 */
static bool
distribute (void)
{
  struct buffer taken;
  bool stop;
  unsigned i;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
    taken = queue;
    queue = (struct buffer) { .bytes = NULL };
    stop = stopping;
  }
  accept_all ();
  for (i = 0; i < n_readers; i++)
    deliver (&readers[i], &taken);
  buffer_free (&taken);
  flush_readers ();
  return stop;
}

/* Wait until somebody connects, can be written to, has gone, or a line is
 * queued; at most TIMEOUT milliseconds, -1 for ever.  A reader that sends
 * us something is not asked for: its own socket fills, and that is all.
 */
static void
wait_for_work (int timeout)
{
  struct pollfd fds[2 + MAX_READERS];
  const unsigned n = n_readers;
  eventfd_t ignored;
  unsigned i;

  fds[0] = (struct pollfd) { .fd = wakeup, .events = POLLIN };
  fds[1] = (struct pollfd) {
    .fd = no_more ? -1 : listener, .events = POLLIN
  };
  for (i = 0; i < n; i++)
    fds[2 + i] = (struct pollfd) {
      .fd = readers[i].fd, .events = used (&readers[i].out) ? POLLOUT : 0
    };
  if (poll (fds, 2 + n, timeout) == -1)
    return;
  if (fds[0].revents)
    eventfd_read (wakeup, &ignored);
  /* From the end, since dismissing moves the last one. */
  for (i = n; i-- > 0; )
    if (fds[2 + i].revents & (POLLERR | POLLHUP | POLLNVAL))
      dismiss (i);
}

static bool
all_delivered (void)
{
  unsigned i;

  for (i = 0; i < n_readers; i++)
    if (used (&readers[i].out) > 0 || readers[i].out.lost > 0)
      return false;
  return true;
}

static void *
serve (void *arg)
{
  uint64_t deadline;

  while (!distribute ())
    wait_for_work (no_more ? 1000 : -1);
  no_more = true;
  deadline = monotonic_now () + DRAIN_SECONDS * NANOSECONDS;
  while (!all_delivered () && monotonic_now () < deadline) {
    wait_for_work (50);
    flush_readers ();
  }
  while (n_readers > 0)
    dismiss (n_readers - 1);
  return arg;
}

/* Is the socket at this address one that nobody listens on? */
static bool
is_stale (const struct sockaddr_un *addr)
{
  CLEANUP_CLOSE int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC
                                 | SOCK_NONBLOCK, 0);

  return fd != -1
    && connect (fd, (const struct sockaddr *) addr, sizeof *addr) == -1
    && errno == ECONNREFUSED;
}

/* Bind, once more after removing a stale socket.  The mode of a socket is
 * that of its descriptor at this moment: nobody can connect before.
 */
static int
bind_listener (const struct sockaddr_un *addr)
{
  struct stat st;
  int r;

  if (fchmod (listener, 0600) == -1) {
    report_error ("event-socket=%s: fchmod: %s", path, strerror (errno));
    return -1;
  }
  r = bind (listener, (const struct sockaddr *) addr, sizeof *addr);
  if (r == -1 && errno == EADDRINUSE) {
    if (lstat (path, &st) == 0 && !S_ISSOCK (st.st_mode)) {
      report_error ("event-socket=%s: this is something else, expected the "
                    "name of a new socket", path);
      return -1;
    }
    if (!is_stale (addr)) {
      report_error ("event-socket=%s: another server listens there, expected "
                    "another name", path);
      return -1;
    }
    unlink (path);
    r = bind (listener, (const struct sockaddr *) addr, sizeof *addr);
  }
  if (r == -1)
    report_error ("event-socket=%s: bind: %s", path, strerror (errno));
  return r;
}

static void
close_all (bool remove_socket)
{
  if (remove_socket)
    unlink (absolute);
  if (listener != -1)
    close (listener);
  if (wakeup != -1)
    close (wakeup);
  listener = wakeup = -1;
  free (absolute);
  absolute = NULL;
  buffer_free (&queue);
}

static int
listen_on (const struct sockaddr_un *addr)
{
  listener = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  wakeup = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  absolute = nbdkit_absolute_path (path);
  if (listener == -1 || wakeup == -1 || !absolute) {
    report_error ("event-socket=%s: socket: %s", path, strerror (errno));
    return -1;
  }
  if (bind_listener (addr) == -1)
    return -1;
  if (listen (listener, MAX_READERS) == -1) {
    report_error ("event-socket=%s: listen: %s", path, strerror (errno));
    unlink (absolute);
    return -1;
  }
  return 0;
}

int
event_socket_open (const char *where, const char *image)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (!where)
    return 0;
  path = where;
  image_name = image;
  stopping = told_full = false;
  if (strlen (where) >= sizeof addr.sun_path) {
    report_error ("event-socket=%s: this name is %zu bytes long, expected at "
                  "most %zu (a relative name may be shorter)", where,
                  strlen (where), sizeof addr.sun_path - 1);
    return -1;
  }
  memcpy (addr.sun_path, where, strlen (where) + 1);
  if (listen_on (&addr) == -1) {
    close_all (false);
    return -1;
  }
  return 0;
}

int
event_socket_start (void)
{
  int err;

  if (listener == -1 || thread_exists)
    return 0;
  err = pthread_create (&thread, NULL, serve, NULL);
  if (err) {
    report_error ("event-socket=%s: pthread_create: %s", path,
                  strerror (err));
    return -1;
  }
  thread_exists = true;
  return 0;
}

static void
wake (void)
{
  /* It fails only if the thread has not looked for 2^64 times. */
  eventfd_write (wakeup, 1);
}

void
event_socket_send (const char *line)
{
  if (listener == -1)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
  if (queue.lost > 0 || !line || !append (&queue, line, strlen (line)))
    queue.lost++;
  wake ();
}

uint64_t
event_socket_losses (void)
{
  return atomic_load (&losses);
}

void
event_socket_stop (void)
{
  if (listener == -1)
    return;
  if (thread_exists) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lock);
      stopping = true;
      wake ();
    }
    pthread_join (thread, NULL);
    thread_exists = false;
  }
  close_all (true);
}
