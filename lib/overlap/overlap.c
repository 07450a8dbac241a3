/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker: its shape, what always holds, and its operations.
 *
 * The question is asked before every write, so it has to be answered in
 * nanoseconds; the answer must never be lost, so there is no step in a
 * check that can fail; and an image may be large and hostile, so nothing
 * is sized by what it says.
 *
 *
 * Shape
 *
 * The host file is cut into windows of 2^20 clusters (64 GiB of 64 KiB
 * clusters), or fewer where clusters are smaller and their tables close
 * together.  From the outside in:
 *
 *     directory    a radix tree that skips levels, and a short way to
 *                  its first leaves, which have a slot for each
 *                  window                    (overlap-directory.c)
 *     window       what a slot points to: nothing, a run list, or a run
 *                  list and some pages       (overlap-window.c)
 *     run list     which clusters are of which class, sorted, in 8 to
 *                  20 bits a run             (overlap-runs.c on top of
 *                                             overlap-packed.c)
 *     page         a byte per cluster for 4096 of them, for places that
 *                  are updated often         (overlap-bytemap.c)
 *     dictionary   what a class is: how many owners of each type the
 *                  cluster has               (overlap-kind.c)
 *
 * Runs alone would do.  They are no slower to check than pages, and
 * smaller; pages save an update from shifting a long list.  Before all of it
 * stands the sieve (overlap-sieve.c), one bit for a group of clusters, which
 * saves most checks from looking at a window at all.
 *
 * overlap-memory.c accounts for every byte, overlap-limit.c knows what
 * had to leave for want of memory, overlap-restore.c brings it back,
 * overlap-build.c lets marks wait for each other while an image is opened,
 * overlap-quick.c has a short way for the usual update, overlap-verify.c
 * recounts.
 *
 *
 * The states of a window, and who moves it
 *
 *                      ov_runs_edit               ov_page_promote
 *     +---------+    (enter, claim)    +------+   (16 updates)   +-------+
 *     | nothing | -------------------> | runs | ---------------> | paged |
 *     | (slot 0)| <------------------- |      | <--------------- |       |
 *     +---------+    ov_runs_edit      +------+   ov_page_evict  +-------+
 *          |  ^      (last leave)         |       (cache full,       |
 *          |  |                           |        limit, class      |
 *          |  |                           |        beyond a byte)    |
 *          |  +------------- ov_page_edit (last leave) --------------+
 *          |                              |                          |
 *          +------- ov_abandon -----------+------- ov_abandon -------+
 *                                         |
 *                                         v
 *                                  +-------------+
 *                                  |   outside   |  pinned marks alone,
 *                                  +-------------+  as nothing or runs
 *                                         |
 *                                         | overlap_restore_end, once the
 *                                         v marks have been entered again
 *                                  nothing, runs or paged
 *
 * While notices are held, marks wait (ov_build_enter) before ov_build_end
 * merges those of each window with its list, or has them entered one by one:
 * both are the arrow from nothing to runs, or one from runs to runs.
 *
 * What happens when memory is short, in this order (relieve): the sieve
 * goes, the room for waiting marks, then a page of the bytemap becomes
 * runs, and each time the edit is tried again, until there are none; what
 * is being rebuilt is given up (ov_restore_shrink); edits that need no more
 * memory go on working where they are; the window that needs more leaves
 * (ov_abandon); a mark of a pinned type is then made beyond the limit; and
 * if malloc has nothing at all, it goes to a short list in struct overlap
 * (ov_keep).  One that could not be taken back, which may need memory, too,
 * is noted there and tried again (ov_owe, ov_settle).  A limit, a failing
 * malloc and a full dictionary are one case.
 *
 *
 * What always holds (the self-check, overlap_verify, checks all but the
 * last two)
 *
 * 1. A cluster is described once: by its page, else by the runs.
 * 2. The run lists, the pages, the list of what is outside and the
 *    dictionary keep the invariants stated in their files.
 * 3. "used" is the sum of all blocks as the allocator gave them, struct
 *    overlap and the directory included; "bytemap_bytes" is that of the
 *    pages, and never above bitmap_size, "sieve_bytes" that of the sieve,
 *    "directory_bytes" that of the directory.
 * 4. "windows" counts the slots that are not 0, "runs" the pieces,
 *    "outside_windows" the windows outside.
 * 5. No window is empty and not 0; none is open when no update runs.
 * 6. "used" is above total_limit only by the fixed part and by what
 *    pinned marks need.
 * 7. A mark is dropped only by overlap_leave, or with a notice of its
 *    whole window.
 *
 *
 * Locks
 *
 * Updates take overlap.lock, one at a time, and the write side of the
 * slots they change.  Checks take the read side of one slot at a time
 * (overlap-window.c), without a fence as long as its window is seldom
 * updated, or nothing at all where the slot is 0; or the answer is in one
 * word of the sieve.  So a check of a range in one window is one atomic
 * step; over several windows it is one step per window.  Updates, overlap_claim above all, are atomic
 * against each other whatever they span.  overlap.lock is the last in
 * the order of all locks; the notice is called with it held and must not
 * call back.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "checked.h"
