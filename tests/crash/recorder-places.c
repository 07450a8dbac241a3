/* SPDX-License-Identifier: BSD-3-Clause */

/* A disk whose file system is as ext4 without a journal: see
 * recorder_keep_places.
 *
 * It says when syncs may go side by side as lib/storage/storage-places.c
 * does, and makes what moved blocks certain only if a sync alone covers it.
 * So whoever goes ahead without that permission, or spoils what it is made
 * of, loses data at the next crash.
 *
 * The lock is held by all callers.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "recorder-internal.h"

#define BLOCK UINT64_C (4096)

void
recorder_keep_places (struct recorder *rec)
{
  unsigned i;

  rec->keeps_places = true;
  for (i = 0; i < RECORDER_FILES; i++) {
    struct content *c = &rec->now[i];

    c->nr_placed = c->size / BLOCK;
    c->placed = malloc (c->nr_placed + 1);
    if (!c->placed)
      abort ();
    memset (c->placed, true, c->nr_placed);
    c->moved = true;            /* by whoever made the file */
  }
}

static bool
all_placed (const struct content *c, uint64_t offset, uint64_t len)
{
  uint64_t i;

  if (offset + len > c->size || offset + len > c->nr_placed * BLOCK)
    return false;
  for (i = offset / BLOCK; i * BLOCK < offset + len; i++)
    if (!c->placed[i])
      return false;
  return true;
}

bool
places_move (const struct recorder *rec, const struct content *c,
             enum recorder_op op, uint64_t offset, uint64_t len)
{
  return rec->keeps_places
    && (op != RECORDER_WRITE || !all_placed (c, offset, len));
}

/* The file gives back the blocks that lie in the range altogether.  Of others
 * a part is zeroed where they are, as ext4 does (fallocate(2), "Deallocating
 * file space").
 */
static void
take_places (struct content *c, const struct record *r)
{
  const uint64_t end = r->kind == RECORDER_TRUNCATE ? c->nr_placed
    : (r->offset + r->len) / BLOCK;
  uint64_t i;

  if (r->kind == RECORDER_WRITE || r->kind == RECORDER_RESERVE)
    return;
  for (i = (r->offset + BLOCK - 1) / BLOCK; i < end && i < c->nr_placed; i++)
    c->placed[i] = false;
}

static void
give_places (struct content *c, const struct record *r)
{
  const uint64_t end = (r->offset + r->len + BLOCK - 1) / BLOCK;
  uint64_t i;

  if (end > c->nr_placed) {
    c->placed = realloc (c->placed, end);
    if (!c->placed)
      abort ();
    memset (c->placed + c->nr_placed, false, end - c->nr_placed);
    c->nr_placed = end;
  }
  for (i = r->offset / BLOCK; i < end; i++)
    c->placed[i] = true;
}

void
places_begin (struct content *c, const struct record *r)
{
  if (!r->moved)
    return;
  c->moving++;
  take_places (c, r);
}

void
places_end (struct content *c, const struct record *r)
{
  if (!r->moved)
    return;
  c->moving--;
  c->moved = true;
}

void
places_sync_begins (struct content *c)
{
  c->moved = false;
}

/* In the order in which they were recorded, since a block that was written
 * may have been given back afterwards.
 */
void
places_synced (struct recorder *rec, unsigned file, size_t began)
{
  struct content *c = &rec->now[file];
  size_t i, next = SIZE_MAX;

  for (i = c->settled; i < rec->count; i++) {
    const struct record *r = &rec->records[i];

    if (r->file != file || !r->moved)
      continue;
    if (r->ended > began && next == SIZE_MAX)
      next = i;
    take_places (c, r);
    if (r->kind == RECORDER_WRITE && r->ended <= began)
      give_places (c, r);
  }
  c->settled = next == SIZE_MAX ? rec->count : next;
}

bool
places_are_certain (const struct recorder *rec, const struct content *c)
{
  return !rec->keeps_places || (!c->moved && c->moving == 0);
}

bool
places_are_certain_of (const struct recorder *rec, const struct content *c,
                       uint64_t offset, uint64_t len)
{
  return !rec->keeps_places
    || (places_are_certain (rec, c) && all_placed (c, offset, len));
}
