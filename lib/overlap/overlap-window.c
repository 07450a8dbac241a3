/* SPDX-License-Identifier: BSD-3-Clause */

/* Windows: how checks and updates keep out of each other's way, and how
 * a window's runs and pages make one map.
 *
 * A window has no lock of its own, it has a slot in the directory: one
 * word that says where the runs are.  A check that finds 0 there is
 * done.  Else it writes the slot's address into its thread's place in
 * "readers", looks at the slot again, and may then read what it points
 * to until it clears its place.  An update sets OV_BUSY in the slot,
 * then waits until no reader's place has this slot's address.  Both
 * sides write first and read second; if neither side's read overtakes
 * its write, at least one of them sees the other: either the check sees
 * OV_BUSY and steps back, or the update sees the check and waits.
 * (Dekker's argument; everything else follows from release and acquire.)
 *
 * Holding a read back behind a write takes a fence, which costs as much
 * as the rest of a check, and keeps the processor from working on what
 * comes after it.  So the updates pay for both sides: before the first
 * update of a window membarrier(2) makes every thread of the process
 * pass a fence.  Thereafter the window counts as fenced, and checks of
 * it have a fence of their own, so that more updates need no system
 * call.  Which windows are fenced is a word of 64 bits, one for each
 * group of slots.  After FENCES_MAX calls all groups are fenced at once:
 * who updates so many windows updates many more, at random or because
 * the image is being opened.  A thread that has met UNFENCE_AFTER fenced
 * windows since then takes it all back, unless an update is under way.
 *
 * A check writes its place, then reads "fenced", then the slot.  Say the
 * fence that membarrier gave its thread comes after the second: then the
 * place was written before the fence, and the update sees it.  Or it
 * comes before: then the check sees that the window is fenced.  Where
 * membarrier is not to be had, all is fenced all the time.
 *
 * So checks share no cache line that any of them writes, and an update
 * delays no check in another window.  The places belong to the process,
 * for all trackers together.  A thread gets one at its first check and
 * keeps it to its end.  When there is none left, it borrows one of a few
 * that are shared, for each check and with a fence.
 *
 * Invariants:
 *
 * 1. What a slot without OV_BUSY points to does not change.
 * 2. A slot that is 0 is only ever replaced by something finished.
 * 3. A cluster is described by its page if there is one, else by the
 *    runs; the runs are empty where there is a page.
 * 4. A slot has OV_BUSY only while its group is fenced.
 *
 * Locks: the write side needs overlap.lock, and so does a change of
 * "fenced", for which a check tries it but does not wait.  A check holds
 * one read lock at a time and waits for nothing else, so an update may
 * have several windows open.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "overlap-fast.h"

/* Places, of which those from OWNED on are shared. */
#define READERS 128
#define OWNED 112

#define FENCES_MAX 8
#define UNFENCE_AFTER 8192

static struct ov_reader readers[READERS];

/* Places below this one may be in use, and those that are shared if one
 * of them ever was.
 */
static atomic_uint owned_used;
static atomic_bool shared_used;

__thread struct ov_reader *ov_mine FAST_TLS;
static __thread unsigned fenced_checks FAST_TLS;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool have_key, have_membarrier;

/* ---- fences ---- */

#ifdef SYS_membarrier

/* From the system's ABI: <linux/membarrier.h> may be older than the
 * system.
 */
#define PRIVATE_EXPEDITED (1 << 3)
#define REGISTER_PRIVATE_EXPEDITED (1 << 4)

static int
membarrier (int command)
{
  return (int) syscall (SYS_membarrier, command, 0, 0);
}

static bool
fence_register (void)
{
  return membarrier (REGISTER_PRIVATE_EXPEDITED) == 0
    && membarrier (PRIVATE_EXPEDITED) == 0;
}

/* Let all threads of the process pass a fence.  What worked once fails
 * only after a fork, if at all; should it really have been forbidden
 * meanwhile, then the time that writes take to become visible is waited
 * out, and from then on all is fenced.
 */
static void
fence_all (struct overlap *o)
{
  struct timespec ts = { 0, 20000000 };

  if (membarrier (PRIVATE_EXPEDITED) == 0 || fence_register ())
    return;
  atomic_store (&o->fenced, UINT64_MAX);
  o->always_fenced = true;
  nanosleep (&ts, NULL);
}

#else

static bool
fence_register (void)
{
  return false;
}

static void
fence_all (struct overlap *o)
{
  (void) o;
}

#endif

/* The group of a slot is to be fenced. */
static void
fence_group (struct overlap *o, uint64_t group)
{
  if (++o->fences >= FENCES_MAX)
    group = UINT64_MAX;
  atomic_fetch_or (&o->fenced, group);
  fence_all (o);
}

