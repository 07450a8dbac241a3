/* SPDX-License-Identifier: BSD-3-Clause */

/* How often is each host cluster referred to?  The check counts here
 * what it then compares with the reference counts of the image.
 *
 * Counts have the width that the image's have, so that all of this takes
 * the memory of its refcount blocks and little more.  They are kept in
 * pages of 64 clusters, made when the first reference comes, in a hash
 * table: a file may be sparse, and what an image refers to in it is
 * bounded by its tables, not by its length.
 *
 * Locks: none, one thread uses a tally.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "refcount.h"
#include "tally.h"

int
tally_init (struct tally *t, unsigned order)
{
  memset (t, 0, sizeof *t);
  t->order = order;
  t->hash_size = 256;
  t->hash = calloc (t->hash_size, sizeof t->hash[0]);
  return t->hash ? 0 : -ENOMEM;
}

void
tally_free (struct tally *t)
{
  struct tally_page *page, *next;
  size_t i;

  for (i = 0; t->hash && i < t->hash_size; ++i) {
    for (page = t->hash[i]; page; page = next) {
      next = page->next;
      free (page);
    }
  }
  free (t->hash);
  memset (t, 0, sizeof *t);
}

static size_t
bucket (const struct tally *t, uint64_t first)
{
  return first / TALLY_PAGE * UINT64_C (0x9e3779b97f4a7c15) >> 20
    & (t->hash_size - 1);
}

static struct tally_page *
find (struct tally *t, uint64_t first)
{
  struct tally_page *page = t->last;

  if (page && page->first == first)
    return page;
  for (page = t->hash[bucket (t, first)]; page; page = page->next)
    if (page->first == first)
      t->last = page;
  return t->last && t->last->first == first ? t->last : NULL;
}

/* Twice the buckets.  Without memory for that the chains get longer. */
static void
grow (struct tally *t)
{
  struct tally_page **old = t->hash, *page, *next;
  size_t old_size = t->hash_size, i, b;

  t->hash = calloc (old_size * 2, sizeof t->hash[0]);
  if (!t->hash) {
    t->hash = old;
    return;
  }
  t->hash_size = old_size * 2;
  for (i = 0; i < old_size; ++i) {
    for (page = old[i]; page; page = next) {
      next = page->next;
      b = bucket (t, page->first);
      page->next = t->hash[b];
      t->hash[b] = page;
    }
  }
  free (old);
}

static struct tally_page *
new_page (struct tally *t, uint64_t first)
{
  struct tally_page *page
    = calloc (1, sizeof *page + ((size_t) TALLY_PAGE << t->order) / 8);
  size_t b;

  if (!page)
    return NULL;
  if (t->pages >= t->hash_size)
    grow (t);
  b = bucket (t, first);
  page->first = first;
  page->next = t->hash[b];
  t->hash[b] = page;
  t->pages++;
  t->last = page;
  return page;
}

int
tally_add (struct tally *t, uint64_t cluster)
{
  const uint64_t i = cluster % TALLY_PAGE;
  struct tally_page *page = find (t, cluster - i);
  uint64_t value;

  if (!page)
    page = new_page (t, cluster - i);
  if (!page)
    return -ENOMEM;
  value = refcount_get (page->counts, t->order, i);
  if (value == refcount_max (t->order))
    return -ERANGE;
  refcount_set (page->counts, t->order, i, value + 1);
  return 0;
}

uint64_t
tally_get (struct tally *t, uint64_t cluster)
{
  const uint64_t i = cluster % TALLY_PAGE;
  struct tally_page *page = find (t, cluster - i);

  return page ? refcount_get (page->counts, t->order, i) : 0;
}

bool
tally_next (const struct tally *t, size_t *i, struct tally_page **page)
{
  if (*page)
    *page = (*page)->next;
  while (!*page && *i < t->hash_size)
    *page = t->hash[(*i)++];
  return *page != NULL;
}
