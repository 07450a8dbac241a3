/* SPDX-License-Identifier: BSD-3-Clause */

/* The engine and its tracker: that the marks are those of the tables
 * after whatever happened, that overlap-limit=verify answers as a tracker
 * without a limit, and that what left comes back.  The windows are tiny
 * here, 64 clusters, so that an image has many.
 *
 * Tests named fault_NN_ are of the list in docs/design/tracker.md.
 */

#include <config.h>

#include "byteorder.h"
#include "claims.h"
#include "engine-test.h"
#include "overlap-internal.h"
#include "restore.h"
#include "run-suite.h"
#include "selfcheck.h"
#include "walk.h"

#define K 1024u
#define M (1024u * 1024)

/*----------------------------------------------------------------------
 * Configurations, events, images.
 */

static uint64_t limit = UINT64_MAX;
static enum overlap_policy policy;

static struct {
  unsigned limit_reached, restored, corrupted;
  uint64_t outside;             /* bytes that left and did not return */
  uint64_t enough;
  char msg[400];
} seen_events;

static void
on_event (void *opaque, const struct event *e)
{
  (void) opaque;
  switch (e->kind) {
  case EVENT_OVERLAP_MEMORY_LIMIT_REACHED:
    seen_events.limit_reached++;
    seen_events.outside += e->size;
    seen_events.enough = e->enough;
    break;
  case EVENT_OVERLAP_PROTECTION_RESTORED:
    seen_events.restored++;
    seen_events.outside -= e->size;
    break;
  case EVENT_IMAGE_CORRUPTED:
  default:
    seen_events.corrupted++;
    snprintf (seen_events.msg, sizeof seen_events.msg, "%s", e->msg);
  }
}

static void
with_limit (struct image_config *config)
{
  memset (&seen_events, 0, sizeof seen_events);
  config->overlap_total_limit = limit;
  config->overlap_limit = policy;
  config->overlap_bitmap_size = 0;
  config->event = on_event;
}

/* An image with tables of many kinds in many windows. */
static bool with_bitmap;

static void
make_rich_image (struct temporary *t, bool bitmap)
{
  char command[600];
  unsigned i;

  temporary_name (t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=512,refcount_bits=64 %s 4M",
            t->name);
  for (i = 0; i < 3; ++i) {
    snprintf (command, sizeof command, "qemu-io -c 'write %uk 100k' "
              "-c 'write %uk 200k' -c 'write %uk 64k' %s >/dev/null",
              i * 100, 1000 + i * 77, 3000 + i * 32, t->name);
    ck_assert_int_eq (system (command), 0);
    if (i < 2)
      qemu_img ("snapshot -c a-long-name-for-snapshot-number-%u %s", i,
                t->name);
  }
  if (bitmap)
    qemu_img ("bitmap --add -g 4k %s b0", t->name);
}

/* The two are made once. */
static struct temporary rich[2];

static void
make_images (void)
{
  make_rich_image (&rich[0], false);
  make_rich_image (&rich[1], true);
}

static void
remove_images (void)
{
  temporary_remove (&rich[0]);
  temporary_remove (&rich[1]);
}

static const char *
rich_image (void)
{
  return rich[with_bitmap].name;
}

static void
stop_rich (void)
{
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 0);
  image_close (img);
}

static void
open_rich (void)
{
  configure = with_limit;
  open_loaded (rich_image ());
}

static uint64_t state;

static uint64_t
rnd (uint64_t below)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * UINT64_C (2685821657736338717) >> 16) % below;
}

static void
restart_random (uint64_t seed)
{
  state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
}

/* One random request. */
static int
random_request (void)
{
  uint64_t offset = rnd (4 * M - 64 * K) & ~UINT64_C (511);
  uint64_t len = (rnd (16) + 1) * (rnd (4) ? 512 : 4096);

  switch (rnd (12)) {
  case 0:
    return image_flush (img);
  case 1:
    return image_trim (img, offset, len, false);
  case 2:
    return image_zero (img, offset, len,
                       rnd (2) ? IMAGE_ZERO_MAY_TRIM : 0, false);
  case 3:
    return write_byte (offset + 100, 300, (int) rnd (256));
  default:
    return write_byte (offset, len, (int) rnd (256));
  }
}

