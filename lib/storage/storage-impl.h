/* SPDX-License-Identifier: BSD-3-Clause */

/* What a kind of storage provides.  For the files of lib/storage and
 * for storages that tests make themselves; nobody else looks inside a
 * struct storage (tests/check-guard-door.sh proves it), since the ops
 * are another way to the writing functions.
 *
 * A kind embeds struct storage as its first member.  storage.c sees to
 * the conditions that all kinds share, so that an op may rely on them:
 * LEN is not 0, OFFSET + LEN is at most INT64_MAX, and ops that change
 * bytes are called only if the storage is writable.
 */

#ifndef QCOW2_STORAGE_IMPL_H
#define QCOW2_STORAGE_IMPL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "storage.h"

/* Each op does what the function of the same name in storage.h and
 * storage-write.h promises, from any thread at the same time: a kind
 * does its own locking.  start_sync, will_need and is_rotational may be
 * NULL; so may sync_alone, for sync, syncs_apart, for false, and
 * writes_apart, for true.
 */
struct storage_ops {
  /* Free all but the struct itself and what storage_init made. */
  void (*close) (struct storage *s);

  int (*size) (struct storage *s, uint64_t *size);
  int (*allocated) (struct storage *s, uint64_t *bytes);
  int (*read) (struct storage *s, void *buf, size_t len, uint64_t offset);
  int (*sync) (struct storage *s);
  int (*sync_alone) (struct storage *s);
  bool (*syncs_apart) (struct storage *s);
  bool (*writes_apart) (struct storage *s, uint64_t offset, uint64_t len);
  int (*start_sync) (struct storage *s, uint64_t offset, uint64_t len);
  int (*lock) (struct storage *s, enum storage_lock want,
               enum storage_locking mode, const char **conflict);
  int (*map) (struct storage *s, uint64_t offset, uint64_t *len, bool *hole);
  void (*will_need) (struct storage *s, uint64_t offset, uint64_t len);
  int (*is_rotational) (struct storage *s);

  int (*write) (struct storage *s, const struct iovec *iov, int cnt,
                uint64_t offset, bool durable);
  int (*zero) (struct storage *s, uint64_t offset, uint64_t len);
  int (*punch) (struct storage *s, uint64_t offset, uint64_t len);
  int (*reserve) (struct storage *s, uint64_t offset, uint64_t len);
  int (*truncate) (struct storage *s, uint64_t size);
};

struct storage {
  const struct storage_ops *ops;
  char *name;                   /* owned */
  bool writable;
  bool can_grow;
  uint32_t block_size;          /* see storage_block_size; 1 */
  bool has_identity;            /* dev, ino are set */
  dev_t dev;
  ino_t ino;
};

/* Fill in the common part of a storage that is not writable, cannot
 * grow, has no identity, and changes single bytes.  -ENOMEM, or 0.
 */
int storage_init (struct storage *s, const struct storage_ops *ops,
                  const char *name);

/* Move the image locks of FD from *HELD to WANT, see storage_lock.
 * *HELD is updated on success.  The caller keeps other threads out.
 */
int storage_lock_fd (int fd, enum storage_lock *held, enum storage_lock want,
                     enum storage_locking mode, const char **conflict);

/* Between storage-file.c and storage-create.c: make an empty file that
 * was not there; make its name durable, which not every file system lets
 * be asked for (then 0, too): a file is found after a crash if its
 * directory was synced; write zeroes to a file's range, whatever is there.
 */
int storage_create_empty (const char *path);
int storage_sync_directory (const char *path);
int storage_write_zeroes (struct storage *s, uint64_t offset, uint64_t len);

#endif /* QCOW2_STORAGE_IMPL_H */
