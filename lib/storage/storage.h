/* SPDX-License-Identifier: BSD-3-Clause */

/* Where the bytes of an image live: a file or a block device; an
 * export of an NBD server; in memory, for tests.  This header opens, reads,
 * syncs and locks.  What changes the bytes is in storage-write.h, which the
 * guard alone may include (tests/check-guard-door proves that it does).
 *
 * All functions may be called from any thread at the same time.  They
 * return 0 or a negative errno unless they say otherwise, and report
 * nothing: the caller knows what the access was for.
 */

#ifndef QCOW2_STORAGE_H
#define QCOW2_STORAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct storage;

/* The image locks of QEMU: bytes 100+i say "I use permission i", bytes
 * 200+i "nobody else may" (open file description locks, shared, tested
 * with F_OFD_GETLK).
 */
enum storage_lock {
  STORAGE_LOCK_NONE,
  STORAGE_LOCK_READER,          /* 100, 201, 203 */
  STORAGE_LOCK_WRITER,          /* 100, 101, 103, 201, 203 */
};

enum storage_locking { LOCKING_AUTO, LOCKING_ON, LOCKING_OFF };

/* Open a regular file or a block device.  Read-write if WRITABLE, else
 * read-only; always O_CLOEXEC.  With NOFOLLOW the last part of the path
 * must not be a symbolic link.  Other kinds of file (directory, FIFO,
 * character device) are refused with -EINVAL before anything blocks.
 */
int storage_open_file (const char *path, bool writable, bool nofollow,
                       struct storage **s);

/* What a new file holds: FILLED bytes that FILL gives, piece by piece
 * and in any order, and zeroes up to SIZE.
 */
enum storage_rest {
  STORAGE_REST_HOLE,            /* takes no space */
  STORAGE_REST_RESERVED,        /* its space is reserved */
  STORAGE_REST_WRITTEN,         /* zeroes are written */
};
struct storage_contents {
  uint64_t filled, size;        /* bytes; filled <= size */
  enum storage_rest rest;
  int (*fill) (void *opaque, uint64_t offset, uint8_t *buf, size_t len);
  int (*ready) (void *opaque);  /* called when all but the first sector is
                                   durable; or NULL */
  void *opaque;
  bool zeroes_too;              /* a file of SIZE zeroes is one of ours */
};

/* Make a regular file that was not there and make it durable, or fill a
 * block device that begins with zeroes, or either where a crash ended
 * this half way.  -EEXIST: there is such a file, or the device does not
 * begin with zeroes; -ENOSPC: the device is too small; -EAGAIN: somebody
 * else has it open.
 * What it begins with is written last.  This cannot change an image,
 * and so is not among what only the guard may do.
 */
int storage_create_file (const char *path,
                         const struct storage_contents *contents);

/* The same in two steps, for a file that another one must be made with.
 * After the first it begins with a mark that says that it is not complete,
 * and is locked until *S, which can be read and written, is closed.  (One
 * of less than 512 bytes has no mark.)  The second takes the mark away,
 * durably.
 */
int storage_begin_file (const char *path,
                        const struct storage_contents *contents,
                        struct storage **s);
int storage_complete_file (struct storage *s,
                           const struct storage_contents *contents);

/* Does a file begin with that mark? */
bool storage_is_begun (const char *path);

/* Undo that: remove the file, or make the beginning of the device zero,
 * as it was.  S is the file, locked; or NULL, and then it is opened and
 * locked here.  -EAGAIN: somebody else has it open, and so it stays, since
 * he may have written to it.  A device that cannot be opened stays, too.
 */
int storage_remove_created (const char *path, struct storage *s);

/* How long to wait for an NBD server, in seconds. */
struct storage_patience {
  /* After a lost connection requests wait so long for a new one; 0: there
   * is none.  There is none either if writes were lost, perhaps: then
   * everything fails with -EIO.
   */
  unsigned reconnect;

  /* So long may a server be silent while requests wait for it, and an
   * idle one not answer to TCP, before the connection counts as lost; 0:
   * for ever.
   */
  unsigned timeout;
};

/* Connect to the NBD server that URI names.  Starts a thread: call it
 * after the fork.  Read-write if WRITABLE and the server allows it, else
 * read-only.  TRUSTED: the URI comes from the user, and may name files
 * with TLS keys.  Failures are reported, in contrast to the other
 * functions here.
 */
int storage_open_nbd (const char *uri, bool writable, bool trusted,
                      struct storage_patience patience,
                      struct storage **s);

