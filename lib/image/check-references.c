/* SPDX-License-Identifier: BSD-3-Clause */

/* The check, first part: follow everything from the header on, and count
 * in the tally how often each host cluster is referred to.
 *
 * The tables are read from the file, a piece at a time and past the
 * caches: nothing is changed while a check runs, so the file says what
 * memory says.  What lies in a hole of the file has no entries.
 *
 * What is called a mistake follows 'qemu-img check', so that both agree:
 * a reference may end in the file's last, incomplete cluster, but no
 * later; reserved bits are mistakes but the entry counts; a table that is
 * where none can be is read all the same, and behind the end of the file
 * there are zeroes.  What is taken for entries then may be anything, so the
 * numbers say that the image is damaged, and not how much.  C->unseen is set
 * whenever that is so: it keeps a repair from believing in what is missing.
 *
 * Locks: none but refcounts.lock, for entries of the refcount table.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "check.h"
#include "checked.h"
#include "entries.h"
#include "l2.h"
#include "refcount.h"
#include "report.h"
#include "walk.h"

/* Entries of L1 tables that are followed although they were before. */
#define MAX_AGAIN 4096

/* LEN bytes at OFFSET are WHAT: every cluster of them gets one reference.
 */
static int
refer (struct check *c, const char *what, uint64_t offset, uint64_t len)
{
  const struct image *img = c->img;
  const uint64_t file = atomic_load (&img->guard.end);
  uint64_t end, cluster, last;
  int r;

  if (len == 0)
    return 0;
  if (ADD_OVERFLOW (offset, len, &end)
      || (end > file && end - file >= img->cluster_size)) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "%s at host offset 0x%" PRIx64
                   " (%" PRIu64 " bytes) reaches past the end of the file",
                   what, offset, len);
    c->unseen = true;
    return 0;
  }
  last = (end - 1) >> img->cluster_bits;
  for (cluster = offset >> img->cluster_bits; cluster <= last; ++cluster) {
    r = tally_add (&c->tally, cluster);
    if (r == -ERANGE)
      check_mistake (c, CHECK_KIND_BROKEN, 1, "the cluster at host offset "
                     "0x%" PRIx64 " has more references than refcounts of "
                     "%u bits can count", cluster << img->cluster_bits,
                     1u << c->tally.order);
    else if (r < 0)
      return r;
  }
  c->highest = MAX (c->highest, last);
  return 0;
}

/*----------------------------------------------------------------------
 * L2 tables.
 */

bool
check_read_l2 (struct check *c, uint64_t offset, int *r)
{
  struct image *img = c->img;

  *r = 0;
  if (offset >= atomic_load (&img->guard.end))
    return false;
  *r = storage_read (img->storage, c->table, img->cluster_size, offset);
  if (*r < 0)
    report_error ("%s: check: reading the L2 table at host offset %" PRIu64
                  ": %s", img->config.filename, offset, strerror (-*r));
  return *r == 0;
}

/* In a data file a cluster may be at offset 0, and has the COPIED flag. */
static bool
has_cluster (const struct check *c, uint64_t entry)
{
  return (entry & ENTRY_OFFSET) != 0
    || (c->img->map.layout.data_file && (entry & ENTRY_COPIED));
}

/* An entry of the active disk that has a host cluster, or is compressed:
 * where it lies, for the statistics.  *NEXT is where it would follow the
 * entry before it.  (An image that is spread out is slow to read on
 * rotating disks.)
 */
static void
note_allocated (struct check *c, uint64_t entry, uint64_t *next)
{
  const uint64_t offset = entry & ENTRY_OFFSET;

  if (entry & ENTRY_COMPRESSED) {
    c->allocated++;
    c->compressed++;
    c->fragmented++;
  }
  else if (has_cluster (c, entry)) {
    c->allocated++;
    if (*next != 0 && offset != *next)
      c->fragmented++;
    *next = offset + c->img->cluster_size;
  }
}

