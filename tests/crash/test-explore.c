/* SPDX-License-Identifier: BSD-3-Clause */

/* Power losses, many of them: see explore.c.  One run of each kind of
 * image after the other, with seeds that go on, until there are STATES.
 *
 *   test-explore [STATES [SHARE [SEED [KIND]]]]
 *
 * On average one state in SHARE is judged by qemu-img, too.  With KIND
 * (its name) only that.  A failure says kind and seed; with one client
 * these give the same run again.  SIGINT and SIGTERM end it after the
 * run that is under way, with the figures so far.
 */

#include <config.h>

#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "explore.h"
#include "pairs.h"

/* Under valgrind and the sanitizers everything takes longer. */
#define CHECK_STATES 20000

static uint64_t
default_states (void)
{
  const char *sanitizer = getenv ("QCOW2_SANITIZER");

  if (getenv ("QCOW2_VALGRIND"))
    return 600;
  return sanitizer && *sanitizer ? 2000 : CHECK_STATES;
}

typedef bool has_fn (const struct kind *k);

struct feature {
  const char *name;
  has_fn *has;
};

#define FEATURE(fn, condition) \
  static bool fn (const struct kind *k) { return condition; }
FEATURE (small, k->cluster_bits <= 11)
FEATURE (medium, k->cluster_bits > 11 && k->cluster_bits <= 16)
FEATURE (large, k->cluster_bits > 16)
FEATURE (v2, k->version == 2)
FEATURE (v3, k->version == 3)
FEATURE (narrow, k->refcount_bits < 8)
FEATURE (wide, k->refcount_bits > 16)
FEATURE (snapshots, k->flags & KIND_SNAPSHOTS)
FEATURE (backing, k->flags & KIND_BACKING)
FEATURE (compressed, k->flags & KIND_COMPRESSED)
FEATURE (compress, k->flags & KIND_COMPRESS)
FEATURE (extended, k->flags & KIND_EXTENDED)
FEATURE (bitmaps, k->flags & KIND_BITMAPS)
FEATURE (far_away, k->flags & KIND_FAR)
FEATURE (tiny, k->flags & KIND_TINY)
FEATURE (data, k->flags & KIND_DATA)
FEATURE (raw, k->flags & KIND_RAW)
FEATURE (luks, k->flags & KIND_LUKS)
FEATURE (aes, k->flags & KIND_AES)
FEATURE (resized, k->flags & KIND_RESIZE)
FEATURE (dirty, k->flags & KIND_DIRTY)
FEATURE (check_all, k->flags & KIND_REPAIR)
FEATURE (detect, k->flags & KIND_DETECT)
FEATURE (ignore, k->flags & KIND_IGNORE)
FEATURE (failing, k->flags & KIND_FAILING)
FEATURE (one, k->clients == 1)
FEATURE (several, k->clients > 1)

static const struct feature features[] = {
  { "clusters of 512 to 2048 bytes", small },
  { "clusters of 4 to 64 KiB", medium },
  { "clusters of 128 KiB to 2 MiB", large },
  { "version 2", v2 }, { "version 3", v3 },
  { "refcounts of 1 to 4 bits", narrow },
  { "refcounts of 32 and 64 bits", wide },
  { "snapshots", snapshots }, { "backing file", backing },
  { "compressed clusters", compressed },
  { "written compressed", compress },
  { "extended L2 entries", extended }, { "LUKS", luks }, { "AES", aes },
  { "dirty bitmaps", bitmaps },
  { "the refcount table about to grow", far_away },
  { "tiny caches", tiny },
  { "external data file", data }, { "raw data file", raw },
  { "the disk is resized", resized }, { "dirty at first", dirty },
  { "opened with check=all", check_all },
  { "detect-zeroes=unmap", detect }, { "discard=ignore", ignore },
  { "the disk fails now and then", failing },
  { "one client", one }, { "2 or 4 clients", several },
};

#define NR_FEATURES ((unsigned) (sizeof features / sizeof features[0]))

/* What cannot go together; or, with "far_away", would make an image of
 * many megabytes.
 */
static const struct { has_fn *a, *b[10]; } apart[] = {
  { large, { medium, small } }, { small, { medium } }, { v2, { v3 } },
  { one, { several } }, { narrow, { wide } }, { detect, { ignore } },
  { v2, { narrow, wide, extended, bitmaps, data, raw, dirty } },
  { luks, { aes, raw, compress, compressed } },
  { aes, { compress, compressed } },
  { data, { compress, compressed, snapshots } },
  { raw, { compress, compressed, snapshots, backing } },
  { extended, { small } }, { dirty, { check_all } },
  { far_away, { medium, large, v2, narrow, extended, data, raw, compressed,
                luks } },
  { far_away, { snapshots } },
};

static const char *
name_of (unsigned feature)
{
  return features[feature].name;
}

