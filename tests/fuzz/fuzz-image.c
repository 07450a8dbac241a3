/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: a whole image, opened on a storage in memory and driven
 * with requests, closed, and looked at.
 *
 * The input says what image: one that is sound (small-image.c), a sound
 * one with numbers poked into it, or bytes as they are.  What follows
 * are the requests.
 *
 * On a sound image every request succeeds, every read is compared with
 * what the disk must hold, and in the end an opinion that shares nothing
 * with the engine finds no corruption, no leak, and the snapshot as it
 * was.  On any other image nothing crashes; a request ends with an errno
 * that a client may meet; an image that is served read-only does not
 * change; and what the guest wrote is found in no table, nor has any
 * table of a snapshot changed.  Time and memory are bounded by whoever
 * runs this (libFuzzer; replay.c).
 *
 * Some are checked and repaired first.  On a sound image that finds
 * nothing; on any other what could be read reads the same, and the next
 * check finds what is said to be left.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "image-internal.h"
#include "report.h"
#include "selfcheck.h"
#include "small-image.h"
#include "storage-memory.h"
#include "storage-write.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr)                                                      \
  do {                                                                  \
    if (!(expr)) {                                                      \
      fprintf (stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr,    \
               said);                                                   \
      abort ();                                                         \
    }                                                                   \
  } while (0)

#define MAX_FILE (UINT64_C (256) << 10)
#define MAX_OPS 100

/* Guest bytes.  With clusters of 512 bytes that takes two L2 tables and
 * more than one refcount block of 64 bits; more only takes longer.
 */
#define MAX_DISK (UINT64_C (40) << 10)

/* And some are so large that the refcount table must move when they are
 * written.  One takes as long as thirty others; they would be half of
 * what libFuzzer keeps.
 */
#ifndef LARGE_DISK
#define LARGE_DISK (UINT64_C (2) << 20)
#endif

/* The last error that was reported, and the last reason of ours. */
static char said[1024];

enum mode { SOUND, POKED, BYTES };

struct run {
  const uint8_t *in;            /* what is left of the input */
  size_t left;

  enum mode mode;
  struct small_image small;     /* not with BYTES */
  bool over_backing;            /* a raw backing file is below */
  uint8_t *before;              /* the file as it was opened last */
  size_t before_len;
  bool repair;                  /* first */
  bool marked;                  /* it looked like overwritten already */

  struct image_config config;
  struct storage *storage;
  struct image *img;
  uint64_t disk;                /* guest bytes */
  unsigned serial;              /* of the write */
};

static const char mark[] = "GUEST!";
#define MARK_LEN (sizeof mark - 1)

static void
sink (enum report_level level, const char *text)
{
  const char *p;

  for (p = text; *p; ++p)
    if ((unsigned char) *p < 0x20 || *p == 0x7f)
      abort ();
  if (level == REPORT_ERROR)
    snprintf (said, sizeof said, "%s", text);
}

/*----------------------------------------------------------------------
 * The input.
 */

static uint64_t
take (struct run *run, unsigned width)
{
  uint64_t value = 0;

  while (width-- > 0) {
    value <<= 8;
    if (run->left > 0) {
      value |= *run->in++;
      run->left--;
    }
  }
  return value;
}

static void
take_plan (struct run *run, struct small_plan *plan)
{
  const unsigned shape = (unsigned) take (run, 1);
  const unsigned order = (unsigned) take (run, 1);
  const uint64_t clusters = take (run, 1);
  const uint64_t cut = take (run, 2);
  const unsigned filled = (unsigned) take (run, 1);
  uint64_t cs;

  plan->cluster_bits = 9 + shape % 4;
  cs = UINT64_C (1) << plan->cluster_bits;
  plan->version = shape & 4 ? 2 : 3;
  plan->refcount_order = plan->version == 2 ? 4 : order % 7;
  plan->snapshot = (shape & 8) && plan->refcount_order >= 1;
  plan->compressed = shape & 16;
  run->over_backing = shape & 32;
  plan->disk = (clusters + 1) * cs % MAX_DISK + cs - cut % cs;
  if (shape >> 6 == 3 && cut >> 12 == 15 && plan->refcount_order == 6
      && plan->cluster_bits == 9)
    plan->disk += LARGE_DISK;
  plan->filled = filled;
  plan->pattern = order / 7;
}

