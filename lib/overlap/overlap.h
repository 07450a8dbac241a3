/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker: which clusters of the host file hold metadata, and of
 * which type.  It does no I/O, knows nothing of images, and is safe to
 * use from any number of threads at once.
 *
 * Offsets are counted in host clusters here.  The shape (windows, run
 * lists, the bytemap cache) is explained in overlap.c.
 */

#ifndef QCOW2_OVERLAP_H
#define QCOW2_OVERLAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* QEMU's types under QEMU's numbers, then this project's. */
enum overlap_type {
  OVERLAP_MAIN_HEADER,
  OVERLAP_ACTIVE_L1,
  OVERLAP_ACTIVE_L2,
  OVERLAP_REFCOUNT_BLOCK,
  OVERLAP_REFCOUNT_TABLE,
  OVERLAP_SNAPSHOT_TABLE,
  OVERLAP_INACTIVE_L1,
  OVERLAP_INACTIVE_L2,
  OVERLAP_BITMAP_DIRECTORY,
  OVERLAP_CRYPTO_HEADER,
  OVERLAP_BITMAP_TABLE,
  OVERLAP_BITMAP_DATA,
  OVERLAP_TYPES
};

/* A set of types: bit 1 << type. */
typedef uint32_t overlap_set;
#define OVERLAP_BIT(type) (UINT32_C (1) << (type))
#define OVERLAP_NONE UINT32_C (0)
#define OVERLAP_NO_MEMORY (UINT32_C (1) << 31) /* no type: see below */

/* The templates of overlap-check=. */
#define OVERLAP_CONSTANT                                                \
  (OVERLAP_BIT (OVERLAP_MAIN_HEADER) | OVERLAP_BIT (OVERLAP_ACTIVE_L1)  \
   | OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE)                               \
   | OVERLAP_BIT (OVERLAP_SNAPSHOT_TABLE)                               \
   | OVERLAP_BIT (OVERLAP_BITMAP_DIRECTORY)                             \
   | OVERLAP_BIT (OVERLAP_CRYPTO_HEADER)                                \
   | OVERLAP_BIT (OVERLAP_BITMAP_TABLE))
#define OVERLAP_CACHED                                                  \
  (OVERLAP_CONSTANT | OVERLAP_BIT (OVERLAP_ACTIVE_L2)                   \
   | OVERLAP_BIT (OVERLAP_REFCOUNT_BLOCK)                               \
   | OVERLAP_BIT (OVERLAP_INACTIVE_L1)                                  \
   | OVERLAP_BIT (OVERLAP_BITMAP_DATA))
#define OVERLAP_ALL ((overlap_set) ((1u << OVERLAP_TYPES) - 1))

/* "active-l2" and so on, as overlap-check.TYPE spells it. */
const char *overlap_type_name (enum overlap_type type);

/* The type of that name; false if there is none. */
bool overlap_type_parse (const char *name, enum overlap_type *type);

/* What BLOCK_IMAGE_CORRUPTED calls it: "active L2 table". */
const char *overlap_type_text (enum overlap_type type);

/* These never leave the tracker: where a cluster has such a mark, all of
 * its marks are known.
 */
#define OVERLAP_PINNED                                                  \
  (OVERLAP_BIT (OVERLAP_MAIN_HEADER) | OVERLAP_BIT (OVERLAP_ACTIVE_L1)  \
   | OVERLAP_BIT (OVERLAP_REFCOUNT_TABLE)                               \
   | OVERLAP_BIT (OVERLAP_SNAPSHOT_TABLE))

/* What checks in a range that left the tracker answer. */
enum overlap_policy {
  OVERLAP_LIMIT_UNPROTECTED,    /* allowed */
  OVERLAP_LIMIT_VERIFY,         /* the caller walks the tables */
  OVERLAP_LIMIT_REFUSE,         /* refused */
};

/* A range entered the state "outside the tracker", or came back. */
struct overlap_notice {
  bool restored;                /* false: it left */
  uint64_t first, count;        /* clusters, whole windows */
  uint64_t limit, used;         /* bytes */
};

struct overlap_config {
  unsigned cluster_bits;        /* of the image; 0: not known */
  uint64_t bitmap_size;         /* bytes of bytemap cache; 0 is allowed */
  uint64_t total_limit;         /* bytes; UINT64_MAX is no limit */

  /* Called once per transition and range, with the tracker's locks held.
   * May be NULL.
   */
  void (*notice) (void *opaque, const struct overlap_notice *notice);
  void *opaque;
};

struct overlap;

/* The memory, in bytes and without a bytemap cache, that so many pieces of
 * metadata (a cluster each, or in a row) in a file of so many clusters can
 * take at most, wherever they lie: with more than that as its total_limit
 * nothing has to leave.
 */
uint64_t overlap_most_memory (unsigned cluster_bits, uint64_t pieces,
                              uint64_t clusters, uint64_t snapshots);

/* NULL only for want of memory for the fixed part; no total_limit makes
 * it fail.
 */
struct overlap *overlap_new (const struct overlap_config *config);
void overlap_free (struct overlap *o);

