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
 * Whoever sees first that the connection is lost says so (went_down).
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
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <sys/eventfd.h>

#include <libnbd.h>

#include "checked.h"
#include "cleanup.h"
#include "report.h"
#include "storage-nbd.h"

/* More than a few servers take this, and all should (NBD protocol,
 * "Block size constraints").
 */
#define MAX_REQUEST (UINT32_C (32) << 20)

/* A server that accepts and says nothing must not keep us for ever. */
#define CONNECT_SECONDS 30

enum state { UP, DOWN };

struct nbdconn {
  char *uri;
  bool trusted;
  unsigned reconnect;           /* seconds */
  struct nbdconn_export export;
  pthread_t thread;
  int kick_fd;

  pthread_mutex_t lock;
  pthread_cond_t changed;
  enum state state;
  bool lost, stop;
  struct nbd_handle *nbd;       /* NULL while DOWN */
  unsigned under_way;           /* requests on NBD */
  unsigned changes;             /* those that change bytes */
  uint64_t acked, flushed;
  struct timespec down_since;
};

const struct nbdconn_export *
nbdconn_export (const struct nbdconn *c)
{
  return &c->export;
}

static void
kick (struct nbdconn *c)
{
  const uint64_t one = 1;

  /* It fails only if the counter is full, and then it is awake. */
  if (eventfd_write (c->kick_fd, one) == -1)
    return;
}

static bool
is_over (struct nbd_handle *nbd)
{
  return nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd);
}

/* The first to notice comes here; LOCK is held. */
static void
went_down (struct nbdconn *c)
{
  if (c->state == DOWN || c->stop)
    return;
  c->state = DOWN;
  clock_gettime (CLOCK_MONOTONIC, &c->down_since);
  c->lost = c->changes > 0 || c->acked != c->flushed;
  if (c->lost)
    report_error ("%s: the connection is lost, and so may be writes that "
                  "were not flushed: no more requests until the server is "
                  "restarted; check the image", c->uri);
  else if (c->reconnect == 0)
    report_error ("%s: the connection is lost; restart the server, or give "
                  "reconnect=SECONDS", c->uri);
  else
    report_warning ("%s: the connection is lost, with nothing written that "
                    "was not flushed; trying again", c->uri);
  pthread_cond_broadcast (&c->changed);
  kick (c);
}

/*----------------------------------------------------------------------
 * Connecting.
 */

static struct nbd_handle *
new_handle (const struct nbdconn *c)
{
  struct nbd_handle *nbd = nbd_create ();

  if (!nbd)
    return NULL;
  nbd_set_uri_allow_transports (nbd, LIBNBD_ALLOW_TRANSPORT_TCP |
                                LIBNBD_ALLOW_TRANSPORT_UNIX |
                                LIBNBD_ALLOW_TRANSPORT_VSOCK);
  nbd_set_uri_allow_local_file (nbd, c->trusted);
  nbd_set_pread_initialize (nbd, false);
  nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
  return nbd;
}

static bool
is_stopping (struct nbdconn *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  return c->stop;
}

/* Go through the handshake, not for ever.  The error is libnbd's, or
 * *WHY.
 */
static int
shake_hands (struct nbdconn *c, struct nbd_handle *nbd, const char **why)
{
  struct timespec begin, now;

  *why = NULL;
  if (nbd_aio_connect_uri (nbd, c->uri) == -1)
    return -1;
  clock_gettime (CLOCK_MONOTONIC, &begin);
  while (nbd_aio_is_connecting (nbd)) {
    if (nbd_poll (nbd, 100) == -1)
      return -1;
    clock_gettime (CLOCK_MONOTONIC, &now);
    *why = is_stopping (c) ? "stopped"
      : now.tv_sec - begin.tv_sec > CONNECT_SECONDS
      ? "the server does not answer" : NULL;
    if (*why)
      return -1;
  }
  if (!nbd_aio_is_ready (nbd)) {
    *why = "the server hung up";
    return -1;
  }
  return 0;
}

/* What libnbd knows is positive, 0 or -1 where it cannot tell. */
static bool
yes (int answer)
{
  return answer > 0;
}

