/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker side by side with four plain things that could stand in
 * its place: a byte per cluster, a sorted array with binary search, a
 * hash set, and a red-black tree of ranges (the system's tsearch).  All
 * in one run, on the same positions in the same order, since figures of
 * two runs on a shared machine do not compare.
 *
 * A processor works on several checks at once if they come in a row, and
 * so hides the time that each waits for memory; a server has one at a
 * time.  So checks are measured both ways: one after the other, each
 * waiting for the end of the one before, and in a row.
 *
 * Usage: bench-overlap [ROUNDS [PART...]].  More rounds are slower and
 * steadier; the contenders take turns, and of each the fastest round is
 * printed, in nanoseconds of CPU time.  A part is the number of a layout,
 * "open" or "threads"; without any, all are done.
 */

#include <config.h>

#include <inttypes.h>
#include <pthread.h>
#include <search.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "overlap.h"

#define POSITIONS 262144u       /* checks of one measurement */
#define THREADS_MAX 3

struct layout {
  const char *name;
  unsigned size_bits, cluster_bits, snapshots;
  const char *floor, *aim;      /* of the memory */
};

static const struct layout layouts[] = {
  { "1 TiB, 64 KiB clusters", 40, 16, 0, "12 KiB", "7 KiB" },
  { "8 TiB, 64 KiB clusters", 43, 16, 0, "96 KiB", "56 KiB" },
  { "1 TiB, 4 KiB clusters", 40, 12, 0, "3 MiB", "1.3 MiB" },
  { "128 GiB, 512 B clusters", 37, 9, 0, "22 MiB", "9 MiB" },
  { "1 TiB, 64 KiB, 8 snapshots", 40, 16, 8, "in proportion", "" },
};

/* One mark of an image. */
struct mark {
  uint64_t cluster;
  enum overlap_type type;
};

static struct mark *marks;
static uint64_t n_marks, n_clusters;
static uint64_t state = 88172645463325252u;

static uint64_t
rnd (uint64_t below)
{
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return (state * UINT64_C (2685821657736338717) >> 11) % below;
}

static double
now (clockid_t clock)
{
  struct timespec ts;

  clock_gettime (clock, &ts);
  return (double) ts.tv_sec * 1e9 + (double) ts.tv_nsec;
}

static void *
must (void *p)
{
  if (!p) {
    fprintf (stderr, "bench-overlap: out of memory\n");
    exit (EXIT_FAILURE);
  }
  return p;
}

static void
add (uint64_t cluster, enum overlap_type type)
{
  marks[n_marks].cluster = cluster;
  marks[n_marks++].type = type;
}

/* All metadata of an image whose every cluster is allocated: each L2
 * table before what it maps, each refcount block before what it counts,
 * or all at random places.
 */
static void
make_marks (const struct layout *l, bool random)
{
  uint64_t per_l2 = UINT64_C (1) << (l->cluster_bits - 3);
  uint64_t per_block = UINT64_C (1) << (l->cluster_bits - 1);
  uint64_t data = UINT64_C (1) << (l->size_bits - l->cluster_bits);
  uint64_t l2s = data / per_l2, i, k;
  unsigned char *taken;

  n_clusters = data + data / 64 * (l->snapshots + 2);
  n_marks = 0;
  marks = must (malloc ((l2s * (l->snapshots + 1) + n_clusters / per_block
                         + 64) * sizeof *marks));
  for (i = 0; i < l2s; ++i)
    for (k = 0; k <= l->snapshots; ++k)
      add (i * (per_l2 + 1) + k * (per_l2 / (l->snapshots + 1)) + 3,
           k == 0 ? OVERLAP_ACTIVE_L2 : OVERLAP_INACTIVE_L2);
  for (i = 0; i < n_clusters / per_block; ++i)
    add (i * per_block + 1, OVERLAP_REFCOUNT_BLOCK);

  taken = must (calloc (n_clusters, 1));
  for (i = 0; i < n_marks; ++i) {
    if (random)
      do
        marks[i].cluster = rnd (n_clusters);
      while (taken[marks[i].cluster]);
    taken[marks[i].cluster] = 1;
  }
  free (taken);
}

static void
shuffle (void)
{
  uint64_t i, j;

  for (i = n_marks - 1; i > 0; --i) {
    struct mark m = marks[i];
    j = rnd (i + 1);
    marks[i] = marks[j];
    marks[j] = m;
  }
}

/* The contenders. */
static struct overlap *tracker;
static uint8_t *bytes;
static uint64_t *sorted, *hash, hash_size;

static bool
in_tracker (uint64_t c)
{
  return overlap_hit (tracker, c, 1, OVERLAP_ALL);
}

static bool
in_tracker_query (uint64_t c)
{
  struct overlap_answer a;

  overlap_query (tracker, c, 1, OVERLAP_ALL, &a);
  return a.any != 0;
}

static bool
in_bytes (uint64_t c)
{
  return bytes[c] != 0;
}

static bool
in_sorted (uint64_t c)
{
  uint64_t lo = 0, hi = n_marks;

  while (lo < hi) {
    uint64_t mid = lo + (hi - lo) / 2;
    if (sorted[mid] < c)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo < n_marks && sorted[lo] == c;
}

static bool
in_hash (uint64_t c)
{
  uint64_t i = c * UINT64_C (0x9e3779b97f4a7c15) >> 20;

  for (;; ++i) {
    uint64_t v = hash[i & (hash_size - 1)];
    if (v == UINT64_MAX)
      return false;
    if (v == c)
      return true;
  }
}

/* A tree of ranges.  Two that have a cluster in common compare equal,
 * so a look-up finds the range that a cluster lies in.
 */
struct range {
  uint64_t first, end;
};

static struct range *ranges;
static void *tree;

static int
compare_ranges (const void *a, const void *b)
{
  const struct range *x = a, *y = b;

  return x->end <= y->first ? -1 : x->first >= y->end;
}

static bool
in_tree (uint64_t c)
{
  const struct range key = { c, c + 1 };

  return tfind (&key, &tree, compare_ranges) != NULL;
}

static int
compare_u64 (const void *a, const void *b)
{
  uint64_t x = *(const uint64_t *) a, y = *(const uint64_t *) b;

  return x < y ? -1 : x > y;
}

static void
make_contenders (void)
{
  uint64_t i, j;

  bytes = must (calloc (n_clusters, 1));
  memset (bytes, 0, n_clusters); /* real pages, not the zero page */
  sorted = must (malloc (n_marks * sizeof *sorted));
  for (hash_size = 64; hash_size < n_marks * 2; )
    hash_size *= 2;
  hash = must (malloc (hash_size * sizeof *hash));
  memset (hash, 0xff, hash_size * sizeof *hash);
  for (i = 0; i < n_marks; ++i) {
    bytes[marks[i].cluster] = 1;
    sorted[i] = marks[i].cluster;
    j = marks[i].cluster * UINT64_C (0x9e3779b97f4a7c15) >> 20;
    while (hash[j & (hash_size - 1)] != UINT64_MAX)
      ++j;
    hash[j & (hash_size - 1)] = marks[i].cluster;
  }
  qsort (sorted, n_marks, sizeof *sorted, compare_u64);

  /* Nodes and ranges lie where they come to lie: the marks are shuffled. */
  ranges = must (malloc (n_marks * sizeof *ranges));
  for (i = 0; i < n_marks; ++i) {
    ranges[i].first = marks[i].cluster;
    ranges[i].end = marks[i].cluster + 1;
    must (tsearch (&ranges[i], &tree, compare_ranges));
  }
}

static void
free_contenders (void)
{
  uint64_t i;

  for (i = 0; i < n_marks; ++i)
    tdelete (&ranges[i], &tree, compare_ranges);
  free (ranges);
  free (bytes);
  free (sorted);
  free (hash);
}

static uint64_t positions[POSITIONS];
static volatile unsigned sink;

/* Wait until everything before has been done. */
static inline void
wait_for_all (void)
{
#if defined (__x86_64__) || defined (__i386__)
  __builtin_ia32_lfence ();
#else
  atomic_thread_fence (memory_order_seq_cst);
#endif
}

/* Inlined for each F, so that all are called alike. */
static inline __attribute__ ((always_inline)) double
time_checks (bool (*f) (uint64_t), bool in_a_row)
{
  double t = now (CLOCK_THREAD_CPUTIME_ID);
  unsigned i, hits = 0;

  if (in_a_row)
    for (i = 0; i < POSITIONS; ++i)
      hits += f (positions[i]);
  else
    for (i = 0; i < POSITIONS; ++i) {
      hits += f (positions[i]);
      wait_for_all ();
    }
  sink += hits;
  return (now (CLOCK_THREAD_CPUTIME_ID) - t) / POSITIONS;
}

#define CONTENDERS 6

static double
time_contender (unsigned which, bool in_a_row)
{
  switch (which) {
  case 0:
    return time_checks (in_tracker, in_a_row);
  case 1:
    return time_checks (in_tracker_query, in_a_row);
  case 2:
    return time_checks (in_bytes, in_a_row);
  case 3:
    return time_checks (in_sorted, in_a_row);
  case 4:
    return time_checks (in_hash, in_a_row);
  default:
    return time_checks (in_tree, in_a_row);
  }
}

static void
check_all (const char *what, unsigned rounds, unsigned contenders)
{
  double best[2][CONTENDERS], t;
  unsigned r, i, in_a_row;

  for (r = 0; r < rounds; ++r)
    for (i = 0; i < contenders; ++i)
      for (in_a_row = 0; in_a_row < 2; ++in_a_row) {
        t = time_contender (i, in_a_row);
        if (r == 0 || t < best[in_a_row][i])
          best[in_a_row][i] = t;
      }
  for (in_a_row = 0; in_a_row < 2; ++in_a_row) {
    printf ("  %-24s %-10s", in_a_row ? "" : what,
            in_a_row ? "in a row" : "one by one");
    for (i = 0; i < contenders; ++i)
      printf (" %6.1f", best[in_a_row][i]);
    printf ("\n");
  }
}

static struct overlap *
new_tracker (unsigned cluster_bits, uint64_t bitmap_size)
{
  struct overlap_config config = {
    .cluster_bits = cluster_bits, .bitmap_size = bitmap_size,
    .total_limit = UINT64_MAX,
  };

  return must (overlap_new (&config));
}

/* Nanoseconds of CPU per mark. */
static double
enter_all (void)
{
  double t = now (CLOCK_THREAD_CPUTIME_ID);
  uint64_t i;

  for (i = 0; i < n_marks; ++i)
    overlap_enter (tracker, marks[i].type, marks[i].cluster, 1, NULL);
  return (now (CLOCK_THREAD_CPUTIME_ID) - t) / (double) n_marks;
}

static double
leave_all (void)
{
  double t = now (CLOCK_THREAD_CPUTIME_ID);
  uint64_t i;

  for (i = 0; i < n_marks; ++i)
    overlap_leave (tracker, marks[i].type, marks[i].cluster, 1);
  return (now (CLOCK_THREAD_CPUTIME_ID) - t) / (double) n_marks;
}

/* Leave and enter again in random order, the tracker staying full. */
static double
churn (void)
{
  uint64_t i, n = n_marks < 1000000 ? n_marks : 1000000;
  double t = now (CLOCK_THREAD_CPUTIME_ID);

  for (i = 0; i < n; ++i) {
    overlap_leave (tracker, marks[i].type, marks[i].cluster, 1);
    overlap_enter (tracker, marks[i].type, marks[i].cluster, 1, NULL);
  }
  return (now (CLOCK_THREAD_CPUTIME_ID) - t) / (double) (2 * n);
}

/* Update marks here and there until the cache is full of their pages. */
static void
warm_pages (void)
{
  uint64_t i, n = n_marks < 10000 ? n_marks : 10000;
  unsigned k;

  for (i = 0; i < n; ++i)
    for (k = 0; k < 10; ++k) {
      overlap_leave (tracker, marks[i].type, marks[i].cluster, 1);
      overlap_enter (tracker, marks[i].type, marks[i].cluster, 1, NULL);
    }
}

/* Check where the marks are: a part of them is in pages. */
static void
bench_pages (const struct layout *l, uint64_t bitmap_size, unsigned rounds)
{
  struct overlap_stats s;
  char what[40];

  tracker = new_tracker (l->cluster_bits, bitmap_size);
  enter_all ();
  warm_pages ();
  overlap_get_stats (tracker, &s);
  snprintf (what, sizeof what, "%" PRIu64 " KiB of bytemap",
            s.bytemap_bytes / 1024);
  check_all (what, rounds, 3);
  overlap_free (tracker);
}

static void
bench_updates (const struct layout *l)
{
  double ordered, shuffled, removed, churned;
  struct overlap_stats s;

  tracker = new_tracker (l->cluster_bits, 0);
  ordered = enter_all ();
  overlap_free (tracker);
  tracker = new_tracker (l->cluster_bits, 65536);
  shuffle ();
  enter_all ();
  churned = churn ();
  overlap_free (tracker);
  tracker = new_tracker (l->cluster_bits, 0);
  shuffled = enter_all ();
  removed = leave_all ();
  enter_all ();
  overlap_get_stats (tracker, &s);
  printf ("  memory %.1f KiB, %.2f bytes a mark, %" PRIu64 " windows,"
          " %" PRIu64 " pieces (floor %s, aim %s)\n",
          (double) s.used / 1024, (double) s.used / (double) n_marks,
          s.windows, s.runs, l->floor, l->aim);
  printf ("  ns to enter: %.0f in order, %.0f at random; to leave: %.0f;"
          " both, in a full tracker: %.0f, with pages: ", ordered, shuffled,
          removed, churn ());
  printf ("%.0f\n", churned);
}

static void
bench_layout (const struct layout *l, bool random, unsigned rounds)
{
  unsigned i;

  make_marks (l, random);
  printf ("%s, %s: %" PRIu64 " marks\n", l->name,
          random ? "random places" : "usual places", n_marks);
  bench_updates (l);
  make_contenders ();
  printf ("  %-35s %6s %6s %6s %6s %6s %6s\n", "ns per check", "hit",
          "query", "bytes", "sorted", "hash", "tree");
  for (i = 0; i < POSITIONS; ++i)
    positions[i] = rnd (n_clusters);
  check_all ("anywhere", rounds, CONTENDERS);
  for (i = 0; i < POSITIONS; ++i)
    positions[i] = marks[rnd (n_marks)].cluster;
  check_all ("at a mark", rounds, CONTENDERS);
  for (i = 0; i < POSITIONS; ++i)
    positions[i] = rnd (n_clusters / 64);
  check_all ("in a 64th of the image", rounds, CONTENDERS);
  overlap_free (tracker);

  tracker = new_tracker (l->cluster_bits, 0);
  overlap_enter (tracker, OVERLAP_MAIN_HEADER, n_clusters, 1, NULL);
  for (i = 0; i < POSITIONS; ++i)
    positions[i] = rnd (n_clusters) / 2;
  check_all ("window without metadata", rounds, 3);
  overlap_free (tracker);

  for (i = 0; i < POSITIONS; ++i)
    positions[i] = marks[rnd (n_marks < 10000 ? n_marks : 10000)].cluster
      + rnd (8);
  bench_pages (l, 65536, rounds);
  bench_pages (l, 4 << 20, rounds);
  bench_pages (l, 64 << 20, rounds);
  free_contenders ();
  free (marks);
}

/* The order of opening: the tables of the active disk, the refcount blocks,
 * then those of one snapshot after the other.  It is made beforehand, for an
 * image's tables name them one behind the other, too.
 */
static void
order_as_opened (unsigned snapshots)
{
  const uint64_t tables = n_marks / (snapshots + 1) * (snapshots + 1);
  struct mark *ordered = must (malloc (n_marks * sizeof *marks));
  uint64_t blocks, i, n = 0;
  unsigned k;

  for (blocks = tables; marks[blocks - 1].type == OVERLAP_REFCOUNT_BLOCK; )
    blocks--;
  for (k = 0; k <= snapshots; ++k) {
    for (i = k; i < blocks; i += snapshots + 1)
      ordered[n++] = marks[i];
    for (i = blocks; k == 0 && i < n_marks; ++i)
      ordered[n++] = marks[i];
  }
  free (marks);
  marks = ordered;
}

/* Seconds of CPU to enter all while notices are held, as opening does. */
static double
open_all (void)
{
  double t = now (CLOCK_THREAD_CPUTIME_ID);

  overlap_hold_notices (tracker, true);
  enter_all ();
  overlap_hold_notices (tracker, false);
  return (now (CLOCK_THREAD_CPUTIME_ID) - t) / 1e9;
}

/* All marks of a large image. */
static void
bench_open (bool random, unsigned rounds)
{
  static const struct layout l = {
    "64 TiB, 64 KiB clusters, 8 snapshots", 46, 16, 8, "", "",
  };
  struct overlap_stats s;
  double best = 1e9, t;
  unsigned r;

  make_marks (&l, random);
  order_as_opened (l.snapshots);
  for (r = 0; r < rounds; ++r) {
    tracker = new_tracker (l.cluster_bits, 65536);
    t = open_all ();
    if (t < best)
      best = t;
    overlap_get_stats (tracker, &s);
    overlap_free (tracker);
  }
  printf ("%s, %s: %" PRIu64 " marks entered in %.3f s of CPU, %.0f KiB\n",
          l.name, random ? "random places" : "usual places", n_marks, best,
          (double) s.used / 1024);
  free (marks);
}

/* Threads. */
static atomic_bool go, stop;
static _Atomic (uint64_t) total;

static void *
checker (void *opaque)
{
  uint64_t n = 0, x = (uint64_t) (uintptr_t) opaque;
  unsigned hits = 0;

  while (!atomic_load (&go))
    ;
  while (!atomic_load_explicit (&stop, memory_order_relaxed)) {
    unsigned i;
    for (i = 0; i < 256; ++i)
      hits += in_tracker (positions[x++ % POSITIONS]);
    n += 256;
  }
  atomic_fetch_add (&total, n);
  sink += hits;
  return NULL;
}

/* Some 100000 updates a second, in windows that are not checked. */
static void *
updater (void *opaque)
{
  uint64_t i = 0;

  (void) opaque;
  while (!atomic_load (&go))
    ;
  while (!atomic_load_explicit (&stop, memory_order_relaxed)) {
    struct timespec ts = { 0, 50000 };
    unsigned k;

    for (k = 0; k < 5; ++k, ++i) {
      overlap_enter (tracker, OVERLAP_ACTIVE_L2,
                     n_clusters * 2 + i % 999 * 77, 1, NULL);
      overlap_leave (tracker, OVERLAP_ACTIVE_L2,
                     n_clusters * 2 + i % 999 * 77, 1);
    }
    nanosleep (&ts, NULL);
  }
  return NULL;
}

/* Millions of checks a second. */
static double
threads (unsigned checkers, bool updates)
{
  pthread_t t[THREADS_MAX];
  struct timespec half = { 0, 500000000 };
  double wall;
  unsigned i, n = 0;

  atomic_store (&go, false);
  atomic_store (&stop, false);
  atomic_store (&total, 0);
  for (i = 0; i < checkers; ++i)
    pthread_create (&t[n++], NULL, checker,
                    (void *) (uintptr_t) (i * POSITIONS / 2));
  if (updates)
    pthread_create (&t[n++], NULL, updater, NULL);
  wall = now (CLOCK_MONOTONIC);
  atomic_store (&go, true);
  nanosleep (&half, NULL);
  atomic_store (&stop, true);
  for (i = 0; i < n; ++i)
    pthread_join (t[i], NULL);
  wall = now (CLOCK_MONOTONIC) - wall;
  return (double) atomic_load (&total) / wall * 1000;
}

static void
bench_threads (unsigned rounds)
{
  double best[3] = { 0 };
  unsigned i, r;

  make_marks (&layouts[0], false);
  tracker = new_tracker (layouts[0].cluster_bits, 65536);
  enter_all ();
  for (i = 0; i < POSITIONS; ++i)
    positions[i] = rnd (n_clusters);
  for (r = 0; r < rounds; ++r) {
    double got[3] = {
      threads (1, false), threads (2, false), threads (2, true),
    };
    for (i = 0; i < 3; ++i)
      if (got[i] > best[i])
        best[i] = got[i];
  }
  printf ("threads: million checks a second: 1 thread %.1f, 2 threads %.1f"
          " (%.2f times), 2 and an updater %.1f (%.2f times)\n", best[0],
          best[1], best[1] / best[0], best[2], best[2] / best[0]);
  overlap_free (tracker);
  free (marks);
}

static char **parts;            /* NULL: all */

static bool
wanted (const char *part)
{
  char **p = parts;

  while (p && *p && strcmp (*p, part) != 0)
    p++;
  return !p || *p;
}

int
main (int argc, char *argv[])
{
  unsigned rounds = argc > 1 ? (unsigned) atoi (argv[1]) : 5, i;
  char number[16];

  parts = argc > 2 ? argv + 2 : NULL;
  for (i = 0; i < sizeof layouts / sizeof layouts[0]; ++i) {
    snprintf (number, sizeof number, "%u", i);
    if (!wanted (number))
      continue;
    bench_layout (&layouts[i], false, rounds);
    bench_layout (&layouts[i], true, rounds);
  }
  if (wanted ("open")) {
    bench_open (false, rounds);
    bench_open (true, rounds);
  }
  if (wanted ("threads"))
    bench_threads (rounds);
  return EXIT_SUCCESS;
}