/* Is NAME such a URI, and not the name of a file? */
bool storage_is_nbd_uri (const char *name);

/* A storage in memory for tests: SIZE zero bytes that grow as a file
 * does.
 */
int storage_open_memory (uint64_t size, struct storage **s);

/* A part of INNER, for reading: SIZE bytes at OFFSET, both in bytes, which
 * need not be there.  INNER is then closed with it; not if this fails.
 */
int storage_open_window (struct storage *inner, uint64_t offset,
                         uint64_t size, struct storage **s);

/* Wait for nothing, release the locks, free.  NULL is allowed. */
void storage_close (struct storage *s);

/* The name it was opened with. */
const char *storage_name (const struct storage *s);

bool storage_is_writable (const struct storage *s);

/* False for a block device: writes past the end fail. */
bool storage_can_grow (const struct storage *s);

/* Bytes around a change that may be written together with it, as they
 * were: the blocks of this size (a power of two, often 1) that it
 * touches.
 */
uint32_t storage_block_size (const struct storage *s);

/* Device and inode, to find loops in a backing chain; false where there
 * are none (memory, NBD).
 */
bool storage_identity (const struct storage *s, dev_t *dev, ino_t *ino);

/* Length in bytes now. */
int storage_size (struct storage *s, uint64_t *size);

/* Bytes allocated on disk, as st_blocks counts them; -ENOTSUP if that
 * cannot be known.
 */
int storage_allocated (struct storage *s, uint64_t *bytes);

/* Read exactly LEN bytes at OFFSET; what lies past the end of the file
 * reads as zeroes.  EINTR and short reads are dealt with here.
 */
int storage_read (struct storage *s, void *buf, size_t len,
                  uint64_t offset);

/* Make completed writes durable (fdatasync).  After a failure the
 * caller must not believe a later success.
 */
int storage_sync (struct storage *s);

/* The same, by a caller who sees to it that no other sync and no durable
 * write of S is at work from before it begins until it has ended.  Only such
 * a one may make storage_syncs_apart true again.
 */
int storage_sync_alone (struct storage *s);

/* May a sync go beside others now, and beside durable writes?  True: each of
 * them is told of all pages that were lost, whatever the others were told,
 * and what was written before this was asked is durable when it returns and
 * a sync alone, if one was at work, has ended.  False: a loss may be told to
 * only one of them, or what it covers be written by another that has not
 * ended.  The answer may change with each change of the file: false then
 * until the next storage_sync_alone.
 */
bool storage_syncs_apart (struct storage *s);

/* The same of a durable write of LEN bytes at OFFSET, which must not be
 * given back to the file system meanwhile.  False: write them as others, and
 * sync.
 */
bool storage_writes_apart (struct storage *s, uint64_t offset, uint64_t len);

/* Begin to write what a storage_sync would of LEN bytes at OFFSET, or with a
 * LEN of 0 all from there on, and wait for none of it, so that one that
 * follows takes less time.  Makes nothing durable.  A failure counts as one
 * of storage_sync; 0 where there is no such thing.
 */
int storage_start_sync (struct storage *s, uint64_t offset, uint64_t len);

/* Take, raise, lower or drop the lock.  -EAGAIN: another process stands
 * in the way; *CONFLICT is then a static string that says how: 'another
 * process writes to it', 'another process does not allow writers'.
 * -ENOTSUP: the file system has no such locks (LOCKING_AUTO then
 * succeeds without).  The state is unchanged on failure.
 */
int storage_lock (struct storage *s, enum storage_lock want,
                  enum storage_locking mode, const char **conflict);

/* After -EAGAIN: which processes hold locks on the file, as words for a
 * message ("it is held by qemu-nbd (pid 123)"), or how to find out.
 * STORAGE_HOLDERS bytes of BUF are enough.
 */
#define STORAGE_HOLDERS 160
void storage_lock_holders (struct storage *s, char *buf, size_t len);

/* The data or hole at OFFSET: *LEN (in: at most, out) bytes from there
 * on are a hole (*HOLE true, reads as zeroes) or may be data.  Past the
 * end of the file everything is a hole.  A storage that cannot tell
 * answers data.
 */
int storage_map (struct storage *s, uint64_t offset, uint64_t *len,
                 bool *hole);

/* Tell the kernel that a range will be read soon; a hint. */
void storage_will_need (struct storage *s, uint64_t offset, uint64_t len);

/* 1 if on a rotating disk, 0 if not or unknown. */
int storage_is_rotational (struct storage *s);

#endif /* QCOW2_STORAGE_H */
