/* SPDX-License-Identifier: BSD-3-Clause */

/* A connection to an NBD server, and the requests under way on it.
 *
 * A request is sent by the thread that makes it, which then waits for
 * its answer; so there are as many under way as there are threads.  One
 * thread of the connection (serve) reads the answers, and sends on what
 * a full socket left over; an eventfd (kick) wakes it when there is such
 * a rest.
 *
 *     UP -----------> DOWN -----------> UP      reconnect > 0
 *        connection         new one
 *        is lost
 *                     DOWN, for good            reconnect = 0, or LOST
 *
 * Whoever sees first that the connection is lost says so
 * (nbdconn_went_down).  A server that is silent for TIMEOUT while
 * requests wait is lost, too (is_silent): a process that hangs, or a
 * disk below it, keeps its connections.  Any byte that comes, or that it
 * takes, is a sign of life.
 *
 * What was under way then, if it changed nothing, and requests that come
 * later wait for a new connection for as long as RECONNECT says, counted
 * from the loss, and then fail, later ones at once, while the thread goes
 * on trying.
 *
 * LOST is rule 7 of a failed sync.  A server that went away may have
 * taken with it what it had answered and what no flush covered; and a
 * write without an answer may still be carried out by the old server
 * after one that came later.  So there is no new connection if either
 * exists: everything fails, until the user starts again.
 *
 *     ACKED    changes answered, without FUA
 *     FLUSHED  those that a flush answered later covers
 *     CHANGES  changes under way
 *
 * Locks: LOCK guards everything below it in the struct.  It is held
 * while a request is handed to libnbd, which locks its handle inside and
 * never waits for the network.  Callbacks of libnbd come with the handle
 * locked, so they take no lock; they post a semaphore.  A handle is
 * closed when no request is under way.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "checked.h"
#include "cleanup.h"
#include "report.h"
#include "storage-nbd.h"
#include "storage-nbd-impl.h"

const struct nbdconn_export *
nbdconn_export (const struct nbdconn *c)
{
  return &c->export;
}

void
nbdconn_kick (struct nbdconn *c)
{
  const uint64_t one = 1;

  /* It fails only if the counter is full, and then it is awake. */
  if (eventfd_write (c->kick_fd, one) == -1)
    return;
}

bool
nbdconn_is_stopping (struct nbdconn *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  return c->stop;
}

bool
nbdconn_is_over (struct nbd_handle *nbd)
{
  return libnbd.aio_is_dead (nbd) || libnbd.aio_is_closed (nbd);
}

void
nbdconn_went_down (struct nbdconn *c)
{
  if (c->state == DOWN || c->stop)
    return;
  c->state = DOWN;
  c->down_since = monotonic_now ();
  c->lost = c->changes > 0 || c->acked != c->flushed;
  if (c->lost)
    report_error ("%s: the connection is lost, and so may be writes that "
                  "were not flushed: no more requests until the server is "
                  "restarted; check the image", c->uri);
  else if (c->patience.reconnect == 0)
    report_error ("%s: the connection is lost; restart the server, or give "
                  "reconnect=SECONDS", c->uri);
  else
    report_warning ("%s: the connection is lost, with nothing written that "
                    "was not flushed; trying again", c->uri);
  pthread_cond_broadcast (&c->changed);
  nbdconn_kick (c);
}

/*----------------------------------------------------------------------
 * The thread.
 */

/* For how long to sleep at most, in ms: silence need not be noticed to
 * the second.
 */
static int
longest_sleep (const struct nbdconn *c)
{
  const uint64_t quarter = UINT64_C (250) * c->patience.timeout;

  return quarter == 0 ? -1 : (int) MIN (quarter, UINT64_C (60000));
}

/* Has the server let requests wait for too long since HEARD, when
 * anything moved on the socket?
 */
static bool
is_silent (struct nbdconn *c, uint64_t heard)
{
  const uint64_t timeout = NANOSECONDS * c->patience.timeout;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (timeout == 0 || c->under_way == 0
      || monotonic_now () - MAX (heard, c->busy_since) < timeout)
    return false;
  report_error ("%s: no sign of the server for %u seconds, requests that "
                "wait: %u; the connection counts as lost (timeout)",
                c->uri, c->patience.timeout, c->under_way);
  return true;
}

/* Take in answers until the connection is lost, or to be closed. */
static void
serve (struct nbdconn *c, struct nbd_handle *nbd)
{
  uint64_t heard = monotonic_now ();
  eventfd_t drop;

  while (!nbdconn_is_over (nbd) && !nbdconn_is_stopping (c)) {
    const unsigned want = libnbd.aio_get_direction (nbd);
    struct pollfd fds[2] = {
      { .fd = libnbd.aio_get_fd (nbd), .events = 0 },
      { .fd = c->kick_fd, .events = POLLIN },
    };
    unsigned now;

    if (want & LIBNBD_AIO_DIRECTION_READ)
      fds[0].events |= POLLIN;
    if (want & LIBNBD_AIO_DIRECTION_WRITE)
      fds[0].events |= POLLOUT;
    if (poll (fds, 2, longest_sleep (c)) == -1)
      continue;                 /* EINTR */
    if (fds[1].revents)
      eventfd_read (c->kick_fd, &drop);
    if (fds[0].revents)
      heard = monotonic_now ();
    else if (is_silent (c, heard)) {
      /* To libnbd, and so to who waits, the server hung up. */
      shutdown (fds[0].fd, SHUT_RDWR);
      heard = monotonic_now ();
    }

    /* Senders may have moved on meanwhile.  What libnbd finds wrong
     * ends the connection, which is_over sees.
     */
    now = libnbd.aio_get_direction (nbd);
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR))
        && (now & LIBNBD_AIO_DIRECTION_READ))
      libnbd.aio_notify_read (nbd);
    else if ((fds[0].revents & (POLLOUT | POLLHUP | POLLERR))
             && (now & LIBNBD_AIO_DIRECTION_WRITE))
      libnbd.aio_notify_write (nbd);
  }
}

