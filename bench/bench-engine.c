/* SPDX-License-Identifier: BSD-3-Clause */

/* The engine alone, without a server around it, for counting its
 * instructions:
 *
 *     bench-engine IMAGE read|write COUNT BYTES [none]
 *
 * opens IMAGE, makes requests until everything is warm (the tracker
 * takes some ten thousands after the opening), and then COUNT requests of
 * BYTES at places that do not depend on anything but COUNT, in the
 * function "measured"; instructions.py lets callgrind count that
 * function.  With "none" nothing is checked.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#define SPAN (UINT64_C (64) << 20)
#define WARM 50000

/* Not static, so that it keeps its name. */
int measured (struct image *img, bool writing, void *buf, uint64_t bytes,
              uint64_t count);

static int
request (struct image *img, bool writing, void *buf, uint64_t bytes,
         uint64_t offset)
{
  return writing ? image_write (img, buf, bytes, offset, false)
    : image_read (img, buf, bytes, offset);
}

__attribute__ ((noinline)) int
measured (struct image *img, bool writing, void *buf, uint64_t bytes,
          uint64_t count)
{
  uint64_t state = 1, i;
  int r = 0;

  for (i = 0; i < count && r == 0; ++i) {
    state = state * UINT64_C (6364136223846793005) + 1442695040888963407;
    r = request (img, writing, buf, bytes,
                 (state >> 33) % (SPAN / bytes) * bytes);
  }
  return r;
}

static int
warm_up (struct image *img, bool writing, void *buf, uint64_t bytes)
{
  uint64_t i;
  int r = 0;

  for (i = 0; i < WARM && r == 0; ++i)
    r = request (img, writing, buf, bytes, i * 65536 % SPAN);
  return r;
}

int
main (int argc, char *argv[])
{
  struct image_config config;
  struct image *img;
  uint64_t count, bytes;
  bool writing;
  void *buf;

  if (argc < 5) {
    fprintf (stderr, "usage: %s IMAGE read|write COUNT BYTES [none]\n",
             argv[0]);
    return EXIT_FAILURE;
  }
  writing = strcmp (argv[2], "write") == 0;
  count = strtoull (argv[3], NULL, 10);
  bytes = strtoull (argv[4], NULL, 10);
  buf = calloc (1, bytes);
  image_config_init (&config);
  config.filename = argv[1];
  if (argc > 5)
    config.overlap_check = OVERLAP_NONE;
  if (!buf || image_open (&config, &img) < 0)
    return EXIT_FAILURE;
  if (image_size (img) < SPAN
      || (writing && image_begin_writing (img) < 0)
      || warm_up (img, writing, buf, bytes) < 0
      || measured (img, writing, buf, bytes, count) < 0
      || image_stop (img) < 0)
    return EXIT_FAILURE;
  image_close (img);
  free (buf);
  return EXIT_SUCCESS;
}
