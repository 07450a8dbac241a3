/* SPDX-License-Identifier: BSD-3-Clause */

/* Crash states; see states.h and recorder.h for what a disk promises.
 *
 * BASE has everything before the first uncertain record.  That record
 * moves upwards only, because what is certain once stays so.  What comes
 * after it is done again for each state, on a clone, in the order in
 * which it was recorded unless that is what is to be varied: a certain
 * record may follow an uncertain one that it overlaps.
 *
 * Reordering on top of losing finds little that losing does not: where
 * two operations overlap, what arrives first might as well be lost.  It
 * is there because holes and the file's length are more than sectors.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "recorder-internal.h"
#include "states.h"

const char *const loss_names[NR_LOSSES] = {
  "prefix", "nothing unsynced", "subset", "torn at 512", "torn at 4096",
  "reordered",
};

struct states {
  const struct recorder *rec;
  struct disk *base;
  size_t done;                  /* records that BASE has */
  size_t crash;
  struct certain certain[RECORDER_FILES];
  size_t *uncertain;            /* records, from DONE to CRASH */
  unsigned count;
};

struct states *
states_create (const struct recorder *rec)
{
  struct states *st = calloc (1, sizeof *st);

  if (st == NULL
      || !(st->uncertain = calloc (rec->count + 1, sizeof (size_t))))
    abort ();
  st->rec = rec;
  st->base = disk_create (rec->first[0].bytes, rec->first[0].size);
  if (rec->has_data)
    disk_set_data (st->base, disk_create (rec->first[1].bytes,
                                          rec->first[1].size));
  return st;
}

void
states_free (struct states *st)
{
  disk_free (st->base);
  free (st->uncertain);
  free (st);
}

/* Bytes FROM to END of a record happen. */
static void
apply (struct disk *image, const struct record *r, uint64_t from,
       uint64_t end)
{
  struct disk *d = r->file ? disk_data (image) : image;
  const uint64_t size = disk_size (d);

  switch (r->kind) {
  case RECORDER_WRITE:
    disk_write (d, r->data + (from - r->offset), end - from, from);
    break;
  case RECORDER_ZERO:
    disk_write (d, NULL, end - from, from);
    break;
  case RECORDER_RESERVE:
    if (end > size)
      disk_set_size (d, end);
    break;
  case RECORDER_PUNCH:
    if (from < size)
      disk_write (d, NULL, (end < size ? end : size) - from, from);
    break;
  case RECORDER_TRUNCATE:
    disk_set_size (d, r->offset);
    break;
  case RECORDER_SYNC:
  default:
    break;
  }
}

static void
apply_all (struct disk *d, const struct record *r)
{
  apply (d, r, r->offset, r->offset + r->len);
}

/* xorshift64*: only has to be the same everywhere. */
static uint64_t
next_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (0x2545f4914f6cdd1d) >> 32;
}

/* Some pieces of a record.  They lie as the disk's do, not as the
 * record's.
 */
static void
apply_torn (struct disk *d, const struct record *r, uint64_t piece,
            uint64_t *random)
{
  const uint64_t end = r->offset + r->len;
  uint64_t from, to;

  if (r->kind == RECORDER_TRUNCATE) {
    if (next_random (random) % 2)
      apply_all (d, r);
    return;
  }
  for (from = r->offset; from < end; from = to) {
    to = (from / piece + 1) * piece;
    to = to < end ? to : end;
    if (next_random (random) % 2)
      apply (d, r, from, to);
  }
}

unsigned
states_goto (struct states *st, size_t crash)
{
  const struct record *records = st->rec->records;
  size_t i;

  st->crash = crash;
  for (i = 0; i < RECORDER_FILES; i++)
    st->certain[i] = recorder_certain (st->rec, (unsigned) i, crash);
  while (st->done < crash
         && (records[st->done].kind == RECORDER_SYNC
             || record_is_certain (&records[st->done], st->certain, crash)))
    apply_all (st->base, &records[st->done++]);
  st->count = 0;
  for (i = st->done; i < crash; i++) {
    if (records[i].kind != RECORDER_SYNC
        && !record_is_certain (&records[i], st->certain, crash))
      st->uncertain[st->count++] = i;
  }
  return st->count;
}

/* Everything in its order, but of the uncertain only what LOSS says. */
static void
apply_some (const struct states *st, struct disk *d, enum loss loss,
            uint64_t choice, uint64_t *random)
{
  size_t i;
  unsigned n = 0;

  for (i = st->done; i < st->crash; i++) {
    const struct record *r = &st->rec->records[i];

    if (n == st->count || i != st->uncertain[n]) {
      apply_all (d, r);
      continue;
    }
    if (loss == LOSE_NOTHING
        || (loss == LOSE_SUBSET && n < 64 && choice >> n & 1))
      apply_all (d, r);
    else if (loss == LOSE_TORN_SECTORS || loss == LOSE_TORN_PAGES)
      apply_torn (d, r, loss == LOSE_TORN_SECTORS ? 512 : 4096, random);
    n++;
  }
}

/* The certain in its order, then the others shuffled, some left out, as
 * long as no certain one comes after them.
 */
static void
apply_reordered (const struct states *st, struct disk *d, uint64_t *random)
{
  size_t *order = malloc ((st->count + 1) * sizeof *order), i, j;
  unsigned n, first = 0;

  if (order == NULL)
    abort ();
  /* Those before the last certain record keep their place. */
  for (i = st->done, n = 0; i < st->crash; i++) {
    if (n < st->count && i == st->uncertain[n])
      n++;
    else if (st->rec->records[i].kind != RECORDER_SYNC)
      first = n;
  }
  for (i = st->done, n = 0; i < st->crash && n <= first; i++) {
    if (n < st->count && i == st->uncertain[n]) {
      if (n < first && next_random (random) % 2)
        apply_all (d, &st->rec->records[i]);
      n++;
    }
    else
      apply_all (d, &st->rec->records[i]);
  }
  for (n = first; n < st->count; n++)
    order[n] = st->uncertain[n];
  for (n = st->count; n > first + 1; n--) {
    j = first + next_random (random) % (n - first);
    i = order[n - 1];
    order[n - 1] = order[j];
    order[j] = i;
  }
  for (n = first; n < st->count; n++) {
    if (next_random (random) % 4)
      apply_all (d, &st->rec->records[order[n]]);
  }
  free (order);
}

struct disk *
states_make (const struct states *st, enum loss loss, uint64_t choice)
{
  struct disk *d = disk_clone (st->base);
  uint64_t random = choice * 2 + 1;
  int i;

  for (i = 0; i < 10; i++)      /* small seeds begin alike */
    next_random (&random);
  if (loss == LOSE_REORDERED)
    apply_reordered (st, d, &random);
  else
    apply_some (st, d, loss, choice, &random);
  return d;
}

void
states_print (const struct states *st)
{
  static const char *const kinds[] = {
    "write", "zero", "punch", "reserve", "truncate", "sync",
  };
  unsigned n;

  for (n = 0; n < st->count; n++) {
    const struct record *r = &st->rec->records[st->uncertain[n]];

    printf ("  uncertain: record %zu, %s %" PRIu64 "+%" PRIu64 "%s\n",
            st->uncertain[n], kinds[r->kind], r->offset, r->len,
            r->file ? " of the data file" : "");
  }
}
