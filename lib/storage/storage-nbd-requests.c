/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests to an NBD server, see storage-nbd-connection.c.
 *
 * Locks: LOCK of the connection, while a request is handed to libnbd and
 * while its end is counted; never while it is waited for.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "report.h"
#include "storage-nbd.h"
#include "storage-nbd-impl.h"

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
    return libnbd.aio_pread (nbd, rq->buf, rq->len, rq->offset, done, 0);
  case WRITE:
    return libnbd.aio_pwrite (nbd, rq->buf, rq->len, rq->offset, done,
                              rq->flags);
  case ZERO:
    return libnbd.aio_zero (nbd, rq->len, rq->offset, done, rq->flags);
  case FLUSH:
    return libnbd.aio_flush (nbd, done, 0);
  case MAP:
    return libnbd.aio_block_status (nbd, rq->len, rq->offset, extents, done,
                                    0);
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
    const struct timespec until = monotonic_timespec
      (c->down_since + c->patience.reconnect * NANOSECONDS);

    if (c->lost || c->patience.reconnect == 0 || c->stop)
      return -EIO;
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
  if (c->under_way++ == 0)
    c->busy_since = monotonic_now ();
  c->changes += is_change (rq);
  rq->covers = c->acked;
  if (send_request (c->nbd, rq) == -1) {
    report_debug ("%s: a request could not be sent: %s", c->uri,
                  libnbd.get_error ());
    /* It was not sent, so it is not what makes writes lost. */
    count_out (c, rq);
    if (!nbdconn_is_over (c->nbd))
      return -EIO;
    nbdconn_went_down (c);
    return c->lost || c->patience.reconnect == 0 ? -EIO : -EAGAIN;
  }
  /* The thread waits for answers.  Does it know of more to do? */
  if (nbdconn_is_over (c->nbd)
      || (libnbd.aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE))
    nbdconn_kick (c);
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
    if (rq->error == ENOTCONN || nbdconn_is_over (c->nbd)) {
      nbdconn_went_down (c);            /* counts RQ in */
      if (!c->lost && c->patience.reconnect > 0 && !c->stop)
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
