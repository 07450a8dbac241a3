/* SPDX-License-Identifier: BSD-3-Clause */

/* Opening an image: the header, the tables, the tracker, the chain of
 * backing files.
 *
 * What makes an image impossible to understand is refused here, with one
 * line that names the file, the field and its value.  What is wrong
 * inside it (a table with two owners, a pointer past the end of the
 * file) makes it read-only: image_corrupt says so, the rest can still be
 * read.
 *
 * Nothing is written, and no thread is started but those of connections
 * to NBD servers.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "advice.h"
#include "checked.h"
#include "cleanup.h"
#include "compress.h"
#include "compressed.h"
#include "corrupt.h"
#include "crypt.h"
#include "data-file.h"
#include "encryption.h"
#include "image-internal.h"
#include "report.h"
#include "walk.h"

/*----------------------------------------------------------------------
 * The header.
 */

static int
header_failed (struct image *img, const struct format_error *e, int r)
{
  report_error ("%s: %s", img->config.filename, e->text);
  return r;
}

static int
io_failed (struct image *img, const char *what, int r)
{
  report_error ("%s: %s: %s", img->config.filename, what, strerror (-r));
  return r;
}

/* A header that contradicts itself may be looked at, but what would be
 * repaired by one of its words may be what another one needs.
 */
static int
bear_faults (struct image *img)
{
  const struct header_damage *d = &img->damage;

  if (d->faults > 0 && img->config.check != CHECK_REPORT)
    return header_failed (img, &d->fault[0], -EINVAL);
  return 0;
}

static int
read_header (struct image *img)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct format_error e;
  uint64_t end = atomic_load (&img->guard.end), len;
  uint8_t probe[512];
  int r;

  len = MIN (end, (uint64_t) sizeof probe);
  r = storage_read (img->storage, probe, len, 0);
  if (r < 0)
    return io_failed (img, "reading the header", r);
  r = header_probe (probe, len, &img->cluster_size, &e);
  if (r < 0)
    return header_failed (img, &e, r);

  len = MIN (end, img->cluster_size);
  buf = calloc (1, img->cluster_size);
  if (!buf)
    return -ENOMEM;
  r = storage_read (img->storage, buf, len, 0);
  if (r < 0)
    return io_failed (img, "reading the header", r);
  /* What nobody is served from can be looked at though it is in ruins. */
  if (img->config.offline && img->config.check != CHECK_OFF)
    r = header_decode_damaged (buf, img->cluster_size, end, &img->header,
                               &img->damage, &e);
  else
    r = header_decode (buf, len, end, &img->header, &e);
  if (r < 0)
    return header_failed (img, &e, r);
  r = bear_faults (img);
  if (r < 0)
    return r;
  img->cluster_bits = img->header.cluster_bits;
  img->size = img->header.size;
  img->bitmaps_valid = img->header.autoclear & AUTOCLEAR_BITMAPS;
  return 0;
}

/*----------------------------------------------------------------------
 * Snapshots.
 */

/* The table's length is known only once it is decoded: read more until
 * it fits.
 */
static int
read_snapshots (struct image *img)
{
  const struct header *h = &img->header;
  uint64_t end = atomic_load (&img->guard.end);
  uint64_t most, len = (uint64_t) h->nb_snapshots * 256 + 4096;
  struct format_error e;
  int r;

  if (h->nb_snapshots == 0 || img->damage.broken[TABLE_SNAPSHOTS])
    return 0;
  most = h->snapshots_offset < end ? end - h->snapshots_offset : 0;
  most = MIN (most, MAX_SNAPSHOT_TABLE_BYTES);
  do {
    CLEANUP_FREE uint8_t *buf = NULL;

    len = MIN (len, most);
    buf = malloc (len + 1);
    if (!buf)
      return -ENOMEM;
    r = storage_read (img->storage, buf, len, h->snapshots_offset);
    if (r < 0)
      return io_failed (img, "reading the snapshot table", r);
    r = snapshot_table_decode (buf, len, h->nb_snapshots, img->cluster_size,
                               end, &img->snapshots, &e);
    if (r != -EMSGSIZE || len == most)
      break;
    len *= 4;
  } while (1);
  if (r == -ENOMEM)
    return r;
  if (r < 0) {
    image_corrupt (img, h->snapshots_offset, 0, "%s", e.text);
    img->snapshots.count = 0;
  }
  return 0;
}

