/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of a connection to an NBD server share: the thread and
 * the state (storage-nbd-connection.c, with the essay), the handshake
 * (storage-nbd-connect.c), the requests (storage-nbd-requests.c).
 */

#ifndef QCOW2_STORAGE_NBD_IMPL_H
#define QCOW2_STORAGE_NBD_IMPL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "monotonic.h"
#include "storage.h"
#include "storage-nbd.h"
#include "storage-nbd-library.h"

enum nbdconn_state { UP, DOWN };

struct nbdconn {
  char *uri;
  bool trusted;
  struct storage_patience patience;
  struct nbdconn_export export;
  pthread_t thread;
  int kick_fd;

  pthread_mutex_t lock;
  pthread_cond_t changed;
  enum nbdconn_state state;
  bool lost, stop;
  struct nbd_handle *nbd;       /* NULL while DOWN */
  unsigned under_way;           /* requests on NBD */
  unsigned changes;             /* those that change bytes */
  uint64_t acked, flushed;
  uint64_t busy_since;          /* monotonic_now: when UNDER_WAY left 0 */
  uint64_t down_since;          /* the same: when STATE became DOWN */
};

/* Is nothing more to come on NBD? */
bool nbdconn_is_over (struct nbd_handle *nbd);

bool nbdconn_is_stopping (struct nbdconn *c);

/* The connection is lost: the first to notice says so.  The lock is
 * held.
 */
void nbdconn_went_down (struct nbdconn *c);

/* Wake the thread. */
void nbdconn_kick (struct nbdconn *c);

/* A handle that is connected, and what the server says of its export; or
 * NULL, after telling why not if TELL.
 */
struct nbd_handle *nbdconn_connect (struct nbdconn *c,
                                    struct nbdconn_export *e, bool tell);

/* The same export again, or NULL.  Servers that are not there yet are no
 * news; one that is another is told once a loss, see *TOLD.
 */
struct nbd_handle *nbdconn_connect_again (struct nbdconn *c, bool *told);

#endif /* QCOW2_STORAGE_NBD_IMPL_H */