/* One to three numbers where they matter. */
static uint64_t
poke_place (struct run *run, uint64_t cs)
{
  const struct small_image *s = &run->small;
  const uint64_t areas[] = {
    0, s->reftable, s->refblock, s->l1, s->l2, s->snapshots,
    s->snapshot_l1, s->data
  };
  const unsigned which = (unsigned) take (run, 1);
  const uint64_t at = take (run, 2);

  switch (which % 9) {
  case 0:
    return at % 112;
  case 8:
    return at * 8 % s->len;
  default:
    return areas[which % 9] + (which & 0x80 ? at : at % 16 * 8) % cs;
  }
}

static uint64_t
poke_value (struct run *run, unsigned kind, unsigned cluster_bits)
{
  static const uint64_t values[] = {
    0, 1, 2, 511, 512, UINT32_MAX, INT64_MAX, UINT64_MAX,
    UINT64_C (1) << 56, (UINT64_C (1) << 56) - 512, UINT64_MAX - 511,
    UINT64_C (1) << 62, UINT64_C (1) << 63, 65536, 4096, 1 << 20,
  };
  const uint64_t cluster = kind < 3 ? take (run, 1) : 0;

  switch (kind) {
  case 0:
    return cluster << cluster_bits;
  case 1:
    return cluster << cluster_bits | UINT64_C (1) << 63;
  case 2:
    return values[cluster % ARRAY_SIZE (values)];
  default:
    return take (run, 8);
  }
}

static void
poke (struct run *run, unsigned cluster_bits)
{
  struct small_image *s = &run->small;
  unsigned n = (unsigned) take (run, 1) % 8 + 1;

  while (n-- > 0) {
    const uint64_t at = poke_place (run, UINT64_C (1) << cluster_bits);
    const unsigned kind = (unsigned) take (run, 1);
    const uint64_t value = poke_value (run, kind % 4, cluster_bits);
    const unsigned width = kind & 4 ? 1u << (kind >> 3) % 4 : 8;
    unsigned i;

    for (i = 0; i < width && at + i < s->len; ++i)
      s->bytes[at + i] = (uint8_t) (value >> 8 * (width - 1 - i));
  }
}

/* The file is cut, or goes on as a hole. */
static uint64_t
poke_length (struct run *run, uint64_t len)
{
  const unsigned kind = (unsigned) take (run, 1);
  const uint64_t n = take (run, 2);

  if (kind < 200)
    return len;
  if (kind < 228)
    return len - MIN (len, n);
  return MIN (len + (n << kind % 8), MAX_FILE);
}

/* Sets BEFORE. */
static void
take_image (struct run *run)
{
  const unsigned first = (unsigned) take (run, 1);
  struct small_plan plan;
  uint64_t len;

  run->mode = first % 4 == 0 ? SOUND : first % 4 == 3 ? BYTES : POKED;
  if (run->mode == BYTES) {
    const size_t ops = MIN ((size_t) take (run, 2), run->left);

    len = run->left - ops;
    run->before = malloc (len + 1);
    if (run->before == NULL)
      abort ();
    memcpy (run->before, run->in + ops, len);
    run->before_len = len;
    run->left = ops;
    return;
  }
  take_plan (run, &plan);
  small_image_make (&plan, &run->small);
  len = run->small.len;
  if (run->mode == POKED) {
    poke (run, plan.cluster_bits);
    len = poke_length (run, len);
  }
  run->before = calloc (1, len + 1);
  if (run->before == NULL)
    abort ();
  memcpy (run->before, run->small.bytes, MIN (len, run->small.len));
  run->before_len = len;
}

static void
take_config (struct run *run)
{
  const unsigned c = (unsigned) take (run, 1);
  static const char *const none[] = { "none", NULL };

  image_config_init (&run->config);
  run->config.filename = "memory";
  run->config.external_files = none;
  /* The smallest caches that have all of their parts: large ones only
     take longer to make. */
  run->config.compressed_cache_size = MAX_DISK;
  run->config.overlap_bitmap_size = 32768;
  run->config.discard = !(c & 1);
  if (c & 2)
    run->config.l2_cache_size = 1;
  if (c & 4)
    run->config.refcount_cache_size = 1;
  if (c & 8)
    run->config.overlap_bitmap_size = 0;
  /* With the walk of the tables nothing is left without a guard. */
  if (c & 16) {
    run->config.overlap_total_limit = c & 32 ? 0 : 600;
    run->config.overlap_limit = OVERLAP_LIMIT_VERIFY;
  }
  /* It takes longer than all the rest: after each commit in some only. */
  run->config.overlap_debug = (c & 70) == 70;
  run->repair = c & 128;
}

/*----------------------------------------------------------------------
 * Opening and closing.
 */