/*----------------------------------------------------------------------
 * The tracker.
 */

/* Told to the operator when a range leaves the tracker, or returns. */
static void
notice (void *opaque, const struct overlap_notice *n)
{
  static const char *const policies[] = { "unprotected", "verify",
                                          "refuse" };
  struct image *img = opaque;
  /* The last window may reach beyond what an offset can say. */
  const uint64_t most = UINT64_MAX >> img->cluster_bits;
  const uint64_t first = MIN (n->first, most);
  struct event event = {
    .kind = n->restored ? EVENT_OVERLAP_PROTECTION_RESTORED
      : EVENT_OVERLAP_MEMORY_LIMIT_REACHED,
    .image = img->config.filename,
    .has_range = true,
    .offset = first << img->cluster_bits,
    .size = MIN (n->count, most - first) << img->cluster_bits,
    .limit = n->limit,
    .used = n->used,
    .policy = policies[img->guard.policy],
    .is_protected = img->guard.policy != OVERLAP_LIMIT_UNPROTECTED,
    .enough = img->guard.enough,
  };

  if (img->config.event)
    img->config.event (img->config.event_opaque, &event);
}

/* Tell of the first cluster with two owners, if there is one. */
static int
tell_conflict (struct image *img)
{
  struct overlap_conflict c;

  if (!overlap_conflict (img->guard.overlap, &c))
    return 0;
  image_corrupt (img, c.cluster << img->cluster_bits, img->cluster_size,
                 "%s at host offset 0x%" PRIx64 " is also %s",
                 overlap_type_text (c.type), c.cluster << img->cluster_bits,
                 overlap_type_text ((enum overlap_type)
                                    __builtin_ctz (c.there)));
  return 1;
}

/* Enter one piece of metadata, unless it cannot be where it says.  The
 * first that is wrong ends the walk, as soon as it is found: the image is
 * read-only then and the tracker is not asked any more, and an image must
 * not be able to make the opening long, or the log, by being wrong in many
 * places.
 */
static int
enter (void *opaque, struct image *img, enum overlap_type type,
       uint64_t offset, uint64_t len)
{
  const char *text = overlap_type_text (type);
  uint64_t end = atomic_load (&img->guard.end);
  uint64_t *pieces = opaque;
  overlap_set there;

  if (!is_aligned (offset, img->cluster_size)) {
    image_corrupt (img, offset, 0, "%s at host offset 0x%" PRIx64 ", not "
                   "a multiple of the cluster size %" PRIu64, text, offset,
                   img->cluster_size);
    return 1;
  }
  if (offset >= end || len > round_up (end, img->cluster_size) - offset) {
    image_corrupt (img, offset, len, "%s at host offset 0x%" PRIx64
                   ", past the end of the file (%" PRIu64 " bytes)", text,
                   offset, end);
    return 1;
  }
  ++*pieces;
  there = overlap_enter (img->guard.overlap, type,
                         offset >> img->cluster_bits,
                         div_up (len, img->cluster_size), NULL);
  if (there & OVERLAP_NO_MEMORY)
    return -ENOMEM;
  return there == OVERLAP_NONE ? 0 : tell_conflict (img);
}

static int
fill_tracker (struct image *img)
{
  const struct overlap_config config = {
    .cluster_bits = img->cluster_bits,
    .bitmap_size = img->config.overlap_bitmap_size,
    .total_limit = img->config.overlap_total_limit,
    .notice = notice,
    .opaque = img,
  };
  struct memory_advice advice;
  uint64_t pieces = 0;
  int r;

  img->guard.overlap = overlap_new (&config);
  if (!img->guard.overlap)
    return -ENOMEM;
  /* The tables lie in any order; what has to leave is told joined. */
  overlap_hold_notices (img->guard.overlap, true);
  r = walk_metadata (img, OVERLAP_ALL, enter, &pieces);
  /* What the notices recommend, now and later. */
  advise_memory (img, pieces, &advice);
  img->guard.enough = advice.total_limit;
  overlap_hold_notices (img->guard.overlap, false);
  if (r == 0)
    r = tell_conflict (img);
  img->untracked = r > 0;
  return r < 0 ? r : 0;
}

