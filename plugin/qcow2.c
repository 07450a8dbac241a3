/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin: nbdkit's callbacks on top of the engine of lib/image.
 *
 * One image serves all connections, which is why multi-conn is true.
 * Its life follows nbdkit's:
 *
 *   .get_ready   open and check it: errors are still seen by the user,
 *                and relative names still work
 *   .after_fork  start threads: those started earlier would be lost;
 *                and open what needs connections to NBD servers, which
 *                have threads
 *   .cleanup     commit, stop threads, write the last statistics
 *   .unload      close
 *
 * Each step tolerates that the one before it never came.  In particular
 * nbdkit does not call .close for connections that are open when it is
 * told to quit, and never flushes by itself, so nothing depends on
 * .close: the last commit is the one in .cleanup.  nbdkit ends a process
 * whose .get_ready fails without .cleanup or .unload.
 *
 * A connection's handle says which disk it is for and whether it may
 * write.  For the active disk there is one of each kind and none is
 * allocated, since nobody would free those of connections whose .close
 * does not come; those of snapshots and bitmaps are kept in exports.c.
 *
 * The engine returns negative errnos and has reported them; they are
 * handed to nbdkit with nbdkit_set_error.
 *
 * Locks: writers_lock guards the count of writable connections and is
 * never held during a call into the engine.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "cleanup.h"
#include "event-socket.h"
#include "plugin.h"
#include "resize.h"
#include "stats.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* To enable: -D qcow2.overlap=1, compare the tracker with a walk of all
 * tables at every commit.
 */
NBDKIT_DLL_PUBLIC int qcow2_debug_overlap = 0;

/* To enable: -v -D qcow2.stats=1, print the engine's counters at the
 * end.
 */
NBDKIT_DLL_PUBLIC int qcow2_debug_stats = 0;

/* Limits that nbdkit sets for the preferred block size. */
#define MIN_PREFERRED UINT64_C (512)
#define MAX_PREFERRED (UINT64_C (32) << 20)

static struct image *image;
static bool open_later;         /* after the fork */

static pthread_mutex_t writers_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned writers;        /* writable connections */

static struct handle reader = { .readonly = true };
static struct handle writer = { .readonly = false };

static void
qcow2_load (void)
{
  report_set_sink (log_report);
  config_init ();
  /* A write past the limit on the length of files (setrlimit(2),
   * RLIMIT_FSIZE) is an error for that request, not the end of the
   * server.
   */
  signal (SIGXFSZ, SIG_IGN);
}

static void
qcow2_dump_plugin (void)
{
  unsigned t;

  printf ("qcow2_versions=2,3\n");
  printf ("qcow2_deflate=yes\n");
  printf ("qcow2_zstd=yes\n");
  printf ("qcow2_compress=deflate,zstd\n");
  printf ("qcow2_extended_l2=yes\n");
  printf ("qcow2_encryption=luks,aes\n");
  printf ("qcow2_external_data=yes\n");
  printf ("qcow2_image_over_nbd=yes\n");
  printf ("qcow2_snapshot_exports=yes\n");
  printf ("qcow2_bitmap_exports=yes\n");
  printf ("qcow2_overlap_types=");
  for (t = 0; t < OVERLAP_TYPES; t++)
    printf ("%s%s", t ? "," : "",
            overlap_type_name ((enum overlap_type) t));
  printf ("\n");
  printf ("qcow2_events=%s,%s,%s,QCOW2_EVENTS_LOST\n",
          event_name (EVENT_OVERLAP_MEMORY_LIMIT_REACHED),
          event_name (EVENT_OVERLAP_PROTECTION_RESTORED),
          event_name (EVENT_IMAGE_CORRUPTED));
}

/* An image that was made for this server and cannot be served is not
 * left behind: its name would be taken the next time.
 */
static int
open_image (void)
{
  int r = 0;

  if (config.resize)
    r = image_resize (&config.image, config.new_size, config.resize_shrink);
  if (r == 0)
    r = image_open (&config.image, &image);
  if (r < 0)
    image = NULL;
  if (r < 0 && r != -EINPROGRESS && config.create)
    image_remove_created (config.image.filename, &config.create_options);
  if (r != -EINPROGRESS)
    config_wipe_passphrases ();
  return r;
}

