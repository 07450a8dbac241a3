/* SPDX-License-Identifier: BSD-3-Clause */

/* Reference counts of host clusters, and handing out free ones.  See
 * refcounts.c, alloc.c and refcounts-commit.c.  Clusters are counted from
 * the start of the file.
 */

#ifndef QCOW2_REFCOUNTS_H
#define QCOW2_REFCOUNTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image;

enum refblock_state {
  REFBLOCK_SETTLED,             /* the table on disk points to it */
  REFBLOCK_FRESH,               /* made in the open epoch */
  REFBLOCK_CUT,                 /* the running commit writes it */
};

/* A refcount block in memory. */
struct refblock {
  uint64_t index;               /* in the refcount table */
  uint64_t offset;              /* host bytes */
  uint8_t *data;                /* one cluster, as on disk */
  uint32_t dirty_begin, dirty_end; /* bytes to write; equal: clean */
  enum refblock_state state;
  bool on_dirty_list;
  bool writing;                 /* the commit is writing it just now */
  bool reserved;                /* its space on disk is certain */
  struct refblock *hash_next;
  struct refblock *lru_prev, *lru_next;
  struct refblock *dirty_next, *fresh_next;
};

/* Where the next compressed cluster may go; see packer.c. */
struct packer {
  uint64_t cluster;             /* in this host cluster; 0: in none */
  uint64_t next;                /* from this host offset on */
};

struct refcounts {
  pthread_mutex_t lock;         /* guards all below */
  unsigned order;               /* log2 of a count's bits */
  unsigned block_bits;          /* log2 of the counts of a block */

  uint64_t *table;              /* offsets of blocks, host byte order */
  uint64_t table_entries;
  uint64_t table_offset;        /* where the table will be */
  uint64_t table_clusters;
  uint64_t disk_table_offset;   /* where the header on disk has it */
  bool grown;                   /* moved; the header does not know yet */
  uint64_t tried_table_offset;  /* writing this to the header failed: the
                                   header may have it all the same */

  struct refblock **hash;
  size_t hash_size;
  struct refblock *lru_first, *lru_last; /* first: used last */
  size_t blocks, limit;
  struct refblock *dirty;       /* list through dirty_next */
  struct refblock *fresh;       /* list through fresh_next */
  atomic_size_t dirty_blocks;   /* may be read without the lock */

  uint64_t hint;                /* nothing below it is free */
  uint64_t untouched;           /* never in use, from here on */
  struct packer packer;

  _Atomic uint64_t allocated, released; /* clusters, for statistics */
  _Atomic uint64_t hits, misses; /* of blocks in the cache; changed with
                                   the lock, read without */
};

/* Read the refcount table; its blocks are read when needed. */
int refcounts_open (struct image *img);
void refcounts_close (struct image *img);

/* Forget all blocks and read the table again, from where IMG->header has
 * it.  For the check, while nothing in memory has changed.
 */
int refcounts_reload (struct image *img);

/* Offset of block INDEX in memory, 0 if there is none: for entering
 * them in the tracker, and for walks.  Takes the lock.
 */
uint64_t refcounts_block_offset (struct image *img, uint64_t index);

/* The count of a cluster. */
int refcounts_get (struct image *img, uint64_t cluster, uint64_t *value);

/* Is the count of all COUNT clusters exactly one?  If not, *WHERE and
 * *VALUE say the first other.
 */
int refcounts_all_one (struct image *img, uint64_t first, uint64_t count,
                       bool *yes, uint64_t *where, uint64_t *value);

/* Which of N host clusters, at most 32, are known to have a count of one,
 * without reading anything: bit I for CLUSTER[I].
 */
uint32_t refcounts_known_one (struct image *img, const uint64_t *cluster,
                              unsigned n);

/* How many of the counts of block INDEX are not zero. */
int refcounts_used_in_block (struct image *img, uint64_t index,
                             uint64_t *used);

/* For the release, which has to follow: *COUNT clusters (in: at most,
 * out: of one kind) from FIRST on lose their last reference (*LAST), or
 * not.  A count of zero is corruption: -EIO.
 */
int refcounts_probe_last (struct image *img, uint64_t first,
                          uint64_t *count, bool *last);

/* One reference less for each. */
int refcounts_lower (struct image *img, uint64_t first, uint64_t count);

/* alloc.c: hand out up to WANT contiguous clusters, at least one, with a
 * count of one.  *ZEROES: they are past everything ever used, and read
 * as zeroes.  -ENOSPC, -EIO, -ENOMEM; nothing is reported for -ENOSPC,
 * the caller may commit and try again.
 */
int alloc_data (struct image *img, uint64_t want, uint64_t *first,
                uint64_t *count, bool *zeroes);

/* packer.c: room for the stream of a compressed cluster, LEN bytes (a
 * multiple of 512, less than a cluster) at host offset *OFFSET.  The
 * count of each host cluster that it touches is one higher.
 */
int alloc_packed (struct image *img, uint64_t len, uint64_t *offset);

/* The same for one cluster of metadata: claimed as TYPE, its space
 * reserved and its contents zero.
 */
int alloc_metadata (struct image *img, int type, uint64_t *offset);

/* The same for COUNT clusters in a row, as a table that is longer than a
 * cluster needs them.  -EFBIG if that is more than one refcount block
 * covers.
 */
int alloc_contiguous (struct image *img, enum overlap_type type,
                      uint64_t count, uint64_t *offset);

/* refcounts-commit.c: the cut of a commit (its epoch's lock is held),
 * and the writing, in this order.
 */
struct refcounts_cut {
  struct refblock *fresh;       /* new blocks */
  bool grown;                   /* and a new table */
  uint64_t table_offset, table_clusters;
};
void refcounts_cut (struct image *img, struct refcounts_cut *cut);
int refcounts_write_fresh (struct image *img, struct refcounts_cut *cut);
int refcounts_write_links (struct image *img, struct refcounts_cut *cut);
int refcounts_write_dirty (struct image *img);
/* The commit ended, well (the cut is durable) or not (it is taken back). */
void refcounts_cut_end (struct image *img, struct refcounts_cut *cut,
                        bool success);

/* For alloc.c, packer.c and refcounts-commit.c, with the lock held. */
void packer_leave (struct image *img, uint64_t first, uint64_t count);
int refcounts_take (struct image *img, uint64_t want, uint64_t *first,
                    uint64_t *count, bool *zeroes);
int refcounts_block (struct image *img, uint64_t index,
                     struct refblock **block);

/* That of a cluster which is in use: -EIO if there is none. */
int refcounts_block_of (struct image *img, uint64_t cluster,
                        struct refblock **block);
int refcounts_add_block (struct image *img, uint64_t index,
                         uint64_t offset, struct refblock **block);
/* Undo the last N refcounts_add_block of the open epoch. */
void refcounts_drop_fresh (struct image *img, uint64_t n);
int refcounts_set_run (struct image *img, struct refblock *block,
                       uint64_t entry, uint64_t count, uint64_t value);
void refcounts_mark_dirty (struct refcounts *rc, struct refblock *block,
                           uint32_t begin, uint32_t end);

#endif /* QCOW2_REFCOUNTS_H */