/*----------------------------------------------------------------------
 * All of it.
 */

struct image *
image_new (const struct image_config *config, struct storage *storage,
           bool is_top)
{
  /* Parts of it begin a cache line. */
  struct image *img = aligned_alloc (_Alignof (struct image), sizeof *img);

  if (!img)
    return NULL;
  memset (img, 0, sizeof *img);
  img->config = *config;
  img->storage = storage;
  img->is_top = is_top;
  img->opening = true;
  atomic_init (&img->preallocated, is_top ? -1 : 0);
  pthread_mutex_init (&img->begin_lock, NULL);
  pthread_mutex_init (&img->corrupt_lock, NULL);
  claims_init (&img->claims);
  rangelock_init (&img->ranges);
  freed_init (&img->freed);
  bitmaps_init (&img->bitmaps);
  if (commit_init (img) < 0) {
    free (img);
    return NULL;
  }
  return img;
}

static void
describe (struct image *img)
{
  const struct header *h = &img->header;

  if (asprintf (&img->description, "qcow2 version %" PRIu32 ", %" PRIu64
                " bytes, cluster size %" PRIu64 ", refcount bits %u, "
                "%" PRIu32 " snapshots%s%s%s%s", h->version, h->size,
                h->cluster_size, 1u << h->refcount_order, h->nb_snapshots,
                h->backing_file[0] ? ", backing file " : "",
                h->backing_file, img->raw_data ? ", raw data file "
                : img->data_file ? ", data file " : "",
                img->data_file ? storage_name (img->data_file) : "") < 0)
    img->description = NULL;
  report_debug ("%s: %s; incompatible 0x%" PRIx64 ", compatible 0x%" PRIx64
                ", autoclear 0x%" PRIx64 ", header length %" PRIu32
                ", L1 table of %" PRIu32 " entries at %" PRIu64
                ", refcount table of %" PRIu32 " clusters at %" PRIu64,
                img->config.filename, image_description (img),
                h->incompatible, h->compatible, h->autoclear,
                h->header_length, h->l1_size, h->l1_table_offset,
                h->refcount_table_clusters, h->refcount_table_offset);
}

/* The guard answers for whole clusters; a storage that writes more than
 * that around a change would go past it, and past the range lock.
 */
static bool
blocks_fit (struct image *img)
{
  const uint32_t block =
    MAX (storage_block_size (img->storage),
         img->data_file ? storage_block_size (img->data_file) : 1);

  if (block <= img->cluster_size)
    return true;
  if (!img->config.readonly && storage_is_writable (img->storage))
    report_warning ("%s: the smallest block of the server (%" PRIu32
                    " bytes) is larger than a cluster (%" PRIu64 " bytes); "
                    "the image is served read-only", img->config.filename,
                    block, img->cluster_size);
  return false;
}

static bool
files_are_writable (struct image *img)
{
  if (!storage_is_writable (img->storage))
    return false;
  if (!img->data_file || storage_is_writable (img->data_file))
    return true;
  report_warning ("%s: its data file %s cannot be written to; the image is "
                  "served read-only", img->config.filename,
                  storage_name (img->data_file));
  return false;
}

/* What only the top image has: counts, the tracker, writers. */
static int
open_top (struct image *img)
{
  int r;

  r = refcounts_open (img);
  if (r == 0)
    r = read_snapshots (img);
  if (r == 0)
    r = fill_tracker (img);
  if (r < 0)
    return r;
  if (img->header.incompatible & INCOMPAT_CORRUPT) {
    atomic_store (&img->guard.corrupt, true);
    report_warning ("%s: the image is marked corrupt%s", img->config.filename,
                    img->config.offline ? ""
                    : " and is served read-only; repair it with "
                    "'qcow2-overlap check --repair all'");
  }
  r = bitmaps_load (img);
  if (r < 0)
    return r;
  img->read_only = img->config.readonly
    || !files_are_writable (img)
    || !blocks_fit (img)
    || atomic_load (&img->guard.corrupt);
  return 0;
}