/* A check met a fenced window. */
static void
count_fenced_check (struct overlap *o)
{
  if (++fenced_checks < UNFENCE_AFTER)
    return;
  fenced_checks = 0;
  if (pthread_mutex_trylock (&o->lock) != 0)
    return;
  if (!o->always_fenced) {
    o->fences = 0;
    atomic_store (&o->fenced, 0);
  }
  pthread_mutex_unlock (&o->lock);
}

/* ---- places ---- */

static void
give_back_place (void *opaque)
{
  struct ov_reader *r = opaque;

  ov_mine = NULL;
  atomic_store_explicit (&r->owned, false, memory_order_release);
}

static void
init_once (void)
{
  have_key = pthread_key_create (&key, give_back_place) == 0;
  have_membarrier = fence_register ();
}

/* Nothing may be called once the code is gone. */
static void __attribute__ ((destructor))
forget_key (void)
{
  if (have_key)
    pthread_key_delete (key);
  have_key = false;
}

void
ov_readers_init (struct overlap *o)
{
  pthread_once (&once, init_once);
  o->always_fenced = !have_membarrier;
  atomic_init (&o->fenced, have_membarrier ? 0 : UINT64_MAX);
}

void
ov_own_place (void)
{
  unsigned i, used;

  for (i = 0; have_key && i < OWNED; ++i) {
    bool owned = false;

    if (atomic_load_explicit (&readers[i].owned, memory_order_relaxed)
        || !atomic_compare_exchange_strong (&readers[i].owned, &owned, true))
      continue;
    if (pthread_setspecific (key, &readers[i]) != 0) {
      atomic_store (&readers[i].owned, false);
      return;
    }
    /* Before the place is first used, so that updates look there. */
    used = atomic_load (&owned_used);
    while (used <= i
           && !atomic_compare_exchange_weak (&owned_used, &used, i + 1))
      ;
    ov_mine = &readers[i];
    return;
  }
}

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

/* Write AT into this thread's place, or a shared one, with a fence. */
static struct ov_reader *
register_reader (const void *at)
{
  unsigned spins = 0, i;

  if (!ov_mine)
    ov_own_place ();
  if (ov_mine) {
    atomic_store (&ov_mine->at, at);
    return ov_mine;
  }
  /* As with a place itself: first say so, then look at the slot. */
  atomic_store (&shared_used, true);
  for (i = OWNED; ; i = i + 1 < READERS ? i + 1 : OWNED) {
    const void *none = NULL;

    if (atomic_compare_exchange_strong (&readers[i].at, &none, at))
      return &readers[i];
    wait_a_little (&spins);
  }
}

uintptr_t
ov_read_lock_fenced (struct overlap *o, ov_slot *slot,
                     struct ov_reader **reader)
{
  unsigned spins = 0;
  uintptr_t v;

  if (ov_mine)                     /* not the first check of the thread */
    count_fenced_check (o);
  do {
    *reader = register_reader (slot);
    v = atomic_load (slot);
    if (v != 0 && !(v & OV_BUSY))
      return v;
    ov_read_unlock (*reader);
    while (v & OV_BUSY) {
      wait_a_little (&spins);
      v = atomic_load_explicit (slot, memory_order_acquire);
    }
  } while (v != 0);
  return 0;
}

/* Wait until nobody reads behind a slot in places FIRST to END. */
static void
wait_for_readers (const ov_slot *slot, unsigned first, unsigned end)
{
  unsigned i, spins = 0;

  for (i = first; i < end; ++i)
    while (atomic_load (&readers[i].at) == slot)
      wait_a_little (&spins);
}

uintptr_t
ov_write_lock (struct overlap *o, ov_slot *slot)
{
  uintptr_t v = atomic_load_explicit (slot, memory_order_relaxed);

  /* Nobody reads behind a slot that is 0. */
  if (v == 0)
    return 0;
  if (!(atomic_load_explicit (&o->fenced, memory_order_relaxed)
        & ov_group (slot)))
    fence_group (o, ov_group (slot));
  atomic_store (slot, v | OV_BUSY);
  wait_for_readers (slot, 0, atomic_load (&owned_used));
  if (atomic_load (&shared_used))
    wait_for_readers (slot, OWNED, READERS);
  return v;
}

void
ov_write_unlock (ov_slot *slot, uintptr_t value)
{
  atomic_store_explicit (slot, value, memory_order_release);
}

bool
ov_can_take (const struct overlap *o)
{
  return !o->always_fenced;
}

void
ov_slot_take (struct overlap *o, ov_slot *slot)
{
  atomic_store (slot, 0);
  fence_all (o);
  wait_for_readers (slot, 0, atomic_load (&owned_used));
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
  uintptr_t v = ov_write_lock (o, slot);

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