#include "cleanup.h"
#include "overlap-fast.h"

unsigned
ov_window_bits (unsigned cluster_bits)
{
  if (cluster_bits == 0)
    return OV_WINDOW_BITS;
  return MIN (MAX (cluster_bits + OV_WINDOW_BITS_MORE, OV_PAGE_BITS),
              OV_WINDOW_BITS);
}

struct overlap *
overlap_new (const struct overlap_config *config)
{
  struct overlap *o
    = calloc (1, sizeof *o + (ov_has_pages (config)
                              ? OV_RECENT * sizeof o->recent[0] : 0));

  if (!o)
    return NULL;
  o->config = *config;
  o->window_bits = ov_window_bits (config->cluster_bits);
  o->window_mask = (UINT32_C (1) << o->window_bits) - 1;
  o->used = ov_size (o);
  o->retry_below = UINT64_MAX;
  pthread_mutex_init (&o->lock, NULL);
  ov_readers_init (o);
  ov_kind_init (o);
  ov_sieve_new (o);
  return o;
}

/* Release what a slot holds. */
static void
free_window (struct overlap *o, uintptr_t value)
{
  struct ov_paged *paged = (struct ov_paged *) (value & ~OV_FLAGS);
  uint32_t i;

  if (!(value & OV_PAGED)) {
    ov_free (o, (void *) (value & ~OV_FLAGS));
    return;
  }
  for (i = 0; i < ov_pages (o); ++i)
    ov_free (o, paged->page[i]);
  ov_free (o, paged->runs);
  ov_free (o, paged);
}

void
overlap_free (struct overlap *o)
{
  struct ov_kind_blocks *kinds;
  uint64_t w = 0;
  ov_slot *slot;
  unsigned i;

  if (!o)
    return;
  for (; (slot = ov_dir_next (o, &w)) != NULL; ++w)
    free_window (o, atomic_load (slot));
  ov_dir_free (o);
  ov_free (o, (void *) atomic_load (&o->sieve));
  kinds = atomic_load (&o->kinds);
  for (i = 0; kinds && i < OV_KIND_BLOCKS; ++i)
    ov_free (o, atomic_load (&kinds->block[i]));
  ov_free (o, kinds);
  ov_free (o, o->hash);
  ov_free (o, o->restore);
  ov_build_drop (o);
  pthread_mutex_destroy (&o->lock);
  free (o);
}

/* The end of a range; the very last cluster number is not a cluster. */
static uint64_t
end_of (uint64_t first, uint64_t count)
{
  return count > UINT64_MAX - first ? UINT64_MAX : first + count;
}

/* The next stretch of a range that ends at END: the part in one window,
 * or a gap in the directory.  *SLOT is NULL for a gap.
 */
static uint64_t
next_stretch (struct overlap *o, uint64_t first, uint64_t end,
              ov_slot **slot)
{
  uint64_t w = ov_window_of (o, first), next = w;

  *slot = ov_dir_find (o, w);
  if (ov_window_of (o, end - 1) == w)
    return end;
  if (*slot)
    return ov_window_first (o, w + 1);
  if (!ov_dir_next (o, &next) || next > ov_window_of (o, end - 1))
    return end;
  return ov_window_first (o, next);
}

