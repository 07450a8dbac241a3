/* SPDX-License-Identifier: BSD-3-Clause */

/* The test of the tests: the rules of the commit are broken, one at a
 * time (lib/image/sabotage.h), and the explorer must notice each.
 *
 * Every rule has a child process, which explores like test-explore, but
 * without QEMU, and must fail before it has seen MOST states.  Which of
 * the judges notices does not matter.  Unbroken, the same engine passes.
 *
 * The last thing that is broken is the disk: its syncs promise nothing.
 *
 * Some rules take threads that race to break; under the sanitizers,
 * which would say so, and under valgrind, which is slow, these are left
 * out.
 *
 *   test-sabotage [RULE [MOST]]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "explore.h"
#include "sabotage.h"
#include "work.h"

/* Not a rule of the engine's. */
#define LYING_DISK NR_SABOTAGES
#define NR_RULES (NR_SABOTAGES + 1)

static const char *const rules[NR_RULES] = {
  [SABOTAGE_NONE] = "nothing is broken",
  [SABOTAGE_POINTER_SYNC] = "no sync before the pointers",
  [SABOTAGE_QUARANTINE] = "no quarantine of the freed",
  [SABOTAGE_BLOCK_ORDER] = "no order of refcount block and table entry",
  [SABOTAGE_CUT_FREED] = "the freed are not part of the cut",
  [SABOTAGE_CUT_SLICE] = "slices are not part of the cut",
  [SABOTAGE_IN_FLIGHT] = "no wait for requests in flight",
  [SABOTAGE_SELF_COUNT] = "a new refcount block does not count itself",
  [SABOTAGE_LAST_SYNC] = "no sync after the pointers",
  [SABOTAGE_FUA] = "FUA commits nothing",
  [SABOTAGE_UNPACKED] = "what was unpacked is never forgotten",
  [SABOTAGE_PACKER] = "the packer stays in a cluster that is released",
  [SABOTAGE_DATA_SYNC] = "the data file is not synced",
  [SABOTAGE_RAW_FILL] = "raw clusters are not filled in durably",
  [SABOTAGE_BITMAP_MARK] = "bitmaps are not marked in use",
  [SABOTAGE_BITMAP_COMMIT] = "a bitmap directory is not committed",
  [SABOTAGE_BITMAP_OLD] = "a bitmap directory is freed while it is used",
  [SABOTAGE_GROW_CLEAR] = "a disk has its size before its zeroes",
  [SABOTAGE_GROW_L1] = "a larger L1 table is not committed",
  [SABOTAGE_DIRTY_BIT] = "the dirty bit is cleared before the repair",
  [SABOTAGE_REBUILD_SYNC] = "no sync between new counts and the header",
  [SABOTAGE_HOLES] = "a hole is made in what was filled again",
  [LYING_DISK] = "the disk lies about its syncs",
};

static unsigned rule;

static void __attribute__ ((noreturn))
fail (const char *what)
{
  printf ("FAIL: %s: %s\n", rules[rule], what);
  exit (EXIT_FAILURE);
}

/* Does it take several clients to break this?  Then it takes luck. */
static bool
takes_clients (void)
{
  return rule == SABOTAGE_CUT_FREED || rule == SABOTAGE_CUT_SLICE
    || rule == SABOTAGE_IN_FLIGHT;
}

/* The flags of kinds that it takes, one of them. */
static unsigned
takes_flags (void)
{
  switch (rule) {
  case SABOTAGE_UNPACKED: case SABOTAGE_PACKER:
    return KIND_COMPRESS;
  case SABOTAGE_DATA_SYNC: case SABOTAGE_RAW_FILL:
    return KIND_DATA;
  case SABOTAGE_BITMAP_MARK: case SABOTAGE_BITMAP_COMMIT:
  case SABOTAGE_BITMAP_OLD:
    return KIND_BITMAPS;
  case SABOTAGE_GROW_CLEAR: case SABOTAGE_GROW_L1:
    return KIND_RESIZE;
  case SABOTAGE_HOLES:
    return KIND_EXTENDED;
  case SABOTAGE_DIRTY_BIT:
    return KIND_DIRTY;
  case SABOTAGE_REBUILD_SYNC:
    return KIND_REBUILD;
  default:
    return ~0u;
  }
}