static int
give_up (void)
{
  stats_stop ();
  image = NULL;
  event_socket_stop ();
  events_stop ();
  events_close ();
  return -1;
}

static int
qcow2_get_ready (void)
{
  int r;

  config.image.overlap_debug = qcow2_debug_overlap != 0;
  config.image.event = events_sink;

  if (stats_open (config.stats, config.stats_interval,
                  config.image.filename) == -1)
    return -1;
  if (events_open (config.event_log, config.image.filename) == -1
      || event_socket_open (config.event_socket,
                            config.image.filename) == -1)
    return give_up ();
  if (config.create
      && image_create (config.image.filename, &config.create_options) < 0)
    return give_up ();
  config.image.no_connections = true;
  r = open_image ();
  config.image.no_connections = false;
  open_later = r == -EINPROGRESS;
  if (open_later)
    r = config_make_absolute ();
  if (r >= 0)
    r = stats_publish (image);
  return r < 0 ? give_up () : 0;
}

static int
qcow2_after_fork (void)
{
  if (events_start () == -1 || event_socket_start () == -1)
    return -1;
  if (open_later && open_image () < 0)
    return give_up ();
  reader.image = writer.image = image;
  reader.description = writer.description = image_description (image);
  return image_start (image) < 0 ? -1 : stats_start (image);
}

static void
print_stats (void)
{
  struct image_stats s;

  image_get_stats (image, &s);
  nbdkit_debug ("stats: commits=%" PRIu64 " syncs=%" PRIu64
                " guard_checks=%" PRIu64 " guard_refusals=%" PRIu64
                " clusters_allocated=%" PRIu64 " clusters_released=%" PRIu64
                " l2_hits=%" PRIu64 " l2_misses=%" PRIu64
                " unpacked_hits=%" PRIu64 " unpacked_misses=%" PRIu64,
                s.commits, s.syncs, s.guard_checks, s.guard_refusals,
                s.clusters_allocated, s.clusters_released,
                s.l2_hits, s.l2_misses, s.unpacked_hits, s.unpacked_misses);
  nbdkit_debug ("stats: overlap: used=%" PRIu64 " bytemap_bytes=%" PRIu64
                " windows=%" PRIu64 " runs=%" PRIu64
                " outside_windows=%" PRIu64,
                s.overlap.used, s.overlap.bytemap_bytes, s.overlap.windows,
                s.overlap.runs, s.overlap.outside_windows);
}

/* Everything that was acknowledged becomes durable here at the latest.
 * The engine has reported what failed; there is nobody left to tell.
 */
static void
qcow2_cleanup (void)
{
  if (image) {
    image_stop (image);
    if (qcow2_debug_stats)
      print_stats ();
  }
  stats_stop ();
  event_socket_stop ();
  events_stop ();
}

static void
qcow2_unload (void)
{
  if (image)
    image_stop (image);
  event_socket_stop ();
  events_stop ();
  exports_close_all ();
  stats_stop ();
  image_close (image);
  image = NULL;
  events_close ();
  config_free ();
  report_set_sink (NULL);
}

static int
qcow2_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  (void) readonly;
  (void) is_tls;
  return exports_list (image, exports);
}

static const char *
qcow2_default_export (int readonly, int is_tls)
{
  (void) readonly;
  (void) is_tls;
  return "";
}

static const char *
qcow2_export_description (void *handle)
{
  const struct handle *h = handle;

  return h->description;
}

/* Raise the image's lock and count one more writer.  -EROFS: the image
 * cannot be written to (its file is read-only, it is corrupt).
 */
static int
begin_writing (void)
{
  int r = image_is_writable (image) ? image_begin_writing (image) : -EROFS;

  if (r < 0)
    return r;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&writers_lock);
  writers++;
  return 0;
}

/* A connection that may write to an image that nobody can write to is
 * served read-only.  If another process is in the way it is refused,
 * since the client would take the reason for its own mistake later.
 */