/* The disk of a sound image shows what is below where it has nothing. */
static const uint8_t below = 0xba;

static void
add_backing (struct run *run)
{
  struct layer *layer = calloc (1, sizeof *layer);
  const uint64_t n = run->disk / 2 + 1;
  uint8_t *content = malloc (n);
  struct iovec iov = { .iov_base = content, .iov_len = n };

  if (layer == NULL || content == NULL)
    abort ();
  memset (content, below, n);
  MUST (storage_open_memory (0, &layer->raw) == 0);
  MUST (storage_write (layer->raw, &iov, 1, 0, false) == 0);
  layer->size = n;
  run->img->backing = layer;
  free (content);
}

/* The model of the disk, once: what is read from below. */
static void
model_backing (struct run *run)
{
  const uint64_t cs = run->img->cluster_size;
  const uint64_t end = MIN (run->disk / 2 + 1, run->disk);
  uint64_t at;

  for (at = 0; at < end; at += cs)
    if (run->small.holes[at / cs])
      memset (run->small.guest + at, below, MIN (cs, end - at));
}

static int
open_bytes (struct run *run, const uint8_t *bytes, size_t len)
{
  struct iovec iov = { .iov_base = (void *) bytes, .iov_len = len };
  struct chain chain = { .length = 1 };
  int r;

  MUST (storage_open_memory (len, &run->storage) == 0);
  if (len > 0)
    MUST (storage_write (run->storage, &iov, 1, 0, false) == 0);
  r = image_open_in_chain (&run->config, run->storage, &chain, &run->img);
  if (r < 0) {
    run->img = NULL;
    return r;
  }
  run->disk = image_size (run->img);
  if (run->mode == SOUND && run->over_backing)
    add_backing (run);
  return 0;
}

static uint8_t *
file_now (struct run *run, size_t *len)
{
  uint64_t n;
  uint8_t *bytes;

  MUST (storage_size (run->storage, &n) == 0);
  MUST (n <= 64 * MAX_FILE);
  bytes = malloc (n + 1);
  if (bytes == NULL)
    abort ();
  MUST (storage_read (run->storage, bytes, n, 0) == 0);
  *len = n;
  return bytes;
}

/* Forget the image, and open what is in its file. */
static int
open_again (struct run *run)
{
  free (run->before);
  run->before = file_now (run, &run->before_len);
  image_close (run->img);
  return open_bytes (run, run->before, run->before_len);
}

/*----------------------------------------------------------------------
 * Repair.
 */

#define PIECE UINT64_C (512)
#define PIECES 256u

/* What can be read of the disk; READABLE says which pieces. */
static uint8_t *
read_pieces (struct run *run, bool *readable)
{
  uint8_t *buf = calloc (PIECES, PIECE);
  uint64_t i;

  if (buf == NULL)
    abort ();
  for (i = 0; i < PIECES && i * PIECE < run->disk; ++i)
    readable[i] = image_read (run->img, buf + i * PIECE,
                              MIN (PIECE, run->disk - i * PIECE),
                              i * PIECE) == 0;
  return buf;
}

/* As image_open does with check=all.  False if it cannot be opened any
 * more, the check could not be completed, or what it corrects may be what
 * the guest sees, since tables lie upon data.
 */
static bool
check_and_repair (struct run *run)
{
  uint64_t overlaps = 0;
  struct image_check_result res, again;
  unsigned tries = 0;
  int r;

  do {
    r = image_check (run->img, CHECK_ALL, &res);
    MUST (r == 0 || r == -EIO || r == -ENOSPC || r == -ENOMEM);
    MUST (run->mode != SOUND
          || (r == 0 && res.errors + res.leaks + res.overlaps == 0));
    overlaps += res.overlaps;
    if (r == 0 && res.reopen && open_again (run) < 0)
      return false;
  } while (r == 0 && res.reopen && ++tries < 5);
  if (r < 0 || res.reopen)
    return false;
  MUST (image_check (run->img, CHECK_REPORT, &again) == 0);
  MUST (again.errors == res.errors_left && again.leaks == res.leaks_left);
  return overlaps == 0;
}

/* The image is open before and, if it can be, after. */
static void
repair (struct run *run)
{
  bool before[PIECES] = { false }, after[PIECES] = { false };
  uint8_t *was = read_pieces (run, before), *is;
  const uint64_t disk = run->disk;
  unsigned i;

  /* What was met while it was read is no matter of the repair. */
  image_close (run->img);
  if (open_bytes (run, run->before, run->before_len) == 0
      && check_and_repair (run) && open_again (run) == 0) {
    MUST (run->disk == disk);
    is = read_pieces (run, after);
    for (i = 0; i < PIECES; ++i)
      MUST (!before[i] || (after[i] && memcmp (was + i * PIECE,
                                               is + i * PIECE, PIECE) == 0));
    free (is);
  }
  if (run->img && open_again (run) < 0)
    MUST (run->mode != SOUND);
  free (was);
}