/* The child; a failure of the explorer ends it. */
static void __attribute__ ((noreturn))
explore_broken (uint64_t most)
{
  /* These are seen without a crash: rather many runs than many states. */
  const uint64_t of_run = rule == SABOTAGE_IN_FLIGHT
    || takes_flags () == KIND_COMPRESS ? 50 : most;
  uint64_t seed = 1, left;
  unsigned kind = 0;

  if (freopen ("found.out", "w", stdout) == NULL)
    _exit (2);
  alarm (1800);                 /* it hangs */
  work_disk_lies = rule == LYING_DISK;
  if (!work_disk_lies)
    sabotage_now = (enum sabotage) rule;
  for (; explore_stats.states < most; kind = (kind + 1) % nr_kinds) {
    if (kinds[kind].flags & KIND_FAILING
        || (takes_flags () != ~0u && !(kinds[kind].flags & takes_flags ()))
        || (takes_clients ()
            && (kinds[kind].clients == 1 || kinds[kind].cluster_bits > 14)))
      continue;
    left = most - explore_stats.states;
    explore (kind, seed++, left < of_run ? left : of_run, 0);
  }
  printf ("not found in %" PRIu64 " states\n", explore_stats.states);
  fflush (stdout);
  _exit (EXIT_SUCCESS);
}

/* What the child found, or did not. */
static void
print_found (void)
{
  FILE *fp = fopen ("found.out", "r");
  char line[500];
  unsigned n = 0;

  printf ("%s:\n", rules[rule]);
  while (fp && n < 2 && fgets (line, sizeof line, fp)) {
    if (n == 0 && strncmp (line, "FAIL", 4) != 0
        && strncmp (line, "not", 3) != 0)
      continue;
    printf ("    %s", line);
    n++;
  }
  if (fp)
    fclose (fp);
  fflush (stdout);
}

static void
check_rule (uint64_t most)
{
  int status;
  pid_t pid;

  fflush (stdout);
  pid = fork ();
  if (pid == 0)
    explore_broken (most);
  if (pid == -1 || waitpid (pid, &status, 0) != pid)
    fail (strerror (errno));
  print_found ();
  if (!WIFEXITED (status) || WEXITSTATUS (status) > 1)
    fail ("the explorer did not end as it should");
  if ((WEXITSTATUS (status) == 1) != (rule != SABOTAGE_NONE))
    fail (rule == SABOTAGE_NONE ? "something was found" : "not noticed");
}

/* Is this rule for another time? */
static bool
left_out (void)
{
  const char *sanitizer = getenv ("QCOW2_SANITIZER");

  if (!getenv ("QCOW2_VALGRIND") && !(sanitizer && *sanitizer))
    return false;
  return takes_clients () || rule == SABOTAGE_QUARANTINE;
}

int
main (int argc, char *argv[])
{
  const uint64_t most = argc > 2 ? strtoull (argv[2], NULL, 0) : 100000;
  char dir[] = "tmp-sabotage.XXXXXX", command[100];

  if (system ("qemu-img --version >/dev/null 2>&1 && "
              "qemu-io --version >/dev/null 2>&1") != 0) {
    fprintf (stderr, "skipped: needs qemu-img and qemu-io\n");
    return 77;
  }
  if (mkdtemp (dir) == NULL || chdir (dir) == -1) {
    perror (dir);
    return EXIT_FAILURE;
  }
  for (rule = 0; rule < NR_RULES; rule++) {
    if (argc < 2 ? !left_out () : rule == (unsigned) atoi (argv[1]))
      check_rule (rule == SABOTAGE_NONE ? 300 : most);
  }
  snprintf (command, sizeof command, "rm -rf ../%s", dir);
  return system (command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
