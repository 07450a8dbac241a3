/* SPDX-License-Identifier: BSD-3-Clause */

/* Exploring crash states; see explore.h.
 *
 * For every moment of a run: the prefix (all arrived that had begun),
 * and if anything was uncertain, the state without any of it and some
 * that have a part of it.  Each state is judged:
 *
 *   - fsck finds no corruption (leaks are counted);
 *   - the engine opens it for writing, and finds nothing wrong;
 *   - each sector holds what it may (history.h), read by the engine;
 *   - a dirty bitmap knows what was changed, or is in use (dirtied.h);
 *   - the disk has a size that it may have, and is zero where it is new;
 *   - while an image with wrong counts is repaired they may be wrong, but
 *     the contents not; opening it again repairs it;
 *   - for a share, qemu-img check finds no corruption, and what
 *     qemu-img convert reads is what the engine read;
 *   - for a share, it takes requests like any other image, and is sound
 *     and right after them.
 */

#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "byteorder.h"
#include "checked.h"
#include "dirtied.h"
#include "explore.h"
#include "fsck.h"
#include "work.h"

#define REQUESTS 48             /* of a run */
#define SOME_STATES 3           /* of a moment, with a part of it */
#define GO_ON_SHARE 20

struct explore_stats explore_stats;

/* What is being looked at. */
static struct {
  const struct base *base;
  uint64_t seed;
  struct recorder *rec;
  struct history *history;
  struct states *states;
  size_t small_hole;            /* the moment after the first of them */
  size_t crash;
  enum loss loss;
  uint64_t choice;
  struct disk *disk;
  tag *tags;
} now;

static void __attribute__ ((noreturn, format (printf, 1, 2)))
wrong (const char *fs, ...)
{
  va_list args;

  printf ("FAIL after %" PRIu64 " states: ", explore_stats.states);
  va_start (args, fs);
  vprintf (fs, args);
  va_end (args);
  printf ("\n  %s, seed %" PRIu64, now.base->kind->name, now.seed);
  if (now.states) {
    printf (", crash at %zu, %s (%" PRIu64 ")\n", now.crash,
            loss_names[now.loss], now.choice);
    states_print (now.states);
  }
  if (now.disk && disk_save (now.disk, "wrong.qcow2"))
    printf ("  the state is in wrong.qcow2");
  printf ("\n  the first thing that the engine said: %s\n", work_problem);
  fflush (stdout);
  _exit (EXIT_FAILURE);         /* at once: what is left is not a leak */
}

static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (0x2545f4914f6cdd1d) >> 32;
}

static struct image *
open_state (void)
{
  struct image *img;

  work_on_state (now.disk);
  img = work_open (NAME_STATE);
  if (img == NULL || work_problem[0])
    wrong ("opening the image");
  return img;
}

/* A raw data file, read alone, is the disk that the engine read. */
static void
check_raw_data (void)
{
  const struct disk *data = disk_data (now.disk);
  char sector[SECTOR];
  unsigned i, n = 0;
  uint64_t at;

  for (i = 0; i < now.base->nr_windows; i++) {
    const struct window *w = &now.base->windows[i];

    for (at = w->offset; at < w->offset + w->len; at += SECTOR, n++) {
      disk_read (data, sector, SECTOR, at);
      if (now.tags[n] != TAG_GONE
          && history_tag (sector, at) != now.tags[n])
        wrong ("sector %u holds %" PRIx64 ", in the raw data file %" PRIx64,
               n, now.tags[n], history_tag (sector, at));
    }
  }
}

/* What is new of the disk: some places of it. */
static void
check_new_part (struct image *img)
{
  const uint64_t size = image_size (img), end = now.base->disk_size;
  uint64_t at, i;
  char buf[8 * SECTOR];

  if (!work_size_is_legal (size, now.crash))
    wrong ("the disk has %" PRIu64 " bytes", size);
  for (at = end; size > end && at < size; at += (size - end) / 5) {
    const uint64_t len = MIN (sizeof buf, size - at);

    if (image_read (img, buf, len, at) < 0)
      wrong ("reading at %" PRIu64, at);
    for (i = 0; i < len; i++)
      if (buf[i])
        wrong ("the disk is not zero at %" PRIu64, at + i);
  }
}

static void
read_state (tag *tags)
{
  struct image *img = open_state ();

  if (work_read_tags (img, tags) < 0 || work_problem[0])
    wrong ("reading the image");
  check_new_part (img);
  image_close (img);
}

/* Read it with the engine, and compare with what may be there. */
static void
check_contents (void)
{
  const unsigned n = history_sectors (now.history);
  unsigned i;

  read_state (now.tags);
  for (i = 0; i < n; i++) {
    if (now.tags[i] != TAG_GONE
        && !history_is_legal (now.history, i, now.tags[i])) {
      history_print (now.history, i);
      wrong ("sector %u holds %" PRIx64, i, now.tags[i]);
    }
  }
  if (now.base->kind->flags & KIND_RAW
      && !(now.base->kind->flags & KIND_ENCRYPTED))
    check_raw_data ();
}