static int
ask_export (struct nbd_handle *nbd, struct nbdconn_export *e)
{
  const int64_t size = nbd_get_size (nbd);
  const int64_t min = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t max = nbd_get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);

  if (size < 0)
    return -1;
  memset (e, 0, sizeof *e);
  e->size = (uint64_t) size;
  /* Servers that do not tell are served with sectors, unless their
   * export is not made of sectors.
   */
  if (min > 0)
    e->block = (uint32_t) min;
  else
    e->block = is_aligned (e->size, 512) ? 512 : 1;
  e->max = max > 0 && max < MAX_REQUEST ? (uint32_t) max : MAX_REQUEST;
  e->max = MAX ((uint32_t) round_down (e->max, e->block), e->block);
  e->read_only = yes (nbd_is_read_only (nbd));
  e->can_flush = yes (nbd_can_flush (nbd));
  e->can_fua = yes (nbd_can_fua (nbd));
  e->can_zero = yes (nbd_can_zero (nbd));
  e->can_fast_zero = yes (nbd_can_fast_zero (nbd));
  e->can_map = yes (nbd_can_meta_context (nbd,
                                          LIBNBD_CONTEXT_BASE_ALLOCATION));
  e->rotational = yes (nbd_is_rotational (nbd));
  return 0;
}

/* A handle that is connected, or NULL after telling why not. */
static struct nbd_handle *
make_connection (struct nbdconn *c, struct nbdconn_export *e, bool tell)
{
  struct nbd_handle *nbd = new_handle (c);
  const char *why = NULL;

  if (nbd && shake_hands (c, nbd, &why) == 0 && ask_export (nbd, e) == 0)
    return nbd;
  if (!why)
    why = nbd_get_error ();
  (tell ? report_error : report_debug) ("%s: connecting: %s", c->uri,
                                        why ? why : "failed");
  nbd_close (nbd);
  return NULL;
}

/*----------------------------------------------------------------------
 * The thread.
 */

/* Take in answers until the connection is lost, or to be closed. */
static void
serve (struct nbdconn *c, struct nbd_handle *nbd)
{
  eventfd_t drop;

  while (!is_over (nbd) && !is_stopping (c)) {
    const unsigned want = nbd_aio_get_direction (nbd);
    struct pollfd fds[2] = {
      { .fd = nbd_aio_get_fd (nbd), .events = 0 },
      { .fd = c->kick_fd, .events = POLLIN },
    };
    unsigned now;

    if (want & LIBNBD_AIO_DIRECTION_READ)
      fds[0].events |= POLLIN;
    if (want & LIBNBD_AIO_DIRECTION_WRITE)
      fds[0].events |= POLLOUT;
    if (poll (fds, 2, -1) == -1)
      continue;                 /* EINTR */
    if (fds[1].revents)
      eventfd_read (c->kick_fd, &drop);

    /* Senders may have moved on meanwhile.  What libnbd finds wrong
     * ends the connection, which is_over sees.
     */
    now = nbd_aio_get_direction (nbd);
    if ((fds[0].revents & (POLLIN | POLLHUP | POLLERR))
        && (now & LIBNBD_AIO_DIRECTION_READ))
      nbd_aio_notify_read (nbd);
    else if ((fds[0].revents & (POLLOUT | POLLHUP | POLLERR))
             && (now & LIBNBD_AIO_DIRECTION_WRITE))
      nbd_aio_notify_write (nbd);
  }
}

/* Wait up to a second, or for the end; LOCK is held. */
static void
wait_a_second (struct nbdconn *c)
{
  struct timespec until;

  clock_gettime (CLOCK_MONOTONIC, &until);
  until.tv_sec++;
  while (!c->stop
         && pthread_cond_timedwait (&c->changed, &c->lock, &until) == 0)
    ;
}

/* Is it the export that we know?  One that shrank, or changed its
 * blocks, is another disk to the engine.
 */
static bool
is_same (const struct nbdconn *c, const struct nbdconn_export *e, bool *told)
{
  const bool same = e->size == c->export.size
    && e->block == c->export.block && e->max == c->export.max
    && e->read_only == c->export.read_only
    && e->can_flush == c->export.can_flush
    && e->can_fua == c->export.can_fua
    && e->can_zero == c->export.can_zero
    && e->can_fast_zero == c->export.can_fast_zero
    && e->can_map == c->export.can_map;

  if (!same && !*told) {
    *told = true;
    report_error ("%s: the server came back with another export (%" PRIu64
                  " bytes, it was %" PRIu64 ", or other abilities); waiting "
                  "for the one that was there", c->uri, e->size,
                  c->export.size);
  }
  return same;
}

/* The same export again, or NULL.  Servers that are not there yet are no
 * news; one that is another is told once a loss.
 */