/* While many marks are entered in whatever order, as when an image is
 * opened: keep the notices of what leaves, and tell of all of it joined
 * when HOLD is false again.  Only for a tracker from which nothing has
 * left yet.
 *
 * Meanwhile marks may wait to be made together.  overlap_claim and
 * overlap_leave answer as ever, but there must be no queries before HOLD is
 * false, and overlap_enter may find out late what a mark has met: it then
 * returns the first conflict, of this mark or an earlier one, from there on.
 * When HOLD is false again, all are known: overlap_conflict says which was
 * the first that was found.
 */
void overlap_hold_notices (struct overlap *o, bool hold);

/* A mark that met an owner which is not allowed beside it. */
struct overlap_conflict {
  uint64_t cluster;
  overlap_set there;            /* what was there, not empty */
  enum overlap_type type;       /* of the mark */
};

/* The first conflict found since notices were last held.  False: none. */
bool overlap_conflict (struct overlap *o, struct overlap_conflict *conflict);

/* Mark COUNT clusters from FIRST on as TYPE, in addition to what they
 * are.  Returns the set of other owners met there that are not allowed
 * beside TYPE: 0 is the good case.  Allowed together are active-l2 with
 * inactive-l2, and inactive-l2 several times (owners are counted, a
 * cluster stays marked until each has left).  The clusters are marked
 * even if something else was met, so that nothing loses its protection.
 * *WHERE (may be NULL) is the first cluster with such an owner.
 *
 * For want of memory a range leaves the tracker instead, and the notice
 * says so.  A type of OVERLAP_PINNED goes beyond the limit; only if the
 * allocator has nothing for such a mark, and the few that are kept for
 * this case are used up, OVERLAP_NO_MEMORY is in what is returned and the
 * mark was not made.
 */
overlap_set overlap_enter (struct overlap *o, enum overlap_type type,
                           uint64_t first, uint64_t count, uint64_t *where);

/* As overlap_enter, but marks nothing and returns what is there if any
 * cluster of the range has any mark at all.  One atomic step.  After
 * OVERLAP_NO_MEMORY the table must not be made.
 */
overlap_set overlap_claim (struct overlap *o, enum overlap_type type,
                           uint64_t first, uint64_t count, uint64_t *where);

/* Take back one mark of TYPE.  Clusters not so marked are left alone;
 * returns how many of the COUNT were not (0 is the good case, ranges
 * outside the tracker count as marked).
 */
uint64_t overlap_leave (struct overlap *o, enum overlap_type type,
                        uint64_t first, uint64_t count);

/* What is known of a range. */
struct overlap_answer {
  overlap_set any;              /* types of at least one cluster */
  overlap_set all;              /* types of every tracked cluster */
  bool outside;                 /* part of it is outside the tracker */
  uint64_t where;               /* first cluster with a type of MASK */
};

/* The check: needs no memory and writes none.  MASK: the types that
 * ANSWER->where should look for; it is set only if any & mask.
 */
void overlap_query (struct overlap *o, uint64_t first, uint64_t count,
                    overlap_set mask, struct overlap_answer *answer);

/* The shortest check: is any cluster of the range of a type in MASK, or
 * outside the tracker?
 */
bool overlap_hit (struct overlap *o, uint64_t first, uint64_t count,
                  overlap_set mask);

/* The same for one cluster. */
bool overlap_hit_one (struct overlap *o, uint64_t cluster, overlap_set mask);

/* Coming back.  If something is outside and there has been memory for
 * it for a while, begin to rebuild a range of it: true.  From then on the
 * caller walks all metadata and calls overlap_restore_enter for each
 * piece that he meets, and in the end overlap_restore_end, with false if
 * he could not finish.  What is rebuilt counts as outside until then.
 *
 * Updates may go on meanwhile, and reach what is rebuilt, too.  The walk
 * may meet a piece twice and may meet what has been taken back while it
 * ran: such marks are not made (but owners as inactive-l2 are counted
 * each time, so those must not change).  It must not miss what was
 * there all the time from before overlap_restore_begin.
 *
 * overlap_restore_end returns true if some of the range, or all, is back
 * in the tracker; the notice says what.
 */
bool overlap_restore_begin (struct overlap *o);

/* Is something outside, so that coming back is worth a try now and then?
 * Takes no lock.
 */
bool overlap_has_outside (struct overlap *o);

void overlap_restore_enter (struct overlap *o, enum overlap_type type,
                            uint64_t first, uint64_t count);
bool overlap_restore_end (struct overlap *o, bool complete);

struct overlap_stats {
  uint64_t limit;               /* total_limit */
  uint64_t used;                /* accounted bytes, everything */
  uint64_t bytemap_bytes;       /* of these, in pages of the bytemap cache, */
  uint64_t sieve_bytes;         /* in its sieve, */
  uint64_t directory_bytes;     /* in the directory of windows, */
  uint64_t fixed_bytes;         /* and in what does not depend on the
                                   file; the rest is run lists */
  uint64_t windows;             /* with metadata */
  uint64_t runs;
  uint64_t outside_windows;     /* outside the tracker now */
  uint64_t outside_ranges;      /* which are so many, neighbours joined */
  uint64_t outside_clusters;    /* and so long */
};
void overlap_get_stats (struct overlap *o, struct overlap_stats *stats);

/* Self-check for tests and -D qcow2.overlap=1: invariants hold and a
 * recount of every byte equals the account.  False with *WHY (static
 * string) if not.  No other thread may use the tracker meanwhile.
 */
bool overlap_verify (struct overlap *o, const char **why);

#endif /* QCOW2_OVERLAP_H */