static int
refer_compressed (struct check *c, uint64_t table, uint64_t entry,
                  uint64_t bitmap)
{
  struct compressed_place place;
  int r;

  if (entry & ENTRY_COPIED)
    check_mistake (c, CHECK_KIND_BROKEN, 1, "compressed entry 0x%" PRIx64
                   " in the L2 table at host offset 0x%" PRIx64
                   " has the COPIED flag", entry, table);
  if (c->img->map.layout.data_file) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "compressed entry 0x%" PRIx64
                   " in the L2 table at host offset 0x%" PRIx64
                   ", but the image has a data file", entry, table);
    c->unseen = true;
    return 0;
  }
  if (bitmap != 0) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "compressed entry 0x%" PRIx64
                   " in the L2 table at host offset 0x%" PRIx64
                   " has subclusters", entry, table);
    c->unseen = true;
    return 0;
  }
  if (!l2_compressed_place (entry & ~ENTRY_COPIED, c->img->cluster_bits,
                            &place)) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "compressed entry 0x%" PRIx64
                   " in the L2 table at host offset 0x%" PRIx64
                   " points beyond any file", entry, table);
    c->unseen = true;
    return 0;
  }
  r = check_overlap (c, place.offset, place.length);
  if (r == 0)
    r = refer (c, "a compressed cluster", place.offset, place.length);
  return r;
}

static int
refer_entry (struct check *c, uint64_t table, uint64_t entry,
             uint64_t bitmap)
{
  const uint64_t offset = entry & ENTRY_OFFSET;
  const uint32_t allocated = (uint32_t) bitmap;
  int r;

  if (entry & ENTRY_COMPRESSED)
    return refer_compressed (c, table, entry, bitmap);
  if (entry & L2_RESERVED)
    check_mistake (c, CHECK_KIND_BROKEN, 1, "entry 0x%" PRIx64 " in the L2 "
                   "table at host offset 0x%" PRIx64 " has reserved bits "
                   "set", entry, table);
  if ((allocated & bitmap >> 32) || (allocated && !has_cluster (c, entry))) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "entry 0x%" PRIx64 " in the L2 "
                   "table at host offset 0x%" PRIx64 " has an invalid "
                   "subcluster bitmap 0x%016" PRIx64, entry, table, bitmap);
    c->unseen = true;           /* but it has its cluster */
  }
  if (offset == 0)
    return 0;
  if (!is_aligned (offset, c->img->cluster_size)) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "entry 0x%" PRIx64 " in the L2 "
                   "table at host offset 0x%" PRIx64 " is no multiple of "
                   "the cluster size", entry, table);
    c->unseen = true;           /* a part of two clusters, as to QEMU */
  }
  if (c->img->map.layout.data_file)
    return 0;                   /* nothing of this file is referred to */
  r = check_overlap (c, offset, c->img->cluster_size);
  if (r == 0)
    r = refer (c, "a data cluster", offset, c->img->cluster_size);
  return r;
}

static int
refer_l2 (struct check *c, uint64_t offset, bool active)
{
  const unsigned words = check_l2_words (c);
  uint64_t i, n = check_l2_entries (c), entry, bitmap, next = 0;
  int r;

  if (!check_read_l2 (c, offset, &r))
    return r;
  for (i = 0; i < n && r == 0; ++i) {
    entry = be64toh (c->table[i * words]);
    bitmap = words > 1 ? be64toh (c->table[i * words + 1]) : 0;
    if (active && !c->recount)
      note_allocated (c, entry, &next);
    if (entry != 0 || bitmap != 0)
      r = refer_entry (c, offset, entry, bitmap);
  }
  return r;
}

/*----------------------------------------------------------------------
 * L1 tables.
 */