static struct nbd_handle *
connect_again (struct nbdconn *c, bool *told)
{
  struct nbdconn_export e;
  struct nbd_handle *nbd = make_connection (c, &e, false);

  if (nbd && !is_same (c, &e, told)) {
    nbd_close (nbd);
    nbd = NULL;
  }
  return nbd;
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

  went_down (c);
  while (c->under_way > 0)
    pthread_cond_wait (&c->changed, &c->lock);
  if (c->stop)
    return false;               /* who stops us closes the handle */
  nbd_close (c->nbd);
  c->nbd = NULL;
  if (c->lost || c->reconnect == 0)
    return false;

  while (!c->stop) {
    pthread_mutex_unlock (&c->lock);
    nbd = connect_again (c, &told);
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
 * Requests.
 */

enum kind { READ, WRITE, ZERO, FLUSH, MAP };

struct request {
  enum kind kind;
  void *buf;
  uint64_t len, offset;
  uint32_t flags;               /* libnbd's */
  uint64_t covers;              /* FLUSH: what was acked before */

  /* MAP: what begins at OFFSET. */
  uint64_t alike;
  bool hole;

  sem_t answered;
  int error;                    /* an errno */
};

/* Callbacks; see "Locks". */

static int
completed (void *opaque, int *error)
{
  struct request *rq = opaque;

  rq->error = *error;
  sem_post (&rq->answered);
  return 1;                     /* libnbd may forget it */
}

static int
got_extents (void *opaque, const char *context, uint64_t offset,
             uint32_t *entries, size_t nr, int *error)
{
  struct request *rq = opaque;
  size_t i;

  (void) error;
  if (strcmp (context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0
      || offset != rq->offset)
    return 0;
  for (i = 0; i + 1 < nr; i += 2) {
    const bool hole = entries[i + 1] & LIBNBD_STATE_ZERO;

    if (i == 0)
      rq->hole = hole;
    else if (hole != rq->hole)
      break;
    rq->alike += entries[i];
  }
  return 0;
}

/* Hand RQ to libnbd. */
static int64_t
send_request (struct nbd_handle *nbd, struct request *rq)
{
  const nbd_completion_callback done = {
    .callback = completed, .user_data = rq
  };
  const nbd_extent_callback extents = {
    .callback = got_extents, .user_data = rq
  };

  switch (rq->kind) {
  case READ:
    return nbd_aio_pread (nbd, rq->buf, rq->len, rq->offset, done, 0);
  case WRITE:
    return nbd_aio_pwrite (nbd, rq->buf, rq->len, rq->offset, done,
                           rq->flags);
  case ZERO:
    return nbd_aio_zero (nbd, rq->len, rq->offset, done, rq->flags);
  case FLUSH:
    return nbd_aio_flush (nbd, done, 0);
  case MAP:
    return nbd_aio_block_status (nbd, rq->len, rq->offset, extents, done, 0);
  }
  return -1;
}

static bool
is_change (const struct request *rq)
{
  return rq->kind == WRITE || rq->kind == ZERO;
}

/* Wait for a connection while there is hope; LOCK is held. */
static int
wait_for_connection (struct nbdconn *c)
{
  while (c->state == DOWN) {
    struct timespec until = c->down_since;

    if (c->lost || c->reconnect == 0 || c->stop)
      return -EIO;
    until.tv_sec += c->reconnect;
    if (pthread_cond_timedwait (&c->changed, &c->lock, &until) == ETIMEDOUT
        && c->state == DOWN)
      return -EIO;
  }
  return 0;
}

/* RQ is over, the way it was counted in; LOCK is held. */
static void
count_out (struct nbdconn *c, const struct request *rq)
{
  c->changes -= is_change (rq);
  if (--c->under_way == 0)
    pthread_cond_broadcast (&c->changed);
}

static int
begin_request (struct nbdconn *c, struct request *rq)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  int r = wait_for_connection (c);

  if (r < 0)
    return r;
  c->under_way++;
  c->changes += is_change (rq);
  rq->covers = c->acked;
  if (send_request (c->nbd, rq) == -1) {
    report_debug ("%s: a request could not be sent: %s", c->uri,
                  nbd_get_error ());
    /* It was not sent, so it is not what makes writes lost. */
    count_out (c, rq);
    if (!is_over (c->nbd))
      return -EIO;
    went_down (c);
    return c->lost || c->reconnect == 0 ? -EIO : -EAGAIN;
  }
  /* The thread waits for answers.  Does it know of more to do? */
  if (is_over (c->nbd)
      || (nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE))
    kick (c);
  return 0;
}

/* What the engine can tell a client. */
static int
map_error (const struct nbdconn *c, const struct request *rq)
{
  static const char *const names[] = {
    "reading", "writing", "zeroing", "flushing", "block status of"
  };

  if (rq->kind == ZERO && (rq->flags & LIBNBD_CMD_FLAG_FAST_ZERO)
      && (rq->error == ENOTSUP || rq->error == EOPNOTSUPP))
    return -ENOTSUP;
  report_debug ("%s: %s %" PRIu64 " bytes at %" PRIu64 ": %s", c->uri,
                names[rq->kind], rq->len, rq->offset, strerror (rq->error));
  return rq->error == ENOSPC || rq->error == ENOMEM ? -rq->error : -EIO;
}

/* -EAGAIN: the connection is lost, RQ changed nothing, and there may be
 * another one.
 */
static int
end_request (struct nbdconn *c, struct request *rq)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  int r = 0;

  if (rq->error == 0) {
    if (is_change (rq) && !(rq->flags & LIBNBD_CMD_FLAG_FUA))
      c->acked++;
    else if (rq->kind == FLUSH)
      c->flushed = MAX (c->flushed, rq->covers);
  }
  else {
    r = map_error (c, rq);
    /* libnbd's errno for what it never got an answer to. */
    if (rq->error == ENOTCONN || is_over (c->nbd)) {
      went_down (c);            /* counts RQ in */
      if (!c->lost && c->reconnect > 0 && !c->stop)
        r = -EAGAIN;
    }
  }
  count_out (c, rq);
  return r;
}

static int
perform (struct nbdconn *c, struct request *rq)
{
  int r;

  sem_init (&rq->answered, 0, 0);
  do {
    rq->alike = 0;
    r = begin_request (c, rq);
    if (r == 0) {
      while (sem_wait (&rq->answered) == -1)
        ;                       /* EINTR */
      r = end_request (c, rq);
    }
  } while (r == -EAGAIN);
  sem_destroy (&rq->answered);
  return r;
}

static uint32_t
libnbd_flags (unsigned flags)
{
  return (flags & NBDCONN_FUA ? LIBNBD_CMD_FLAG_FUA : 0)
    | (flags & NBDCONN_NO_HOLE ? LIBNBD_CMD_FLAG_NO_HOLE : 0)
    | (flags & NBDCONN_FAST_ZERO ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
}

int
nbdconn_read (struct nbdconn *c, void *buf, size_t len, uint64_t offset)
{
  struct request rq = {
    .kind = READ, .buf = buf, .len = len, .offset = offset
  };

  return perform (c, &rq);
}

int
nbdconn_write (struct nbdconn *c, const void *buf, size_t len,
               uint64_t offset, unsigned flags)
{
  struct request rq = {
    .kind = WRITE, .buf = (void *) (uintptr_t) buf, .len = len,
    .offset = offset, .flags = libnbd_flags (flags)
  };

  return perform (c, &rq);
}

int
nbdconn_zero (struct nbdconn *c, uint64_t offset, uint64_t len,
              unsigned flags)
{
  struct request rq = {
    .kind = ZERO, .len = len, .offset = offset,
    .flags = libnbd_flags (flags)
  };

  return perform (c, &rq);
}

int
nbdconn_flush (struct nbdconn *c)
{
  struct request rq = { .kind = FLUSH };

  return perform (c, &rq);
}

int
nbdconn_map (struct nbdconn *c, uint64_t offset, uint64_t *len, bool *hole)
{
  struct request rq = { .kind = MAP, .len = *len, .offset = offset };
  int r = perform (c, &rq);

  if (r < 0)
    return r;
  *hole = false;
  if (rq.alike == 0)
    return 0;                   /* it did not say */
  *hole = rq.hole;
  *len = MIN (*len, rq.alike);
  return 0;
}

/*----------------------------------------------------------------------
 * The beginning and the end.
 */

static struct nbdconn *
new_conn (const char *uri, bool trusted, unsigned reconnect)
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
  c->reconnect = reconnect;
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
  nbd_close (c->nbd);
  close (c->kick_fd);
  pthread_cond_destroy (&c->changed);
  pthread_mutex_destroy (&c->lock);
  free (c->uri);
  free (c);
}

int
nbdconn_open (const char *uri, bool trusted, unsigned reconnect,
              struct nbdconn **conn)
{
  struct nbdconn *c = new_conn (uri, trusted, reconnect);
  int r;

  if (!c) {
    report_error ("%s: not enough memory, or descriptors, to connect", uri);
    return -ENOMEM;
  }
  c->nbd = make_connection (c, &c->export, true);
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

  if (!nbd || is_over (nbd) || nbd_aio_disconnect (nbd, 0) == -1)
    return;
  for (i = 0; i < 10 && !is_over (nbd); i++)
    if (nbd_poll (nbd, 100) == -1)
      return;
}

void
nbdconn_close (struct nbdconn *c)
{
  pthread_mutex_lock (&c->lock);
  c->stop = true;
  pthread_cond_broadcast (&c->changed);
  pthread_mutex_unlock (&c->lock);
  kick (c);
  pthread_join (c->thread, NULL);
  disconnect (c->nbd);
  free_conn (c);
}