/* What one slot says of [FIRST, END), a stretch. */
static inline void
scan_stretch (struct overlap *o, ov_slot *slot, uint64_t first,
              uint64_t end, struct ov_scan *s)
{
  struct ov_reader *reader;
  uintptr_t v;

  if (!slot || (v = ov_read_lock (o, slot, &reader)) == 0)
    return;
  ov_window_scan (o, v, first - ov_in_window (o, first),
                  ov_in_window (o, first), ov_in_window (o, end - 1) + 1, s);
  ov_read_unlock (reader);
}

/* True if there is nothing outside, which is the usual case. */
static inline bool
nothing_fixed (struct overlap *o)
{
  return atomic_load_explicit (&o->fixed, memory_order_acquire) == 0;
}

/* At the begin of a check, and in the end: if something came back in
 * between, it may have been overlooked (overlap-limit.c).
 */
static inline uint32_t
returns_so_far (const struct overlap *o)
{
  return atomic_load_explicit (&o->returns, memory_order_acquire);
}

static inline bool
none_returned (const struct overlap *o, uint32_t since)
{
  return __builtin_expect (atomic_load_explicit (&o->returns,
                                                 memory_order_relaxed)
                           == since, 1);
}

/* The types of COUNT clusters from A on of a window, if that is known at
 * a glance: there is nothing, or COUNT is 1.
 */
static inline __attribute__ ((always_inline)) bool
look_window (const struct overlap *o, uintptr_t value, uint32_t a,
             uint32_t count, overlap_set *set)
{
  const struct ov_runs *runs = (struct ov_runs *) value;

  if (__builtin_expect ((value & OV_PAGED) != 0, 0)) {
    const struct ov_paged *paged = (struct ov_paged *) (value & ~OV_FLAGS);
    const struct ov_page *page = ov_page_of (paged, a);

    *set = page ? ov_kind (o, page->class[a % OV_PAGE])->set : OVERLAP_NONE;
    if (page || count > 1 || !paged->runs)
      return count == 1;
    runs = paged->runs;
  }
  return ov_packed_look (o, runs, a, count, set);
}

/* The short way of a check, which most go: a range that is in one window
 * and chunk, with nothing in it, or a single cluster.  True if it was
 * one of these; *SET is its types then.  Nothing is called on the way, so
 * that all of it stays in registers.
 */
static inline __attribute__ ((always_inline)) bool
look (struct overlap *o, uint64_t first, uint64_t count, overlap_set *set)
{
  const uint32_t returns = returns_so_far (o);
  uint32_t a = ov_in_window (o, first);
  ov_slot *slot;
  uintptr_t v;
  bool known;

  if (count - 1 > o->window_mask - a) /* 0, too */
    return false;
  *set = OVERLAP_NONE;
  slot = ov_dir_find (o, ov_window_of (o, first));
  if (slot && (v = atomic_load_explicit (slot, memory_order_acquire)) != 0) {
    v = ov_read_try (o, slot, v);
    if (__builtin_expect (v == 0, 0))
      return false;
    known = look_window (o, v, a, (uint32_t) count, set);
    ov_read_unlock (ov_mine);
    if (!known)
      return false;
  }
  return nothing_fixed (o) && none_returned (o, returns);
}

static void
query_once (struct overlap *o, uint64_t first, uint64_t end,
            overlap_set mask, struct overlap_answer *answer)
{
  struct ov_scan s = { .mask = mask };
  bool outside, all_outside;
  uint64_t next;
  ov_slot *slot;

  answer->all = OVERLAP_ALL;
  answer->outside = false;
  for (; first < end; first = next) {
    next = next_stretch (o, first, end, &slot);
    s.all = OVERLAP_ALL;
    s.marked = 0;
    scan_stretch (o, slot, first, next, &s);
    if (s.marked < next - first)
      s.all = OVERLAP_NONE;
    all_outside = false;
    if (!nothing_fixed (o)) {
      ov_fixed_scan (o, first, next - first, &s, &outside, &all_outside);
      answer->outside |= outside;
    }
    if (!all_outside)
      answer->all &= s.all;
  }
  answer->any = s.any;
  if (s.found)
    answer->where = s.where;
}

/* The long way of overlap_query. */
static void __attribute__ ((noinline))
query_range (struct overlap *o, uint64_t first, uint64_t end,
             overlap_set mask, struct overlap_answer *answer)
{
  uint32_t returns;

  do {
    returns = returns_so_far (o);
    query_once (o, first, end, mask, answer);
  } while (!none_returned (o, returns));
}

