/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of the tracker share.  The essay is in overlap.c. */

#ifndef QCOW2_OVERLAP_INTERNAL_H
#define QCOW2_OVERLAP_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "overlap.h"

/* The clusters of the largest windows and of a page of the bytemap, as
 * powers of two.  The tests build the tracker a second time with tiny
 * ones.
 */
#ifndef OV_WINDOW_BITS
#define OV_WINDOW_BITS 20
#endif
#ifndef OV_PAGE_BITS
#define OV_PAGE_BITS 12
#endif
#define OV_WINDOW (UINT32_C (1) << OV_WINDOW_BITS)
#define OV_PAGE (UINT32_C (1) << OV_PAGE_BITS)

/* Small clusters have their metadata close together: smaller windows
 * keep the run lists short.  One of 1 << (cluster_bits + 4) clusters has
 * about 160 tables in it, whatever the size of a cluster is.
 */
#define OV_WINDOW_BITS_MORE 4

#define OV_PINNED OVERLAP_PINNED

/* Fixed bounds of what remembers the ranges that left, and of the
 * marks for which there was no memory although they must not leave.
 */
#define OV_OUTSIDE_MAX 8
#define OV_KEPT_MAX 8

/* ---- overlap-kind.c: the dictionary ---- */

/* A kind is who owns a cluster, and how many clusters long a piece of
 * a run is (a power of two).  Kind 0 is nobody.  The kind of the same
 * owners and length 1 is their class.
 */
struct ov_kind {
  overlap_set set;
  uint32_t shared;              /* owners as inactive-l2 */
  uint8_t owners[OVERLAP_TYPES]; /* owners as another type; 255 stays */
  uint16_t class;
  uint8_t log;                  /* the piece is 1 << log clusters long */
  uint8_t spare;
};

#define OV_KINDS_MAX 65536u
#define OV_KINDS_HERE 8u        /* the first ones are in struct overlap */
#define OV_KIND_BLOCKS 13

/* The other kinds, in blocks.  Most images need none, so there is not even
 * a table of the blocks until the first of them.
 */
struct ov_kind_blocks {
  _Atomic (struct ov_kind *) block[OV_KIND_BLOCKS];
};

/* Which of the blocks has kind ID. */
static inline unsigned
ov_kind_block (unsigned id)
{
  return (unsigned) (__builtin_clz (OV_KINDS_HERE) - __builtin_clz (id));
}

void ov_kind_init (struct overlap *o);

/* The class of a cluster of class FROM with one mark of TYPE more, or
 * less.  0 or -ENOMEM.
 */
int ov_kind_plus (struct overlap *o, uint16_t from, enum overlap_type type,
                  bool force, uint16_t *to);
int ov_kind_minus (struct overlap *o, uint16_t from, enum overlap_type type,
                   bool force, uint16_t *to);

/* The kind for a piece of 1 << LOG clusters of a class. */
int ov_kind_sized (struct overlap *o, uint16_t class, unsigned log,
                   bool force, uint16_t *kind);

/* ---- overlap-packed.c: a sorted list of pieces in few bits ---- */

struct ov_piece {
  uint32_t start;               /* cluster in the window */
  uint16_t kind;
};

struct ov_runs {
  uint32_t pieces_at;           /* bits of the block before piece 0 */
  uint16_t units;               /* how large the block is */
  uint8_t chunk_bits;           /* clusters of a chunk, power of two */
  uint8_t kind_bits;            /* and the log of the entries' size */
  uint8_t data[];               /* the index, then the pieces */
};

/* Blocks of 24 + 16 * units bytes are what malloc has no waste for. */
#define OV_BLOCK_BASE 24u
#define OV_BLOCK_UNIT 16u
#define OV_KIND_BITS_MASK 0x1fu
#define OV_ENTRY_SHIFT 5        /* entries of 1, 2 or 4 bytes */

uint32_t ov_packed_find (const struct ov_runs *r, uint32_t chunk,
                         uint32_t cluster);