/*----------------------------------------------------------------------
 * overlap-limit=verify answers as a tracker without a limit.
 */

struct answers {
  struct overlap_answer *v;
  size_t n, max;
};

static struct answers answers;
static uint64_t question_state;
static unsigned op_number, fail_at;
static bool asking;

/* Ask for some ranges, anywhere in the file, and note the answers. */
static void
ask_some (unsigned n)
{
  const uint64_t saved = state;
  const uint64_t end = (atomic_load (&img->guard.end) >> img->cluster_bits)
    + 20;

  asking = true;
  state = question_state;
  for (; n > 0; --n) {
    const overlap_set mask = (overlap_set) rnd (OVERLAP_ALL + 1);
    const uint64_t first = rnd (end);
    const uint64_t count = rnd (3) ? 1 : rnd (3) ? rnd (8) + 1 : rnd (3000) + 1;
    struct overlap_answer a = { .where = 0 };

    ck_assert_int_eq (guard_query (img, GUARD_DATA, first, count, mask,
                                   OVERLAP_ALL, &a), 0);
    if (!(a.any & mask))
      a.where = 0;
    if (answers.n == answers.max) {
      answers.max = answers.max ? 2 * answers.max : 4096;
      answers.v = realloc (answers.v, answers.max * sizeof *answers.v);
      ck_assert_ptr_nonnull (answers.v);
    }
    answers.v[answers.n++] = a;
  }
  question_state = state;
  state = saved;
  asking = false;
}

/* Between any two operations on the file: tables are in the making, in
 * the commit, and in the quarantine then.  Some operations fail.
 */
static int
ask_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
          uint64_t len)
{
  (void) opaque;
  (void) offset;
  (void) len;
  if (asking || kind == STORAGE_MEMORY_READ || kind == STORAGE_MEMORY_MAP
      || kind == STORAGE_MEMORY_LOCK)
    return 0;
  ask_some (4);
  if (kind == STORAGE_MEMORY_SYNC)
    return 0;
  return ++op_number % fail_at == 0 ? -EIO : 0;
}

