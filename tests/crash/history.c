/* SPDX-License-Identifier: BSD-3-Clause */

/* What guests did; see history.h.
 *
 * For each sector two numbers are kept up to the moment of the crash:
 * when the latest durable request for it began (its floor), and when the
 * last request that put zeroes there ended.  A value is legal if its
 * request ended at or after the floor; what has not ended when the
 * crash comes ends in the future.
 *
 * Locks: LOCK guards the list and the clock while requests run.
 */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "history.h"

const char *const op_names[NR_OPS] = { "write", "zero", "trim", "flush" };

struct reading {
  uint64_t began_at, ended_at;
  uint64_t offset, len;
  tag *tags;
};

struct history {
  pthread_mutex_t lock;
  const struct window *windows;
  unsigned nr_windows, sectors;
  tag *initial;
  uint64_t clock;

  struct op **ops;
  size_t count, space;
  struct reading *reads;
  size_t nr_reads;

  /* At the moment of the crash. */
  size_t crash;
  uint64_t *floor;              /* of each sector */
  uint64_t *zeroed;             /* 0: never */
  bool *begun;                  /* of each request: its zeroes count */
  bool *durable;                /* of each request: its floor counts */
};

static void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

struct history *
history_create (const struct window *windows, unsigned n,
                const tag *initial)
{
  struct history *h = check_memory (calloc (1, sizeof *h));
  unsigned i;

  pthread_mutex_init (&h->lock, NULL);
  h->windows = windows;
  h->nr_windows = n;
  for (i = 0; i < n; i++)
    h->sectors += (unsigned) (windows[i].len / SECTOR);
  h->initial = check_memory (calloc (h->sectors, sizeof (tag)));
  memcpy (h->initial, initial, h->sectors * sizeof (tag));
  h->floor = check_memory (calloc (h->sectors, sizeof *h->floor));
  h->zeroed = check_memory (calloc (h->sectors, sizeof *h->zeroed));
  h->clock = 1;
  return h;
}

void
history_free (struct history *h)
{
  size_t i;

  for (i = 0; i < h->count; i++)
    free (h->ops[i]);
  free (h->ops);
  for (i = 0; i < h->nr_reads; i++)
    free (h->reads[i].tags);
  free (h->reads);
  free (h->initial);
  free (h->floor);
  free (h->zeroed);
  free (h->begun);
  free (h->durable);
  pthread_mutex_destroy (&h->lock);
  free (h);
}

unsigned
history_sectors (const struct history *h)
{
  return h->sectors;
}

struct op *
history_begin (struct history *h, const struct op *op, size_t moment)
{
  struct op *copy = check_memory (malloc (sizeof *copy));

  *copy = *op;
  pthread_mutex_lock (&h->lock);
  if (h->count == h->space) {
    h->space = h->space * 2 + 200;
    h->ops = check_memory (reallocarray (h->ops, h->space,
                                         sizeof *h->ops));
  }
  h->ops[h->count++] = copy;
  copy->number = h->count;
  copy->began_at = h->clock++;
  copy->ended_at = UINT64_MAX;
  copy->began = moment;
  copy->ended = SIZE_MAX;
  pthread_mutex_unlock (&h->lock);
  return copy;
}

void
history_end (struct history *h, struct op *op, size_t moment, bool failed)
{
  pthread_mutex_lock (&h->lock);
  op->failed = failed;
  op->ended_at = h->clock++;
  op->ended = moment;
  pthread_mutex_unlock (&h->lock);
}

uint64_t
history_begin_read (struct history *h)
{
  uint64_t at;

  pthread_mutex_lock (&h->lock);
  at = h->clock++;
  pthread_mutex_unlock (&h->lock);
  return at;
}

void
history_end_read (struct history *h, uint64_t began_at, uint64_t offset,
                  uint64_t len, const tag *tags)
{
  const size_t bytes = len / SECTOR * sizeof (tag);
  struct reading r = { .began_at = began_at, .offset = offset, .len = len };

  r.tags = check_memory (malloc (bytes));
  memcpy (r.tags, tags, bytes);
  pthread_mutex_lock (&h->lock);
  r.ended_at = h->clock++;
  h->reads = check_memory (reallocarray (h->reads, h->nr_reads + 1,
                                         sizeof *h->reads));
  h->reads[h->nr_reads++] = r;
  pthread_mutex_unlock (&h->lock);
}