static int
open_parts (struct image *img, struct chain *chain)
{
  int r;

  r = guard_init (img);
  if (r < 0)
    return io_failed (img, "finding the size of the file", r);
  r = read_header (img);
  if (r == 0)
    r = compress_check (img);
  if (r == 0)
    r = data_file_open (img, chain);
  if (r == 0)
    r = encryption_open (img);
  if (r == 0)
    r = map_open (img);
  if (r == 0)
    r = l2cache_open (img);
  if (r == 0)
    r = compressed_open (img);
  if (r < 0)
    return r;
  describe (img);
  /* First what may have to be tried again (-EINPROGRESS), then what
   * tells of corruption, once.
   */
  r = img->config.offline ? 0 : layer_open (img, chain, &img->backing);
  if (r == 0 && img->is_top)
    r = encryption_check_passphrases (img);
  img->config.passphrase = img->config.backing_passphrase = NULL;
  img->config.names = NULL;
  if (r < 0)
    return r;
  if (img->is_top)
    return open_top (img);
  img->read_only = true;
  return 0;
}

static int
no_memory (const struct image_config *config)
{
  report_error ("%s: not enough memory to open it", config->filename);
  return -ENOMEM;
}

int
image_open_in_chain (const struct image_config *config,
                     struct storage *storage, struct chain *chain,
                     struct image **ret)
{
  struct image *img = image_new (config, storage, chain->length <= 1);
  int r;

  if (!img) {
    storage_close (storage);
    return no_memory (config);
  }
  r = open_parts (img, chain);
  if (r < 0) {
    if (r == -ENOMEM)
      no_memory (config);
    image_close (img);
    return r;
  }
  img->opening = false;
  *ret = img;
  return 0;
}

static int
open_file (const struct image_config *config, struct storage **s)
{
  int r = -EROFS;

  if (storage_is_nbd_uri (config->filename))
    return config->no_connections ? -EINPROGRESS
      : storage_open_nbd (config->filename, !config->readonly, true,
                          config->patience, s);
  if (!config->readonly)
    r = storage_open_file (config->filename, true, false, s);
  if (r == -EROFS || r == -EACCES || r == -EPERM || r == -ETXTBSY)
    r = storage_open_file (config->filename, false, false, s);
  if (r < 0)
    report_error ("%s: %s", config->filename,
                  r == -EINVAL ? "neither a regular file nor a block device"
                  : strerror (-r));
  return r;
}

/* As a reader. */
static int
lock_file (const struct image_config *config, struct storage *s)
{
  char holders[STORAGE_HOLDERS];
  const char *conflict;
  int r = storage_lock (s, STORAGE_LOCK_READER, config->locking, &conflict);

  if (r == -EAGAIN) {
    storage_lock_holders (s, holders, sizeof holders);
    report_error ("%s: is in use: %s; %s; give %s", config->filename,
                  conflict, holders, config->offline
                  ? "-U to look at it all the same"
                  : "locking=off only if that is safe");
  }
  else if (r < 0)
    report_error ("%s: locking: %s; locking=off does without",
                  config->filename, strerror (-r));
  return r;
}

static int
open_once (const struct image_config *config, struct image **img)
{
  CLEANUP_FREE struct chain *chain = calloc (1, sizeof *chain);
  struct storage *s;
  int r;

  if (!chain)
    return no_memory (config);
  r = open_file (config, &s);
  if (r < 0)
    return r;
  r = lock_file (config, s);
  if (r == 0)
    r = chain_add (chain, s);
  if (r < 0) {
    storage_close (s);
    return r;
  }
  return image_open_in_chain (config, s, chain, img);
}

/* What was found first is what there was; what is left, and where, is said
 * by the last check.
 */
