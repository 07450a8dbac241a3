/* SPDX-License-Identifier: BSD-3-Clause */

/* The check, third part: the COPIED flags of the active disk, which must
 * be set where a reference count is one, and only there (qcow2
 * specification, "Cluster mapping").  Those of snapshots mean nothing.
 * The clusters of a data file have no counts: each is its entry's alone,
 * as if the count were one.
 *
 * It comes after the counts, so that the flags are compared with what
 * these have become.  A flag is corrected by a write of its entry's 8
 * bytes, and in the L1 table in memory; what the caches have of the rest
 * is forgotten by the caller.
 *
 * Locks: refcounts.lock.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "byteorder.h"
#include "check.h"
#include "checked.h"
#include "l2.h"
#include "refcount.h"
#include "report.h"

/* The count of CLUSTER in the block at PLACE, past the cache, which has
 * sound blocks only.
 */
static int
read_count (struct check *c, uint64_t place, uint64_t cluster,
            uint64_t *count)
{
  const unsigned order = c->img->refcounts.order;
  const uint64_t i
    = cluster & ((UINT64_C (1) << c->img->refcounts.block_bits) - 1);
  const uint64_t per_word = 64 >> order;
  uint64_t word;
  int r = storage_read (c->img->storage, &word, sizeof word,
                        place + i / per_word * sizeof word);

  if (r < 0)
    report_error ("%s: check: reading the refcount block at host offset %"
                  PRIu64 ": %s", c->img->config.filename, place,
                  strerror (-r));
  else
    *count = refcount_get (&word, order, i % per_word);
  return r;
}

/* The count of the cluster at OFFSET that a table (TYPE) leads to; false
 * if it cannot be known.  A block past the end of the file reads as
 * zeroes.
 */
static bool
count_of (struct check *c, int type, uint64_t offset, uint64_t *count,
          int *r)
{
  struct image *img = c->img;
  const uint64_t cluster = offset >> img->cluster_bits;
  const uint64_t entry
    = refcounts_block_offset (img, cluster >> img->refcounts.block_bits);
  const uint64_t place = check_block_place (c, entry);

  *r = 0;
  *count = type == OVERLAP_ACTIVE_L2 && img->map.layout.data_file;
  if (*count)
    return true;
  if (!check_block_is_sound (c, entry) && place == 0)
    return is_aligned (entry & ~REFCOUNT_TABLE_RESERVED,
                       img->cluster_size);
  *r = place == entry ? refcounts_get (img, cluster, count)
    : read_count (c, place, cluster, count);
  return *r == 0;
}

static int
write_entry (struct check *c, int type, uint64_t place, uint64_t entry)
{
  uint8_t buf[8];
  int r;

  store_be64 (buf, entry);
  r = type == OVERLAP_ACTIVE_L2 ? guard_write_flag (c->img, buf, place)
    : guard_write_buf (c->img, type, buf, sizeof buf, place);
  if (r < 0)
    report_error ("%s: check: writing the COPIED flag at host offset %"
                  PRIu64 ": %s", c->img->config.filename, place,
                  strerror (-r));
  else
    c->errors_fixed++;
  return r;
}

/* An entry of an L1 or L2 table (TYPE) at PLACE.  *ENTRY is corrected, if
 * its cluster can be.
 */
static int
check_flag (struct check *c, int type, uint64_t place, uint64_t *entry)
{
  uint64_t count;
  int r;

  if (!count_of (c, type, *entry & ENTRY_OFFSET, &count, &r)
      || (count == 1) == ((*entry & ENTRY_COPIED) != 0))
    return r;
  check_mistake (c, CHECK_KIND_COPIED, 1, "%s entry 0x%" PRIx64 " at host "
                 "offset 0x%" PRIx64 ": its COPIED flag does not fit to a "
                 "reference count of %" PRIu64,
                 type == OVERLAP_ACTIVE_L1 ? "L1" : "L2", *entry, place,
                 count);
  if (c->what != CHECK_ALL
      || !is_aligned (*entry & ENTRY_OFFSET, c->img->cluster_size))
    return 0;
  *entry ^= ENTRY_COPIED;
  return write_entry (c, type, place, *entry);
}

static int
check_table (struct check *c, uint64_t table)
{
  const unsigned words = check_l2_words (c);
  const uint64_t n = check_l2_entries (c);
  uint64_t i, entry;
  int r;

  if (!check_read_l2 (c, table, &r))
    return r;
  for (i = 0; i < n && r == 0; ++i) {
    entry = be64toh (c->table[i * words]);
    if ((entry & ENTRY_COMPRESSED) || (entry & ENTRY_OFFSET) == 0)
      continue;
    r = check_flag (c, OVERLAP_ACTIVE_L2, table + i * words * 8, &entry);
  }
  return r;
}

int
check_flags (struct check *c)
{
  struct image *img = c->img;
  uint64_t i, entry;
  int r = 0;

  for (i = 0; i < img->map.l1_size && r == 0; ++i) {
    check_step (c);
    entry = atomic_load (&img->map.l1[i]);
    if ((entry & ENTRY_OFFSET) == 0)
      continue;
    r = check_flag (c, OVERLAP_ACTIVE_L1,
                    img->header.l1_table_offset + i * sizeof entry, &entry);
    atomic_store (&img->map.l1[i], entry);
    if (r == 0)
      r = check_table (c, entry & ENTRY_OFFSET);
  }
  return r;
}