static bool
hit_once (struct overlap *o, uint64_t first, uint64_t end, overlap_set mask)
{
  struct ov_scan s = { .mask = mask, .hit_only = true };
  bool outside, all_outside;
  uint64_t next;
  ov_slot *slot;

  for (; first < end; first = next) {
    next = next_stretch (o, first, end, &slot);
    scan_stretch (o, slot, first, next, &s);
    if (s.found)
      return true;
    if (!nothing_fixed (o)) {
      ov_fixed_scan (o, first, next - first, &s, &outside, &all_outside);
      if (s.found || outside)
        return true;
    }
  }
  return false;
}

void
overlap_query (struct overlap *o, uint64_t first, uint64_t count,
               overlap_set mask, struct overlap_answer *answer)
{
  overlap_set set;

  if (!look (o, first, count, &set)) {
    query_range (o, first, end_of (first, count), mask, answer);
    return;
  }
  answer->any = answer->all = set;
  answer->outside = false;
  if (set & mask)
    answer->where = first;
}

/* The long way of overlap_hit. */
static bool __attribute__ ((noinline))
hit_range (struct overlap *o, uint64_t first, uint64_t end, overlap_set mask)
{
  uint32_t returns;

  do {
    returns = returns_so_far (o);
    if (hit_once (o, first, end, mask))
      return true;
  } while (!none_returned (o, returns));
  return false;
}

/* What the sieve does not know. */
static inline __attribute__ ((always_inline)) bool
hit_here (struct overlap *o, uint64_t first, uint64_t count,
          overlap_set mask)
{
  overlap_set set;

  if (look (o, first, count, &set))
    return (set & mask) != 0;
  return hit_range (o, first, end_of (first, count), mask);
}

/* Not inlined, so that overlap_hit saves no registers for what it seldom
 * does.  A check that waits for memory holds up those behind it by each
 * instruction that has to wait, too: so a single cluster, which most are,
 * has no more of them than it needs.
 */
static bool __attribute__ ((noinline))
hit_window (struct overlap *o, uint64_t first, uint64_t count,
            overlap_set mask)
{
  return hit_here (o, first, count, mask);
}

static bool __attribute__ ((noinline))
hit_window_one (struct overlap *o, uint64_t cluster, overlap_set mask)
{
  return hit_here (o, cluster, 1, mask);
}

bool
overlap_hit (struct overlap *o, uint64_t first, uint64_t count,
             overlap_set mask)
{
  if (count == 1)
    return overlap_hit_one (o, first, mask);
  return !ov_sieve_free_of (o, first, count)
    && hit_window (o, first, count, mask);
}

bool
overlap_hit_one (struct overlap *o, uint64_t cluster, overlap_set mask)
{
  return !ov_sieve_free_one (o, cluster)
    && hit_window_one (o, cluster, mask);
}

/* An edit of window NUMBER lacks memory.  True if it is worth another
 * try.
 */
static bool
relieve (struct overlap *o, uint64_t number, struct ov_window *w,
         struct ov_edit *e)
{
  if (ov_sieve_drop (o) || ov_build_drop (o) || ov_page_evict (o)
      || ov_restore_shrink (o))
    return true;
  if (!ov_outside (o, number))
    ov_abandon (o, number, w);
  if (!(OVERLAP_BIT (e->type) & OV_PINNED) || e->force || e->again)
    return false;
  e->force = true;              /* beyond the limit, if malloc can */
  return true;
}

/* True if marks of a type are kept true in a window. */
static bool
tracked (struct overlap *o, uint64_t number, const struct ov_edit *e)
{
  return e->what == OV_LEAVE || (OVERLAP_BIT (e->type) & OV_PINNED)
    || !ov_outside (o, number) || ov_restoring (o, number);
}

/* Edit [A, B) of a window that has a slot.  Returns where it stopped
 * for want of memory; B is the good case.
 */
static uint32_t
update_slot (struct overlap *o, ov_slot *slot, uint64_t number, uint32_t a,
             uint32_t b, struct ov_edit *e)
{
  struct ov_window w;
  bool short_of_memory = false;
  uint32_t done;

  ov_window_open (o, &w, slot, number);
  while (ov_window_edit (o, &w, a, b, e, &done) < 0) {
    short_of_memory = true;
    a = done;
    if (!relieve (o, number, &w, e) || !tracked (o, number, e))
      break;
  }
  if (!short_of_memory && ov_has_pages (&o->config))
    ov_page_promote (o, &w, a, b);
  ov_window_close (o, &w);
  return done;
}

