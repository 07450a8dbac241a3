/* SPDX-License-Identifier: BSD-3-Clause */

/* Events to whoever connects to a UNIX socket.  See event-socket.c. */

#ifndef QCOW2_EVENT_SOCKET_H
#define QCOW2_EVENT_SOCKET_H

#include <stdint.h>

/* Listen on the socket PATH (NULL: none), for events of the file IMAGE.
 * Before the fork, so that relative paths work and mistakes are seen.  -1
 * after an error.
 */
int event_socket_open (const char *path, const char *image);

/* Start the thread, after the fork.  -1 after an error. */
int event_socket_start (void);

/* Send a line (which ends in a newline, and is copied) to all who have
 * connected before this call.  Any thread; never waits for a reader.
 * NULL is a line for which there was no memory.
 */
void event_socket_send (const char *line);

/* Events that readers did not get, added up over the readers. */
uint64_t event_socket_losses (void);

/* Send what is queued, for a bounded time, stop the thread, remove the
 * socket.  May be called without the others, and twice.
 */
void event_socket_stop (void);

#endif /* QCOW2_EVENT_SOCKET_H */
