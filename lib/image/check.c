/* SPDX-License-Identifier: BSD-3-Clause */

/* The consistency check: do the reference counts say what is referred
 * to?  Everything 'qemu-img check' looks at is looked at, and the numbers
 * of errors and leaks are meant to be its numbers.
 *
 * A round counts all references (check-references.c), compares them with
 * the reference counts (check-counts.c), and the COPIED flags with these
 * (check-flags.c), correcting what it may in passing.  If the refcount
 * table or its blocks are broken or missing it makes new ones instead
 * (check-rebuild.c).  Rounds follow each other until one changes nothing.
 * Its numbers are those of what is left.
 *
 * Pointers are never changed, so what the guest sees is not.
 *
 * Invariants
 *
 * K1. Nobody else changes the image meanwhile: a check runs when the
 *     image is opened, or under begin_lock before the first write.  Reads
 *     may go on.
 * K2. All writes go through the guard.  Where the tracker could not be
 *     filled, because tables lie upon each other, nothing is corrected in
 *     place; a rebuild uses clusters that nothing refers to.
 * K3. After a round that changed something it is synced, and the caches
 *     forget what they have.
 *
 * Locks: begin_lock is held, or the image not served yet.  Takes
 * refcounts.lock, shards' locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "checked.h"
#include "monotonic.h"
#include "report.h"

/* An image must not be able to flood a server's log, nor to keep the
 * offline tool writing for minutes.
 */
#define MAX_LINES 20
#define MAX_OFFLINE_LINES 1000

/* Rounds that change something. */
#define MAX_ROUNDS 4

unsigned check_tell_seconds = 10;

static uint64_t *
counter (struct check *c, enum check_kind kind)
{
  switch (kind) {
  case CHECK_KIND_LEAK:
    return &c->leaks;
  case CHECK_KIND_OVERLAP:
    return &c->overlaps;
  default:
    return &c->errors;
  }
}

void
check_mistake (struct check *c, enum check_kind kind, uint64_t n,
               const char *fs, ...)
{
  const unsigned max = c->img->config.offline ? MAX_OFFLINE_LINES : MAX_LINES;
  char text[300];
  va_list args;

  if (c->recount)
    return;
  *counter (c, kind) += n;
  if (kind != CHECK_KIND_COPIED && kind != CHECK_KIND_LEAK
      && kind != CHECK_KIND_FAULT)
    c->grave = true;
  if (c->lines > max)
    return;
  if (c->lines++ == max) {
    report_warning ("%s: check: there is more, which is counted but not "
                    "shown", c->img->config.filename);
    return;
  }
  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  report_warning ("%s: check: %s", c->img->config.filename, text);
}

void
check_step (struct check *c)
{
  const uint64_t t = monotonic_now ();

  c->steps_done++;              /* more than c->steps in a rebuild */
  if (c->img->config.check_progress) {
    c->img->config.check_progress (c->img->config.check_opaque,
                                   MIN (c->steps_done, c->steps), c->steps);
    return;
  }
  if (t - c->told < check_tell_seconds * NANOSECONDS)
    return;
  c->told = t;
  report_warning ("%s: check: %" PRIu64 "%% done", c->img->config.filename,
                  MIN (c->steps_done * 100 / c->steps, (uint64_t) 100));
}

/* The active L1 table is gone through twice. */
static uint64_t
count_steps (const struct image *img)
{
  uint64_t n = 1 + 2 * img->map.l1_size;
  uint32_t i;

  for (i = 0; i < img->snapshots.count; ++i)
    n += img->snapshots.v[i].l1_size;
  return n;
}

/* K3. */
static int
forget (struct image *img)
{
  int r = guard_sync (img);

  if (r == 0)
    r = refcounts_reload (img);
  l2cache_forget (img);
  return r;
}

/* What the header could not be believed in.  It is counted where it is
 * met: a table that ends past the end of the file is one mistake and what
 * is read in its place may be more, a refcount table that is not there is
 * as many as it lacks counts.
 */