void
ov_update_window (struct overlap *o, uint64_t first, uint64_t end,
               struct ov_edit *e)
{
  uint64_t number = ov_window_of (o, first), missing = e->missing, done;
  ov_slot *slot = NULL;

  if (!tracked (o, number, e))
    return;
  if (e->what != OV_LEAVE)
    ov_sieve_add (o, first, end);
  e->force = false;
  if (e->what == OV_LEAVE)
    slot = ov_dir_find (o, number);
  else
    while (!(slot = ov_dir_insert (o, number, e->force)))
      if (!relieve (o, number, NULL, e) || !tracked (o, number, e))
        break;
  done = first;
  if (slot)
    done += update_slot (o, slot, number, ov_in_window (o, first),
                         ov_in_window (o, end - 1) + 1, e)
      - ov_in_window (o, first);
  else if (e->what == OV_LEAVE) {
    e->missing += end - first;
    done = end;
  }

  /* No memory at all. */
  if (done < end && e->what == OV_ENTER && !e->again
      && (OVERLAP_BIT (e->type) & OV_PINNED)
      && !ov_keep (o, e->type, done, end - done)) {
    e->failed = true;
    e->failed_at = done;
  }
  if (done < end && e->what == OV_LEAVE
      && (OVERLAP_BIT (e->type) & OV_PINNED))
    ov_owe (o, e->type, done, end - done);
  if (e->what == OV_LEAVE && ov_restoring (o, number))
    ov_restore_taken (o, e->type, first, end - first);
  if (e->what == OV_LEAVE && e->missing > missing) {
    ov_unkeep (o, e->type, first, end - first);
    if (ov_outside (o, number))
      e->missing = missing;
  }
}

static void
update (struct overlap *o, uint64_t first, uint64_t end, struct ov_edit *e)
{
  uint64_t next, last;
  ov_slot *slot;

  for (; first < end && !e->failed; first = next) {
    last = ov_window_last (o, ov_window_of (o, first));
    /* Where no mark was ever made there is none to take back. */
    if (e->what == OV_LEAVE && last < end - 1 && nothing_fixed (o)) {
      next = next_stretch (o, first, end, &slot);
      if (!slot) {
        e->missing += next - first;
        continue;
      }
    }
    next = last < end - 1 ? last + 1 : end;
    if (e->what == OV_LEAVE)
      next = ov_kept_border (o, first, next);
    ov_update_window (o, first, next, e);
  }
  ov_sieve_tune (o);
  if (o->tell)
    ov_tell (o);
}

void
ov_settle_now (struct overlap *o)
{
  struct ov_kept owed[OV_KEPT_MAX];
  unsigned n, i;

  ov_build_flush (o);
  n = o->n_owed;
  for (i = 0; i < n; ++i)
    owed[i] = o->kept[OV_KEPT_MAX - n + i];
  o->n_owed = 0;
  for (i = 0; i < n; ++i) {
    struct ov_edit e = { .what = OV_LEAVE, .type = owed[i].type };

    update (o, owed[i].first, owed[i].first + owed[i].count, &e);
  }
}

/* As overlap_query, for who holds overlap.lock and so needs no other. */
static void
query_locked (struct overlap *o, uint64_t first, uint64_t count,
              overlap_set mask, struct overlap_answer *answer)
{
  ov_slot *slot = ov_dir_find (o, ov_window_of (o, first));
  uintptr_t v = slot ? atomic_load_explicit (slot, memory_order_relaxed) : 0;
  uint32_t a = ov_in_window (o, first);

  answer->any = OVERLAP_NONE;
  if (count != 1 || !nothing_fixed (o)
      || (v != 0 && !look_window (o, v, a, 1, &answer->any)))
    overlap_query (o, first, count, mask, answer);
  else
    answer->where = first;
}

/* Enter what is not there yet.  A mark of a type that never leaves and
 * for which there is no memory at all, not even in the fixed list, is not
 * made in part: false, and all of it is as before.  *MET, if not NULL, is
 * what was there, for a single cluster: its class is looked at before
 * anything can fail.
 */