/* The same requests and questions each time. */
static struct answers
run_and_ask (unsigned seed, unsigned requests)
{
  struct answers result;
  unsigned i;

  memset (&answers, 0, sizeof answers);
  op_number = 0;
  open_loaded (rich_image ());
  storage_memory_set_hook (storage, ask_hook, NULL);
  restart_random (seed);
  question_state = seed + 12345;
  for (i = 0; i < requests; ++i) {
    random_request ();
    ask_some (4);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  ck_assert (!atomic_load (&img->guard.corrupt));
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
  result = answers;
  return result;
}

START_TEST (verify_answers_as_a_tracker_without_limit)
{
  const unsigned requests = 150 / slower ();
  struct answers right, verified;
  uint64_t hits = 0;
  size_t i;

  configure = with_limit;
  with_bitmap = _i >= 2;
  fail_at = _i % 2 ? 37 : UINT32_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  limit = UINT64_MAX;
  right = run_and_ask ((unsigned) _i, requests);
  ck_assert_uint_eq (seen_events.limit_reached, 0);
  limit = 0;
  verified = run_and_ask ((unsigned) _i, requests);
  ck_assert_uint_gt (seen_events.limit_reached, 0);

  ck_assert_uint_eq (right.n, verified.n);
  ck_assert_uint_gt (right.n, 1000 / slower ());
  for (i = 0; i < right.n; ++i) {
    const struct overlap_answer *a = &right.v[i], *b = &verified.v[i];

    hits += a->any != 0;
    if (a->any != b->any || a->all != b->all || a->where != b->where
        || b->outside)
      ck_abort_msg ("question %zu: any 0x%x and 0x%x, all 0x%x and 0x%x, "
                    "where %ju and %ju, outside %d", i, a->any, b->any,
                    a->all, b->all, (uintmax_t) a->where,
                    (uintmax_t) b->where, b->outside);
  }
  ck_assert_uint_gt (hits, right.n / 20);
  free (right.v);
  free (verified.v);
}
END_TEST

/*----------------------------------------------------------------------
 * The marks are those of the tables.
 */

/* Nothing is left behind by whatever fails, and nothing is missing. */
START_TEST (fault_08_the_marks_are_those_of_the_tables)
{
  const unsigned requests = 400 / slower ();
  unsigned i, failures = 0;

  limit = UINT64_MAX;
  fail_at = _i ? 7 + (unsigned) _i : UINT32_MAX;
  open_rich ();
  asking = false;
  memset (&answers, 0, sizeof answers);
  storage_memory_set_hook (storage, ask_hook, NULL);
  restart_random ((uint64_t) _i + 100);
  question_state = 1;
  for (i = 0; i < requests; ++i) {
    failures += random_request () < 0;
    ck_assert_uint_eq (verify_tracker (img), 0);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  ck_assert (_i == 0 ? failures == 0 : failures > 0);
  stop_rich ();
  free (answers.v);
}
END_TEST

START_TEST (the_self_check_sees_both_kinds_of_difference)
{
  uint64_t table;

  limit = UINT64_MAX;
  open_rich ();
  ck_assert_uint_eq (verify_tracker (img), 0);
  overlap_enter (img->guard.overlap, OVERLAP_ACTIVE_L2, 100000, 3, NULL);
  ck_assert_uint_eq (verify_tracker (img), 3);
  overlap_leave (img->guard.overlap, OVERLAP_ACTIVE_L2, 100000, 3);
  table = refcounts_block_offset (img, 0) >> img->cluster_bits;
  overlap_leave (img->guard.overlap, OVERLAP_REFCOUNT_BLOCK, table, 1);
  ck_assert_uint_eq (verify_tracker (img), 1);
  overlap_enter (img->guard.overlap, OVERLAP_ACTIVE_L2, table, 1, NULL);
  ck_assert_uint_eq (verify_tracker (img), 1);
  overlap_leave (img->guard.overlap, OVERLAP_ACTIVE_L2, table, 1);
  overlap_enter (img->guard.overlap, OVERLAP_REFCOUNT_BLOCK, table, 1, NULL);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

static overlap_set
types_at (uint64_t offset)
{
  struct overlap_answer a;

  overlap_query (img->guard.overlap, offset >> img->cluster_bits, 1,
                 OVERLAP_NONE, &a);
  ck_assert (!a.outside);
  return a.any;
}

/* After a snapshot an L2 table is copied; the old one stayed marked as
 * active, and a good image was called corrupt when its cluster was used
 * again.
 */
START_TEST (fault_01_a_copied_table_is_not_active_any_more)
{
  uint64_t old, new;

  limit = UINT64_MAX;
  open_rich ();
  /* Written before the first snapshot, and never since. */
  old = atomic_load (&img->map.l1[2 * M / (32 * K) - 30]) & ENTRY_OFFSET;
  ck_assert_uint_ne (old, 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_ACTIVE_L2)
                     | OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_int_eq (write_byte (2 * M - 30 * 32 * K, 512, 1), 0);
  new = atomic_load (&img->map.l1[2 * M / (32 * K) - 30]) & ENTRY_OFFSET;
  ck_assert_uint_ne (new, old);
  /* The disk still leads to it. */
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_ACTIVE_L2)
                     | OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
  ck_assert_uint_eq (types_at (new), OVERLAP_BIT (OVERLAP_ACTIVE_L2));
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Which owners a table has was guessed from reference counts, of another
 * table at that.  Here a table is shared by the disk and two snapshots,
 * and counts are not asked.
 */
START_TEST (fault_02_owners_are_not_guessed_from_counts)
{
  uint64_t offset, shared = 0, table;
  unsigned i;

  limit = UINT64_MAX;
  open_rich ();
  for (i = 0; i < img->map.l1_size; ++i) {
    table = atomic_load (&img->map.l1[i]) & ENTRY_OFFSET;
    if (table == 0 || !(types_at (table)
                        & OVERLAP_BIT (OVERLAP_INACTIVE_L2)))
      continue;
    offset = (uint64_t) i * 32 * K;
    ck_assert_int_eq (image_trim (img, offset, 32 * K, false), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (types_at (table), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
    ck_assert_int_eq (write_byte (offset, 4 * K, 1), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (types_at (table), OVERLAP_BIT (OVERLAP_INACTIVE_L2));
    shared++;
  }
  ck_assert_uint_gt (shared, 2);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* When tables moved, their marks stayed behind; and when the refcount
 * table grew, the block that made it grow was not entered.
 */
START_TEST (fault_04_05_a_refcount_table_that_grows_brings_its_marks)
{
  uint64_t old, new, i, block;

  limit = UINT64_MAX;
  configure = with_limit;
  make_image ("-o cluster_size=512,refcount_bits=64", "12M");
  old = img->refcounts.table_offset;
  for (i = 0; img->refcounts.table_offset == old; i += 4 * K)
    ck_assert_int_eq (write_byte (i, 4 * K, 1), 0);
  new = img->refcounts.table_offset;
  ck_assert_uint_eq (types_at (old), OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE));
  ck_assert_uint_eq (types_at (new), OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE));
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (types_at (old), OVERLAP_NONE);
  for (i = 0; i < img->refcounts.table_entries; ++i) {
    block = refcounts_block_offset (img, i);
    if (block != 0)
      ck_assert_uint_eq (types_at (block),
                         OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK));
  }
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Entries of the snapshot table have any length; 40 bytes each were
 * marked, and the rest was open.
 */
START_TEST (fault_06_all_of_the_snapshot_table_is_marked)
{
  uint64_t offset, end;
  struct temporary t;
  unsigned i;

  limit = UINT64_MAX;
  configure = with_limit;
  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=512 %s 1M", t.name);
  for (i = 0; i < 12; ++i)
    qemu_img ("snapshot -c %0200u %s", i, t.name);
  open_loaded (t.name);
  temporary_remove (&t);
  offset = img->header.snapshots_offset;
  end = offset + img->snapshots.bytes;
  ck_assert_uint_gt (img->snapshots.bytes, 12 * 240);
  for (; offset < end; offset += 512)
    ck_assert_uint_eq (types_at (offset),
                       OVERLAP_BIT (OVERLAP_SNAPSHOT_TABLE));
  stop_rich ();
}
END_TEST

/* A snapshot's L1 table that could not be read was left out in silence. */
static uint64_t unreadable;

static int
fail_reading (void *opaque, enum storage_memory_op kind, uint64_t offset,
              uint64_t len)
{
  (void) opaque;
  return kind == STORAGE_MEMORY_READ && unreadable - offset < len ? -EIO : 0;
}

START_TEST (fault_07_an_unreadable_table_is_not_left_out)
{
  static struct chain chain;
  struct image_config config;
  struct image *second;

  /* While it is open: an answer cannot be given, so nothing is written. */
  limit = 0;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  ck_assert_int_eq (write_byte (0, 512, 1), 0);
  unreadable = img->snapshots.v[1].l1_table_offset;
  storage_memory_set_hook (storage, fail_reading, NULL);
  ck_assert_int_eq (write_byte (0, 512, 2), -EIO);
  storage_memory_set_hook (storage, watch_hook, NULL);
  expect_byte (0, 512, 1);
  ck_assert_int_eq (write_byte (0, 512, 3), 0);
  ck_assert_int_eq (image_stop (img), 0);

  /* When it is opened: it is not. */
  storage_memory_set_hook (storage, fail_reading, NULL);
  image_config_init (&config);
  config.filename = "memory";
  chain.length = 1;
  ck_assert_int_eq (image_open_in_chain (&config, storage, &chain, &second),
                    -EIO);
}
END_TEST

/* Tables that are not where clusters begin were skipped.  Such an image,
 * one with a table outside the file, and one with two owners where only
 * one may be, is corrupt: it says so, by name, and is served read-only.
 */
struct damage {
  const char *msg;
  unsigned what;
};

static const struct damage damages[] = {
  { "not a multiple of the cluster size", 0 },
  { "past the end of the file", 1 },
  { "active L2 table at host offset", 2 },
  { "refcount block at host offset", 3 },
  { "inactive L2 table at host offset", 4 },
  { "is also refcount table", 5 },
};

static void
store (uint8_t *buf, uint64_t offset, uint64_t value)
{
  store_be64 (buf + offset, value);
}

static uint64_t
load (const uint8_t *buf, uint64_t offset)
{
  return load_be64 (buf + offset);
}

START_TEST (fault_10_wrong_tables_are_corruption_by_name)
{
  uint64_t l1, table, snap_l1, block0;
  struct temporary t;
  uint8_t *buf;
  size_t len;

  limit = UINT64_MAX;
  configure = with_limit;
  temporary_name (&t, "qcow2");
  buf = read_file (rich_image (), &len);
  l1 = load (buf, 40);
  table = load (buf, 48);
  block0 = load (buf, table);
  snap_l1 = load (buf, load (buf, 64)); /* of the first snapshot */
  switch (damages[_i].what) {
  case 0: store (buf, table + 8, load (buf, table + 8) + 256); break;
  case 1: store (buf, l1 + 800, len + 4096); break;
  case 2: store (buf, l1 + 800, load (buf, l1) & ENTRY_OFFSET); break;
  case 3: store (buf, table + 8, block0); break;
  case 4: store (buf, snap_l1 + 8, block0); break;
  default: store (buf, l1, table); break;
  }
  write_file (t.name, buf, len);
  free (buf);
  open_loaded (t.name);
  temporary_remove (&t);
  ck_assert_uint_eq (seen_events.corrupted, 1);
  ck_assert_msg (strstr (seen_events.msg, damages[_i].msg) != NULL, "%s",
                 seen_events.msg);
  ck_assert (!image_is_writable (img));
  ck_assert_int_lt (image_begin_writing (img), 0);
  image_close (img);
}
END_TEST

/*----------------------------------------------------------------------
 * Limits.
 */

/* Any limit: the image opens, is used, and nothing that is tracked is
 * wrong.  What left was told of exactly; with the limit that the message
 * names nothing leaves.
 */
START_TEST (fault_17_any_limit_will_do)
{
  static const uint64_t limits[] = { 0, 1, 800, 1200, 1500, 1900, 2300 };
  struct overlap_stats s;
  uint64_t enough;
  unsigned i;

  limit = limits[_i / 2];
  policy = _i % 2 ? OVERLAP_LIMIT_VERIFY : OVERLAP_LIMIT_UNPROTECTED;
  open_rich ();
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_uint_le (seen_events.limit_reached, OV_OUTSIDE_MAX);
  restart_random ((unsigned) _i + 1u);
  for (i = 0; i < 60; ++i) {
    ck_assert_int_eq (random_request (), 0);
    ck_assert_uint_eq (verify_tracker (img), 0);
    overlap_get_stats (img->guard.overlap, &s);
    ck_assert_uint_eq (s.outside_windows * OV_WINDOW * 512,
                       seen_events.outside);
  }
  enough = seen_events.enough;
  stop_rich ();

  limit = enough;
  open_rich ();
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (random_request (), 0);
  ck_assert_uint_eq (seen_events.limit_reached, 0);
  stop_rich ();
}
END_TEST

/* Little more than the least limit with which nothing leaves while the
 * image is opened: no room to give up.
 */
static uint64_t
tight_limit (void)
{
  policy = OVERLAP_LIMIT_VERIFY;
  limit = 1024;
  do {
    limit += 256;
    open_rich ();
    stop_rich ();
  } while (seen_events.limit_reached > 0);
  return limit + limit / 4;
}

/* Each allocation that the tracker makes fails in turn while an image is
 * opened and used, or it and all that follow: nothing that is tracked is
 * wrong, and what is not was told of.  One alone is made up for if there
 * is something that can be given up; with a tight limit there is not.
 */
START_TEST (any_allocation_may_fail)
{
  static const struct { bool tight, from_then_on; unsigned least; } ways[] = {
    { false, false, 0 }, { false, true, 15 }, { true, false, 20 },
  };
  const unsigned step = slower () > 1 ? 5 : 1;
  struct overlap_stats s;
  unsigned n, i, told = 0;

  limit = ways[_i].tight ? tight_limit () : UINT64_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  for (n = 1; n < 3000; n += (n < 40 ? 1 : n / 8) * step) {
    ov_fail_alloc (n, ways[_i].from_then_on);
    open_rich ();
    restart_random (n);
    for (i = 0; i < 30; ++i)
      ck_assert_int_eq (random_request (), 0);
    ov_fail_alloc (0, false);
    ck_assert_uint_eq (verify_tracker (img), 0);
    overlap_get_stats (img->guard.overlap, &s);
    ck_assert_uint_eq (s.outside_windows * OV_WINDOW * 512,
                       seen_events.outside);
    told += seen_events.limit_reached;
    stop_rich ();
  }
  ck_assert_uint_ge (told, ways[_i].least / step);
}
END_TEST

/*----------------------------------------------------------------------
 * Coming back.
 */

/* While the walk of a rebuilding reads the snapshots' tables, others make
 * and drop tables.
 */
static uint64_t meddled;

static int
meddle_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
             uint64_t len)
{
  const uint64_t here = 60000 + meddled % 7 * 11;

  (void) opaque;
  (void) offset;
  if (kind != STORAGE_MEMORY_READ || asking || len != img->map.l1_size * 8)
    return 0;
  asking = true;
  ck_assert_int_eq (guard_claim (img, OVERLAP_ACTIVE_L2, here * 512, 512), 0);
  if (meddled++ % 2)
    guard_unclaim (img, OVERLAP_ACTIVE_L2, here * 512, 512);
  else {
    guard_unclaim (img, OVERLAP_ACTIVE_L2, here * 512, 512);
    ck_assert_int_eq (guard_claim (img, OVERLAP_REFCOUNT_BLOCK, here * 512,
                                   512), 0);
    guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK, here * 512, 512);
  }
  asking = false;
  return 0;
}

START_TEST (what_left_comes_back_after_a_commit)
{
  struct overlap_stats s;
  unsigned i;

  limit = _i ? 1500 : 0;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_int_eq (write_byte (0, 4 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.restored, 0);

  ov_set_limit (img->guard.overlap, UINT64_MAX);
  storage_memory_set_hook (storage, meddle_hook, NULL);
  restart_random (7);
  for (i = 0; i < 200 && seen_events.outside > 0; ++i) {
    ck_assert_int_eq (random_request (), 0);
    ck_assert_int_eq (image_flush (img), 0);
    ck_assert_uint_eq (verify_tracker (img), 0);
  }
  storage_memory_set_hook (storage, NULL, NULL);
  overlap_get_stats (img->guard.overlap, &s);
  ck_assert_uint_eq (s.outside_windows, 0);
  ck_assert_uint_eq (seen_events.outside, 0);
  ck_assert_uint_gt (seen_events.restored, 0);
  ck_assert_uint_gt (meddled, 0);
  for (i = 0; i < 100; ++i)
    ck_assert_int_eq (random_request (), 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* The tables cannot be read just then: it stays outside, and is tried
 * again later.
 */
START_TEST (a_rebuilding_that_fails_is_tried_again)
{
  unsigned i;

  limit = 0;
  policy = OVERLAP_LIMIT_UNPROTECTED;
  open_rich ();
  ck_assert_int_eq (write_byte (0, 4 * K, 1), 0);
  ov_set_limit (img->guard.overlap, UINT64_MAX);
  unreadable = img->snapshots.v[0].l1_table_offset;
  storage_memory_set_hook (storage, fail_reading, NULL);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.restored, 0);
  storage_memory_set_hook (storage, NULL, NULL);
  for (i = 0; i < 200 && seen_events.outside > 0; ++i)
    ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (seen_events.outside, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* Commits, requests and rebuildings at the same time. */
static atomic_bool threads_stop;

static void *
writer (void *opaque)
{
  uint64_t mine = (uint64_t) (uintptr_t) opaque, i;
  uint8_t buf[4096];

  memset (buf, (int) mine, sizeof buf);
  for (i = 0; !atomic_load (&threads_stop); ++i)
    if (image_write (img, buf, sizeof buf,
                     (mine * M + i * 7919 * 512 % (M - 4096)) & ~511ull,
                     i % 16 == 0) < 0
        || (i % 32 == 0 && image_trim (img, mine * M, 200 * K, false) < 0))
      return (void *) 1;
  return NULL;
}

START_TEST (ranges_leave_and_return_under_load)
{
  pthread_t t[3];
  void *result;
  uintptr_t i;

  limit = UINT64_MAX;
  policy = OVERLAP_LIMIT_VERIFY;
  open_rich ();
  storage_memory_set_hook (storage, NULL, NULL);
  atomic_store (&threads_stop, false);
  for (i = 0; i < 3; ++i)
    ck_assert_int_eq (pthread_create (&t[i], NULL, writer, (void *) i), 0);
  for (i = 0; i < 60 / slower (); ++i) {
    ov_set_limit (img->guard.overlap, i % 2 ? UINT64_MAX : 0);
    usleep (10000);
    restore_tracker (img);
    ck_assert_uint_eq (verify_tracker (img), 0);
  }
  atomic_store (&threads_stop, true);
  for (i = 0; i < 3; ++i) {
    ck_assert_int_eq (pthread_join (t[i], &result), 0);
    ck_assert_ptr_null (result);
  }
  ck_assert_uint_gt (seen_events.limit_reached, 0);
  ck_assert_uint_gt (seen_events.restored, 0);
  ck_assert_uint_eq (seen_events.corrupted, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* With overlap-limit=refuse a table that left the tracker after a write
 * was acknowledged could not be written, and the flush failed.
 */
START_TEST (under_refuse_no_flush_fails_for_what_was_acknowledged)
{
  unsigned i, failed = 0;
  uint64_t offset;
  int r;

  limit = UINT64_MAX;
  policy = OVERLAP_LIMIT_REFUSE;
  restart_random (5);
  open_rich ();
  for (i = 0; i < 300; ++i) {
    ov_set_limit (img->guard.overlap, i / 4 % 2 ? 0 : UINT64_MAX);
    offset = rnd (4 * M - 64 * K) & ~UINT64_C (511);
    r = rnd (4) ? write_byte (offset, (rnd (16) + 1) * 512, (int) rnd (256))
      : image_trim (img, offset, 4 * K, false);
    ck_assert (r == 0 || r == -EIO);
    failed += r < 0;
    if (i % 4 == 0)
      ck_assert_int_eq (image_flush (img), 0);
  }
  ck_assert_uint_gt (failed, 0);
  ck_assert_uint_lt (failed, i / 2);
  ck_assert_uint_gt (atomic_load (&img->guard.refused_outside), 0);
  ck_assert_uint_eq (seen_events.corrupted, 0);
  ck_assert_uint_eq (verify_tracker (img), 0);
  stop_rich ();
}
END_TEST

/* What left the tracker was no metadata for the consistency check, and it
 * never looked where compressed data lies: it did not find the guest's data
 * there, so that a repair took the mark of corruption away and freed what
 * seemed to be leaked.
 */
static int
first_place (void *opaque, struct image *image, enum overlap_type type,
             uint64_t offset, uint64_t len)
{
  uint64_t *place = opaque;

  (void) image;
  (void) len;
  if (place[type] == 0)
    place[type] = offset;
  return 0;
}

/* The rich image, in which the first entry of its first L2 table, with
 * FLAGS, leads to metadata of TYPE.
 */
static void
open_upon (enum overlap_type type, uint64_t flags)
{
  uint64_t place[OVERLAP_TYPES] = { 0 };
  uint8_t entry[8];
  struct iovec iov = { .iov_base = entry, .iov_len = sizeof entry };
  uint8_t *bytes;
  uint64_t size;
  struct temporary t;

  open_rich ();
  ck_assert_int_eq (walk_metadata (img, OVERLAP_ALL, first_place, place), 0);
  ck_assert (type == OVERLAP_MAIN_HEADER || place[type] != 0);
  store_be64 (entry, place[type] | flags);
  ck_assert_int_eq (storage_write (storage, &iov, 1,
                                   place[OVERLAP_ACTIVE_L2], false), 0);
  ck_assert_int_eq (storage_size (storage, &size), 0);
  bytes = malloc (size);
  ck_assert_ptr_nonnull (bytes);
  ck_assert_int_eq (storage_read (storage, bytes, size, 0), 0);
  image_close (img);
  temporary_name (&t, "qcow2");
  write_file (t.name, bytes, size);
  free (bytes);
  open_loaded (t.name);
  temporary_remove (&t);
}

static const enum overlap_type upon[] = {
  OVERLAP_ACTIVE_L1, OVERLAP_ACTIVE_L2, OVERLAP_REFCOUNT_TABLE,
  OVERLAP_REFCOUNT_BLOCK, OVERLAP_SNAPSHOT_TABLE, OVERLAP_INACTIVE_L1,
  OVERLAP_INACTIVE_L2, OVERLAP_BITMAP_DIRECTORY, OVERLAP_BITMAP_TABLE,
};

START_TEST (the_check_finds_guest_data_upon_metadata)
{
  const enum overlap_type type = upon[_i / 4];
  struct image_check_result res;

  with_bitmap = true;
  policy = OVERLAP_LIMIT_UNPROTECTED;
  limit = _i & 1 ? UINT64_MAX : 0;
  open_upon (type, _i & 2 ? ENTRY_COMPRESSED : 0);
  ck_assert (!img->untracked);
  ck_assert_uint_eq (seen_events.outside == 0, _i & 1);
  ck_assert_int_eq (image_check (img, CHECK_REPORT, &res), 0);
  ck_assert_uint_ge (res.overlaps, 1); /* snapshots may share the table */
  ck_assert (res.unseen && res.grave);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine-overlap");
  TCase *tc = tcase_create ("engine-overlap");

  if (!have_qemu_img ())
    return 77;
  tcase_add_unchecked_fixture (tc, make_images, remove_images);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, verify_answers_as_a_tracker_without_limit, 0, 4);
  tcase_add_loop_test (tc, fault_08_the_marks_are_those_of_the_tables, 0, 4);
  tcase_add_test (tc, the_self_check_sees_both_kinds_of_difference);
  tcase_add_test (tc, fault_01_a_copied_table_is_not_active_any_more);
  tcase_add_test (tc, fault_02_owners_are_not_guessed_from_counts);
  tcase_add_test (tc,
                  fault_04_05_a_refcount_table_that_grows_brings_its_marks);
  tcase_add_test (tc, fault_06_all_of_the_snapshot_table_is_marked);
  tcase_add_test (tc, fault_07_an_unreadable_table_is_not_left_out);
  tcase_add_loop_test (tc, fault_10_wrong_tables_are_corruption_by_name, 0,
                       (int) ARRAY_SIZE (damages));
  tcase_add_loop_test (tc, fault_17_any_limit_will_do, 0, 14);
  tcase_add_loop_test (tc, any_allocation_may_fail, 0, 3);
  tcase_add_loop_test (tc, what_left_comes_back_after_a_commit, 0, 2);
  tcase_add_test (tc, a_rebuilding_that_fails_is_tried_again);
  tcase_add_test (tc, ranges_leave_and_return_under_load);
  tcase_add_test (tc, under_refuse_no_flush_fails_for_what_was_acknowledged);
  tcase_add_loop_test (tc, the_check_finds_guest_data_upon_metadata, 0,
                       (int) ARRAY_SIZE (upon) * 4);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
