/* SPDX-License-Identifier: BSD-3-Clause */

/* A qcow2 image, open and shared by all connections: the interface of
 * the engine to the plugin, the tools and the tests.
 *
 * Guest offsets and lengths are in bytes.  All functions return 0 or a
 * negative errno, and have reported an error (report.h) when they fail,
 * unless they say otherwise.  The errnos a client can meet: EIO (the
 * storage, corruption, writes stopped), ENOSPC, ENOMEM, EROFS, and
 * ENOTSUP for a fast zero that would not be fast.
 *
 * From image_start to image_stop everything may be called from any
 * thread at the same time; none of the library's locks is held between
 * calls.
 */

#ifndef QCOW2_IMAGE_H
#define QCOW2_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "event.h"
#include "overlap.h"
#include "storage.h"

enum detect_zeroes {
  DETECT_ZEROES_OFF,
  DETECT_ZEROES_ON,             /* host clusters are kept */
  DETECT_ZEROES_UNMAP,          /* and given back */
};
/* Write whole clusters compressed; IMAGE: with the type that the image
 * has, the others: which must be the one that it has.
 */
enum image_compress {
  COMPRESS_OFF, COMPRESS_DEFLATE, COMPRESS_ZSTD, COMPRESS_IMAGE
};
enum lazy_refcounts { LAZY_OFF, LAZY_ON, LAZY_IMAGE };

/* What a consistency check may correct: nothing, leaks (counts that are
 * too high), or all that it can.
 */
enum image_check { CHECK_OFF, CHECK_REPORT, CHECK_LEAKS, CHECK_ALL };

struct image_check_result;
struct layer_names;

struct image_config {
  const char *filename;         /* or an NBD URI */
  bool readonly;                /* never ask for write access */

  overlap_set overlap_check;    /* types that writes must not touch */
  uint64_t overlap_bitmap_size; /* bytes */
  uint64_t overlap_total_limit; /* bytes, UINT64_MAX none */
  enum overlap_policy overlap_limit;
  bool overlap_debug;           /* compare with a full walk per commit */

  uint64_t l2_cache_size;       /* bytes; 0 is the default */
  uint64_t refcount_cache_size; /* bytes; 0 is the default */
  uint64_t compressed_cache_size; /* bytes; 0: no cache */

  const char *const *external_files; /* "none", "same-dir", "any", or
                                   directories, NBD URIs;
                                   NULL-terminated */
  const char *backing_file;     /* instead of the image's; or NULL */
  const char *backing_format;   /* "qcow2" or "raw", the same */
  bool no_backing;              /* as if the image did not name one */
  const char *data_file;        /* as backing_file */
  const struct layer_names *names; /* layer.c alone; else NULL */
  const char *passphrase;       /* of an encrypted image; or NULL */
  const char *backing_passphrase; /* of its layers, if another; or NULL */
  bool offline;                 /* nobody is served: only metadata is looked
                                   at, or checked.  No passphrase is needed,
                                   data and backing files are not opened */
  unsigned commit_interval;     /* seconds; 0 is never */
  bool discard;                 /* false: trims are ignored */
  enum detect_zeroes detect_zeroes; /* of writes */
  enum image_compress compress; /* writes */
  enum lazy_refcounts lazy_refcounts;
  enum storage_locking locking;
  struct storage_patience patience; /* with NBD servers */
  bool no_connections;          /* make none: -EINPROGRESS instead, and
                                   nothing is reported */
  enum image_check check;       /* when the image is opened */
  struct image_check_result *check_result; /* is filled in by it, instead of
                                   a summary in the log; or NULL */
  /* Told how far a check is, instead of the log; or NULL.  DONE and TOTAL
   * are in the same unit.
   */
  void (*check_progress) (void *opaque, uint64_t done, uint64_t total);
  void *check_opaque;

  event_sink *event;            /* may be NULL */
  void *event_opaque;
};

/* Fill in the defaults: overlap_check all, bitmap_size 64k, no limit,
 * external_files same-dir, commit_interval 5, discard, locking auto,
 * compressed_cache_size 16M, no second connection to an NBD server, a
 * timeout of 600 seconds.
 */
void image_config_init (struct image_config *config);

struct image;

/* Open FILENAME and its backing chain, check the header and tables,
 * enter all metadata in the tracker.  Takes the lock of a reader, and
 * opens the file for writing if it may.  Starts no thread but those of
 * connections to NBD servers (unless NO_CONNECTIONS), changes nothing in
 * the file, unless CONFIG->check asks for a repair (which takes the lock
 * of a writer meanwhile).  Strings of CONFIG must live as long as the
 * image, but for the passphrases; the struct itself need not.
 *
 * An image that is marked corrupt, or found so now, opens read-only
 * (image_is_writable says false, BLOCK_IMAGE_CORRUPTED is sent for what
 * was found).
 *
 * With CONFIG->offline: only the facts, image_check and offline.h may be
 * asked; a repair of a file that is read-only is -EROFS (reported).
 */
int image_open (const struct image_config *config, struct image **img);

/* Start the commit thread (after the fork). */
int image_start (struct image *img);

/* Commit until nothing is left, store the dirty bitmaps, stop the thread,
 * sync.  The image can still be read; if it has bitmaps that note writes,
 * there can be no more of those.  May be called without image_start, and twice.
 */
int image_stop (struct image *img);

/* image_stop was called, or nothing was written.  NULL is allowed. */
void image_close (struct image *img);

