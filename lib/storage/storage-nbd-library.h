/* SPDX-License-Identifier: BSD-3-Clause */

/* libnbd, loaded when the first image is on an NBD server.
 *
 * It brings libraries of its own, with one of which (libxml2, for what a
 * server of this kind never does) come ICU and the C++ runtime: together
 * over 2 MiB of every server's memory and a part of its start, for
 * images that mostly are files.
 */

#ifndef QCOW2_STORAGE_NBD_LIBRARY_H
#define QCOW2_STORAGE_NBD_LIBRARY_H

#include <libnbd.h>

/* What is called, without the prefix nbd_; see libnbd(3). */
#define LIBNBD_FUNCTIONS(X)                                             \
  X (add_meta_context)                                                  \
  X (aio_block_status)                                                  \
  X (aio_connect_uri)                                                   \
  X (aio_disconnect)                                                    \
  X (aio_flush)                                                         \
  X (aio_get_direction)                                                 \
  X (aio_get_fd)                                                        \
  X (aio_is_closed)                                                     \
  X (aio_is_connecting)                                                 \
  X (aio_is_dead)                                                       \
  X (aio_is_ready)                                                      \
  X (aio_notify_read)                                                   \
  X (aio_notify_write)                                                  \
  X (aio_pread)                                                         \
  X (aio_pwrite)                                                        \
  X (aio_zero)                                                          \
  X (can_fast_zero)                                                     \
  X (can_flush)                                                         \
  X (can_fua)                                                           \
  X (can_meta_context)                                                  \
  X (can_zero)                                                          \
  X (close)                                                             \
  X (create)                                                            \
  X (get_block_size)                                                    \
  X (get_error)                                                         \
  X (get_size)                                                          \
  X (is_read_only)                                                      \
  X (is_rotational)                                                     \
  X (poll)                                                              \
  X (set_pread_initialize)                                              \
  X (set_uri_allow_local_file)                                          \
  X (set_uri_allow_transports)

struct libnbd {
#define LIBNBD_MEMBER(name) __typeof__ (nbd_ ## name) *(name);
  LIBNBD_FUNCTIONS (LIBNBD_MEMBER)
#undef LIBNBD_MEMBER
};

/* Only to be used after a call of libnbd_load that returned 0. */
extern struct libnbd libnbd;

/* Load the library, unless it is.  0, or a negative errno (reported).
 * Any thread.
 */
int libnbd_load (void);

#endif /* QCOW2_STORAGE_NBD_LIBRARY_H */
