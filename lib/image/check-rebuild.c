/* SPDX-License-Identifier: BSD-3-Clause */

/* The check, when the refcount table or its blocks cannot be used: new
 * ones are made.
 *
 * They are laid out in one piece behind the last cluster that anything
 * refers to, the old table and blocks included, so that nothing in use is
 * overwritten:
 *
 *     | table | block | block | ... |
 *
 * A block is made for each range that has references, and for those that
 * hold the piece itself; more blocks make the piece longer, which may take
 * one block more, until it fits.  The old table and blocks are not
 * counted: the moment that the header leads to the new table they are
 * free.  The new ones are durable before that, and the header changes by
 * one write of 12 bytes inside one sector, so a crash leaves the one or the
 * other.
 *
 * Locks: none but refcounts.lock.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "check.h"
#include "checked.h"
#include "claims.h"
#include "cleanup.h"
#include "refcount.h"
#include "report.h"
#include "sabotage.h"

/* Where everything will be, in clusters. */
struct layout {
  uint64_t first;
  uint64_t table;               /* clusters of the table */
  uint64_t blocks;
  uint64_t entries;             /* the last block's index + 1 */
  uint8_t *needed;              /* byte per block */
};

#define MAX_ENTRIES (MAX_REFCOUNT_TABLE_BYTES / sizeof (uint64_t))

static bool
need (struct layout *l, uint64_t index)
{
  if (index >= MAX_ENTRIES)
    return false;
  if (!l->needed[index]) {
    l->needed[index] = 1;
    l->blocks++;
    l->entries = MAX (l->entries, index + 1);
  }
  return true;
}

static int
make_layout (struct check *c, struct layout *l)
{
  const unsigned bits = c->img->refcounts.block_bits;
  const uint64_t per_cluster = c->img->cluster_size / sizeof (uint64_t);
  struct tally_page *page = NULL;
  uint64_t covered, i;
  bool fits = true;
  size_t at = 0;

  while (fits && tally_next (&c->tally, &at, &page))
    fits = need (l, page->first >> bits);
  do {
    covered = l->table + l->blocks;
    l->table = div_up (l->entries, per_cluster);
    for (i = 0; fits && i < l->table + l->blocks; ++i)
      fits = need (l, (l->first + i) >> bits);
    l->table = div_up (l->entries, per_cluster);
  } while (fits && l->table + l->blocks != covered);
  if (fits)
    return 0;
  report_error ("%s: check: a refcount table for clusters up to %" PRIu64
                " would be larger than %" PRIu64 " bytes",
                c->img->config.filename, c->highest,
                MAX_REFCOUNT_TABLE_BYTES);
  return -EFBIG;
}

static int
write_piece (struct check *c, enum overlap_type type, uint64_t cluster,
             const void *buf)
{
  struct image *img = c->img;
  const uint64_t offset = cluster << img->cluster_bits;
  int r = guard_write_buf (img, (int) type, buf, img->cluster_size, offset);

  if (r < 0)
    report_error ("%s: check: writing a new %s at host offset %" PRIu64
                  ": %s", img->config.filename, overlap_type_text (type),
                  offset, strerror (-r));
  return r;
}

static int
write_block (struct check *c, uint64_t index, uint64_t cluster)
{
  const struct refcounts *rc = &c->img->refcounts;
  const uint64_t n = UINT64_C (1) << rc->block_bits;
  uint64_t i;

  memset (c->table, 0, c->img->cluster_size);
  for (i = 0; i < n; ++i)
    refcount_set (c->table, rc->order, i,
                  tally_get (&c->tally, (index << rc->block_bits) + i));
  return write_piece (c, OVERLAP_REFCOUNT_BLOCK, cluster, c->table);
}

static int
write_blocks (struct check *c, const struct layout *l)
{
  uint64_t cluster = l->first + l->table, i;
  int r = 0;

  for (i = 0; i < l->entries && r == 0; ++i)
    if (l->needed[i])
      r = write_block (c, i, cluster++);
  return r;
}

static int
write_table (struct check *c, const struct layout *l)
{
  const uint64_t per_cluster = c->img->cluster_size / sizeof (uint64_t);
  uint64_t block = l->first + l->table, t, i, index;
  int r = 0;

  for (t = 0; t < l->table && r == 0; ++t) {
    for (i = 0; i < per_cluster; ++i) {
      index = t * per_cluster + i;
      c->table[i] = index < l->entries && l->needed[index]
        ? htobe64 (block++ << c->img->cluster_bits) : 0;
    }
    r = write_piece (c, OVERLAP_REFCOUNT_TABLE, l->first + t, c->table);
  }
  return r;
}