static void *
qcow2_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  int r;

  if (!name)
    return NULL;
  if (*name)
    return exports_open (image, name);
  r = readonly ? -EROFS : begin_writing ();
  if (r == -EROFS)
    return &reader;
  return r < 0 ? NULL : &writer;
}

/* Clients that were killed have not flushed: when the last writer
 * leaves, what it wrote becomes durable.  Failures were reported, and
 * the next flush or the end will meet them again.
 */
static void
qcow2_close (void *handle)
{
  const struct handle *h = handle;
  bool last = false;

  if (h != &reader && h != &writer)
    exports_close (h);
  else if (!h->readonly) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&writers_lock);
    last = --writers == 0;
  }
  if (last)
    image_flush (image);
}

static int64_t
qcow2_get_size (void *handle)
{
  const struct handle *h = handle;

  return (int64_t) image_size (h->image);
}

static int
qcow2_can_write (void *handle)
{
  const struct handle *h = handle;

  return !h->readonly;
}

static int
qcow2_yes (void *handle)
{
  (void) handle;
  return 1;
}

static int
qcow2_can_fua (void *handle)
{
  (void) handle;
  return NBDKIT_FUA_NATIVE;
}

static int
qcow2_can_cache (void *handle)
{
  (void) handle;
  return NBDKIT_CACHE_NATIVE;
}

static int
qcow2_is_rotational (void *handle)
{
  (void) handle;
  return image_is_rotational (image) > 0;
}

static int
qcow2_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                  uint32_t *maximum)
{
  uint64_t size = config.image.compress != COMPRESS_OFF
    ? image_cluster_size (image) : image_subcluster_size (image);

  (void) handle;
  /* Below a page of the server's, subclusters gain nothing. */
  size = MAX (size, MIN (image_cluster_size (image), UINT64_C (4096)));
  *minimum = 1;
  *preferred = (uint32_t) MIN (MAX (size, MIN_PREFERRED), MAX_PREFERRED);
  *maximum = UINT32_MAX;
  return 0;
}

/* The engine's answer as nbdkit wants it, and the end of the request.
 * ENOTSUP must not get through except for a fast zero: it would send
 * nbdkit to its own way of writing zeroes, which goes wrong above 64 MiB
 * before nbdkit 1.45.1.
 */
static int
answer (const struct stats_request *rq, int r, bool notsup_allowed)
{
  stats_end (rq, r < 0);
  if (r >= 0)
    return 0;
  if (!notsup_allowed && (r == -ENOTSUP || r == -EOPNOTSUPP))
    r = -EIO;
  nbdkit_set_error (-r);
  return -1;
}

/* Requests of no length are left to servers by the protocol; they
 * succeed without reaching the engine.
 */
static int
qcow2_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  const struct handle *h = handle;

  (void) flags;
  if (count == 0)
    return 0;
  const struct stats_request rq = stats_begin (STATS_READ, count);
  return answer (&rq, image_read (h->image, buf, count, offset), false);
}

static int
qcow2_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  (void) handle;
  if (count == 0)
    return 0;
  const struct stats_request rq = stats_begin (STATS_WRITE, count);
  return answer (&rq, image_write (image, buf, count, offset,
                                   (flags & NBDKIT_FLAG_FUA) != 0), false);
}

static int
qcow2_flush (void *handle, uint32_t flags)
{
  const struct handle *h = handle;
  const struct stats_request rq = stats_begin (STATS_FLUSH, 0);

  (void) flags;
  return answer (&rq, image_flush (h->image), false);
}

static int
qcow2_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  (void) handle;
  if (count == 0)
    return 0;
  const struct stats_request rq = stats_begin (STATS_TRIM, count);
  return answer (&rq, image_trim (image, offset, count,
                                  (flags & NBDKIT_FLAG_FUA) != 0), false);
}

