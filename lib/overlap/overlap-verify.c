/* SPDX-License-Identifier: BSD-3-Clause */

/* The self-check: walk everything, and compare with what the tracker
 * says of itself.  It keeps no state and takes overlap.lock.
 */

#include <config.h>

#include "cleanup.h"
#include "overlap-fast.h"

struct recount {
  uint64_t bytes, bytemap_bytes, windows, runs, pages;
};

#define FAIL(text) do { *why = (text); return false; } while (0)

static bool
verify_page (struct overlap *o, const struct ov_page *page,
             const struct ov_runs *runs, const char **why)
{
  struct ov_scan s = { .mask = OVERLAP_ALL };
  uint32_t i, marked = 0;

  for (i = 0; i < OV_PAGE; ++i) {
    if (page->class[i] >= o->n_kinds || ov_kind (o, page->class[i])->log)
      FAIL ("a page holds a class that does not exist");
    if (ov_kind (o, page->class[i])->set & OV_PINNED)
      FAIL ("a page holds a mark that must never leave");
    marked += page->class[i] != 0;
  }
  if (marked == 0 || marked != page->marked)
    FAIL ("a page's count of its marks is wrong");
  if (runs) {
    ov_runs_scan (o, runs, 0, page->number * OV_PAGE,
                  (page->number + 1) * OV_PAGE, &s);
    if (s.any)
      FAIL ("a cluster is in a page and in a run");
  }
  return true;
}

static bool
verify_paged (struct overlap *o, const struct ov_paged *paged,
              uint64_t window, struct recount *sum, const char **why)
{
  uint64_t n = 0;
  uint32_t i;

  sum->bytemap_bytes += ov_size (paged);
  for (i = 0; i < ov_pages (o); ++i) {
    const struct ov_page *page = paged->page[i];

    if (!page)
      continue;
    n++;
    sum->bytemap_bytes += ov_size (page);
    if (page->window != window || page->number != i)
      FAIL ("a page is in the wrong place");
    if (!verify_page (o, page, paged->runs, why))
      return false;
  }
  if (n == 0 || n != paged->n)
    FAIL ("a window's count of its pages is wrong");
  sum->pages += n;
  return true;
}

static bool
verify_window (struct overlap *o, uintptr_t value, uint64_t window,
               struct recount *sum, const char **why)
{
  struct ov_paged *paged = (struct ov_paged *) (value & ~OV_FLAGS);
  struct ov_runs *runs = (struct ov_runs *) (value & ~OV_FLAGS);

  if (value & OV_BUSY)
    FAIL ("a window was left open");
  sum->windows++;
  if (value & OV_PAGED) {
    runs = paged->runs;
    if (!verify_paged (o, paged, window, sum, why))
      return false;
  }
  if (!runs)
    return true;
  sum->bytes += ov_size (runs);
  sum->runs += ov_count (runs);
  return ov_runs_verify (o, runs, why);
}

/* The list of pages, from both ends. */
static bool
verify_list (struct overlap *o, uint64_t pages, const char **why)
{
  const struct ov_page *page, *older = NULL;
  uint64_t n = 0;

  for (page = o->oldest; page; page = page->newer) {
    if (page->older != older || ++n > pages)
      FAIL ("the list of pages is broken");
    older = page;
  }
  if (older != o->newest || n != pages)
    FAIL ("the list of pages lost some");
  return true;
}

bool
overlap_verify (struct overlap *o, const char **why)
{
  struct recount sum = { 0 };
  uint64_t w = 0, sieve;
  ov_slot *slot;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&o->lock);
  *why = NULL;
  for (; (slot = ov_dir_next (o, &w)) != NULL; ++w) {
    uintptr_t v = atomic_load (slot);
    if (v != 0 && !verify_window (o, v, w, &sum, why))
      return false;
  }
  if (!ov_fixed_verify (o, why) || !verify_list (o, sum.pages, why))
    return false;
  if (!ov_sieve_verify (o, &sieve, why))
    return false;
  if (sum.bytemap_bytes != o->bytemap_bytes)
    FAIL ("the bytes of the bytemap cache are not what was accounted");
  if (sieve != o->sieve_bytes)
    FAIL ("the bytes of the sieve are not what was accounted");
  if (o->bytemap_bytes > o->config.bitmap_size)
    FAIL ("the bytemap cache is larger than it may be");
  if (!ov_dir_verify (o))
    FAIL ("the array of leaves is not what the tree has");
  if (ov_dir_recount (o) != o->directory_bytes)
    FAIL ("the bytes of the directory are not what was accounted");
  if (sum.bytes + sum.bytemap_bytes + sieve + o->directory_bytes
      + ov_fixed_bytes (o) != o->used)
    FAIL ("the bytes in use are not what was accounted");
  if (sum.windows != o->windows || sum.runs != o->runs)
    FAIL ("the count of windows or runs is wrong");
  if (o->open)
    FAIL ("an update has not ended");
  return true;
}