static int
refer_l1_entry (struct check *c, uint64_t entry, bool active)
{
  const uint64_t table = entry & ENTRY_OFFSET;
  int r;

  if (entry & L1_RESERVED)
    check_mistake (c, CHECK_KIND_BROKEN, 1, "L1 entry 0x%" PRIx64
                   " has reserved bits set", entry);
  if (table == 0) {
    check_mistake (c, CHECK_KIND_BROKEN, 0, "L1 entry 0x%" PRIx64
                   " is not 0, but has no table: what QEMU counts is that "
                   "the header were one", entry);
    c->unseen = true;
  }
  r = refer (c, "an L2 table", table, c->img->cluster_size);
  if (r < 0)
    return r;
  if (!is_aligned (table, c->img->cluster_size)) {
    check_mistake (c, CHECK_KIND_BROKEN, 1, "L1 entry 0x%" PRIx64 " is no "
                   "multiple of the cluster size", entry);
    c->unseen = true;
  }
  return refer_l2 (c, table, active);
}

static int
refer_l1 (struct check *c, const char *what, uint64_t offset,
          uint64_t count, bool active)
{
  const uint64_t before = c->steps_done;
  struct entries e;
  uint64_t i, entry;
  int more, r = refer (c, what, offset, count * sizeof entry);

  if (r != 0)
    return r;
  entries_init (&e, c->img->storage, offset, count);
  while ((more = entries_next (&e, &i, &entry)) > 0) {
    c->steps_done = before + i;
    check_step (c);
    r = refer_l1_entry (c, entry, active);
    if (r != 0)
      return r;
  }
  if (more < 0)
    report_error ("%s: check: reading %s at host offset %" PRIu64 ": %s",
                  c->img->config.filename, what, offset, strerror (-more));
  c->steps_done = before + count;
  return more;
}

/* Snapshots share L2 tables, but not L1 tables: what an L1 table is used
 * for twice is a mistake of the counts of all that it leads to.  A table
 * that is used many times is followed so often only that it does not take
 * long.
 */
static int
refer_snapshot (struct check *c, const struct snapshot *s)
{
  const uint64_t first = s->l1_table_offset >> c->img->cluster_bits;

  if (s->l1_size > 0 && tally_get (&c->tally, first) > 0) {
    if (s->l1_size > MAX_AGAIN - c->again) {
      check_mistake (c, CHECK_KIND_BROKEN, 1, "the L1 table of a snapshot at "
                     "host offset 0x%" PRIx64 " is used for something else, "
                     "too", s->l1_table_offset);
      c->unseen = true;
      return 0;
    }
    c->again += s->l1_size;
  }
  return refer_l1 (c, "a snapshot's L1 table", s->l1_table_offset,
                   s->l1_size, false);
}

/* Entry I of the table.  WHY: its L1 table is where none can be; what is
 * there is followed for the numbers, if it has a place at all.
 */
static int
refer_snapshot_entry (struct check *c, uint32_t i, const struct snapshot *s,
                      const char *why)
{
  const bool nowhere = !is_aligned (s->l1_table_offset, c->img->cluster_size)
    || s->l1_table_offset > INT64_MAX
    || s->l1_size > MAX_L1_BYTES / sizeof (uint64_t);

  if (c->img->header.version >= 3 && !s->has_disk_size)
    check_mistake (c, CHECK_KIND_BROKEN, 1, "snapshot table entry %" PRIu32
                   " is incomplete: it has no disk size", i);
  if (why) {
    check_mistake (c, CHECK_KIND_BROKEN, nowhere, "%s", why);
    c->unseen = true;
  }
  return nowhere ? 0 : refer_snapshot (c, s);
}

/* A table that the image was opened without: what can be used of it.  What
 * is past the end of the file are zeroes.
 */
static int
refer_broken_table (struct check *c)
{
  struct image *img = c->img;
  const struct header *h = &img->header;
  const uint64_t file = atomic_load (&img->guard.end);
  struct snapshot_walk w = { .at = 0 };
  uint8_t buf[SNAPSHOT_MIN_ENTRY];
  struct snapshot s;
  int r = 0;

  while (r == 0 && w.index < h->nb_snapshots) {
    r = storage_read (img->storage, buf, sizeof buf,
                      h->snapshots_offset + w.at);
    if (r < 0)
      report_error ("%s: check: reading snapshot table entry %" PRIu32 ": %s",
                    img->config.filename, w.index, strerror (-r));
    else if (snapshot_walk (&w, buf, img->cluster_size, file, &s))
      r = refer_snapshot_entry (c, w.index - 1, &s,
                                w.sound ? NULL : w.why.text);
    else {
      check_mistake (c, CHECK_KIND_BROKEN, 1, "%s", w.why.text);
      c->unseen = true;
      break;
    }
  }
  return r < 0 ? r : refer (c, "the snapshot table", h->snapshots_offset,
                            w.at);
}

