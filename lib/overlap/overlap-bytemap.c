/* SPDX-License-Identifier: BSD-3-Clause */

/* The bytemap cache.  A page has the class of each of its clusters in a
 * byte, so an update there is a store, where a run list has to be
 * shifted.  Pages are made for what is updated again and again (new
 * metadata tends to be allocated side by side), and become runs again
 * when the cache needs their room, when memory is short, or when a
 * class has a number that a byte does not hold, or is of a type that
 * never leaves: turning a page into runs may fail for want of memory.
 *
 * Checks never make pages, and are about as fast without.
 *
 * Invariants:
 *
 * 1. bytemap_bytes, the sum over all pages and ov_paged blocks as the
 *    allocator gave them, and the table of overlap-hot.c never exceed
 *    config.bitmap_size together.
 * 2. A page has at least one byte that is not 0, and no pinned mark.
 * 3. The list from "oldest" to "newest" holds each page once, in the
 *    order of their last update.
 *
 * Locks: everything but ov_page_scan needs overlap.lock and changes
 * only windows that are open.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "overlap-fast.h"

struct ov_page *
ov_page_of (const struct ov_paged *paged, uint32_t cluster)
{
  return paged->page[cluster / OV_PAGE];
}

static void
list_append (struct overlap *o, struct ov_page *page)
{
  page->newer = NULL;
  page->older = o->newest;
  if (o->newest)
    o->newest->newer = page;
  else
    o->oldest = page;
  o->newest = page;
}

static void
list_remove (struct overlap *o, struct ov_page *page)
{
  if (page->older)
    page->older->newer = page->newer;
  else
    o->oldest = page->newer;
  if (page->newer)
    page->newer->older = page->older;
  else
    o->newest = page->older;
}

void
ov_page_scan (const struct overlap *o, const struct ov_page *page,
              uint64_t base, uint32_t a, uint32_t b, struct ov_scan *s)
{
  uint64_t page_base = base + page->number * OV_PAGE;
  uint32_t i = a % OV_PAGE, end = i + (b - a), from;
  uint64_t word;

  while (i < end && !(s->hit_only && s->found)) {
    /* Most bytes are 0: skip eight at a time. */
    if (end - i >= sizeof word) {
      memcpy (&word, &page->class[i], sizeof word);
      if (word == 0) {
        i += (uint32_t) sizeof word;
        continue;
      }
    }
    for (from = i++; i < end && page->class[i] == page->class[from]; )
      i++;
    if (page->class[from])
      ov_scan_add (s, page_base + from, i - from,
                   ov_kind (o, page->class[from])->set);
  }
}

static void
release (struct overlap *o, void *p)
{
  o->bytemap_bytes -= ov_size (p);
  ov_free (o, p);
}

/* Take a page out of its window and release it. */
static void
drop (struct overlap *o, struct ov_window *w, struct ov_page *page)
{
  list_remove (o, page);
  w->paged->page[page->number] = NULL;
  if (--w->paged->n == 0) {
    release (o, w->paged);
    w->paged = NULL;
  }
  release (o, page);
}

void
ov_page_remove (struct overlap *o, struct ov_window *w,
                struct ov_page *page, uint8_t *copy)
{
  memcpy (copy, page->class, OV_PAGE);
  drop (o, w, page);
}

/* Apply an edit to the bytes; no byte changes unless all can. */
static int
classes_fit (struct overlap *o, const struct ov_page *page, uint32_t i,
             uint32_t end, struct ov_edit *e)
{
  int old = -1, r;
  uint16_t new;

  for (; i < end; ++i) {
    if (page->class[i] == old)
      continue;
    old = page->class[i];
    r = ov_edit_class (o, e, (uint16_t) old, &new);
    if (r < 0)
      return r;
    if (new > UINT8_MAX || (ov_kind (o, new)->set & OV_PINNED))
      return -ERANGE;
  }
  return 0;
}

static void evict (struct overlap *o, struct ov_page *page,
                   bool last_chance);

int
ov_page_edit (struct overlap *o, struct ov_window *w, struct ov_page *page,
              uint32_t a, uint32_t b, struct ov_edit *e)
{
  uint32_t i = a % OV_PAGE, end = i + (b - a);
  int r = classes_fit (o, page, i, end, e);
  uint16_t new;

  if (r == -ERANGE) {
    evict (o, page, false);
    return -EAGAIN;
  }
  if (r < 0)
    return r;
  for (; i < end; ++i) {
    uint16_t old = page->class[i];

    ov_edit_class (o, e, old, &new); /* cannot fail any more */
    if (e->what == OV_LEAVE
        && !(ov_kind (o, old)->set & OVERLAP_BIT (e->type)))
      e->missing++;
    page->class[i] = (uint8_t) new;
    page->marked += (new != 0);
    page->marked -= (old != 0);
  }
  if (page->marked == 0)
    drop (o, w, page);
  else if (page != o->newest) {
    list_remove (o, page);
    list_append (o, page);
  }
  return 0;
}

/* Memory for the cache; turns old pages into runs to get it. */
static void *
cache_alloc (struct overlap *o, size_t size)
{
  const uint64_t limit = o->config.bitmap_size;
  void *p;

  if (size > limit)
    return NULL;
  while (o->bytemap_bytes + size > limit)
    if (!ov_page_evict (o))
      return NULL;
  p = ov_alloc (o, size, false);
  if (!p)
    return NULL;
  o->bytemap_bytes += ov_size (p);
  if (o->bytemap_bytes > limit) {
    release (o, p);
    return NULL;
  }
  return p;
}