/* Have room for N pieces, of kinds that the list has.  0, or -ENOMEM and
 * nothing changed.
 */
int ov_packed_reserve (struct overlap *o, struct ov_runs **r, uint32_t n);

/* Replace M pieces from the I-th on, all in CHUNK, by K new ones.  Needs
 * no memory if K <= M and no kind is new to the list.  Frees the block
 * and makes *R NULL when nothing is left.  0, or -ENOMEM and nothing
 * changed.
 */
int ov_packed_splice (struct overlap *o, struct ov_runs **r, uint32_t chunk,
                      uint32_t i, uint32_t m, const struct ov_piece *pieces,
                      uint32_t k, bool force);

/* Put N pieces of single clusters, sorted, into a list.  0; or -ENOMEM, or
 * -EEXIST if one of them is there already, and nothing changed.
 */
int ov_packed_merge (struct overlap *o, struct ov_runs **r,
                     const struct ov_piece *pieces, uint32_t n);

/* Choose the size of the chunks anew, and give back spare room.  A
 * list for which there is no memory now stays as it is.
 */
void ov_packed_tune (struct overlap *o, struct ov_runs **r);

/* ---- overlap-runs.c: edits and scans of one list ---- */

/* What an update does to the class of each cluster. */
struct ov_edit {
  enum { OV_ENTER, OV_LEAVE, OV_PUT } what;
  enum overlap_type type;       /* enter, leave */
  uint16_t put;                 /* put: the new class */
  bool force;                   /* beyond the limit */
  bool again;                   /* enter: rebuilding, so it may fail */
  bool failed;                  /* enter: a pinned mark, from this cluster */
  uint64_t failed_at;           /* on, found no memory at all */
  uint64_t missing;             /* leave: clusters that had no such mark */
  overlap_set met;              /* what was there, or some of it if the */
                                /* edit did not come to its end */
  uint16_t old, new;            /* the last answer of ov_edit_class */
};

int ov_edit_class (struct overlap *o, struct ov_edit *e, uint16_t old,
                   uint16_t *new);

/* Edit [A, *B) or as much of it as was convenient, *B then says where
 * it ended.  0, or -ENOMEM and nothing changed.
 */
int ov_runs_edit (struct overlap *o, struct ov_runs **r, uint32_t a,
                  uint32_t *b, struct ov_edit *e);

/* Remove every piece without a pinned type.  Needs no memory. */
void ov_runs_strip (struct overlap *o, struct ov_runs **r);

/* What a check has seen so far. */
struct ov_scan {
  overlap_set mask;
  bool hit_only;                /* stop at the first type of the mask */
  overlap_set any, all;
  bool found;
  uint64_t where;
  uint64_t marked;              /* clusters seen that have a mark */
};

static inline void
ov_scan_add (struct ov_scan *s, uint64_t first, uint64_t count,
             overlap_set set)
{
  s->any |= set;
  s->all &= set;
  s->marked += count;
  if ((set & s->mask) && (!s->found || first < s->where)) {
    s->found = true;
    s->where = first;
  }
}

/* Scan [A, B) of a list whose cluster 0 is BASE. */
void ov_runs_scan (const struct overlap *o, const struct ov_runs *r,
                   uint64_t base, uint32_t a, uint32_t b, struct ov_scan *s);

/* Call F for each piece; stops at and returns the first non-zero. */
int ov_runs_each (const struct ov_runs *r,
                  int (*f) (void *opaque, struct ov_piece piece),
                  void *opaque);

bool ov_runs_verify (const struct overlap *o, const struct ov_runs *r,
                     const char **why);

/* ---- overlap-bytemap.c: the cache of pages ---- */

struct ov_page {
  struct ov_page *older, *newer;
  uint64_t window;
  uint32_t number;              /* in the window */
  uint32_t marked;              /* bytes that are not 0 */
  uint8_t class[OV_PAGE];
};

/* A window with at least one page. */
struct ov_paged {
  struct ov_runs *runs;
  uint64_t n;
  struct ov_page *page[];       /* ov_pages */
};

