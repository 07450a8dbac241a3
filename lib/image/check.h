/* SPDX-License-Identifier: BSD-3-Clause */

/* The consistency check, as its files share it.  See check.c. */

#ifndef QCOW2_CHECK_H
#define QCOW2_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "image-internal.h"
#include "refcount.h"
#include "tally.h"

/* What a single mistake is. */
enum check_kind {
  CHECK_KIND_BROKEN,            /* a pointer or an entry that is wrong */
  CHECK_KIND_TOO_LOW,           /* a count below the references */
  CHECK_KIND_COPIED,            /* a COPIED flag that is wrong */
  CHECK_KIND_STRUCTURE,         /* the refcount table or a block */
  CHECK_KIND_OVERLAP,           /* guest data in a cluster of metadata */
  CHECK_KIND_LEAK,              /* a count above the references */
  CHECK_KIND_FAULT,             /* not of references: it is not counted */
};

struct check {
  struct image *img;
  enum image_check what;        /* may be corrected in place */
  uint64_t errors, leaks, overlaps; /* mistakes found */
  uint64_t errors_fixed, leaks_fixed;
  bool rebuilt;
  bool grave;                   /* an error that is more than a wrong flag */
  struct tally tally;
  struct overlap *tables;       /* all metadata; NULL until it is needed */
  uint64_t highest;             /* the last cluster referred to */
  uint64_t *table;              /* a cluster, for an L2 table or a block */
  bool unseen;                  /* something could not be followed: what
                                   seems to be without references may have
                                   some */
  bool rebuild;                 /* the refcounts must be made anew */
  uint64_t steps, steps_done;   /* L1 entries, for the progress */
  uint64_t told;                /* when progress was told last */
  uint64_t fragmented, allocated, compressed; /* of the active disk */
  uint32_t again;               /* L1 entries followed more than once */
  bool recount;                 /* mistakes were noted before */
  unsigned lines;               /* of mistakes that were reported */
};

/* How often progress is told, in seconds (a variable for tests). */
extern unsigned check_tell_seconds;

/* check.c: note a mistake, that N are counted for; the first ones are also
 * reported.
 */
void check_mistake (struct check *c, enum check_kind kind, uint64_t n,
                    const char *fs, ...)
  __attribute__ ((format (printf, 4, 5)));

/* check.c: one more step done; tell the progress now and then. */
void check_step (struct check *c);

/* check-references.c: count everything the image refers to, its refcount
 * table and blocks too if STRUCTURE.  0 or a negative errno (reported, but
 * for -ENOMEM).
 */
int check_references (struct check *c, bool structure);

/* check-references.c: read an L2 table into C->table; false if there is
 * nothing, past the end of the file.  Where it lies has been judged: a
 * place that is no cluster's beginning is read as well.  *R is a negative errno (reported) if it
 * cannot be read.
 */
bool check_read_l2 (struct check *c, uint64_t offset, int *r);

/* check-overlap.c: the LEN bytes at OFFSET are guest data: note a mistake
 * if there is metadata in a cluster of them.  0 or a negative errno
 * (reported, but for -ENOMEM).
 */
int check_overlap (struct check *c, uint64_t offset, uint64_t len);

/* Words of an L2 entry, and entries of a table. */
static inline unsigned
check_l2_words (const struct check *c)
{
  return c->img->header.incompatible & INCOMPAT_EXTL2 ? 2 : 1;
}

static inline uint64_t
check_l2_entries (const struct check *c)
{
  return c->img->cluster_size / (8 * check_l2_words (c));
}

/* Can a refcount block be where entry ENTRY of the table says? */
static inline bool
check_block_is_sound (const struct check *c, uint64_t entry)
{
  return (entry & (c->img->cluster_size - 1)) == 0
    && entry < atomic_load (&c->img->guard.end);
}

/* Where the block is that ENTRY leads to, to have its counts read: 0 if
 * nowhere.  An entry with reserved bits is a mistake and has no sound
 * block, but its counts are believed, as by QEMU.
 */
static inline uint64_t
check_block_place (const struct check *c, uint64_t entry)
{
  const uint64_t place = entry & ~REFCOUNT_TABLE_RESERVED;

  return check_block_is_sound (c, place) ? place : 0;
}

/* check-counts.c: compare with the counts of the image; correct them in
 * place as far as C->what allows.
 */
int check_counts (struct check *c);

/* check-flags.c: compare COPIED flags with the counts of the image, and
 * correct them if C->what is CHECK_ALL.
 */
int check_flags (struct check *c);

/* check-rebuild.c: a new refcount table and new blocks, from C's tally
 * made anew.  C->highest must cover the old ones too.
 */
int check_rebuild (struct check *c);

#endif /* QCOW2_CHECK_H */
