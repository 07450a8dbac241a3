/* SPDX-License-Identifier: BSD-3-Clause */

/* Replays a corpus through a fuzz target without libFuzzer, so that it
 * runs in every "make check":
 *
 *   fuzz-something [-n MUTATIONS] FILE-OR-DIRECTORY...
 *
 * Each file is tried as it is, then cut at random places, then with
 * random bytes changed, always the same ones.  An input that takes
 * longer than PATIENCE ends the program, and so does at the end that it
 * took more memory than MAX_MEMORY.
 */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

#define MAX_FILE (1 << 20)
#define CUTS 200
#define PATIENCE 300            /* seconds, on a busy machine */
#define MAX_MEMORY (200 << 10)  /* KiB; no sanitizer at work */

static uint64_t state;
static unsigned long mutations = 20000, inputs;

static uint64_t
next_random (void)
{
  state = state * UINT64_C (6364136223846793005)
    + UINT64_C (1442695040888963407);
  return state >> 32 ^ state << 13;
}

/* From a copy of exactly this length, for valgrind and ASan to see. */
static void
try_exact (const uint8_t *data, size_t size)
{
  uint8_t *copy = malloc (size ? size : 1);

  if (copy == NULL)
    abort ();
  memcpy (copy, data, size);
  alarm (PATIENCE);
  LLVMFuzzerTestOneInput (copy, size);
  free (copy);
  inputs++;
}

/* Values that tend to matter. */
static uint64_t
interesting (void)
{
  static const uint64_t values[] = {
    0, 1, 2, 3, 7, 8, 9, 16, 21, 22, 24, 32, 64, 72, 104, 112, 512, 1024,
    1536, 4096, 65535, 65536, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX,
    UINT64_C (1) << 56, (UINT64_C (1) << 56) - 512, UINT64_MAX - 511,
  };

  return values[next_random () % (sizeof values / sizeof values[0])];
}

/* Change one to four numbers; most often in the header, and aligned. */
static void
mutate (uint8_t *data, size_t size)
{
  unsigned n = (unsigned) (next_random () % 4) + 1;

  while (n--) {
    const size_t width = (size_t) 1 << next_random () % 4;
    const uint64_t value = next_random () % 2 ? interesting ()
      : next_random ();
    size_t at = (size_t) next_random ()
      % (next_random () % 2 && size > 112 ? 112 : size);
    size_t i;

    if (next_random () % 4)
      at -= at % width;
    for (i = 0; i < width && at + i < size; i++)
      data[at + i] = (uint8_t) (value >> 8 * (width - 1 - i));
  }
}

static void
replay_file (const char *name)
{
  uint8_t *data = malloc (MAX_FILE), *copy = malloc (MAX_FILE);
  FILE *f = fopen (name, "rb");
  unsigned long n;
  size_t size;

  if (data == NULL || copy == NULL || f == NULL) {
    fprintf (stderr, "%s: %s\n", name, strerror (errno));
    exit (EXIT_FAILURE);
  }
  size = fread (data, 1, MAX_FILE, f);
  fclose (f);
  state = 1;                    /* whatever the order of the files is */
  try_exact (data, size);
  for (n = 0; n < CUTS && n < mutations && size > 0; n++)
    try_exact (data, (size_t) next_random () % size);
  for (n = 0; n < mutations && size > 0; n++) {
    memcpy (copy, data, size);
    mutate (copy, size);
    try_exact (copy, size);
  }
  free (data);
  free (copy);
}

static void
replay (const char *name)
{
  struct dirent *entry;
  DIR *dir = opendir (name);

  if (dir == NULL) {
    replay_file (name);
    return;
  }
  while ((entry = readdir (dir)) != NULL) {
    char path[4096];

    if (entry->d_name[0] == '.')
      continue;
    snprintf (path, sizeof path, "%s/%s", name, entry->d_name);
    replay_file (path);
  }
  closedir (dir);
}

static int
is_set (const char *variable)
{
  const char *value = getenv (variable);

  return value && *value;
}

int
main (int argc, char *argv[])
{
  struct rusage usage;
  int i = 1;

  if (argc > 2 && strcmp (argv[1], "-n") == 0) {
    mutations = strtoul (argv[2], NULL, 10);
    i = 3;
  }
  for (; i < argc; i++)
    replay (argv[i]);
  alarm (0);
  getrusage (RUSAGE_SELF, &usage);
  printf ("%lu inputs, %ld KiB of memory\n", inputs, usage.ru_maxrss);
  if (usage.ru_maxrss > MAX_MEMORY && !is_set ("QCOW2_SANITIZER")
      && !is_set ("QCOW2_VALGRIND")) {
    fprintf (stderr, "more than %d KiB of memory\n", MAX_MEMORY);
    return EXIT_FAILURE;
  }
  /* No corpus is a mistake in the call. */
  return inputs ? EXIT_SUCCESS : EXIT_FAILURE;
}