/* Facts. */
uint64_t image_size (const struct image *img);      /* guest bytes */
uint64_t image_cluster_size (const struct image *img);
/* What is mapped as one; the cluster's, without extended L2 entries. */
uint64_t image_subcluster_size (const struct image *img);
bool image_is_writable (const struct image *img);   /* could be, if asked */
int image_is_rotational (const struct image *img);
const char *image_description (const struct image *img);

/* Internal snapshots, in the order of the image's table. */
struct image_snapshot {
  const char *id, *name;        /* live as long as the image */
  uint64_t size;                /* guest bytes */
  uint32_t seconds;             /* when it was made, since 1970 */
};
uint32_t image_snapshots (const struct image *img);
void image_snapshot_info (const struct image *img, uint32_t i,
                          struct image_snapshot *info);

/* Open a snapshot as an image that can be read (image_read,
 * image_extents, image_cache, the facts) while IMG is written.  Close it
 * with image_close, before IMG.
 */
int image_open_snapshot (struct image *img, uint32_t i,
                         struct image **view);

/* Persistent dirty bitmaps, in the order of the image's directory. */
struct image_bitmap {
  const char *name;             /* lives as long as the image */
  uint64_t granularity;         /* guest bytes that a bit stands for */
  bool recording;               /* writes are noted (not disabled) */
  const char *unusable;         /* why it cannot be used; NULL: it can */
};
uint32_t image_bitmaps (const struct image *img);
void image_bitmap_info (const struct image *img, uint32_t i,
                        struct image_bitmap *info);

/* Raise the lock to a writer's; call before the first write (a writable
 * connection).  An image marked dirty is checked and repaired first, which
 * may take long.  Cheap when it was done.  -EROFS if not writable, or
 * dirty and beyond repair; -EAGAIN if another process is in the way.
 */
int image_begin_writing (struct image *img);

/* Check the consistency of the image, and repair what WHAT allows (then
 * with a writer's lock).  Nothing was written since it was opened, nor is
 * meanwhile.  The numbers are those of 'qemu-img check'.
 */
struct image_check_result {
  uint64_t errors, leaks;       /* found */
  uint64_t overlaps;            /* guest data in clusters of metadata,
                                   which qemu-img does not look for */
  uint64_t errors_left, leaks_left;
  bool repaired;                /* something was */
  bool grave;                   /* errors are left that are more than
                                   wrong COPIED flags */
  bool unseen;                  /* broken pointers: leaks may be none */
  unsigned faults;              /* of the header, which are reported only
                                   and not errors to qemu-img: an image that
                                   has any is not served (offline only) */
  bool reopen;                  /* close the image, open and check again */
  uint64_t end;                 /* host bytes: the end of the last cluster
                                   that anything refers to */
  uint64_t allocated, compressed; /* guest clusters of the active disk */
  uint64_t fragmented;          /* of them, not behind the one before them,
                                   or compressed */
};
int image_check (struct image *img, enum image_check what,
                 struct image_check_result *result);

/* Requests.  Ranges lie inside the disk (the caller checked). */
int image_read (struct image *img, void *buf, size_t len, uint64_t offset);
int image_write (struct image *img, const void *buf, size_t len,
                 uint64_t offset, bool fua);

#define IMAGE_ZERO_MAY_TRIM 1   /* host clusters may be given back */
#define IMAGE_ZERO_FAST     2   /* -ENOTSUP rather than write zeroes;
                                   nothing but zeroes was made then, and
                                   nothing is reported */
int image_zero (struct image *img, uint64_t offset, uint64_t len,
                unsigned flags, bool fua);
int image_trim (struct image *img, uint64_t offset, uint64_t len, bool fua);
int image_flush (struct image *img);
int image_cache (struct image *img, uint64_t offset, uint64_t len);

/* Block status: calls ADD for consecutive ranges that begin at OFFSET
 * and together cover LEN bytes exactly (one range only, perhaps
 * shorter, with ONE).  Neighbours of equal status are joined.  A
 * failure of ADD (negative errno) ends it and is returned.
 */
#define IMAGE_EXTENT_HOLE 1     /* not allocated in any layer */
#define IMAGE_EXTENT_ZERO 2     /* reads as zeroes */
typedef int image_extent_fn (void *opaque, uint64_t offset, uint64_t len,
                             unsigned status);
int image_extents (struct image *img, uint64_t offset, uint64_t len,
                   bool one, image_extent_fn *add, void *opaque);

/* What bitmap I, which can be used, says of the disk at this moment, in
 * the same form: status 0 where it is dirty, IMAGE_EXTENT_HOLE where not.
 */
int image_bitmap_extents (struct image *img, uint32_t i, uint64_t offset,
                          uint64_t len, bool one, image_extent_fn *add,
                          void *opaque);

/* Counters since the opening, and some facts of this moment.  Those of
 * the image itself, without the layers below it and its snapshots' views.
 * May be called at any time from image_open to image_close; waits for no
 * I/O.
 */
struct image_stats {
  uint64_t commits, syncs;
  uint64_t guard_checks, guard_refusals;
  uint64_t outside_refusals;    /* by overlap-limit=refuse */
  uint64_t clusters_allocated, clusters_released;
  uint64_t quarantined;         /* clusters freed and not released, now */
  uint64_t file_size;           /* bytes of the image file, now */
  bool corrupt;                 /* was met, or the image is marked so */
  bool failed;                  /* a sync failed: writes stop */
  uint64_t l2_hits, l2_misses;
  uint64_t refcount_hits, refcount_misses; /* of blocks in the cache */
  uint64_t unpacked_hits, unpacked_misses;
  struct overlap_stats overlap;
};
void image_get_stats (struct image *img, struct image_stats *stats);

#endif /* QCOW2_IMAGE_H */
