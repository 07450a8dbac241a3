/* SPDX-License-Identifier: BSD-3-Clause */

/* Power losses while an image is made (lib/image/create.c).  A crash
 * leaves a file that is no image, or the whole image; and the image is
 * there once image_create has returned.  What is no image can be told from
 * what is not to be overwritten: it is empty, zero, or has the mark of
 * lib/storage/storage-create.c, so that making it can be tried again.
 *
 * The file is a recorder (recorder.h), in place of what the library opens.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "create.h"
#include "fsck.h"
#include "recorder.h"
#include "report.h"
#include "states.h"

#define NAME "test-create-crash.qcow2"
#define CHOICES 15              /* of each moment and loss */

static struct recorder *recorder;
static uint64_t states_seen, images_seen;

int __wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                              struct storage **s);

int
__wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                          struct storage **s)
{
  (void) path;
  (void) writable;
  (void) nofollow;
  *s = recorder_open (recorder);
  return 0;
}

static void
quiet (enum report_level level, const char *text)
{
  if (level == REPORT_ERROR)
    fprintf (stderr, "%s\n", text);
}

static void __attribute__ ((noreturn))
fail (const struct create_options *o, size_t moment, enum loss loss,
      const char *what)
{
  printf ("FAIL: clusters of %" PRIu64 ", crash at %zu, %s: %s\n",
          o->cluster_size, moment, loss_names[loss], what);
  exit (EXIT_FAILURE);
}

static bool
is_zero (const struct disk *d)
{
  const uint64_t size = disk_size (d);
  char buf[4096];
  uint64_t at;
  size_t i;

  for (at = 0; at < size; at += sizeof buf) {
    disk_read (d, buf, sizeof buf, at);
    for (i = 0; i < sizeof buf; i++)
      if (buf[i] != 0)
        return false;
  }
  return true;
}

static void
judge (const struct create_options *o, const struct states *st,
       size_t moment, enum loss loss, uint64_t choice, bool must_be)
{
  struct disk *d = states_make (st, loss, choice);
  struct fsck_result r;
  char magic[512], beginning[] = "A disk image was being made here";

  states_seen++;
  disk_read (d, magic, sizeof magic, 0);
  if (memcmp (magic, "QFI\xfb", 4) == 0) {
    images_seen++;
    if (!fsck (d, &r))
      fail (o, moment, loss, r.problem);
    if (r.leaks > 0 || r.header.size != o->size)
      fail (o, moment, loss, "the image is not as it was wanted");
  }
  else if (must_be)
    fail (o, moment, loss, "the image is not there");
  else if (memcmp (magic, beginning, strlen (beginning)) != 0
           && !is_zero (d))
    fail (o, moment, loss, "what is left is neither zero nor marked");
  disk_free (d);
}

static void
explore (const struct create_options *o)
{
  struct states *st;
  size_t moment, end;
  uint64_t choice;
  int loss;

  recorder = recorder_create ("", 0);
  unlink (NAME);
  if (image_create (NAME, o) < 0)
    fail (o, 0, LOSE_NOTHING, "it cannot be made");
  unlink (NAME);
  st = states_create (recorder);
  end = recorder_now (recorder);
  for (moment = 0; moment <= end; moment++) {
    states_goto (st, moment);
    for (loss = 0; loss < NR_LOSSES; loss++)
      for (choice = 1; choice <= CHOICES; choice++)
        judge (o, st, moment, (enum loss) loss,
               choice * UINT64_C (0x9e3779b97f4a7c15), moment == end);
  }
  states_free (st);
  recorder_free (recorder);
}

int
main (void)
{
  static const uint64_t clusters[] = { 512, 4096, 65536, 2097152 };
  struct create_options o;
  unsigned i;

  report_set_sink (quiet);
  for (i = 0; i < sizeof clusters / sizeof clusters[0]; i++) {
    create_options_init (&o);
    o.size = UINT64_C (4) << 20;
    o.cluster_size = clusters[i];
    explore (&o);
    o.preallocation = PREALLOCATE_METADATA;
    explore (&o);
  }
  printf ("%" PRIu64 " states, of which %" PRIu64 " are images\n",
          states_seen, images_seen);
  return EXIT_SUCCESS;
}