/* A page that was updated lately; the low bits of its number will do. */
struct ov_recent {
  uint32_t page;
  uint32_t updates;
};
#define OV_RECENT 8
#define OV_PROMOTE 16           /* updates in a row that earn a page */

/* ---- overlap-window.c: windows and their locks ---- */

/* What the directory knows of a window: 0 (no metadata), or the address
 * of its ov_runs, or of its ov_paged with OV_PAGED set.
 */
typedef _Atomic (uintptr_t) ov_slot;
#define OV_BUSY ((uintptr_t) 1)
#define OV_PAGED ((uintptr_t) 2)
#define OV_FLAGS ((uintptr_t) 3)

/* A window that an update has open. */
struct ov_window {
  ov_slot *slot;
  uint64_t number;
  struct ov_runs *runs;
  struct ov_paged *paged;
  struct ov_window *outer;      /* another one, open meanwhile */
};

/* The readers' side is in overlap-fast.h. */
void ov_readers_init (struct overlap *o);

/* The writers' side; they hold overlap.lock. */
uintptr_t ov_write_lock (struct overlap *o, ov_slot *slot);
void ov_write_unlock (ov_slot *slot, uintptr_t value);

void ov_window_open (struct overlap *o, struct ov_window *w, ov_slot *slot,
                     uint64_t number);
void ov_window_close (struct overlap *o, struct ov_window *w);

/* The open window of that number, or NULL. */
struct ov_window *ov_window_opened (struct overlap *o, uint64_t number);

/* Scan [A, B) of what a slot held. */
void ov_window_scan (const struct overlap *o, uintptr_t value, uint64_t base,
                     uint32_t a, uint32_t b, struct ov_scan *s);

/* Edit [A, B) of an open window; *DONE is where it stopped.  0, or
 * -ENOMEM with [A, *DONE) done.
 */
int ov_window_edit (struct overlap *o, struct ov_window *w, uint32_t a,
                    uint32_t b, struct ov_edit *e, uint32_t *done);

/* ---- overlap-bytemap.c ---- */

struct ov_page *ov_page_of (const struct ov_paged *paged, uint32_t cluster);
int ov_page_edit (struct overlap *o, struct ov_window *w,
                  struct ov_page *page, uint32_t a, uint32_t b,
                  struct ov_edit *e);
void ov_page_scan (const struct overlap *o, const struct ov_page *page,
                   uint64_t base, uint32_t a, uint32_t b, struct ov_scan *s);

/* An update went to [A, B) of the runs: is it time for a page?  Only if
 * ov_has_pages.
 */
void ov_page_promote (struct overlap *o, struct ov_window *w, uint32_t a,
                      uint32_t b);

/* Take a page out of an open window, its bytes go to COPY. */
void ov_page_remove (struct overlap *o, struct ov_window *w,
                     struct ov_page *page, uint8_t *copy);

/* Turn the oldest page into runs.  False if there is none. */
bool ov_page_evict (struct overlap *o);

/* Let no check read any more what SLOT holds, and make it 0.  For slots
 * that are read without a look at "fenced" (overlap-sieve.c); only where
 * ov_can_take says that it can be done.
 */
void ov_slot_take (struct overlap *o, ov_slot *slot);
bool ov_can_take (const struct overlap *o);

/* ---- overlap-sieve.c: one bit for many clusters, all over the file ---- */

struct ov_sieve {
  uint64_t mask;                /* bits - 1; a power of two of them */
  unsigned shift;               /* clusters of a group, power of two */
  uint64_t end;                 /* no mark is, or was, behind this cluster */
  uint64_t set_bits, next;      /* with more than that it is made anew */
  _Atomic (uint64_t) word[];
};

/* Make the sieve, or make it anew, for the marks that there are; if there
 * is memory to spare.
 */
void ov_sieve_new (struct overlap *o);

/* Give its memory back.  False if there is none. */
bool ov_sieve_drop (struct overlap *o);

/* MARKS more are about to be made in one go, most of them before cluster
 * END.
 */
