/* SPDX-License-Identifier: BSD-3-Clause */

/* A new connection to an NBD server: the handshake, and what the server
 * says of its export.
 *
 * Nothing here waits for ever: a server that accepts and says nothing is
 * given up.  An idle connection stays one, and one whose other end is
 * gone without a word is noticed, by TCP's own keepalive; see also
 * serve in storage-nbd-connection.c, for servers that live and are
 * silent.
 *
 * Locks: none, and none may be held.
 */

#include <config.h>

#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "checked.h"
#include "report.h"
#include "storage-nbd.h"
#include "storage-nbd-impl.h"

/* More than a few servers take this, and all should (NBD protocol,
 * "Block size constraints").
 */
#define MAX_REQUEST (UINT32_C (32) << 20)

/* How long a handshake may take. */
#define CONNECT_SECONDS 30

static struct nbd_handle *
new_handle (const struct nbdconn *c)
{
  struct nbd_handle *nbd = libnbd.create ();

  if (!nbd)
    return NULL;
  libnbd.set_uri_allow_transports (nbd, LIBNBD_ALLOW_TRANSPORT_TCP |
                                   LIBNBD_ALLOW_TRANSPORT_UNIX |
                                   LIBNBD_ALLOW_TRANSPORT_VSOCK);
  libnbd.set_uri_allow_local_file (nbd, c->trusted);
  libnbd.set_pread_initialize (nbd, false);
  libnbd.add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION);
  return nbd;
}

static void
set_option (int fd, int level, int name, int value)
{
  if (setsockopt (fd, level, name, &value, sizeof value) == -1)
    report_debug ("setting option %d of a socket: %m", name);
}

/* TCP asks an idle server from time to time whether it is there, which
 * also keeps what lies between (NAT) from forgetting the connection.
 */
static void
keep_alive (const struct nbdconn *c, int fd)
{
  const unsigned timeout = c->patience.timeout;
  const int idle = (int) MIN (MAX (timeout / 2, 1), 60);
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;

  if (timeout == 0 || getsockname (fd, (struct sockaddr *) &addr, &len) == -1
      || (addr.ss_family != AF_INET && addr.ss_family != AF_INET6))
    return;
  set_option (fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option (fd, IPPROTO_TCP, TCP_KEEPIDLE, idle);
  set_option (fd, IPPROTO_TCP, TCP_KEEPINTVL, idle);
  set_option (fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
              (int) MIN (UINT64_C (1000) * timeout, (uint64_t) INT_MAX));
}

/* Go through the handshake, not for ever.  The error is libnbd's, or
 * *WHY.
 */
static int
shake_hands (struct nbdconn *c, struct nbd_handle *nbd, const char **why)
{
  uint64_t begin;

  *why = NULL;
  if (libnbd.aio_connect_uri (nbd, c->uri) == -1)
    return -1;
  begin = monotonic_now ();
  while (libnbd.aio_is_connecting (nbd)) {
    if (libnbd.poll (nbd, 100) == -1)
      return -1;
    *why = nbdconn_is_stopping (c) ? "stopped"
      : monotonic_now () - begin > CONNECT_SECONDS * NANOSECONDS
      ? "the server does not answer" : NULL;
    if (*why)
      return -1;
  }
  if (!libnbd.aio_is_ready (nbd)) {
    *why = "the server hung up";
    return -1;
  }
  keep_alive (c, libnbd.aio_get_fd (nbd));
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
  const int64_t size = libnbd.get_size (nbd);
  const int64_t min = libnbd.get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t max = libnbd.get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);

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
  e->read_only = yes (libnbd.is_read_only (nbd));
  e->can_flush = yes (libnbd.can_flush (nbd));
  e->can_fua = yes (libnbd.can_fua (nbd));
  e->can_zero = yes (libnbd.can_zero (nbd));
  e->can_fast_zero = yes (libnbd.can_fast_zero (nbd));
  e->can_map = yes (libnbd.can_meta_context (nbd,
                                             LIBNBD_CONTEXT_BASE_ALLOCATION));
  e->rotational = yes (libnbd.is_rotational (nbd));
  return 0;
}

struct nbd_handle *
nbdconn_connect (struct nbdconn *c, struct nbdconn_export *e, bool tell)
{
  struct nbd_handle *nbd;
  const char *why = NULL;

  if (libnbd_load () < 0)
    return NULL;
  nbd = new_handle (c);
  if (nbd && shake_hands (c, nbd, &why) == 0 && ask_export (nbd, e) == 0)
    return nbd;
  if (!why)
    why = libnbd.get_error ();
  (tell ? report_error : report_debug) ("%s: connecting: %s", c->uri,
                                        why ? why : "failed");
  libnbd.close (nbd);
  return NULL;
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

struct nbd_handle *
nbdconn_connect_again (struct nbdconn *c, bool *told)
{
  struct nbdconn_export e;
  struct nbd_handle *nbd = nbdconn_connect (c, &e, false);

  if (nbd && !is_same (c, &e, told)) {
    libnbd.close (nbd);
    nbd = NULL;
  }
  return nbd;
}
