/* SPDX-License-Identifier: BSD-3-Clause */

/* The map from guest clusters to host clusters: the active L1 table and
 * its L2 tables.  See map.c.
 */

#ifndef QCOW2_MAP_H
#define QCOW2_MAP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "l2.h"
#include "tlb.h"

struct image;

#define MAP_TABLE_LOCKS 32

struct map {
  _Atomic uint64_t *l1;         /* host byte order */
  uint64_t l1_size;             /* entries */
  struct l2_layout layout;      /* of L2 entries */
  unsigned l2_bits;             /* log2 of the entries of an L2 table */
  unsigned slice_bits;          /* and of a slice */
  _Atomic uint64_t *l1_dirty[2]; /* bit per entry, by the epoch's lowest bit */
  atomic_size_t l1_changed[2];  /* bits set in each */
  _Atomic uint64_t *table_ok;   /* bit per entry: L2 table's count is 1 */
  struct tlb tlb;
  pthread_mutex_t table_locks[MAP_TABLE_LOCKS];
};

/* Read the L1 table. */
int map_open (struct image *img);
void map_close (struct image *img);

/* What a guest range is mapped to. */
struct map_extent {
  enum l2_kind kind;            /* never L2_INVALID */
  uint64_t len;                 /* guest bytes from the offset asked */
  uint64_t host;                /* if l2_has_host (kind): host offset of
                                   the offset asked; contiguous over LEN */
  uint64_t entry;               /* the L2 entry; COMPRESSED: of LEN */
  uint64_t bitmap;              /* and its bitmap, if it is extended */
  bool copied;                  /* has a host: COPIED in L1 and L2 */
  bool counted;                 /* the counts are known to be one */
  bool durable;                 /* the mapping is on disk */
};

/* Look up OFFSET; *E covers at most LEN bytes, all of one kind and, if
 * mapped, contiguous in the file.  Hold a range lock of the range if the
 * answer is to stay true.  0, or -EIO where the entry is invalid or
 * points past the end of the file (reported).
 */
int map_lookup (struct image *img, uint64_t offset, uint64_t len,
                struct map_extent *e);

/* The same for a writer: *IN_PLACE says whether the extent's host
 * clusters may be written in place: COPIED in L1 and L2, and a count of
 * one, which is looked up once and remembered.  A COPIED flag over a
 * higher count is dropped with a warning; over a count of zero it is
 * corruption.
 */
int map_lookup_for_write (struct image *img, uint64_t offset, uint64_t len,
                          struct map_extent *e, bool *in_place);

/* The answer of map_lookup for a range within one cluster if it is known
 * without a lock, but that DURABLE is false; with WRITABLE only if the range
 * may be written in place, and it is COPIED and counted.  A range lock of
 * the cluster is held.
 */
bool map_lookup_quickly (struct image *img, uint64_t offset, uint64_t len,
                         bool writable, struct map_extent *e);

/* A change of the clusters, or subclusters, that LEN guest bytes from
 * OFFSET on touch, all in one slice.  The caller holds the range lock of
 * the clusters, exclusive.  MAP_LINK changes the rest of a cluster too:
 * what it had of its own lies in the new one now (all of it, if it was
 * compressed).  -ENOTSUP, not reported, and nothing changed: a part of a
 * compressed cluster cannot become zero by its entry.
 */
enum map_change {
  MAP_LINK,                     /* to the host clusters from HOST on, new */
  MAP_LINK_COMPRESSED,          /* to a stream: HOST is the L2 entry; one
                                   whole cluster */
  MAP_FILL,                     /* in a host cluster of its own: now data */
  MAP_ZERO_KEEP,                /* zeroes, host clusters are kept */
  MAP_ZERO_DROP,                /* zeroes, host clusters are freed once
                                   nothing in them is data */
  MAP_UNMAP,                    /* unallocated; whole clusters, version 2 */
};
int map_set (struct image *img, uint64_t offset, uint64_t len,
             enum map_change change, uint64_t host);

/* Guest clusters from CLUSTER to the end of its slice. */
uint64_t map_left_in_slice (struct image *img, uint64_t cluster);

/* False if CLUSTER lies under an L1 entry that leads to no L2 table. */
bool map_has_table (struct image *img, uint64_t cluster);

/* For the commit of EPOCH, which has been cut. */
bool map_l1_cut_is_empty (struct image *img, uint64_t epoch);
int map_write_l1_cut (struct image *img, uint64_t epoch);
void map_l1_cut_end (struct image *img, uint64_t epoch, bool success);

#endif /* QCOW2_MAP_H */