static bool
enter (struct overlap *o, enum overlap_type type, uint64_t first,
       uint64_t count, overlap_set *met)
{
  struct ov_edit e = { .what = OV_ENTER, .type = type };

  update (o, first, end_of (first, count), &e);
  if (e.failed && e.failed_at > first) {
    struct ov_edit back = { .what = OV_LEAVE, .type = type };

    update (o, first, e.failed_at, &back);
  }
  if (met)
    *met = e.met;
  return !e.failed;
}

/* The first conflict, while notices are held. */
static overlap_set
first_conflict (const struct overlap *o, uint64_t *where)
{
  if (o->conflict.there != OVERLAP_NONE && where)
    *where = o->conflict.cluster;
  return o->conflict.there;
}

bool
overlap_conflict (struct overlap *o, struct overlap_conflict *conflict)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  *conflict = o->conflict;
  return conflict->there != OVERLAP_NONE;
}

overlap_set
overlap_enter (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count, uint64_t *where)
{
  overlap_set bad = OVERLAP_ALL & ~ov_allowed (type);
  struct overlap_answer a = { .where = first };
  bool done;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  if (o->building) {
    if (ov_build_enter (o, type, first, count))
      return first_conflict (o, where);
  }
  else if (count == 1 && ov_quick_enter (o, type, first))
    return OVERLAP_NONE;
  ov_settle (o);
  if (count == 1 && nothing_fixed (o))
    done = enter (o, type, first, 1, &a.any);
  else {
    query_locked (o, first, count, bad, &a);
    if (o->hold && (a.any & bad)) /* there, and not elsewhere in the range */
      query_locked (o, a.where, 1, bad, &a);
    done = enter (o, type, first, count, NULL);
  }
  if (o->hold) {
    ov_note_conflict (o, type, a.where, a.any);
    a.any = first_conflict (o, &a.where);
  }
  else
    a.any &= bad;
  if (a.any && where)
    *where = a.where;
  return a.any | (done ? OVERLAP_NONE : OVERLAP_NO_MEMORY);
}

overlap_set
overlap_claim (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count, uint64_t *where)
{
  struct overlap_answer a;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  if (count == 1 && ov_quick_enter (o, type, first))
    return OVERLAP_NONE;
  ov_settle (o);
  query_locked (o, first, count, OVERLAP_ALL, &a);
  if (a.any == OVERLAP_NONE)
    return enter (o, type, first, count, NULL)
      ? OVERLAP_NONE : OVERLAP_NO_MEMORY;
  if (where)
    *where = a.where;
  return a.any;
}

uint64_t
overlap_leave (struct overlap *o, enum overlap_type type, uint64_t first,
               uint64_t count)
{
  struct ov_edit e = { .what = OV_LEAVE, .type = type };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  if (count == 1 && ov_quick_leave (o, type, first))
    return 0;
  ov_settle (o);
  update (o, first, end_of (first, count), &e);
  return e.missing;
}

uint64_t
ov_fixed_bytes (const struct overlap *o)
{
  struct ov_kind_blocks *kinds = atomic_load (&o->kinds);
  uint64_t sum = ov_size (o);
  unsigned i;

  if (o->restore)
    sum += ov_size (o->restore);
  if (o->building)
    sum += ov_size (o->building);
  if (o->hash)
    sum += ov_size (o->hash);
  if (kinds)
    sum += ov_size (kinds);
  for (i = 0; kinds && i < OV_KIND_BLOCKS; ++i) {
    const struct ov_kind *block = atomic_load (&kinds->block[i]);
    if (block)
      sum += ov_size (block);
  }
  return sum;
}

void
overlap_get_stats (struct overlap *o, struct overlap_stats *stats)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  ov_build_flush (o);
  *stats = (struct overlap_stats) {
    .limit = o->config.total_limit,
    .used = o->used,
    .bytemap_bytes = o->bytemap_bytes,
    .sieve_bytes = o->sieve_bytes,
    .directory_bytes = o->directory_bytes,
    .fixed_bytes = ov_fixed_bytes (o),
    .windows = o->windows,
    .runs = o->runs,
    .outside_windows = o->outside_windows,
    .outside_ranges = o->n_outside,
  };
  if (MUL_OVERFLOW (o->outside_windows, (uint64_t) ov_window_size (o),
                    &stats->outside_clusters))
    stats->outside_clusters = UINT64_MAX;
}
