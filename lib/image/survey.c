/* SPDX-License-Identifier: BSD-3-Clause */

/* A survey of the file: metadata, the active disk's data, the snapshots'
 * data, and last what only the reference counts know of.
 *
 * A bit for each cluster says whether it has been told of already, and
 * one for each that it is an L2 table whose entries have been followed, so
 * that the many snapshots which share a table cost one reading of it.
 * The bits lie in pages that are made where the file has something; the
 * array that leads to them is bounded by the length of the file.
 *
 * Neighbours that are alike are joined before they are told.
 *
 * That data is shared is what the missing COPIED flag of an active entry
 * says, in an image that has snapshots.
 *
 * Locks: as walk_metadata.  The tables are read from the file, past the
 * caches: nobody changes anything.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "entries.h"
#include "image-internal.h"
#include "refcount.h"
#include "report.h"
#include "survey.h"
#include "walk.h"

/*----------------------------------------------------------------------
 * Sets of clusters.
 */

#define SET_PAGE_BITS 15
#define SET_PAGE (UINT64_C (1) << SET_PAGE_BITS)

struct set {
  uint64_t **page;              /* owned, NULL: none of them */
  uint64_t pages;
};

static int
set_init (struct set *set, uint64_t clusters)
{
  set->pages = div_up (clusters, SET_PAGE);
  set->page = calloc (set->pages + 1, sizeof *set->page);
  return set->page ? 0 : -ENOMEM;
}

static void
set_free (struct set *set)
{
  uint64_t i;

  for (i = 0; set->page && i < set->pages; ++i)
    free (set->page[i]);
  free (set->page);
}

/* Add a cluster.  1 if it was there, 0 if not; -ENOMEM. */
static int
set_add (struct set *set, uint64_t cluster)
{
  uint64_t **page = &set->page[cluster >> SET_PAGE_BITS], *word;
  const uint64_t bit = UINT64_C (1) << cluster % 64;

  if (!*page)
    *page = calloc (SET_PAGE / 64, sizeof **page);
  if (!*page)
    return -ENOMEM;
  word = &(*page)[cluster % SET_PAGE / 64];
  if (*word & bit)
    return 1;
  *word |= bit;
  return 0;
}

/*----------------------------------------------------------------------
 * Telling.
 */

struct survey {
  struct image *img;
  survey_fn *fn;
  void *opaque;
  uint64_t clusters;            /* of the file */
  struct set told, followed;
  struct survey_piece now;      /* not told yet; count 0: nothing */
  uint64_t *table;              /* a cluster, for an L2 table or a block */
  uint64_t steps, done;         /* L1 entries */
};

static int
flush (struct survey *s)
{
  const struct survey_piece piece = s->now;

  s->now.count = 0;
  return piece.count > 0 ? s->fn (s->opaque, &piece) : 0;
}

static bool
is_alike (const struct survey_piece *a, const struct survey_piece *b)
{
  return a->kind == b->kind && a->type == b->type
    && a->snapshot == b->snapshot;
}

/* A cluster of the file is what LIKE says, if it is not something else
 * already.
 */
static int
tell (struct survey *s, const struct survey_piece *like, uint64_t cluster)
{
  int r;

  if (cluster >= s->clusters)
    return 0;
  r = set_add (&s->told, cluster);
  if (r != 0)
    return r < 0 ? r : 0;
  if (s->now.count > 0 && s->now.first + s->now.count == cluster
      && is_alike (&s->now, like)) {
    s->now.count++;
    return 0;
  }
  r = flush (s);
  s->now = *like;
  s->now.first = cluster;
  s->now.count = 1;
  return r;
}

/* LEN bytes at OFFSET, which may lie anywhere. */
static int
tell_bytes (struct survey *s, const struct survey_piece *like,
            uint64_t offset, uint64_t len)
{
  const unsigned bits = s->img->cluster_bits;
  uint64_t end, cluster;
  int r = 0;

  if (len == 0 || ADD_OVERFLOW (offset, len, &end))
    return 0;
  end = MIN (div_up (end, s->img->cluster_size), s->clusters);
  for (cluster = offset >> bits; cluster < end && r == 0; ++cluster)
    r = tell (s, like, cluster);
  return r;
}

static int
tell_metadata (void *opaque, struct image *img, enum overlap_type type,
               uint64_t offset, uint64_t len)
{
  const struct survey_piece like = { .kind = SURVEY_METADATA, .type = type };

  (void) img;
  return tell_bytes (opaque, &like, offset, len);
}

/*----------------------------------------------------------------------
 * Data.
 */

/* Entry WORD of an L2 table of snapshot OWNER, or of the active disk. */
static int
survey_entry (struct survey *s, uint64_t word, const uint32_t *owner)
{
  struct survey_piece like = { .kind = SURVEY_DATA };
  struct compressed_place place;

  if (word & ENTRY_COMPRESSED) {
    like.kind = SURVEY_COMPRESSED;
    if (!l2_compressed_place (word & ~ENTRY_COPIED, s->img->cluster_bits,
                              &place))
      return 0;
    return tell_bytes (s, &like, place.offset, place.length);
  }
  if ((word & ENTRY_OFFSET) == 0)
    return 0;
  if (owner) {
    like.kind = SURVEY_SNAPSHOT;
    like.snapshot = *owner;
  }
  else if (!(word & ENTRY_COPIED) && s->img->snapshots.count > 0)
    like.kind = SURVEY_SHARED;
  return tell (s, &like, (word & ENTRY_OFFSET) >> s->img->cluster_bits);
}

