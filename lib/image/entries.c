/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading a table of 64-bit entries, an L1 table for one, for what is in
 * it.
 *
 * The table of a large disk is large and nearly empty: 1 MiB for 64 TiB of
 * 64 KiB clusters, and as much for each snapshot.  So it is not held in
 * memory but read piece by piece, what lies in a hole of the file is not
 * read at all, and entries that are 0 are passed over four at a time.  The
 * storage is asked for holes once for each stretch of data, not for each
 * piece: on ext4 that takes as long as reading one.
 */

#include <config.h>

#include <stdbool.h>

#include "byteorder.h"
#include "checked.h"
#include "entries.h"

void
entries_init (struct entries *e, struct storage *storage, uint64_t offset,
              uint64_t count)
{
  e->storage = storage;
  e->offset = offset;
  e->count = count;
  e->next = e->data_end = 0;
  e->at = e->n = 0;
}

/* Go to the next entry that is not in a hole: one of its bytes is not. */
static void
pass_hole (struct entries *e)
{
  while (e->next < e->count && e->next >= e->data_end) {
    uint64_t len = (e->count - e->next) * sizeof e->buf[0];
    bool hole;

    if (storage_map (e->storage, e->offset + e->next * sizeof e->buf[0],
                     &len, &hole) < 0)
      e->data_end = e->count;   /* reading says what is wrong */
    else if (hole && len >= sizeof e->buf[0])
      e->next += MIN (len / sizeof e->buf[0], e->count - e->next);
    else
      e->data_end = MIN (e->next + len / sizeof e->buf[0] + 1, e->count);
  }
}

static int
read_piece (struct entries *e)
{
  int r;

  e->at = e->n = 0;
  pass_hole (e);
  if (e->next >= e->count)
    return 0;
  e->n = (unsigned) MIN (e->data_end - e->next, (uint64_t) ENTRIES_PIECE);
  r = storage_read (e->storage, e->buf, e->n * sizeof e->buf[0],
                    e->offset + e->next * sizeof e->buf[0]);
  e->next += e->n;
  return r;
}

/* Go to the next entry of the piece that is not 0. */
static void
pass_zeroes (struct entries *e)
{
  while (e->n - e->at >= 4 && (e->buf[e->at] | e->buf[e->at + 1]
                               | e->buf[e->at + 2] | e->buf[e->at + 3]) == 0)
    e->at += 4;
  while (e->at < e->n && e->buf[e->at] == 0)
    e->at++;
}

int
entries_next (struct entries *e, uint64_t *index, uint64_t *entry)
{
  int r;

  for (;;) {
    pass_zeroes (e);
    if (e->at < e->n)
      break;
    r = read_piece (e);
    if (r < 0 || e->n == 0)
      return r;
  }
  *index = e->next - e->n + e->at;
  *entry = be64toh (e->buf[e->at++]);
  return 1;
}
