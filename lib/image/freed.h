/* SPDX-License-Identifier: BSD-3-Clause */

/* The quarantine: references that were dropped and whose counts are
 * not lowered yet.  See freed.c.
 */

#ifndef QCOW2_FREED_H
#define QCOW2_FREED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "overlap.h"
#include "walk.h"

struct image;

/* COUNT clusters from FIRST on lost one reference each.  OWNER: what
 * they were, GUARD_DATA or an overlap type to unmark.
 *
 * With FREED_PARTS it is something else: guest cluster FIRST keeps its
 * host cluster, but the subclusters of the mask COUNT are no data any
 * more (holes.c).
 */
struct freed_run {
  uint64_t first, count;        /* host clusters */
  int owner;
};

#define FREED_PARTS (-3)        /* no owner known to the guard */

#define FREED_CHUNK_RUNS 169    /* makes a chunk about a page */

struct freed_chunk {
  struct freed_chunk *next;
  unsigned used;
  struct freed_run runs[FREED_CHUNK_RUNS];
};

/* A list that can be joined to another without needing memory. */
struct freed_list {
  struct freed_chunk *first, *last;
  size_t chunks;
  uint64_t clusters;            /* noted, for statistics */
  bool metadata;                /* some of it was metadata */
};

struct freed {
  pthread_mutex_t lock;
  struct freed_list list;       /* of the epoch that is open */
  struct freed_list cut;        /* of the commit that is running */
  atomic_size_t chunks;         /* of LIST, to be read without the lock */
  _Atomic uint64_t quarantined; /* clusters in both, likewise */
};

void freed_init (struct freed *f);
void freed_destroy (struct freed *f);

/* A list of the caller's own: note runs in it while failing is still
 * possible (0 or -ENOMEM), then join it.
 */
int freed_list_add (struct freed_list *list, int owner, uint64_t first,
                    uint64_t count);
int freed_list_add_parts (struct freed_list *list, uint64_t guest_cluster,
                          uint32_t mask);
void freed_list_free (struct freed_list *list);

/* COUNT clusters from FIRST on were allocated and will not be linked. */
void freed_give_back (struct image *img, uint64_t first, uint64_t count);

/* Call FN for each run of metadata in it, as walk_metadata does. */
int freed_list_walk (struct image *img, const struct freed_list *list,
                     overlap_set types, walk_fn *fn, void *opaque);

/* Append LIST, which is empty afterwards.  Cannot fail. */
void freed_join (struct freed *f, struct freed_list *list);

/* The cut of a commit: what is in the list now. */
void freed_take (struct freed *f);

/* Put it back in front of the list: the commit failed. */
void freed_put_back (struct freed *f);

/* Lower the counts of everything in the cut, unmark metadata, give what
 * fell to zero back to the file system, and empty the cut.  Called by
 * the commit alone, after the last pointers are durably gone.
 */
void freed_release (struct image *img);

/* Call FN for each run that was metadata and is not released yet, as
 * walk_metadata does.  It must not take locks but the tracker's own.
 */
int freed_walk (struct image *img, overlap_set types, walk_fn *fn,
                void *opaque);

#endif /* QCOW2_FREED_H */