static int
refer_snapshots (struct check *c)
{
  const struct snapshot_table *t = &c->img->snapshots;
  uint32_t i;
  int r = 0;

  if (c->img->map.layout.data_file && c->img->header.nb_snapshots > 0)
    check_mistake (c, CHECK_KIND_BROKEN, 1, "snapshots and an external data "
                   "file");
  if (t->count != c->img->header.nb_snapshots)
    return refer_broken_table (c);
  for (i = 0; i < t->count && r == 0; ++i)
    r = refer_snapshot_entry (c, i, &t->v[i], NULL);
  return r;
}

/*----------------------------------------------------------------------
 * The rest.
 */

static int
refer_piece (void *opaque, struct image *img, enum overlap_type type,
             uint64_t offset, uint64_t len)
{
  (void) img;
  return refer (opaque, overlap_type_text (type), offset, len);
}

/* Entry I of the refcount table. */
static int
refer_block (struct check *c, uint64_t i)
{
  const uint64_t entry = refcounts_block_offset (c->img, i);
  uint64_t others;

  if (entry == 0)
    return 0;
  if (!check_block_is_sound (c, entry)) {
    check_mistake (c, CHECK_KIND_STRUCTURE, 1, "refcount table entry %"
                   PRIu64 " is 0x%" PRIx64 ", where no refcount block can be",
                   i, entry);
    c->rebuild = true;
    return 0;
  }
  others = tally_get (&c->tally, entry >> c->img->cluster_bits);
  if (others > 0) {
    check_mistake (c, CHECK_KIND_STRUCTURE, 1, "refcount block %" PRIu64
                   " at host offset 0x%" PRIx64 " is used for something "
                   "else, too", i, entry);
    c->rebuild = true;
  }
  /* One reference too many to count is not the fault of the others, and
   * rebuilding drops it.
   */
  return others < refcount_max (c->tally.order)
    ? refer (c, "a refcount block", entry, c->img->cluster_size) : 0;
}

/* After all else: so that a second use of a block is seen. */
static int
refer_structure (struct check *c)
{
  struct refcounts *rc = &c->img->refcounts;
  const uint64_t first = rc->table_offset >> c->img->cluster_bits;
  const bool unseen = c->unseen;
  uint64_t i;
  int r = refer (c, "the refcount table", rc->table_offset,
                 rc->table_clusters << c->img->cluster_bits);

  c->unseen = unseen;           /* no references are behind it */
  for (i = 0; i < rc->table_clusters && r == 0; ++i)
    if (tally_get (&c->tally, first + i) != 1)
      c->rebuild = true;        /* its counts will not fit either */
  for (i = 0; i < rc->table_entries && r == 0; ++i)
    r = refer_block (c, i);
  return r;
}

int
check_references (struct check *c, bool structure)
{
  struct image *img = c->img;
  const overlap_set mine =
    OVERLAP_BIT (OVERLAP_ACTIVE_L1) | OVERLAP_BIT (OVERLAP_ACTIVE_L2)
    | OVERLAP_BIT (OVERLAP_INACTIVE_L1) | OVERLAP_BIT (OVERLAP_INACTIVE_L2)
    | OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE)
    | OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK);
  int r;

  c->again = 0;
  r = walk_metadata (img, OVERLAP_ALL & ~mine, refer_piece, c);
  if (r == 0)
    r = refer_l1 (c, "the active L1 table", img->header.l1_table_offset,
                  img->header.l1_size, true);
  if (r == 0)
    r = refer_snapshots (c);
  if (r == 0 && structure)
    r = refer_structure (c);
  return r;
}