/* Sixteen bytes that say who wrote them and where they belong. */
void
history_fill (uint64_t number, uint64_t offset, uint64_t len, char *buf)
{
  uint64_t words[2] = { number, 0 }, i;

  for (i = 0; i < len; i += sizeof words) {
    words[1] = (offset + i) | UINT64_C (1) << 63;
    memcpy (buf + i, words, sizeof words);
  }
}

static uint64_t
word (const char *sector, unsigned i)
{
  uint64_t w;

  memcpy (&w, sector + i * sizeof w, sizeof w);
  return w;
}

/* What is neither zeroes nor a request's: never the number of one. */
static tag
hash (const char *sector)
{
  uint64_t h = UINT64_C (0xcbf29ce484222325);
  unsigned i;

  for (i = 0; i < SECTOR / 8; i++) {
    h = (h ^ word (sector, i)) * UINT64_C (0x100000001b3);
    h ^= h >> 29;
  }
  return h | UINT64_C (1) << 63;
}

/* In place, and no further than where it is known: nearly a fifth of the
 * explorer's time was spent here.
 */
tag
history_tag (const char *sector, uint64_t offset)
{
  const uint64_t first = word (sector, 0);
  uint64_t bad = first >> 63;
  unsigned i;

  if (word (sector, 1) == 0)
    return first || memcmp (sector, sector + 8, SECTOR - 8) != 0
      ? hash (sector) : 0;
  for (i = 0; i < SECTOR / 8; i += 2) {
    bad |= word (sector, i) ^ first;
    bad |= word (sector, i + 1) ^ ((offset + i * 8) | UINT64_C (1) << 63);
  }
  return bad ? hash (sector) : first;
}

/* Let *V be at least VALUE for all sectors that the request changed. */
static void
raise (const struct history *h, const struct op *op, uint64_t *v,
       uint64_t value)
{
  unsigned i, first = 0;

  for (i = 0; i < h->nr_windows; i++) {
    const struct window *w = &h->windows[i];
    uint64_t from = op->from > w->offset ? op->from : w->offset, s;
    const uint64_t end
      = op->end < w->offset + w->len ? op->end : w->offset + w->len;

    for (; from < end; from += SECTOR) {
      s = first + (from - w->offset) / SECTOR;
      if (v[s] < value)
        v[s] = value;
    }
    first += (unsigned) (w->len / SECTOR);
  }
}

/* A trim with FUA may leave parts of its range as they were: what earlier
 * requests wrote there is as durable as what it trimmed.
 */
static void
raise_what_it_left (const struct history *h, const struct op *trim)
{
  size_t i;

  for (i = 0; i < h->count; i++) {
    const struct op *op = h->ops[i];
    struct op part = *op;

    if (op->kind == OP_FLUSH || op->failed || op->ended_at > trim->began_at)
      continue;
    part.from = op->from > trim->offset ? op->from : trim->offset;
    part.end = op->end < trim->offset + trim->len ? op->end
      : trim->offset + trim->len;
    raise (h, &part, h->floor, op->began_at);
  }
}

void
history_goto (struct history *h, size_t crash)
{
  uint64_t flushed = 0;
  size_t i;

  if (h->begun == NULL) {
    h->begun = check_memory (calloc (h->count + 1, sizeof (bool)));
    h->durable = check_memory (calloc (h->count + 1, sizeof (bool)));
  }
  h->crash = crash;
  for (i = 0; i < h->count; i++) {
    const struct op *op = h->ops[i];

    if (op->kind == OP_FLUSH && !op->failed && op->ended <= crash
        && op->began_at > flushed)
      flushed = op->began_at;
  }
  for (i = 0; i < h->count; i++) {
    const struct op *op = h->ops[i];

    if (op->kind == OP_FLUSH)
      continue;
    if (!h->begun[i] && op->began <= crash) {
      h->begun[i] = true;
      if (op->kind != OP_WRITE)
        raise (h, op, h->zeroed, op->ended_at);
    }
    if (!h->durable[i] && !op->failed
        && (op->ended_at < flushed || (op->fua && op->ended <= crash))) {
      h->durable[i] = true;
      raise (h, op, h->floor, op->began_at);
      if (op->kind == OP_TRIM && op->fua && op->ended <= crash)
        raise_what_it_left (h, op);
    }
  }
}

