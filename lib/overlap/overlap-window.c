/* SPDX-License-Identifier: BSD-3-Clause */

/* Windows: how checks and updates keep out of each other's way, and how
 * a window's runs and pages make one map.
 *
 * A window has no lock of its own, it has a slot in the directory: one
 * word that says where the runs are.  A check that finds 0 there is
 * done.  Else it writes the slot's address into a place of its own in
 * "readers", looks at the slot again, and may then read what it points
 * to until it clears its place.  An update sets OV_BUSY in the slot,
 * then waits until no reader's place has this slot's address.  Both
 * sides write first and read second, in the one order of sequentially
 * consistent operations, so at least one of them sees the other: either
 * the check sees OV_BUSY and steps back, or the update sees the check
 * and waits.  (Dekker's argument; everything else follows from release
 * and acquire.)
 *
 * So checks share no cache line that any of them writes, except that
 * two threads which meet in one place for readers part for good; and an
 * update delays no check in another window.  The places for readers
 * belong to the process, 64 cache lines for all trackers together.
 *
 * Invariants:
 *
 * 1. What a slot without OV_BUSY points to does not change.
 * 2. A slot that is 0 is only ever replaced by something finished.
 * 3. A cluster is described by its page if there is one, else by the
 *    runs; the runs are empty where there is a page.
 *
 * Locks: the write side needs overlap.lock.  A check holds one read
 * lock at a time and waits for nothing else, so an update may have
 * several windows open.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>

#include "overlap-internal.h"

#define READERS 64

struct ov_reader {
  _Alignas (64) _Atomic (const void *) at;
};

static struct ov_reader readers[READERS];

/* Places above this one have never been used. */
static atomic_uint readers_used;

/* Where this thread found a free place last. */
static __thread unsigned my_place;

/* What holds us up takes some dozen instructions, unless its thread was
 * preempted.
 */
static void
wait_a_little (unsigned *spins)
{
  if (++*spins % 64 == 0)
    sched_yield ();
#if defined (__x86_64__) || defined (__i386__)
  else
    __builtin_ia32_pause ();
#endif
}

/* Write AT into a free place. */
static struct ov_reader *
register_reader (const void *at)
{
  unsigned spins = 0, used;

  for (;; my_place = (my_place + 1) % READERS) {
    struct ov_reader *r = &readers[my_place];
    const void *none = NULL;

    used = atomic_load_explicit (&readers_used, memory_order_relaxed);
    while (used <= my_place
           && !atomic_compare_exchange_weak (&readers_used, &used,
                                             my_place + 1))
      ;
    if (atomic_compare_exchange_strong (&r->at, &none, at))
      return r;
    if (my_place == READERS - 1)
      wait_a_little (&spins);
  }
}

uintptr_t
ov_read_lock (ov_slot *slot, struct ov_reader **reader)
{
  uintptr_t v = atomic_load_explicit (slot, memory_order_acquire);
  unsigned spins = 0;

  while (v != 0) {
    *reader = register_reader (slot);
    v = atomic_load (slot);
    if (v != 0 && !(v & OV_BUSY))
      return v;
    ov_read_unlock (*reader);
    while (v & OV_BUSY) {
      wait_a_little (&spins);
      v = atomic_load_explicit (slot, memory_order_acquire);
    }
  }
  return 0;
}

void
ov_read_unlock (struct ov_reader *reader)
{
  atomic_store_explicit (&reader->at, NULL, memory_order_release);
}

uintptr_t
ov_write_lock (ov_slot *slot)
{
  uintptr_t v = atomic_load_explicit (slot, memory_order_relaxed);
  unsigned i, used, spins = 0;

  /* Nobody reads behind a slot that is 0. */
  if (v == 0)
    return 0;
  atomic_store (slot, v | OV_BUSY);
  used = atomic_load (&readers_used);
  for (i = 0; i < used; ++i)
    while (atomic_load (&readers[i].at) == slot)
      wait_a_little (&spins);
  return v;
}

void
ov_write_unlock (ov_slot *slot, uintptr_t value)
{
  atomic_store_explicit (slot, value, memory_order_release);
}

static struct ov_runs *
runs_of (uintptr_t value)
{
  return value & OV_PAGED
    ? ((struct ov_paged *) (value & ~OV_FLAGS))->runs
    : (struct ov_runs *) (value & ~OV_FLAGS);
}

static struct ov_paged *
paged_of (uintptr_t value)
{
  return value & OV_PAGED ? (struct ov_paged *) (value & ~OV_FLAGS) : NULL;
}

struct ov_window *
ov_window_opened (struct overlap *o, uint64_t number)
{
  struct ov_window *w = o->open;

  while (w && w->number != number)
    w = w->outer;
  return w;
}

void
ov_window_open (struct overlap *o, struct ov_window *w, ov_slot *slot,
                uint64_t number)
{
  uintptr_t v = ov_write_lock (slot);

  w->slot = slot;
  w->number = number;
  w->runs = runs_of (v);
  w->paged = paged_of (v);
  w->outer = o->open;
  o->open = w;
  if (v != 0)
    o->windows--;
}

void
ov_window_close (struct overlap *o, struct ov_window *w)
{
  uintptr_t v = (uintptr_t) w->runs;

  if (w->paged) {
    w->paged->runs = w->runs;
    v = (uintptr_t) w->paged | OV_PAGED;
  }
  if (v != 0)
    o->windows++;
  o->open = w->outer;
  ov_write_unlock (w->slot, v);
}

void
ov_window_scan (const struct overlap *o, uintptr_t value, uint64_t base,
                uint32_t a, uint32_t b, struct ov_scan *s)
{
  const struct ov_paged *paged = paged_of (value);
  const struct ov_runs *runs = runs_of (value);
  uint32_t n;

  /* Pages and runs do not overlap, so the order does not matter. */
  if (runs)
    ov_runs_scan (o, runs, base, a, b, s);
  if (!paged)
    return;
  for (n = a / OV_PAGE; n <= (b - 1) / OV_PAGE; ++n) {
    if (s->hit_only && s->found)
      return;
    if (paged->page[n]) {
      uint32_t lo = n * OV_PAGE, hi = lo + OV_PAGE;
      ov_page_scan (o, paged->page[n], base, a > lo ? a : lo,
                    b < hi ? b : hi, s);
    }
  }
}

/* Where the stretch from A on that has, or has not, pages ends. */
static uint32_t
stretch_end (const struct ov_window *w, uint32_t a, uint32_t b)
{
  uint32_t end;

  if (!w->paged)
    return b;
  end = a / OV_PAGE * OV_PAGE + OV_PAGE;
  if (!w->paged->page[a / OV_PAGE])
    while (end < b && !w->paged->page[end / OV_PAGE])
      end += OV_PAGE;
  return end < b ? end : b;
}

int
ov_window_edit (struct overlap *o, struct ov_window *w, uint32_t a,
                uint32_t b, struct ov_edit *e, uint32_t *done)
{
  int r = 0;

  for (*done = a; *done < b; ) {
    struct ov_page *page = w->paged ? ov_page_of (w->paged, *done) : NULL;
    uint32_t end = stretch_end (w, *done, b);

    if (page)
      r = ov_page_edit (o, w, page, *done, end, e);
    else
      r = ov_runs_edit (o, &w->runs, *done, &end, e);
    if (r == -EAGAIN)           /* the page is gone */
      continue;
    if (r < 0)
      return r;
    *done = end;
  }
  return 0;
}