static void
check_fsck (const char *when)
{
  struct fsck_result r;

  if (!fsck (now.disk, &r))
    wrong ("%s: %s", when, r.problem);
  explore_stats.leaks += r.leaks;
  explore_stats.leaky += r.leaks > 0;
}

/* Was the damage not repaired before this state? */
static bool
is_damaged (void)
{
  const unsigned flags = now.base->kind->flags;
  uint64_t features;

  if (flags & KIND_REPAIR)
    return now.crash < work_repaired;
  disk_read (now.disk, &features, sizeof features,
             HEADER_OFFSET_INCOMPATIBLE);
  return flags & KIND_DIRTY && be64toh (features) & INCOMPAT_DIRTY;
}

/* Opened for writing it is as good as new. */
static void
repair (void)
{
  struct image *img = open_state ();
  struct fsck_result r;

  if (image_begin_writing (img) < 0 || image_stop (img) < 0
      || work_problem[0])
    wrong ("the image cannot be repaired");
  image_close (img);
  if (!fsck (now.disk, &r) || r.leaks > 0)
    wrong ("after the repair: %" PRIu64 " leaks, %s", r.leaks, r.problem);
  explore_stats.repaired++;
}

static int
run (const char *command)
{
  int status;

  fflush (stdout);
  status = system (command);
  return WIFEXITED (status) ? WEXITSTATUS (status) : 128;
}

/* Of the state whose tags these are. */
static void
check_bitmaps (const tag *tags, bool closed)
{
  const char *problem;
  struct fsck_result r;

  if (!(now.base->kind->flags & KIND_BITMAPS))
    return;
  if (!fsck (now.disk, &r))
    wrong ("%s", r.problem);
  if (!dirtied_is_known (now.disk, &r.header, now.base, tags, closed,
                         &problem))
    wrong ("%s", problem);
}

/* The same, from the outside. */
static void
ask_qemu (void)
{
  const unsigned n = history_sectors (now.history);
  tag *tags = calloc (n, sizeof *tags);
  const char *state = kind_named (now.base->kind, "state.qcow2");
  char command[400];
  int status;

  if (tags == NULL || !disk_save (now.disk, "state.qcow2"))
    abort ();
  snprintf (command, sizeof command, "qemu-img check -q %s >check.out 2>&1",
            state);
  status = run (command);
  if (status != 0 && status != 3) {
    run ("tail -n 20 check.out");
    wrong ("qemu-img check finds corruption");
  }
  snprintf (command, sizeof command, "qemu-img convert %s -O raw state.raw",
            state);
  if (run (command) != 0)
    wrong ("qemu-img convert fails");
  base_read_raw (now.base, "state.raw", tags);
  if (memcmp (tags, now.tags, n * sizeof *tags) != 0)
    wrong ("qemu-img reads something else");
  free (tags);
  explore_stats.qemu++;
}

/* The image is used again.  The state itself changes. */
static void
go_on (void)
{
  const unsigned n = history_sectors (now.history);
  tag *tags = calloc (n, sizeof *tags);
  struct image *img = open_state ();
  unsigned i;

  if (tags == NULL)
    abort ();
  if (work_on_after_crash (img, now.tags, 10, UINT64_C (1) << 40,
                           now.seed + now.crash) < 0
      || work_problem[0])
    wrong ("a request after the crash failed");
  image_close (img);
  check_fsck ("after going on");
  read_state (tags);
  for (i = 0; i < n; i++) {
    if (tags[i] != now.tags[i])
      wrong ("after going on sector %u holds %" PRIx64 ", not %" PRIx64, i,
             tags[i], now.tags[i]);
  }
  check_bitmaps (tags, false);
  free (tags);
  explore_stats.gone_on++;
}

static void
check_state (unsigned kind, enum loss loss, uint64_t choice,
             unsigned qemu_share)
{
  uint64_t random = (now.seed << 32) + now.crash * NR_LOSSES + loss + 1;
  bool damaged;

  explore_stats.states++;
  explore_stats.by_kind[kind]++;
  explore_stats.by_loss[loss]++;
  explore_stats.small_holes += now.crash >= now.small_hole;
  now.loss = loss;
  now.choice = choice;
  now.disk = states_make (now.states, loss, choice);
  damaged = is_damaged ();
  if (!damaged)
    check_fsck ("fsck");
  check_contents ();
  if (damaged)
    repair ();
  check_bitmaps (now.tags, false);
  next_random (&random);
  next_random (&random);
  if (qemu_share && next_random (&random) % qemu_share == 0)
    ask_qemu ();
  if (next_random (&random) % GO_ON_SHARE == 0)
    go_on ();
  disk_free (now.disk);
  now.disk = NULL;
}

