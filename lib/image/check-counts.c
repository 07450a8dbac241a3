/* SPDX-License-Identifier: BSD-3-Clause */

/* The check, second part: the reference counts against the references.
 *
 * Each refcount block is read, compared, corrected and written in one
 * go.  A count that is too low is raised (check=all); one that is too high
 * is a leak, and lowered (check=leaks and all), unless something could
 * not be followed: what has no reference that we saw may have one.
 *
 * In what order blocks reach the disk does not matter: no pointer
 * changes, and a count that is right is better than one that is not.
 *
 * References to clusters that no block covers need new blocks, and that
 * the refcounts are rebuilt.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "check.h"
#include "checked.h"
#include "refcount.h"
#include "report.h"

/* What a count should become. */
static uint64_t
corrected (const struct check *c, uint64_t count, uint64_t references)
{
  if (count < references)
    return c->what == CHECK_ALL ? references : count;
  return c->what != CHECK_REPORT && !c->unseen ? references : count;
}

/* Note COUNT clusters that are counted wrongly in the same way. */
static void
note (struct check *c, uint64_t cluster, uint64_t count,
      uint64_t references)
{
  check_mistake (c, count < references ? CHECK_KIND_TOO_LOW
                 : CHECK_KIND_LEAK, 1, "%s at host offset 0x%" PRIx64
                 ": its reference count is %" PRIu64 ", but it has %" PRIu64
                 " references", count < references ? "cluster"
                 : "leaked cluster", cluster << c->img->cluster_bits, count,
                 references);
}

/* Compare the block in C->table that covers clusters from FIRST on;
 * *RAISED and *LOWERED count what was corrected in it.
 */
static void
compare_block (struct check *c, uint64_t first, uint64_t *raised,
               uint64_t *lowered)
{
  const unsigned order = c->img->refcounts.order;
  const uint64_t n = UINT64_C (1) << c->img->refcounts.block_bits;
  const uint64_t file = div_up (atomic_load (&c->img->guard.end),
                                c->img->cluster_size);
  const uint64_t end = MAX (file, c->highest + 1);
  uint64_t i, count, references, new;

  /* There are no clusters past the end of the file, to be leaked, but
   * there may be half a cluster that is referred to.
   */
  *raised = *lowered = 0;
  for (i = 0; i < n && first + i < end; ++i) {
    count = refcount_get (c->table, order, i);
    references = tally_get (&c->tally, first + i);
    if (count == references)
      continue;
    note (c, first + i, count, references);
    new = corrected (c, count, references);
    if (new == count)
      continue;
    refcount_set (c->table, order, i, new);
    ++*(new > count ? raised : lowered);
  }
}

static int
failed (struct check *c, const char *doing, uint64_t offset, int r)
{
  report_error ("%s: check: %s the refcount block at host offset %" PRIu64
                ": %s", c->img->config.filename, doing, offset,
                strerror (-r));
  return r;
}

static int
check_block (struct check *c, uint64_t index, uint64_t offset)
{
  struct image *img = c->img;
  uint64_t raised, lowered;
  int r = storage_read (img->storage, c->table, img->cluster_size, offset);

  if (r < 0)
    return failed (c, "reading", offset, r);
  compare_block (c, index << img->refcounts.block_bits, &raised, &lowered);
  /* Blocks that will be replaced are left alone. */
  if (raised + lowered == 0 || c->rebuild)
    return 0;
  r = guard_write_buf (img, OVERLAP_REFCOUNT_BLOCK, c->table,
                       img->cluster_size, offset);
  if (r < 0)
    return failed (c, "writing", offset, r);
  c->errors_fixed += raised;
  c->leaks_fixed += lowered;
  return 0;
}

/* Pages of the tally that no block covers. */
static bool
find_uncovered (struct check *c, bool tell)
{
  struct image *img = c->img;
  struct tally_page *page = NULL;
  uint64_t i, references, entry;
  bool found = false;
  size_t at = 0;

  while (tally_next (&c->tally, &at, &page)) {
    entry = refcounts_block_offset (img, page->first
                                    >> img->refcounts.block_bits);
    if (check_block_place (c, entry) != 0)
      continue;
    for (i = 0; i < TALLY_PAGE; ++i) {
      references = refcount_get (page->counts, c->tally.order, i);
      if (references == 0)
        continue;
      found = true;
      if (tell)
        note (c, page->first + i, 0, references);
    }
  }
  return found;
}

int
check_counts (struct check *c)
{
  struct image *img = c->img;
  const uint64_t entries = img->refcounts.table_entries;
  uint64_t i, offset;
  int r = 0;

  if (find_uncovered (c, true))
    c->rebuild = true;
  for (i = 0; i < entries && r == 0; ++i) {
    offset = check_block_place (c, refcounts_block_offset (img, i));
    if (offset != 0)
      r = check_block (c, i, offset);
  }
  return r;
}
