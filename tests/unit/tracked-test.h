/* SPDX-License-Identifier: BSD-3-Clause */

/* For the tests of the engine and its tracker: an image with tables of
 * many kinds, opened with some limit, and what its events said; random
 * requests; and questions to the guard between any two operations on the
 * file.
 */

#ifndef QCOW2_TRACKED_TEST_H
#define QCOW2_TRACKED_TEST_H

#include "engine-test.h"
#include "overlap-internal.h"

#define K 1024u
#define M (1024u * 1024)

static uint64_t limit = UINT64_MAX;
static enum overlap_policy policy;

static struct {
  unsigned limit_reached, restored, corrupted;
  uint64_t outside;             /* bytes that left and did not return */
  uint64_t enough;
  char msg[400];
} seen_events;

static inline void
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

static inline void
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

static inline void
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

static inline void
make_images (void)
{
  make_rich_image (&rich[0], false);
  make_rich_image (&rich[1], true);
}

static inline void
remove_images (void)
{
  temporary_remove (&rich[0]);
  temporary_remove (&rich[1]);
}

static inline const char *
rich_image (void)
{
  return rich[with_bitmap].name;
}

static inline void
stop_rich (void)
{
  ck_assert_int_eq (image_stop (img), 0);
  ck_assert_int_eq (qemu_check (), 0);
  image_close (img);
}

static inline void
open_rich (void)
{
  configure = with_limit;
  open_loaded (rich_image ());
}

static uint64_t state;

static inline uint64_t
rnd (uint64_t below)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * UINT64_C (2685821657736338717) >> 16) % below;
}

static inline void
restart_random (uint64_t seed)
{
  state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
}

/* One random request. */
static inline int
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

struct answers {
  struct overlap_answer *v;
  size_t n, max;
};

static struct answers answers;
static uint64_t question_state;
static unsigned op_number, fail_at;
static bool asking;

/* Ask for some ranges, anywhere in the file, and note the answers. */
static inline void
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
static inline int
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
  if (kind == STORAGE_MEMORY_SYNC || kind == STORAGE_MEMORY_START_SYNC)
    return 0;
  return ++op_number % fail_at == 0 ? -EIO : 0;
}

/* Reads of this place fail. */
static uint64_t unreadable;

static inline int
fail_reading (void *opaque, enum storage_memory_op kind, uint64_t offset,
              uint64_t len)
{
  (void) opaque;
  return kind == STORAGE_MEMORY_READ && unreadable - offset < len ? -EIO : 0;
}

#endif /* QCOW2_TRACKED_TEST_H */