static int
qcow2_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const bool fast = (flags & NBDKIT_FLAG_FAST_ZERO) != 0;
  unsigned f = 0;

  (void) handle;
  if (count == 0)
    return 0;
  if (flags & NBDKIT_FLAG_MAY_TRIM)
    f |= IMAGE_ZERO_MAY_TRIM;
  if (fast)
    f |= IMAGE_ZERO_FAST;
  const struct stats_request rq = stats_begin (STATS_ZERO, count);
  return answer (&rq, image_zero (image, offset, count, f,
                                  (flags & NBDKIT_FLAG_FUA) != 0), fast);
}

/* Where the extents of one request go. */
struct extents_request {
  struct nbdkit_extents *extents;
  uint64_t start, end;
};

/* Nothing beyond the request is reported, whatever the engine says:
 * nbdkit 1.32 dies of an extent of 4 GiB.
 */
static int
add_extent (void *opaque, uint64_t offset, uint64_t len, unsigned status)
{
  const struct extents_request *rq = opaque;
  uint64_t end = len > UINT64_MAX - offset ? UINT64_MAX : offset + len;
  uint32_t type = 0;

  offset = MAX (offset, rq->start);
  end = MIN (end, rq->end);
  if (offset >= end)
    return 0;
  if (status & IMAGE_EXTENT_HOLE)
    type |= NBDKIT_EXTENT_HOLE;
  if (status & IMAGE_EXTENT_ZERO)
    type |= NBDKIT_EXTENT_ZERO;
  if (nbdkit_add_extent (rq->extents, offset, end - offset, type) == -1)
    return errno > 0 ? -errno : -ENOMEM;
  return 0;
}

static int
qcow2_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents)
{
  const struct handle *h = handle;
  struct extents_request rq = {
    .extents = extents, .start = offset, .end = offset + count
  };

  const bool one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;

  if (count == 0)
    return 0;
  const struct stats_request stats = stats_begin (STATS_BLOCK_STATUS, count);
  return answer (&stats, h->by_bitmap
                 ? image_bitmap_extents (h->image, h->bitmap, offset, count,
                                         one, add_extent, &rq)
                 : image_extents (h->image, offset, count, one, add_extent,
                                  &rq), false);
}

static int
qcow2_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  const struct handle *h = handle;

  (void) flags;
  if (count == 0)
    return 0;
  const struct stats_request rq = stats_begin (STATS_CACHE, count);
  return answer (&rq, image_cache (h->image, offset, count), false);
}

static struct nbdkit_plugin plugin = {
  .name               = "qcow2",
  .longname           = "nbdkit qcow2 plugin",
  .version            = PACKAGE_VERSION,
  .description        = "Serve qcow2 images read-write, "
                        "with every write checked against their metadata",
  .load               = qcow2_load,
  .unload             = qcow2_unload,
  .dump_plugin        = qcow2_dump_plugin,
  .config             = config_set,
  .config_complete    = config_complete,
  .config_help        = config_help,
  .magic_config_key   = "file",
  .get_ready          = qcow2_get_ready,
  .after_fork         = qcow2_after_fork,
  .cleanup            = qcow2_cleanup,
  .list_exports       = qcow2_list_exports,
  .default_export     = qcow2_default_export,
  .export_description = qcow2_export_description,
  .open               = qcow2_open,
  .close              = qcow2_close,
  .get_size           = qcow2_get_size,
  .can_write          = qcow2_can_write,
  .can_flush          = qcow2_yes,
  .can_fua            = qcow2_can_fua,
  .can_trim           = qcow2_yes,
  .can_zero           = qcow2_yes,
  .can_fast_zero      = qcow2_yes,
  .can_extents        = qcow2_yes,
  .can_multi_conn     = qcow2_yes,
  .can_cache          = qcow2_can_cache,
  .is_rotational      = qcow2_is_rotational,
  .block_size         = qcow2_block_size,
  .pread              = qcow2_pread,
  .pwrite             = qcow2_pwrite,
  .flush              = qcow2_flush,
  .trim               = qcow2_trim,
  .zero               = qcow2_zero,
  .extents            = qcow2_extents,
  .cache              = qcow2_cache,
  .errno_is_preserved = 1,
};

/* The macro defines this function without declaring it. */
struct nbdkit_plugin *plugin_init (void);

NBDKIT_REGISTER_PLUGIN (plugin)