void ov_sieve_expect (struct overlap *o, uint64_t marks, uint64_t end);

/* [FIRST, END) are about to be marked (ov_sieve_add); there is a sieve. */
void ov_sieve_add_range (struct overlap *o, uint64_t first, uint64_t end);

/* N pieces of single clusters of the window that begins at cluster BASE,
 * sorted, are about to be marked.
 */
void ov_sieve_add_sorted (struct overlap *o, uint64_t base,
                          const struct ov_piece *pieces, uint32_t n);

/* After an update: is it too full?  No window is open. */
void ov_sieve_tune (struct overlap *o);

/* For tests: no sieve is made any more, or again. */
void ov_sieve_forbid (bool forbid);

bool ov_sieve_verify (struct overlap *o, uint64_t *bytes, const char **why);

/* ---- overlap-quick.c: the usual update ---- */

/* Make a mark of a cluster that has none and touches none, or take back the
 * only one of a cluster, if nothing else is to be done.  False if it is, and
 * then nothing has changed: update in the general way.
 */
bool ov_quick_enter (struct overlap *o, enum overlap_type type,
                     uint64_t cluster);
bool ov_quick_leave (struct overlap *o, enum overlap_type type,
                     uint64_t cluster);

/* ---- overlap-directory.c ---- */

struct ov_node;
struct ov_leaves;
ov_slot *ov_dir_insert (struct overlap *o, uint64_t window, bool force);

/* The first window from *WINDOW on that has a node; NULL if none. */
ov_slot *ov_dir_next (const struct overlap *o, uint64_t *window);
void ov_dir_free (struct overlap *o);

/* Its bytes, and whether the short way finds what the tree has. */
uint64_t ov_dir_recount (const struct overlap *o);
bool ov_dir_verify (const struct overlap *o);

/* ---- overlap-memory.c: the account ---- */

void *ov_alloc (struct overlap *o, size_t size, bool force);

/* A block of SIZE bytes in the place of OLD, whose contents are not
 * copied; the caller releases OLD with ov_free when it is done with it.
 * The limit is applied to what will be held then.
 */
void *ov_alloc_instead (struct overlap *o, size_t size, const void *old,
                        bool force);
void ov_free (struct overlap *o, void *p);
uint64_t ov_size (const void *p);

/* For tests: let the Nth allocation from now on fail, and with FOREVER
 * all that follow.  N = 0: none.
 */
void ov_fail_alloc (uint64_t n, bool forever);

/* ---- overlap-limit.c: what is outside ---- */

struct ov_span {
  uint64_t first, last;         /* windows */
};

/* Marks of pinned types for which there was no memory. */
struct ov_kept {
  uint64_t first;               /* cluster */
  uint32_t count;               /* clusters */
  enum overlap_type type;
};

/* Let K, if it ends where COUNT clusters from FIRST on begin and is of
 * TYPE, too, grow by them.  COUNT is of one window.
 */
static inline bool
ov_kept_grow (struct ov_kept *k, enum overlap_type type, uint64_t first,
              uint64_t count)
{
  if (k->type != type || k->first + k->count != first
      || count > UINT32_MAX - k->count)
    return false;
  k->count += (uint32_t) count;
  return true;
}

bool ov_outside (const struct overlap *o, uint64_t window);

/* Let a window leave.  W is it if it is open, else NULL. */
void ov_abandon (struct overlap *o, uint64_t number, struct ov_window *w);

/* Tell of what left since the last call. */
void ov_tell (struct overlap *o);

/* Drop the marks of a window, open or not, but for the pinned ones. */
void ov_strip (struct overlap *o, ov_slot *slot, uint64_t number);

/* Windows FIRST to LAST are complete again.  False if the fixed list has
 * no room for what stays outside.
 */
bool ov_restored (struct overlap *o, uint64_t first, uint64_t last);

/* Remember or forget a mark in the fixed list.  ov_keep is false if the
 * list is full; ov_unkeep returns how many clusters were there.
 */