/*----------------------------------------------------------------------
 * What must hold of the file.
 */

/* The file as it is now. */
struct now {
  struct run *run;
  const uint8_t *bytes;
  size_t len;
};

/* Tables of what the image was: a snapshot's do not change. */
static void
same_as_before (void *opaque, const char *table, uint64_t offset,
                uint64_t len)
{
  const struct now *now = opaque;
  const struct run *run = now->run;

  if (strcmp (table, "inactive L1") != 0
      && strcmp (table, "snapshot table") != 0)
    return;
  len = MIN (len, run->before_len - offset);
  if (offset + len > now->len
      || memcmp (now->bytes + offset, run->before + offset, len) != 0) {
    snprintf (said, sizeof said, "%s at 0x%jx has changed", table,
              (uintmax_t) offset);
    MUST (false);
  }
}

/* Tables of what the image is: none has what the guest wrote. */
static void
no_mark (void *opaque, const char *table, uint64_t offset, uint64_t len)
{
  const struct now *now = opaque;

  if (offset >= now->len)
    return;
  len = MIN (len, now->len - offset);
  if (memmem (now->bytes + offset, len, mark, MARK_LEN)) {
    snprintf (said, sizeof said, "%s at 0x%jx was overwritten", table,
              (uintmax_t) offset);
    MUST (now->run->marked);
  }
}

static void
check_file (struct run *run, bool writable)
{
  struct small_verdict verdict;
  struct now now = { .run = run };
  uint8_t *bytes = file_now (run, &now.len);

  now.bytes = bytes;
  if (!writable) {
    MUST (now.len == run->before_len);
    MUST (memcmp (bytes, run->before, now.len) == 0);
    free (bytes);
    return;
  }
  small_image_check (run->before, run->before_len, &verdict,
                     same_as_before, &now);
  small_image_check (bytes, now.len, &verdict, no_mark, &now);
  if (run->mode == SOUND) {
    snprintf (said, sizeof said, "%s", verdict.first);
    MUST (verdict.corruptions == 0);
    MUST (verdict.leaks == 0);
  }
  free (bytes);
}

/*----------------------------------------------------------------------
 * Requests.
 */

/* A request may fail, on an image that is not sound, and only so. */
static void
ended (struct run *run, int r)
{
  MUST (r == 0 || run->mode != SOUND);
  MUST (r == 0 || r == -EIO || r == -ENOSPC || r == -EROFS);
}

static void
do_read (struct run *run, uint8_t *buf, size_t len, uint64_t at)
{
  int r = image_read (run->img, buf, len, at);

  ended (run, r);
  if (run->mode == SOUND)
    MUST (memcmp (buf, run->small.guest + at, len) == 0);
}

static void
do_write (struct run *run, uint8_t *buf, size_t len, uint64_t at, bool fua)
{
  size_t i;

  run->serial++;
  for (i = 0; i < len; ++i)
    buf[i] = (at + i) % 8 < MARK_LEN ? (uint8_t) mark[(at + i) % 8]
      : (uint8_t) run->serial;
  ended (run, image_write (run->img, buf, len, at, fua));
  if (run->mode == SOUND)
    memcpy (run->small.guest + at, buf, len);
}

static void
do_zero (struct run *run, uint64_t len, uint64_t at, unsigned flags)
{
  int r = image_zero (run->img, at, len, flags & 3, flags & 4);

  if (r == -ENOTSUP) {
    MUST (flags & IMAGE_ZERO_FAST);
    return;
  }
  ended (run, r);
  if (run->mode == SOUND)
    memset (run->small.guest + at, 0, len);
}

/* What a trim leaves is not defined: the model learns it by reading.
 * Only zeroes or what was there may be left.
 */
static void
do_trim (struct run *run, uint8_t *buf, uint64_t len, uint64_t at)
{
  uint64_t i;

  ended (run, image_trim (run->img, at, len, false));
  if (run->mode != SOUND)
    return;
  MUST (image_read (run->img, buf, len, at) == 0);
  for (i = 0; i < len; ++i)
    MUST (buf[i] == run->small.guest[at + i] || buf[i] == 0);
  memcpy (run->small.guest + at, buf, len);
}