/* All states of one moment. */
static void
check_moment (unsigned kind, uint64_t *random, uint64_t most,
              unsigned qemu_share)
{
  const unsigned uncertain = states_goto (now.states, now.crash);
  const uint64_t begin = explore_stats.states;
  unsigned i;

  history_goto (now.history, now.crash);
  check_state (kind, LOSE_NOTHING, 0, qemu_share);
  if (uncertain == 0 || explore_stats.states - begin >= most)
    return;
  check_state (kind, LOSE_ALL, 0, qemu_share);
  for (i = 0; i < SOME_STATES; i++) {
    enum loss loss
      = (enum loss) (LOSE_SUBSET + (now.crash + i) % (NR_LOSSES
                                                      - LOSE_SUBSET));

    if (uncertain == 1 && (loss == LOSE_SUBSET || loss == LOSE_REORDERED))
      continue;
    if (explore_stats.states - begin >= most)
      return;
    check_state (kind, loss, next_random (random) << 32
                 | next_random (random), qemu_share);
  }
}

/* Let guests work, and note what became of the refcounts. */
static void
make_run (void)
{
  struct fsck_result before, after;
  struct disk *d = base_disk (now.base);
  struct states *st;
  unsigned sector;
  tag seen;

  if (!fsck (d, &before) && !(now.base->kind->flags & KIND_DAMAGED))
    wrong ("at first: %s", before.problem);
  disk_free (d);
  if (work (now.history, REQUESTS, now.seed) < 0 || work_problem[0])
    wrong ("a request failed");
  if (!history_reads_are_legal (now.history, &sector, &seen)) {
    history_goto (now.history, 0);
    history_print (now.history, sector);
    wrong ("a read saw %" PRIx64 " in sector %u", seen, sector);
  }
  st = states_create (now.rec);
  states_goto (st, recorder_now (now.rec));
  now.crash = recorder_now (now.rec);
  now.disk = states_make (st, LOSE_NOTHING, 0);
  if (!fsck (now.disk, &after))
    wrong ("after a clean end: %s", after.problem);
  /* What could not be released on a failing disk is leaked. */
  if (after.leaks > (now.base->kind->flags & KIND_DAMAGED ? 0
                     : before.leaks)
      && !(now.base->kind->flags & KIND_FAILING))
    wrong ("after a clean end %" PRIu64 " clusters are leaked",
           after.leaks);
  read_state (now.tags);
  check_bitmaps (now.tags, true);
  disk_free (now.disk);
  now.disk = NULL;
  states_free (st);
  now.crash = 0;
  if (now.base->kind->flags & KIND_DAMAGED)
    return;
  explore_stats.blocks_made += after.blocks - before.blocks;
  explore_stats.tables_grown += after.table_clusters > before.table_clusters;
}

void
explore (unsigned kind, uint64_t seed, uint64_t most, unsigned qemu_share)
{
  uint64_t random = seed * UINT64_C (0x9e3779b97f4a7c15) | 1;
  const uint64_t begin = explore_stats.states;
  uint64_t all;
  size_t moments;

  memset (&now, 0, sizeof now);
  now.base = base_get (kind);
  now.seed = seed;
  now.rec = recorder_create (now.base->bytes, now.base->size);
  if (now.base->data)
    recorder_add_data (now.rec, now.base->data, now.base->data_size);
  if (seed % 2)
    recorder_keep_places (now.rec);
  now.history = history_create (now.base->windows, now.base->nr_windows,
                                now.base->initial);
  now.tags = calloc (history_sectors (now.history), sizeof (tag));
  if (now.tags == NULL)
    abort ();
  work_forget_problem ();
  work_on (now.base, now.rec);
  make_run ();
  explore_stats.runs++;
  explore_stats.requests += REQUESTS;
  explore_stats.syncs += recorder_syncs (now.rec);

  now.small_hole = recorder_small_hole (now.rec, UINT64_C (1)
                                        << now.base->kind->cluster_bits);
  now.states = states_create (now.rec);
  moments = recorder_now (now.rec);
  all = (moments + 1) * (2 + SOME_STATES);
  for (; now.crash <= moments; now.crash++) {
    const uint64_t done = explore_stats.states - begin;

    if (done >= most)
      break;
    /* Rather some of all moments than all of the first ones. */
    if (all > most && next_random (&random) % all >= most)
      continue;
    check_moment (kind, &random, most - done, qemu_share);
  }
  states_free (now.states);
  history_free (now.history);
  recorder_free (now.rec);
  free (now.tags);
  now.states = NULL;
}