bool ov_keep (struct overlap *o, enum overlap_type type, uint64_t first,
              uint64_t count);
uint64_t ov_unkeep (struct overlap *o, enum overlap_type type,
                    uint64_t first, uint64_t count);

/* A mark of a pinned type, in the middle of a piece, could not be taken
 * back for want of memory: note it for ov_settle.  If the list is full it
 * stays for good: rather refuse a write than allow it.
 */
void ov_owe (struct overlap *o, enum overlap_type type, uint64_t first,
             uint64_t count);

/* Before an update: do what earlier ones left to be done, the marks that
 * wait (ov_build_flush) and what is owed.
 */
static inline void ov_settle (struct overlap *o);
void ov_settle_now (struct overlap *o);

/* How much of [FIRST, END) can lose its marks at once: where marks are
 * kept, one cluster, which may have another mark of the type elsewhere.
 */
uint64_t ov_kept_border (const struct overlap *o, uint64_t first,
                         uint64_t end);

/* The part of a check that looks at the fixed lists: sets *ANY if one
 * of the windows is outside, *EVERY if all are.
 */
void ov_fixed_scan (struct overlap *o, uint64_t first, uint64_t count,
                    struct ov_scan *s, bool *any, bool *every);
bool ov_fixed_verify (struct overlap *o, const char **why);

/* ---- overlap-restore.c: coming back ---- */

/* A range that is being rebuilt. */
#define OV_TAKEN_MAX 64
struct ov_restore {
  struct ov_span span;          /* windows; LAST falls when memory is short */
  uint64_t last;                /* LAST at the beginning */
  bool given_up;                /* nothing of it is left */
  unsigned n_taken;
  struct ov_kept taken[OV_TAKEN_MAX]; /* marks taken back meanwhile */
};

/* Is this window being rebuilt? */
bool ov_restoring (const struct overlap *o, uint64_t window);

/* Memory is short: give up a window of what is being rebuilt.  False if
 * nothing was.
 */
bool ov_restore_shrink (struct overlap *o);

/* A mark was taken back in a window that is being rebuilt. */
void ov_restore_taken (struct overlap *o, enum overlap_type type,
                       uint64_t first, uint64_t count);

/* For tests: another limit from now on. */
void ov_set_limit (struct overlap *o, uint64_t limit);

/* ---- overlap-build.c: many marks in a row ---- */

struct ov_building;

/* Let marks wait from now on, if there is memory for them. */
void ov_build_begin (struct overlap *o);

/* Let a mark wait; "building" is not NULL.  False if it is not one of
 * those that can: enter it in the usual way, after ov_build_flush.
 */
bool ov_build_enter (struct overlap *o, enum overlap_type type,
                     uint64_t first, uint64_t count);

/* A mark of TYPE met THERE: keep it for overlap_conflict, if it is the
 * first and not allowed.
 */
void ov_note_conflict (struct overlap *o, enum overlap_type type,
                       uint64_t cluster, overlap_set there);

/* Enter what waits.  No update is under way; "building" is not NULL. */
void ov_build_end (struct overlap *o);

/* Give back the memory; nothing waits.  False if there was none. */
bool ov_build_drop (struct overlap *o);

/* ---- overlap-types.c ---- */

/* The types that may own a cluster beside TYPE. */
overlap_set ov_allowed (enum overlap_type type);

/* ---- overlap.c ---- */

/* Bytes that do not depend on what is tracked: the struct itself, the
 * dictionary, and what a rebuilding needs.
 */
uint64_t ov_fixed_bytes (const struct overlap *o);

/* Edit [FIRST, END), which lie in one window. */
void ov_update_window (struct overlap *o, uint64_t first, uint64_t end,
                       struct ov_edit *e);

