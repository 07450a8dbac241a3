/* SPDX-License-Identifier: BSD-3-Clause */

/* A cache of compressed clusters, unpacked.
 *
 * To read 4 KiB out of a compressed cluster all of it must be unpacked.
 * So the last ones of which only a part was wanted are kept.  (Reads of
 * whole clusters unpack into the request's buffer and leave the cache as
 * it is.)
 *
 * The key is the L2 entry, which says where the stream is and how long.
 * What is found under it is what the entry leads to, if the bytes there
 * are still those that were unpacked.  They are, by these rules:
 *
 * U1. The bytes of a stream do not change while anything leads to it:
 *     there is no writing in place, and what is packed behind it in the
 *     same host cluster goes to other bytes (packer.c).
 * U2. Its host cluster is given to others only after its count has
 *     fallen to 0.  Before that, at the release, all that was unpacked
 *     of it is forgotten (freed.c).
 * U3. Nothing is put into the cache after that: who loads a cluster has
 *     the range lock of a guest cluster whose entry leads there, and
 *     the reference is dropped under the exclusive lock, before the
 *     release (freed.c, F3).  The views of snapshots have locks of their
 *     own, but what a snapshot leads to is never released.
 *
 * Without U2 a cluster could be read as what another was before: the new
 * one need only begin at the same sector and be as long.
 *
 * A cluster belongs to one set of WAYS places, found by a hash of its
 * key; the one of them that was not used for longest makes room.  Several
 * who want the same one wait for the first to unpack it.
 *
 * Memory is allocated when it is first needed, and stays.
 *
 * Locks: that of a set.  Held for the search only: what a holder copies
 * is kept by the count of its holders.  It is the innermost lock, and
 * who waits for a loading one waits for a thread that takes no other.
 */

#include <config.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "checked.h"
#include "cleanup.h"
#include "unpacked.h"

#define WAYS 8
#define MAX_SETS UINT64_C (256)

struct set {
  pthread_mutex_t lock;
  pthread_cond_t loaded;
  uint64_t clock;
  uint64_t hits, misses;
  struct unpacked_cluster ways[WAYS];
};

struct unpacked {
  uint64_t cluster_size;
  uint64_t sets;                /* a power of two, or 0: no cache */
  unsigned ways;                /* of each that are used */
  atomic_bool used;             /* something has been in it */
  struct set *set;
};

struct unpacked *
unpacked_create (uint64_t cluster_size, uint64_t limit)
{
  struct unpacked *u = calloc (1, sizeof *u);
  const uint64_t clusters = limit / cluster_size;
  uint64_t i;
  unsigned w;

  if (!u)
    return NULL;
  u->cluster_size = cluster_size;
  u->ways = (unsigned) MIN (clusters, (uint64_t) WAYS);
  if (clusters > 0)
    for (u->sets = 1;
         u->sets < MAX_SETS && u->sets * 2 * WAYS <= clusters; u->sets *= 2)
      ;
  u->set = calloc (u->sets + 1, sizeof *u->set);
  if (!u->set) {
    free (u);
    return NULL;
  }
  for (i = 0; i < u->sets; ++i) {
    pthread_mutex_init (&u->set[i].lock, NULL);
    pthread_cond_init (&u->set[i].loaded, NULL);
    for (w = 0; w < WAYS; ++w)
      u->set[i].ways[w].set = (unsigned) i;
  }
  return u;
}

void
unpacked_free (struct unpacked *u)
{
  uint64_t i;
  unsigned w;

  if (!u)
    return;
  for (i = 0; i < u->sets; ++i) {
    for (w = 0; w < u->ways; ++w)
      free (u->set[i].ways[w].data);
    pthread_mutex_destroy (&u->set[i].lock);
    pthread_cond_destroy (&u->set[i].loaded);
  }
  free (u->set);
  free (u);
}

/* Neighbours in the guest are neighbours in the file, a few sectors
 * apart: all bits of the entry count.
 */
static struct set *
set_of (struct unpacked *u, uint64_t key)
{
  key *= UINT64_C (0x9e3779b97f4a7c15);
  return &u->set[key >> 32 & (u->sets - 1)];
}

/* Under KEY; with a set's lock, as all that follow. */
static struct unpacked_cluster *
find (struct unpacked *u, struct set *s, uint64_t key)
{
  unsigned w;

  for (w = 0; w < u->ways; ++w)
    if (s->ways[w].key == key)
      return &s->ways[w];
  return NULL;
}

/* A place whose contents nobody needs now, or NULL. */
static struct unpacked_cluster *
make_room (struct unpacked *u, struct set *s)
{
  struct unpacked_cluster *best = NULL, *c;
  unsigned w;

  for (w = 0; w < u->ways; ++w) {
    c = &s->ways[w];
    if (c->holders == 0 && (!best || c->used < best->used))
      best = c;
  }
  if (best && !best->data)
    best->data = malloc (u->cluster_size);
  return best && best->data ? best : NULL;
}

static struct unpacked_cluster *
hold (struct set *s, struct unpacked_cluster *c)
{
  c->holders++;
  c->used = ++s->clock;
  return c;
}

struct unpacked_cluster *
unpacked_get (struct unpacked *u, uint64_t key, uint64_t first,
              uint64_t last, bool *load)
{
  struct unpacked_cluster *c;
  struct set *s;

  *load = false;
  if (u->sets == 0)
    return NULL;
  s = set_of (u, key);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  while ((c = find (u, s, key)) && c->loading)
    pthread_cond_wait (&s->loaded, &s->lock);
  if (c) {
    s->hits++;
    return hold (s, c);
  }
  s->misses++;
  c = make_room (u, s);
  if (!c)
    return NULL;
  c->key = key;
  c->first = first;
  c->last = last;
  c->loading = *load = true;
  atomic_store_explicit (&u->used, true, memory_order_relaxed);
  return hold (s, c);
}

void
unpacked_loaded (struct unpacked *u, struct unpacked_cluster *c,
                 bool success)
{
  struct set *s = &u->set[c->set];
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  c->loading = false;
  if (!success) {
    c->key = 0;
    c->used = 0;
    c->holders--;
  }
  pthread_cond_broadcast (&s->loaded);
}

struct unpacked_cluster *
unpacked_peek (struct unpacked *u, uint64_t key)
{
  struct unpacked_cluster *c;
  struct set *s;

  if (!atomic_load_explicit (&u->used, memory_order_relaxed))
    return NULL;
  s = set_of (u, key);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  c = find (u, s, key);
  return c && !c->loading ? hold (s, c) : NULL;
}

void
unpacked_put (struct unpacked *u, struct unpacked_cluster *c)
{
  struct set *s = &u->set[c->set];
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);

  c->holders--;
}

void
unpacked_forget (struct unpacked *u, uint64_t first, uint64_t count)
{
  struct unpacked_cluster *c;
  uint64_t i;
  unsigned w;

  if (!atomic_load (&u->used))
    return;
  for (i = 0; i < u->sets; ++i) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&u->set[i].lock);

    for (w = 0; w < u->ways; ++w) {
      c = &u->set[i].ways[w];
      if (c->key && c->first < first + count && c->last >= first)
        c->key = 0;
    }
  }
}

void
unpacked_counters (struct unpacked *u, uint64_t *hits, uint64_t *misses)
{
  uint64_t i;

  *hits = *misses = 0;
  for (i = 0; i < u->sets; ++i) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&u->set[i].lock);

    *hits += u->set[i].hits;
    *misses += u->set[i].misses;
  }
}