/* Let the header lead to the new table. */
static int
write_header (struct check *c, const struct layout *l)
{
  struct image *img = c->img;
  const uint64_t offset = l->first << img->cluster_bits;
  uint8_t buf[12];
  int r = SABOTAGED (SABOTAGE_REBUILD_SYNC) ? 0 : guard_sync (img);

  store_be64 (buf, offset);
  store_be32 (buf + 8, (uint32_t) l->table);
  if (r == 0)
    r = guard_write_buf (img, OVERLAP_MAIN_HEADER, buf, sizeof buf,
                         HEADER_OFFSET_REFCOUNT_TABLE);
  if (r == 0)
    r = guard_sync (img);
  if (r < 0) {
    report_error ("%s: check: writing refcount_table_offset in the header: "
                  "%s", img->config.filename, strerror (-r));
    return r;
  }
  img->header.refcount_table_offset = offset;
  img->header.refcount_table_clusters = (uint32_t) l->table;
  img->damage.broken[TABLE_REFCOUNTS] = false;
  return 0;
}

/* Mark the place of the new ones. */
static int
claim_new (struct check *c, const struct layout *l)
{
  struct image *img = c->img;
  const unsigned bits = img->cluster_bits;
  int r = guard_claim (img, OVERLAP_REFCOUNT_TABLE, l->first << bits,
                       l->table << bits);

  if (r < 0)
    return r;
  r = guard_claim (img, OVERLAP_REFCOUNT_BLOCK,
                   (l->first + l->table) << bits, l->blocks << bits);
  if (r < 0)
    guard_unclaim (img, OVERLAP_REFCOUNT_TABLE, l->first << bits,
                   l->table << bits);
  return r;
}

static void
unclaim_new (struct check *c, const struct layout *l)
{
  struct image *img = c->img;
  const unsigned bits = img->cluster_bits;

  guard_unclaim (img, OVERLAP_REFCOUNT_TABLE, l->first << bits,
                 l->table << bits);
  guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK,
                 (l->first + l->table) << bits, l->blocks << bits);
}

/* The old ones are metadata no more.  In an image that is not tracked
 * nothing is known of them, and it is opened anew.
 */
static void
unclaim_old (struct check *c, uint64_t table, uint64_t bytes,
             const uint64_t *blocks)
{
  struct image *img = c->img;
  uint64_t i;

  if (img->untracked || bytes == 0)
    return;
  guard_unclaim (img, OVERLAP_REFCOUNT_TABLE, table, bytes);
  for (i = 0; i < bytes / sizeof blocks[0]; ++i)
    if (blocks[i] != 0 && check_block_is_sound (c, blocks[i]))
      guard_unclaim (img, OVERLAP_REFCOUNT_BLOCK, blocks[i],
                     img->cluster_size);
}

/* The header leads to the new ones: from now on memory does, too. */
static int
switch_over (struct check *c, const struct layout *l)
{
  struct image *img = c->img;
  struct refcounts *rc = &img->refcounts;
  const uint64_t table = rc->table_offset;
  const uint64_t bytes = rc->table_clusters << img->cluster_bits;
  CLEANUP_FREE uint64_t *blocks = malloc (MAX (bytes, (uint64_t) 1));
  uint64_t i;
  int r;

  if (!blocks)
    return -ENOMEM;
  for (i = 0; i < bytes / sizeof blocks[0]; ++i)
    blocks[i] = refcounts_block_offset (img, i);
  r = refcounts_reload (img);
  if (r < 0)
    return r;
  claim_ends (img, OVERLAP_REFCOUNT_TABLE, l->first << img->cluster_bits);
  claim_ends (img, OVERLAP_REFCOUNT_BLOCK,
              (l->first + l->table) << img->cluster_bits);
  unclaim_old (c, table, bytes, blocks);
  return 0;
}

/* Count again, without the old structures and with the new. */
static int
prepare (struct check *c, struct layout *l)
{
  uint64_t i;
  int r;

  l->first = c->highest + 1;
  tally_free (&c->tally);
  r = tally_init (&c->tally, c->img->refcounts.order);
  c->recount = true;            /* the mistakes are known */
  if (r == 0)
    r = check_references (c, false);
  c->recount = false;
  if (r == 0)
    r = make_layout (c, l);
  for (i = 0; i < l->table + l->blocks && r == 0; ++i)
    r = tally_add (&c->tally, l->first + i);
  return r;
}

int
check_rebuild (struct check *c)
{
  CLEANUP_FREE uint8_t *needed = calloc (MAX_ENTRIES, 1);
  struct layout l = { .needed = needed };
  int r;

  if (!needed)
    return -ENOMEM;
  report_warning ("%s: check: rebuilding the refcount table and its blocks",
                  c->img->config.filename);
  r = prepare (c, &l);
  if (r == 0)
    r = claim_new (c, &l);
  if (r < 0)
    return r;
  r = write_blocks (c, &l);
  if (r == 0)
    r = write_table (c, &l);
  if (r < 0) {
    unclaim_new (c, &l);
    return r;
  }
  r = write_header (c, &l);
  return r == 0 ? switch_over (c, &l) : r;
}