static uint64_t
apart_from (unsigned feature)
{
  uint64_t others = 0;
  unsigned f;
  size_t i, j;

  for (i = 0; i < sizeof apart / sizeof apart[0]; i++)
    for (j = 0; features[feature].has == apart[i].a && apart[i].b[j]; j++)
      for (f = 0; f < NR_FEATURES; f++)
        others |= features[f].has == apart[i].b[j] ? PAIRS_BIT (f) : 0;
  return others;
}

static uint64_t
features_of (size_t kind)
{
  uint64_t has = 0;
  unsigned f;

  for (f = 0; f < NR_FEATURES; f++)
    has |= features[f].has (&kinds[kind]) ? PAIRS_BIT (f) : 0;
  return has;
}

static bool
check_pairs (void)
{
  const struct pairs pairs = {
    .nr_features = NR_FEATURES, .name = name_of, .apart = apart_from,
    .nr_things = nr_kinds, .has = features_of, .thing = "kind",
  };

  return pairs_are_there (&pairs);
}

static void
print_figures (void)
{
  const struct explore_stats *s = &explore_stats;
  unsigned i, k;

  for (i = 0; i < nr_kinds; i++) {
    if (s->by_kind[i])
      printf ("%10" PRIu64 "  image %s\n", s->by_kind[i], kinds[i].name);
  }
  for (i = 0; i < sizeof features / sizeof features[0]; i++) {
    uint64_t n = 0;

    for (k = 0; k < nr_kinds; k++) {
      if (features[i].has (&kinds[k]))
        n += s->by_kind[k];
    }
    printf ("%10" PRIu64 "  %s\n", n, features[i].name);
  }
  for (i = 0; i < NR_LOSSES; i++)
    printf ("%10" PRIu64 "  %s\n", s->by_loss[i], loss_names[i]);
  printf ("%10" PRIu64 "  states in all, of %" PRIu64 " runs with %" PRIu64
          " requests, %" PRIu64 " syncs, %" PRIu64 " new refcount blocks, %"
          PRIu64 " grown tables\n", s->states, s->runs, s->requests,
          s->syncs, s->blocks_made, s->tables_grown);
  printf ("%10" PRIu64 "  had leaks, %" PRIu64 " clusters in all\n",
          s->leaky, s->leaks);
  printf ("%10" PRIu64 "  after holes within a cluster\n", s->small_holes);
  printf ("%10" PRIu64 "  judged by qemu-img, too\n", s->qemu);
  printf ("%10" PRIu64 "  took requests afterwards\n", s->gone_on);
  printf ("%10" PRIu64 "  were not repaired yet\n", s->repaired);
}

static volatile sig_atomic_t end_now;

static void
take_signal (int sig)
{
  (void) sig;
  end_now = 1;
}

int
main (int argc, char *argv[])
{
  const uint64_t states = argc > 1 ? strtoull (argv[1], NULL, 0)
    : default_states ();
  const unsigned share = argc > 2 ? (unsigned) atoi (argv[2]) : 25;
  /* By default there are some of each kind. */
  const uint64_t of_run = argc > 1 ? UINT64_MAX : CHECK_STATES / nr_kinds + 1;
  uint64_t seed = argc > 3 ? strtoull (argv[3], NULL, 0) : 1;
  char dir[] = "tmp-explore.XXXXXX", command[100];
  time_t said = time (NULL);
  unsigned kind = 0;

  if (system ("qemu-img --version >/dev/null 2>&1 && "
              "qemu-io --version >/dev/null 2>&1") != 0) {
    fprintf (stderr, "skipped: needs qemu-img and qemu-io\n");
    return 77;
  }
  if (!check_pairs ())
    return EXIT_FAILURE;
  while (argc > 4 && kind < nr_kinds
         && strcmp (kinds[kind].name, argv[4]) != 0)
    kind++;
  if (kind == nr_kinds) {
    fprintf (stderr, "there is no kind %s\n", argv[4]);
    return EXIT_FAILURE;
  }
  if (mkdtemp (dir) == NULL || chdir (dir) == -1) {
    perror (dir);
    return EXIT_FAILURE;
  }
  signal (SIGINT, take_signal);
  signal (SIGTERM, take_signal);
  for (; explore_stats.states < states && !end_now;
       seed++, kind = argc > 4 ? kind : (kind + 1) % nr_kinds) {
    explore (kind, seed, MIN (states - explore_stats.states, of_run), share);
    if (time (NULL) - said >= 60) {
      said = time (NULL);
      printf ("%" PRIu64 " states, seed %" PRIu64 "\n",
              explore_stats.states, seed);
      fflush (stdout);
    }
  }
  print_figures ();
  bases_free ();

  /* After a failure the directory stays, for whoever looks into it. */
  snprintf (command, sizeof command, "rm -rf ../%s", dir);
  return system (command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