static int
read_cluster (struct survey *s, const char *what, uint64_t offset)
{
  int r = storage_read (s->img->storage, s->table, s->img->cluster_size,
                        offset);

  if (r < 0)
    report_error ("%s: reading %s at host offset %" PRIu64 ": %s",
                  s->img->config.filename, what, offset, strerror (-r));
  return r;
}

static bool
can_be_table (struct survey *s, uint64_t offset)
{
  return offset != 0 && is_aligned (offset, s->img->cluster_size)
    && offset >> s->img->cluster_bits < s->clusters;
}

static int
survey_l2 (struct survey *s, uint64_t offset, const uint32_t *owner)
{
  const unsigned step = s->img->map.layout.extended ? 2 : 1;
  const uint64_t words = s->img->cluster_size / sizeof *s->table;
  uint64_t i;
  int r;

  if (!can_be_table (s, offset))
    return 0;
  r = set_add (&s->followed, offset >> s->img->cluster_bits);
  if (r != 0)
    return r < 0 ? r : 0;
  r = read_cluster (s, "the L2 table", offset);
  for (i = 0; i < words && r == 0; i += step)
    if (s->table[i] != 0)
      r = survey_entry (s, be64toh (s->table[i]), owner);
  return r;
}

static void
step_to (struct survey *s, uint64_t done)
{
  const struct image_config *config = &s->img->config;

  s->done = done;
  if (config->check_progress)
    config->check_progress (config->check_opaque, MIN (s->done, s->steps),
                            s->steps);
}

static int
survey_active (struct survey *s)
{
  struct image *img = s->img;
  uint64_t i;
  int r = 0;

  for (i = 0; i < img->map.l1_size && r == 0; ++i) {
    r = survey_l2 (s, atomic_load (&img->map.l1[i]) & ENTRY_OFFSET, NULL);
    step_to (s, i + 1);
  }
  return r;
}

static int
survey_snapshot (struct survey *s, uint32_t n)
{
  const struct snapshot *snapshot = &s->img->snapshots.v[n];
  const uint64_t before = s->done;
  struct entries e;
  uint64_t i, entry;
  int more, r;

  entries_init (&e, s->img->storage, snapshot->l1_table_offset,
                snapshot->l1_size);
  while ((more = entries_next (&e, &i, &entry)) > 0) {
    r = survey_l2 (s, entry & ENTRY_OFFSET, &n);
    if (r != 0)
      return r;
    step_to (s, before + i + 1);
  }
  if (more < 0)
    report_error ("%s: reading the L1 table of snapshot %" PRIu32 ": %s",
                  s->img->config.filename, n, strerror (-more));
  step_to (s, before + snapshot->l1_size);
  return more;
}

static int
survey_data (struct survey *s)
{
  uint32_t i;
  int r;

  if (s->img->map.layout.data_file)
    return 0;
  s->steps = s->img->map.l1_size;
  for (i = 0; i < s->img->snapshots.count; ++i)
    s->steps += s->img->snapshots.v[i].l1_size;
  r = survey_active (s);
  for (i = 0; i < s->img->snapshots.count && r == 0; ++i)
    r = survey_snapshot (s, i);
  return r;
}

/*----------------------------------------------------------------------
 * What only the counts know of.
 */

static int
survey_block (struct survey *s, uint64_t index, uint64_t offset)
{
  const struct refcounts *rc = &s->img->refcounts;
  const struct survey_piece like = { .kind = SURVEY_LEAKED };
  const uint64_t first = index << rc->block_bits;
  const uint64_t n = UINT64_C (1) << rc->block_bits;
  uint64_t i;
  int r;

  if (first >= s->clusters || !can_be_table (s, offset))
    return 0;
  r = read_cluster (s, "the refcount block", offset);
  for (i = 0; r == 0; ++i) {
    i = refcount_find_used (s->table, rc->order, i, n);
    if (i >= n)
      break;
    r = tell (s, &like, first + i);
  }
  return r;
}

static int
survey_counts (struct survey *s)
{
  const uint64_t entries = s->img->refcounts.table_entries;
  uint64_t i;
  int r = 0;

  for (i = 0; i < entries && r == 0; ++i)
    r = survey_block (s, i, refcounts_block_offset (s->img, i));
  return r;
}

int
image_survey (struct image *img, survey_fn *fn, void *opaque)
{
  struct survey s = { .img = img, .fn = fn, .opaque = opaque };
  int r;

  s.clusters = div_up (atomic_load (&img->guard.end), img->cluster_size);
  s.table = malloc (img->cluster_size);
  r = s.table ? set_init (&s.told, s.clusters) : -ENOMEM;
  if (r == 0)
    r = set_init (&s.followed, s.clusters);
  if (r == 0)
    r = walk_metadata (img, OVERLAP_ALL, tell_metadata, &s);
  if (r == 0)
    r = survey_data (&s);
  if (r == 0)
    r = survey_counts (&s);
  if (r == 0)
    r = flush (&s);
  if (r == -ENOMEM)
    report_error ("%s: not enough memory for the survey",
                  img->config.filename);
  set_free (&s.told);
  set_free (&s.followed);
  free (s.table);
  return r;
}