struct extents {
  struct run *run;
  uint64_t next;
  unsigned count;
};

/* Zero means zero; far more extents than there are clusters would be a
 * loop.
 */
static int
add_extent (void *opaque, uint64_t offset, uint64_t len, unsigned status)
{
  struct extents *e = opaque;
  struct run *run = e->run;
  uint64_t i;

  MUST (offset == e->next);
  MUST (len > 0 && len <= run->disk - offset);
  e->next += len;
  if (run->mode == SOUND && (status & IMAGE_EXTENT_ZERO))
    for (i = offset; i < offset + len; ++i)
      MUST (run->small.guest[i] == 0);
  return ++e->count < 10000 ? 0 : -EOVERFLOW;
}

static void
do_extents (struct run *run, uint64_t len, uint64_t at, bool one)
{
  struct extents e = { .run = run, .next = at };
  int r = image_extents (run->img, at, len, one, add_extent, &e);

  if (r == -EOVERFLOW)
    return;
  ended (run, r);
  if (r == 0)
    MUST (one ? e.count == 1 : e.next == at + len);
}

static void
close_image (struct run *run)
{
  const bool writable = image_is_writable (run->img);
  int r;

  if (run->mode == SOUND && run->config.overlap_debug)
    MUST (verify_tracker (run->img) == 0);
  r = image_stop (run->img);
  ended (run, r);
  check_file (run, writable);
}

/* Close it and open it again, as the next server would. */
static void
do_reopen (struct run *run)
{
  int r;

  close_image (run);
  r = open_again (run);
  MUST (r == 0 || run->mode != SOUND);
}

/* Where, and how much. */
static uint64_t
take_range (struct run *run, unsigned op, uint64_t *at)
{
  static const uint64_t units[] = { 1, 64, 512, 4096 };
  const uint64_t where = take (run, 2), much = take (run, 1);

  *at = run->disk > 65536 * 64 ? where * (run->disk >> 16) + where % 64
    : where * 64;
  *at %= run->disk;
  if (op & 16)
    *at &= ~UINT64_C (511);
  return MIN ((much + 1) * units[op >> 5 & 3], run->disk - *at);
}

static void
request (struct run *run)
{
  const unsigned op = (unsigned) take (run, 1);
  uint64_t at, len;
  uint8_t *buf;

  if (op % 16 == 15) {
    do_reopen (run);
    return;
  }
  if (op % 16 == 14 || run->disk == 0) {
    ended (run, image_flush (run->img));
    return;
  }
  len = take_range (run, op, &at);
  buf = malloc (len);
  if (buf == NULL)
    abort ();
  switch (op % 16) {
  case 0: case 1: do_read (run, buf, len, at); break;
  case 2: do_zero (run, len, at, 0); break;
  case 3: do_zero (run, len, at, 1 + op / 128); break;
  case 4: do_zero (run, len, at, 2 + op / 128); break;
  case 5: do_zero (run, len, at, 5); break;
  case 6: case 7: do_trim (run, buf, len, at); break;
  case 8: do_extents (run, len, at, op & 128); break;
  case 9: ended (run, image_cache (run->img, at, len)); break;
  case 10: do_write (run, buf, len, at, true); break;
  default: do_write (run, buf, len, at, false); break;
  }
  free (buf);
}

static void
drive (struct run *run)
{
  unsigned n;

  for (n = 0; n < MAX_OPS && run->left > 0 && run->img; ++n)
    request (run);
}

/* A sound disk is read to the end. */
static void
read_all (struct run *run)
{
  uint8_t *buf = malloc (run->disk + 1);

  if (buf == NULL)
    abort ();
  do_read (run, buf, run->disk, 0);
  free (buf);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct run here = { .in = data, .left = size }, *run = &here;
  int r;

  said[0] = '\0';
  report_set_sink (sink);
  take_config (run);
  take_image (run);
  run->marked = memmem (run->before, run->before_len, mark, MARK_LEN);
  r = open_bytes (run, run->before, run->before_len);
  if (r < 0) {
    MUST (run->mode != SOUND);
    MUST (said[0] != '\0');
  }
  else {
    if (run->mode == SOUND && run->over_backing)
      model_backing (run);
    if (run->repair)
      repair (run);
    drive (run);
    if (run->img) {
      if (run->mode == SOUND && run->disk > 0)
        read_all (run);
      close_image (run);
      image_close (run->img);
    }
  }
  small_image_free (&run->small);
  free (run->before);
  return 0;
}