struct overlap {
  /* Read by checks. */
  _Atomic (struct ov_node *) root;
  _Atomic (struct ov_leaves *) leaves; /* or NULL: overlap-directory.c */
  uint32_t window_mask;         /* clusters of a window, less one */
  unsigned window_bits;         /* and as a power of two */
  _Atomic (uint32_t) returns;   /* how often one of the two fixed lists lost
                                   something: see overlap-limit.c */
  uint16_t n_outside;
  uint8_t n_kept, n_owed;
  _Atomic (uint64_t) fenced;    /* groups of slots, overlap-window.c */
  ov_slot fixed;                /* guards the two fixed lists */
  ov_slot sieve;                /* struct ov_sieve, or 0 */
  _Atomic (struct ov_kind_blocks *) kinds; /* NULL: there are no others */
  struct ov_kind kind[OV_KINDS_HERE];
  struct ov_span outside[OV_OUTSIDE_MAX];
  /* Marks that are in no window, from the begin; and from the end those
   * that are still to be taken back from theirs.
   */
  struct ov_kept kept[OV_KEPT_MAX];

  /* Held by every update; the rest belongs to its holder. */
  pthread_mutex_t lock;
  struct overlap_config config;
  unsigned fences;              /* since "fenced" was 0 */
  bool always_fenced;
  bool tell, hold;              /* notices: of "left", and later */
  uint8_t turn;                 /* which range is tried next */
  uint64_t used, bytemap_bytes, sieve_bytes, directory_bytes;
  uint64_t windows, runs, outside_windows;
  struct ov_window *open;

  unsigned n_kinds, hash_size;
  uint16_t plain[OVERLAP_TYPES]; /* classes of one owner, 0 if unknown */
  uint16_t *hash;               /* NULL: no kinds but the first few */

  struct ov_page *oldest, *newest;

  struct ov_span left;          /* not told yet */

  struct ov_building *building; /* NULL: every mark is made at once */
  struct overlap_conflict conflict; /* the first since notices are held */

  struct ov_restore *restore;   /* NULL: nothing is being rebuilt */
  uint64_t retry_below;         /* bytes in use that allow another try, */
  unsigned retry_after, asked;  /* or being asked so often */

  struct ov_recent recent[];    /* OV_RECENT, if there may be pages */
};

/* Is there memory for pages at all? */
static inline bool
ov_has_pages (const struct overlap_config *config)
{
  return config->bitmap_size >= sizeof (struct ov_page);
}

/* The clusters of a window, as a power of two, in an image with such
 * clusters.
 */
unsigned ov_window_bits (unsigned cluster_bits);

static inline uint32_t
ov_window_size (const struct overlap *o)
{
  return o->window_mask + 1;
}

static inline uint64_t
ov_window_of (const struct overlap *o, uint64_t cluster)
{
  return cluster >> o->window_bits;
}

static inline uint32_t
ov_in_window (const struct overlap *o, uint64_t cluster)
{
  return (uint32_t) cluster & o->window_mask;
}

/* The first cluster of a window, and its last. */
static inline uint64_t
ov_window_first (const struct overlap *o, uint64_t window)
{
  return window << o->window_bits;
}

static inline uint64_t
ov_window_last (const struct overlap *o, uint64_t window)
{
  return ov_window_first (o, window) | o->window_mask;
}

static inline void
ov_settle (struct overlap *o)
{
  if (o->building || o->n_owed > 0)
    ov_settle_now (o);
}

static inline void
ov_build_flush (struct overlap *o)
{
  if (o->building)
    ov_build_end (o);
}

/* The pages of a window. */
static inline uint32_t
ov_pages (const struct overlap *o)
{
  return ov_window_size (o) / OV_PAGE;
}

static inline const struct ov_kind *
ov_kind (const struct overlap *o, unsigned id)
{
  const struct ov_kind_blocks *others;
  unsigned block;

  if (__builtin_expect (id < OV_KINDS_HERE, 1))
    return &o->kind[id];
  others = atomic_load_explicit (&o->kinds, memory_order_acquire);
  block = ov_kind_block (id);
  return atomic_load_explicit (&others->block[block], memory_order_acquire)
    + (id - (OV_KINDS_HERE << block));
}

#endif /* QCOW2_OVERLAP_INTERNAL_H */
