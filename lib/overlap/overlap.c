/* SPDX-License-Identifier: BSD-3-Clause */

/* First version of the tracker: groups of clusters in a hash table
 * under one reader-writer lock.  Every mark is counted per type.
 */

#include <config.h>

#include <pthread.h>
#include <stdlib.h>

#include "overlap.h"
#include "overlap-internal.h"

#define GROUP 64u
#define BUCKETS 65536u

struct group {
  struct group *next;
  uint64_t first;
  uint32_t owners[GROUP][OVERLAP_TYPES];
  overlap_set set[GROUP];
};

struct overlap {
  pthread_rwlock_t lock;
  struct group *buckets[BUCKETS];
  uint64_t used, groups;
};

static struct group **
bucket (struct overlap *o, uint64_t cluster)
{
  return &o->buckets[(cluster / GROUP * 0x9e3779b97f4a7c15u) >> 48];
}

static struct group *
find (struct overlap *o, uint64_t cluster)
{
  struct group *g;

  for (g = *bucket (o, cluster); g; g = g->next)
    if (g->first == cluster / GROUP * GROUP)
      return g;
  return NULL;
}

struct overlap *
overlap_new (const struct overlap_config *config)
{
  struct overlap *o = calloc (1, sizeof *o);

  (void) config;
  if (o) {
    pthread_rwlock_init (&o->lock, NULL);
    o->used = sizeof *o;
  }
  return o;
}

void
overlap_free (struct overlap *o)
{
  unsigned i;

  if (!o)
    return;
  for (i = 0; i < BUCKETS; ++i) {
    struct group *g = o->buckets[i];

    while (g) {
      struct group *next = g->next;
      free (g);
      g = next;
    }
  }
  pthread_rwlock_destroy (&o->lock);
  free (o);
}

static void
query (struct overlap *o, uint64_t first, uint64_t count,
       overlap_set mask, struct overlap_answer *a)
{
  uint64_t c = first, end = first + count;
  bool found = false;

  *a = (struct overlap_answer) { .all = OVERLAP_ALL };
  while (c < end) {
    struct group *g = find (o, c);
    overlap_set set;

    if (!g) {
      a->all = 0;
      c = c / GROUP * GROUP + GROUP;
      continue;
    }
    set = g->set[c % GROUP];
    a->any |= set;
    a->all &= set;
    if (!found && (set & mask)) {
      found = true;
      a->where = c;
    }
    c++;
  }
}

static void
mark (struct overlap *o, enum overlap_type type, uint64_t first,
      uint64_t count)
{
  uint64_t c;

  for (c = first; c < first + count; ++c) {
    struct group *g = find (o, c);

    if (!g) {
      g = calloc (1, sizeof *g);
      if (!g)
        abort ();
      g->first = c / GROUP * GROUP;
      g->next = *bucket (o, c);
      *bucket (o, c) = g;
      o->used += sizeof *g;
      o->groups++;
    }
    g->owners[c % GROUP][type]++;
    g->set[c % GROUP] |= OVERLAP_BIT (type);
  }
}

overlap_set
overlap_enter (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count, uint64_t *where)
{
  struct overlap_answer a;
  overlap_set bad = OVERLAP_ALL & ~type_allows (type);

  pthread_rwlock_wrlock (&o->lock);
  query (o, first, count, bad, &a);
  mark (o, type, first, count);
  pthread_rwlock_unlock (&o->lock);
  if ((a.any & bad) && where)
    *where = a.where;
  return a.any & bad;
}

overlap_set
overlap_claim (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count, uint64_t *where)
{
  struct overlap_answer a;

  pthread_rwlock_wrlock (&o->lock);
  query (o, first, count, OVERLAP_ALL, &a);
  if (!a.any)
    mark (o, type, first, count);
  pthread_rwlock_unlock (&o->lock);
  if (a.any && where)
    *where = a.where;
  return a.any;
}

uint64_t
overlap_leave (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count)
{
  uint64_t c, missing = 0;

  pthread_rwlock_wrlock (&o->lock);
  for (c = first; c < first + count; ++c) {
    struct group *g = find (o, c);

    if (!g || !g->owners[c % GROUP][type])
      missing++;
    else if (--g->owners[c % GROUP][type] == 0)
      g->set[c % GROUP] &= ~OVERLAP_BIT (type);
  }
  pthread_rwlock_unlock (&o->lock);
  return missing;
}

void
overlap_query (struct overlap *o, uint64_t first, uint64_t count,
               overlap_set mask, struct overlap_answer *answer)
{
  pthread_rwlock_rdlock (&o->lock);
  query (o, first, count, mask, answer);
  pthread_rwlock_unlock (&o->lock);
}

bool
overlap_hit (struct overlap *o, uint64_t first, uint64_t count,
             overlap_set mask)
{
  struct overlap_answer a;

  overlap_query (o, first, count, mask, &a);
  return (a.any & mask) != 0;
}

void
overlap_get_stats (struct overlap *o, struct overlap_stats *stats)
{
  pthread_rwlock_rdlock (&o->lock);
  *stats = (struct overlap_stats) { .used = o->used, .windows = o->groups };
  pthread_rwlock_unlock (&o->lock);
}

bool
overlap_verify (struct overlap *o, const char **why)
{
  (void) o;
  *why = NULL;
  return true;
}