bool
history_is_legal (const struct history *h, unsigned sector, tag seen)
{
  const uint64_t floor = h->floor[sector];
  const struct op *op;

  if (seen == h->initial[sector] && floor == 0)
    return true;
  if (seen == 0)
    return h->zeroed[sector] != 0 && h->zeroed[sector] >= floor;
  if (seen > h->count)
    return false;
  op = h->ops[seen - 1];
  return op->kind == OP_WRITE && op->began <= h->crash
    && op->ended_at >= floor;
}

/* The number of the sector at a guest offset that is in a window. */
static unsigned
sector_of (const struct history *h, uint64_t offset)
{
  unsigned i, first = 0;

  for (i = 0; i < h->nr_windows; i++) {
    const struct window *w = &h->windows[i];

    if (offset >= w->offset && offset - w->offset < w->len)
      return first + (unsigned) ((offset - w->offset) / SECTOR);
    first += (unsigned) (w->len / SECTOR);
  }
  abort ();
}

/* May the read have seen this tag in the sector at OFFSET? */
static bool
may_read (const struct history *h, const struct reading *r, uint64_t offset,
          tag seen)
{
  uint64_t floor = 0, written = 0;
  size_t i;

  for (i = 0; i < h->count; i++) {
    const struct op *op = h->ops[i];

    if (op->kind == OP_FLUSH || offset < op->from || offset >= op->end)
      continue;
    if (!op->failed && op->ended_at < r->began_at && op->began_at > floor)
      floor = op->began_at;
    if (op->began_at < r->ended_at && op->ended_at > written
        && seen == (op->kind == OP_WRITE ? op->number : 0))
      written = op->ended_at;
  }
  if (floor == 0 && seen == h->initial[sector_of (h, offset)])
    return true;
  return written != 0 && written >= floor;
}

bool
history_reads_are_legal (const struct history *h, unsigned *sector,
                         tag *seen)
{
  uint64_t done;
  size_t i;

  for (i = 0; i < h->nr_reads; i++) {
    const struct reading *r = &h->reads[i];

    for (done = 0; done < r->len; done += SECTOR) {
      *seen = r->tags[done / SECTOR];
      if (may_read (h, r, r->offset + done, *seen))
        continue;
      *sector = sector_of (h, r->offset + done);
      printf ("  read of %" PRIu64 "+%" PRIu64 ", time %" PRIu64 " to %"
              PRIu64 "\n", r->offset, r->len, r->began_at, r->ended_at);
      return false;
    }
  }
  return true;
}

void
history_print (const struct history *h, unsigned sector)
{
  uint64_t offset = 0;
  unsigned i, left = sector;
  size_t n;

  for (i = 0; i < h->nr_windows; i++) {
    if (left < h->windows[i].len / SECTOR) {
      offset = h->windows[i].offset + (uint64_t) left * SECTOR;
      break;
    }
    left -= (unsigned) (h->windows[i].len / SECTOR);
  }
  printf ("  sector %u, guest offset %" PRIu64 ", floor %" PRIu64
          ", zeroed %" PRIu64 ", at first %" PRIx64 "\n", sector, offset,
          h->floor[sector], h->zeroed[sector], h->initial[sector]);
  for (n = 0; n < h->count; n++) {
    const struct op *op = h->ops[n];

    if (op->kind != OP_FLUSH
        && (offset < op->offset || offset - op->offset >= op->len))
      continue;
    printf ("  request %" PRIu64 " of client %u, moments %zu to %zd, time "
            "%" PRIu64 " to %" PRId64 ": %s%s%s", op->number, op->client,
            op->began, (ssize_t) op->ended, op->began_at,
            (int64_t) op->ended_at, op->failed ? "failed " : "",
            op_names[op->kind], op->fua ? " fua" : "");
    if (op->kind != OP_FLUSH)
      printf (" %" PRIu64 "+%" PRIu64, op->offset, op->len);
    printf ("\n");
  }
}