/* Wait up to a second, or for the end; LOCK is held. */
static void
wait_a_second (struct nbdconn *c)
{
  const struct timespec until = monotonic_deadline (1);

  while (!c->stop
         && pthread_cond_timedwait (&c->changed, &c->lock, &until) == 0)
    ;
}

/* The connection is gone: wait for those who used it, then bring a new
 * one about if that is allowed.  False: the end.
 */
static bool
come_back (struct nbdconn *c)
{
  struct nbd_handle *nbd;
  bool told = false;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  nbdconn_went_down (c);
  while (c->under_way > 0)
    pthread_cond_wait (&c->changed, &c->lock);
  if (c->stop)
    return false;               /* who stops us closes the handle */
  libnbd.close (c->nbd);
  c->nbd = NULL;
  if (c->lost || c->patience.reconnect == 0)
    return false;

  while (!c->stop) {
    pthread_mutex_unlock (&c->lock);
    nbd = nbdconn_connect_again (c, &told);
    pthread_mutex_lock (&c->lock);
    if (nbd) {
      c->nbd = nbd;
      c->state = UP;
      report_warning ("%s: connected again", c->uri);
      pthread_cond_broadcast (&c->changed);
      return true;
    }
    wait_a_second (c);
  }
  return false;
}

static void *
run (void *opaque)
{
  struct nbdconn *c = opaque;

  do
    serve (c, c->nbd);          /* which only this thread replaces */
  while (come_back (c));
  return NULL;
}

/*----------------------------------------------------------------------
 * The beginning and the end.
 */

static struct nbdconn *
new_conn (const char *uri, bool trusted, struct storage_patience patience)
{
  struct nbdconn *c = calloc (1, sizeof *c);
  pthread_condattr_t attr;

  if (!c)
    return NULL;
  c->uri = strdup (uri);
  c->kick_fd = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (!c->uri || c->kick_fd == -1) {
    if (c->kick_fd != -1)
      close (c->kick_fd);
    free (c->uri);
    free (c);
    return NULL;
  }
  c->trusted = trusted;
  c->patience = patience;
  pthread_mutex_init (&c->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&c->changed, &attr);
  pthread_condattr_destroy (&attr);
  return c;
}

static void
free_conn (struct nbdconn *c)
{
  if (c->nbd)                   /* else libnbd may not be loaded */
    libnbd.close (c->nbd);
  close (c->kick_fd);
  pthread_cond_destroy (&c->changed);
  pthread_mutex_destroy (&c->lock);
  free (c->uri);
  free (c);
}

int
nbdconn_open (const char *uri, bool trusted,
              struct storage_patience patience, struct nbdconn **conn)
{
  struct nbdconn *c = new_conn (uri, trusted, patience);
  int r;

  if (!c) {
    report_error ("%s: not enough memory, or descriptors, to connect", uri);
    return -ENOMEM;
  }
  c->nbd = nbdconn_connect (c, &c->export, true);
  if (!c->nbd) {
    free_conn (c);
    return -EIO;
  }
  c->state = UP;
  report_debug ("%s: connected: %" PRIu64 " bytes in blocks of %" PRIu32
                ", requests of up to %" PRIu32 " bytes%s%s%s%s%s%s", uri,
                c->export.size, c->export.block, c->export.max,
                c->export.read_only ? ", read-only" : "",
                c->export.can_flush ? ", flush" : "",
                c->export.can_fua ? ", fua" : "",
                c->export.can_zero ? ", zero" : "",
                c->export.can_fast_zero ? ", fast zero" : "",
                c->export.can_map ? ", block status" : "");
  r = pthread_create (&c->thread, NULL, run, c);
  if (r != 0) {
    report_error ("%s: starting a thread: %s", uri, strerror (r));
    free_conn (c);
    return -r;
  }
  *conn = c;
  return 0;
}

/* Say goodbye, so that the server does not log an error.  It has a
 * second.
 */
static void
disconnect (struct nbd_handle *nbd)
{
  int i;

  if (!nbd || nbdconn_is_over (nbd) || libnbd.aio_disconnect (nbd, 0) == -1)
    return;
  for (i = 0; i < 10 && !nbdconn_is_over (nbd); i++)
    if (libnbd.poll (nbd, 100) == -1)
      return;
}

void
nbdconn_close (struct nbdconn *c)
{
  pthread_mutex_lock (&c->lock);
  c->stop = true;
  pthread_cond_broadcast (&c->changed);
  pthread_mutex_unlock (&c->lock);
  nbdconn_kick (c);
  pthread_join (c->thread, NULL);
  disconnect (c->nbd);
  free_conn (c);
}