static void
store_result (const struct image *img, const struct image_check_result *now)
{
  struct image_check_result *res = img->config.check_result;
  const struct image_check_result before = res ? *res : *now;

  if (!res)
    return;
  *res = *now;
  if (!before.reopen)
    return;
  res->errors = before.errors;
  res->leaks = before.leaks;
  res->overlaps = before.overlaps;
  res->repaired |= before.repaired;
}

/* The check that config->check asks for, and what follows from it.  1:
 * the image must be opened again.
 */
static int
check_now (struct image *img, enum image_check what)
{
  struct image_check_result result;
  int r = image_check (img, what, &result);

  if (r == 0)
    store_result (img, &result);
  if (r < 0 || result.reopen)
    return r < 0 ? r : 1;
  if (result.errors_left + result.overlaps == 0 && what == CHECK_ALL
      && (img->header.incompatible & (INCOMPAT_DIRTY | INCOMPAT_CORRUPT))) {
    r = image_clear_incompatible (img, INCOMPAT_DIRTY | INCOMPAT_CORRUPT);
    return r < 0 ? r : 1;
  }
  /* Wrong COPIED flags harm nobody: they are not believed.  The counts of
   * a dirty image are expected to be wrong, and the first writer has them
   * repaired (begin.c), or is refused.
   */
  if (result.grave && !img->config.offline
      && (what == CHECK_ALL
          || !(img->header.incompatible & INCOMPAT_DIRTY))) {
    img->opening = true;
    image_corrupt (img, 0, 0, what == CHECK_ALL
                   ? "errors are left that cannot be repaired in place; "
                   "copy the disk to a new image"
                   : "the check found errors; give check=all or "
                   "repair it with 'qcow2-overlap check --repair all'");
    img->opening = false;
    img->read_only = true;
  }
  return 0;
}

/* With a writer's lock, for as long as it takes, if there is to be a
 * repair.
 */
static int
check_with_lock (struct image *img)
{
  const enum image_check what = img->config.check;
  int r;

  if (what != CHECK_REPORT && !storage_is_writable (img->storage)
      && img->config.offline) {
    report_error ("%s: the file is read-only, nothing can be repaired",
                  img->config.filename);
    return -EROFS;
  }
  if (what != CHECK_REPORT && !storage_is_writable (img->storage)) {
    report_warning ("%s: check: the file is read-only, nothing is repaired",
                    img->config.filename);
    return check_now (img, CHECK_REPORT);
  }
  if (what == CHECK_REPORT)
    return check_now (img, what);
  r = image_lock_for_writing (img);
  if (r < 0)
    return r;
  r = check_now (img, what);
  return r == 0 ? image_lock_for_reading (img) : r;
}

int
image_open (const struct image_config *config, struct image **img)
{
  unsigned tries = 0;
  int r;

  if (config->check_result)
    memset (config->check_result, 0, sizeof *config->check_result);
  do {
    r = open_once (config, img);
    if (r < 0 || config->check == CHECK_OFF)
      return r;
    r = check_with_lock (*img);
    if (r != 0)
      image_close (*img);
  } while (r == 1 && ++tries < 5);
  return r <= 0 ? r : -EIO;
}

void
image_close (struct image *img)
{
  if (!img)
    return;
  commit_stop (img);
  if (img->is_top)
    workers_free (img->workers);
  if (!img->parent) {
    layer_close (img->backing);
    crypt_close (img->crypt);
  }
  if (img->refcounts.hash || img->refcounts.table)
    refcounts_close (img);
  l2cache_close (img);
  if (img->map.slice_bits)
    map_close (img);
  compressed_close (img);
  snapshot_table_free (&img->snapshots);
  freed_destroy (&img->freed);
  bitmaps_free (&img->bitmaps);
  commit_destroy (img);
  rangelock_destroy (&img->ranges);
  guard_destroy (img);
  pthread_mutex_destroy (&img->begin_lock);
  pthread_mutex_destroy (&img->corrupt_lock);
  claims_destroy (&img->claims);
  if (!img->parent) {
    storage_close (img->data_file);
    storage_close (img->storage);
  }
  free (img->description);
  free (img);
}