/* Fill a page from the runs. */
struct fill {
  struct overlap *o;
  struct ov_page *page;
  uint32_t first;
};

static int
fill_one (void *opaque, struct ov_piece piece)
{
  struct fill *f = opaque;
  const struct ov_kind *k = ov_kind (f->o, piece.kind);
  uint32_t end = piece.start + (UINT32_C (1) << k->log);

  if (end <= f->first || piece.start >= f->first + OV_PAGE)
    return 0;
  /* A piece that reaches over the border would have to be cut, which
   * might need memory; and a class must fit in a byte.
   */
  if (piece.start < f->first || end > f->first + OV_PAGE
      || k->class > UINT8_MAX || (k->set & OV_PINNED))
    return -ERANGE;
  memset (&f->page->class[piece.start - f->first], k->class,
          end - piece.start);
  f->page->marked += end - piece.start;
  return 0;
}

/* Make the page in which CLUSTER lies, if that is easily done. */
static void
make_page (struct overlap *o, struct ov_window *w, uint32_t cluster)
{
  struct ov_edit put = { .what = OV_PUT, .put = 0 };
  struct fill f = { .o = o, .first = cluster / OV_PAGE * OV_PAGE };
  uint32_t a, b;

  f.page = cache_alloc (o, sizeof *f.page);
  if (!f.page)
    return;
  f.page->window = w->number;
  f.page->number = cluster / OV_PAGE;
  if (ov_runs_each (w->runs, fill_one, &f) < 0 || f.page->marked == 0) {
    release (o, f.page);
    return;
  }
  if (!w->paged) {
    struct ov_paged *paged
      = cache_alloc (o, sizeof *paged
                     + ov_pages (o) * sizeof paged->page[0]);

    if (!paged) {
      release (o, f.page);
      return;
    }
    w->paged = paged;
  }
  w->paged->page[f.page->number] = f.page;
  w->paged->n++;
  list_append (o, f.page);

  /* Nothing is cut and no run grows, so this needs no memory. */
  for (a = f.first; a < f.first + OV_PAGE; a = b) {
    b = f.first + OV_PAGE;
    ov_runs_edit (o, &w->runs, a, &b, &put);
  }
}

void
ov_page_promote (struct overlap *o, struct ov_window *w, uint32_t a,
                 uint32_t b)
{
  uint64_t page = w->number * ov_pages (o) + a / OV_PAGE;
  struct ov_recent *recent = &o->recent[page % OV_RECENT];

  if (o->hold || a / OV_PAGE != (b - 1) / OV_PAGE
      || (w->paged && ov_page_of (w->paged, a)))
    return;
  if (recent->page != (uint32_t) page) {
    recent->page = (uint32_t) page;
    recent->updates = 0;
  }
  if (++recent->updates == OV_PROMOTE) {
    recent->updates = 0;
    make_page (o, w, a);
  }
}

/* Where the equal bytes that begin at I end. */
static uint32_t
equal_bytes (const uint8_t *bytes, uint32_t i)
{
  uint32_t end = i + 1;

  while (end < OV_PAGE && bytes[end] == bytes[i])
    end++;
  return end;
}

/* Put the bytes of a page that is gone into the runs.  What was put is
 * cleared in BYTES: after -ENOMEM the rest may be tried again or kept, and
 * no mark is known twice.
 */
static int
page_to_runs (struct overlap *o, struct ov_window *w, uint32_t number,
                 uint8_t *bytes)
{
  const uint32_t base = number * OV_PAGE;
  uint32_t i, end, a, b;

  for (i = 0; i < OV_PAGE; i = end) {
    struct ov_edit put = { .what = OV_PUT, .put = bytes[i] };

    end = equal_bytes (bytes, i);
    if (bytes[i] == 0)
      continue;
    for (a = base + i; a < base + end; a = b) {
      b = base + end;
      if (ov_runs_edit (o, &w->runs, a, &b, &put) < 0)
        return -ENOMEM;
      memset (bytes + (a - base), 0, b - a);
    }
  }
  return 0;
}

/* Turn a page of an open window into runs.  The page's own memory is
 * released first and nearly always suffices for them.  If not, other
 * pages go, too; if one of these does not find enough memory, or there
 * are none, the window leaves, and is not rebuilt any more.  It may also
 * have left on account of another of its pages; then, too, the marks of
 * this one are gone.
 */
static void
to_runs (struct overlap *o, struct ov_window *w, struct ov_page *page,
         bool last_chance)
{
  uint8_t bytes[OV_PAGE];
  uint32_t number = page->number;

  ov_page_remove (o, w, page, bytes);
  while (!ov_outside (o, w->number) || ov_restoring (o, w->number)) {
    if (page_to_runs (o, w, number, bytes) == 0)
      return;
    if (!last_chance && o->oldest)
      evict (o, o->oldest, true);
    else if (!ov_restoring (o, w->number) || !ov_restore_shrink (o))
      ov_abandon (o, w->number, w);
  }
}

/* As to_runs, for a page of any window. */
static void
evict (struct overlap *o, struct ov_page *page, bool last_chance)
{
  uint64_t number = page->window;
  struct ov_window *opened = ov_window_opened (o, number), w;

  if (opened)
    to_runs (o, opened, page, last_chance);
  else {
    ov_window_open (o, &w, ov_dir_find (o, number), number);
    to_runs (o, &w, page, last_chance);
    ov_window_close (o, &w);
  }
}

bool
ov_page_evict (struct overlap *o)
{
  if (!o->oldest)
    return false;
  evict (o, o->oldest, false);
  return true;
}