static void
check_header (struct check *c)
{
  const struct header_damage *d = &c->img->damage;
  unsigned i;

  for (i = 0; i < MIN (d->faults, MAX_HEADER_FAULTS); ++i)
    check_mistake (c, CHECK_KIND_FAULT, 0, "not served and not counted, "
                   "for QEMU does not look at it: %s", d->fault[i].text);
  for (i = 0; i < HEADER_TABLES; ++i) {
    const bool refcounts = i == TABLE_REFCOUNTS;

    if (!d->broken[i])
      continue;
    check_mistake (c, refcounts ? CHECK_KIND_STRUCTURE : CHECK_KIND_BROKEN,
                   0, "%s", d->why[i].text);
    c->rebuild |= refcounts;
    c->unseen |= !refcounts;
  }
}

static int
round_with_tally (struct check *c, enum image_check what)
{
  const bool rebuild = what == CHECK_ALL;
  int r;

  check_header (c);
  r = check_references (c, true);
  if (r == 0)
    r = check_counts (c);
  if (r < 0)
    return r;
  if (c->rebuild && rebuild && !c->unseen) {
    r = check_rebuild (c);
    c->rebuilt = r == 0;
    return r;
  }
  /* The flags are compared with the counts as they are now. */
  if (c->errors_fixed + c->leaks_fixed > 0)
    r = forget (c->img);
  return r == 0 ? check_flags (c) : r;
}

static int
one_round (struct check *c, struct image *img, enum image_check what,
           bool tell)
{
  int r;

  memset (c, 0, sizeof *c);
  c->img = img;
  c->what = img->untracked ? CHECK_REPORT : what;
  c->steps = count_steps (img);
  c->told = monotonic_now ();
  c->lines = tell ? 0 : MAX_OFFLINE_LINES + 1;
  c->table = malloc (img->cluster_size);
  r = c->table ? tally_init (&c->tally, img->refcounts.order) : -ENOMEM;
  if (r == 0)
    r = round_with_tally (c, what);
  free (c->table);
  overlap_free (c->tables);
  tally_free (&c->tally);
  return r;
}

static bool
changed (const struct check *c)
{
  return c->errors_fixed + c->leaks_fixed > 0 || c->rebuilt;
}

/* What a round says, for the log. */
static void
tell (struct image *img, const struct image_check_result *res)
{
  const char *name = img->config.filename;

  if (res->errors + res->leaks + res->overlaps == 0) {
    report_debug ("%s: check: 0 errors, 0 leaked clusters", name);
    return;
  }
  report_warning ("%s: check: %" PRIu64 " errors, %" PRIu64 " leaked "
                  "clusters%s%s", name, res->errors, res->leaks,
                  res->overlaps ? ", guest data upon metadata" : "",
                  res->unseen ? ", and not everything could be followed"
                  : "");
  if (res->reopen)
    report_warning ("%s: check: repaired what makes it unsafe to repair "
                    "the rest; it is opened and checked again", name);
  else if (res->repaired)
    report_warning ("%s: check: after the repair: %" PRIu64 " errors, %"
                    PRIu64 " leaked clusters", name, res->errors_left,
                    res->leaks_left);
}

int
image_check (struct image *img, enum image_check what,
             struct image_check_result *res)
{
  struct check c;
  unsigned i;
  int r;

  memset (res, 0, sizeof *res);
  for (i = 0; ; ++i) {
    r = one_round (&c, img, i < MAX_ROUNDS ? what : CHECK_REPORT, i == 0);
    if (i == 0) {
      res->errors = c.errors;
      res->leaks = c.leaks;
      res->overlaps = c.overlaps;
    }
    if (r < 0 || !changed (&c))
      break;
    res->repaired = true;
    r = forget (img);
    if (r < 0)
      break;
    if (img->untracked) {       /* it may be possible to track it now */
      res->reopen = true;
      break;
    }
  }
  res->errors_left = c.errors;
  res->leaks_left = c.leaks;
  res->grave = c.grave;
  res->unseen = c.unseen;
  res->faults = img->damage.faults;
  res->end = (c.highest + 1) << img->cluster_bits;
  res->allocated = c.allocated;
  res->compressed = c.compressed;
  res->fragmented = c.fragmented;
  if (r < 0)
    report_error ("%s: check: could not be completed: %s",
                  img->config.filename, strerror (-r));
  else if (!img->config.check_result)
    tell (img, res);
  return r;
}
