/* SPDX-License-Identifier: BSD-3-Clause */

/* Power losses while an image and its data file are made
 * (lib/image/create.c).
 *
 * A crash leaves a file that is no image, or the whole image with its
 * whole data file; and both are there once image_create has returned.
 * Where there is no image making it can be tried again, and then it is
 * there.  What is left of it can be told from what is not to be
 * overwritten: it has the mark of lib/storage/storage-create.c, or is
 * empty, in which case it is left alone.
 *
 * The files are a recorder (recorder.h) in place of what the library opens.
 * A file is in its directory for certain when that was synced; until then
 * it is missing in some states.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "create.h"
#include "fsck.h"
#include "recorder.h"
#include "report.h"
#include "states.h"
#include "storage.h"
#include "storage-impl.h"
#include "storage-write.h"

#define NAME "test-create-crash.qcow2"
#define CHOICES 6               /* of each moment and loss */

enum { IMAGE, DATA, NR_FILES };

/* What the library works on: the recorder, or what a crash has left. */
static struct recorder *recorder;
static struct disk *left;       /* or NULL */
static bool exists[NR_FILES];

/* Of the recorder: from then on the file's name is durable. */
static size_t named[NR_FILES];

static uint64_t states_seen, images_seen, tried_again;

static int
file_of (const char *path)
{
  return strcmp (path, NAME_DATA) == 0 ? DATA : IMAGE;
}

int __wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                              struct storage **s);
int __wrap_storage_create_empty (const char *path);
int __wrap_storage_sync_directory (const char *path);
int __wrap_storage_write_zeroes (struct storage *s, uint64_t offset,
                                 uint64_t len);

int
__wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                          struct storage **s)
{
  (void) writable;
  (void) nofollow;
  if (!exists[file_of (path)])
    return -ENOENT;
  if (left)
    *s = disk_open (file_of (path) == DATA ? disk_data (left) : left, path);
  else
    *s = file_of (path) == DATA ? recorder_open_data (recorder)
      : recorder_open (recorder);
  return 0;
}

int
__wrap_storage_create_empty (const char *path)
{
  if (exists[file_of (path)])
    return -EEXIST;
  exists[file_of (path)] = true;
  return 0;
}

int
__wrap_storage_sync_directory (const char *path)
{
  const size_t now = recorder_now (recorder);

  if (!left && named[file_of (path)] > now)
    named[file_of (path)] = now;
  return 0;
}

int
__wrap_storage_write_zeroes (struct storage *s, uint64_t offset, uint64_t len)
{
  return storage_zero (s, offset, len);
}

static void
quiet (enum report_level level, const char *text)
{
  if (level == REPORT_ERROR && !left)
    fprintf (stderr, "%s\n", text);
}

/* The state that is looked at. */
static struct {
  const struct create_options *options;
  const struct states *states;
  size_t moment;
  enum loss loss;
  bool was_killed;
} now;

static void __attribute__ ((noreturn))
fail (const char *what)
{
  printf ("FAIL: clusters of %" PRIu64 "%s%s, crash at %zu%s, %s: %s\n",
          now.options->cluster_size,
          now.options->data_file ? ", data file" : "",
          now.options->preallocation ? ", preallocated" : "", now.moment,
          now.was_killed ? " of the second try" : "", loss_names[now.loss],
          what);
  if (now.states)
    states_print (now.states);
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

static bool
is_image (const struct disk *d)
{
  char magic[4];

  disk_read (d, magic, sizeof magic, 0);
  return memcmp (magic, "QFI\xfb", sizeof magic) == 0;
}

static bool
is_marked (const struct disk *d)
{
  static const char beginning[] = "A disk image was being made here";
  char buf[sizeof beginning];

  disk_read (d, buf, sizeof buf, 0);
  return memcmp (buf, beginning, strlen (beginning)) == 0;
}

static void
check_image (const struct disk *d)
{
  struct fsck_result r;

  images_seen++;
  if (!exists[IMAGE] || !is_image (d))
    fail ("the image is not there");
  if (!fsck (d, &r))
    fail (r.problem);
  if (r.leaks > 0 || r.header.size != now.options->size)
    fail ("the image is not as it was wanted");
  if (!now.options->data_file)
    return;
  if (!exists[DATA])
    fail ("there is no data file");
  if (disk_size (disk_data (d)) != now.options->size
      || !is_zero (disk_data (d)))
    fail ("the data file is not as it was wanted");
}

/* Nobody can know whose an empty file is. */
static bool
is_refused (const struct disk *d, int file)
{
  return exists[file] && disk_size (d) == 0;
}

/* The server is started again. */
static void
try_again (struct disk *d)
{
  const bool refused = is_image (d) || is_refused (d, IMAGE)
    || (now.options->data_file && is_refused (disk_data (d), DATA));
  int r;

  left = d;
  r = image_create (NAME, now.options);
  left = NULL;
  tried_again++;
  if (refused && r != -EEXIST)
    fail ("what exists is overwritten");
  if (!refused && r < 0)
    fail ("it cannot be made again");
  if (r == 0)
    check_image (d);
}

static void
judge (uint64_t choice, bool must_be)
{
  struct disk *d = states_make (now.states, now.loss, choice);
  const bool existed[NR_FILES] = { exists[IMAGE], exists[DATA] };
  int i;

  states_seen++;
  for (i = 0; i < NR_FILES; i++)
    if (now.moment < named[i] && (now.loss == LOSE_ALL || choice >> i & 1)
        && now.loss != LOSE_NOTHING)
      exists[i] = false;
  for (i = 0; i < NR_FILES; i++)
    if (!exists[i])
      disk_set_size (i == DATA ? disk_data (d) : d, 0);
  if (must_be || (exists[IMAGE] && is_image (d)))
    check_image (d);
  else if (exists[IMAGE] && disk_size (d) > 0 && !is_marked (d))
    fail ("what is left is neither empty nor marked");
  if (choice == 1 && (now.loss == LOSE_NOTHING || now.loss == LOSE_ALL
                      || now.loss == LOSE_TORN_SECTORS))
    try_again (d);
  memcpy (exists, existed, sizeof exists);
  disk_free (d);
}

/* BEGIN is what is there already, if EXISTS says so, by names that are not
 * durable.
 */
static void
record (const struct disk *begin)
{
  const struct disk *const files[NR_FILES] = { begin, disk_data (begin) };
  char *bytes[NR_FILES];
  int i;

  for (i = 0; i < NR_FILES; i++) {
    bytes[i] = calloc (1, disk_size (files[i]) + 1);
    if (bytes[i] == NULL)
      abort ();
    disk_read (files[i], bytes[i], disk_size (files[i]), 0);
    named[i] = SIZE_MAX;
  }
  recorder = recorder_create (bytes[IMAGE], disk_size (begin));
  recorder_add_data (recorder, bytes[DATA], disk_size (disk_data (begin)));
  free (bytes[IMAGE]);
  free (bytes[DATA]);
  if (image_create (NAME, now.options) < 0)
    fail ("it cannot be made");
}

/* All moments of making it where this is. */
static void
explore_from (const struct disk *begin)
{
  struct states *st;
  size_t end;
  uint64_t choice;
  int loss;

  now.states = NULL;
  record (begin);
  st = states_create (recorder);
  end = recorder_now (recorder);
  now.states = st;
  for (now.moment = 0; now.moment <= end; now.moment++) {
    states_goto (st, now.moment);
    for (loss = 0; loss < NR_LOSSES; loss++)
      for (choice = 1; choice <= (loss < LOSE_SUBSET ? 1 : CHOICES);
           choice++) {
        now.loss = (enum loss) loss;
        judge (choice == 1 ? choice
               : choice * UINT64_C (0x9e3779b97f4a7c15),
               now.moment == end);
      }
  }
  states_free (st);
  recorder_free (recorder);
}

static struct disk *
empty (void)
{
  struct disk *d = disk_create ("", 0);

  disk_set_data (d, disk_create ("", 0));
  return d;
}

/* And then where a process was killed that had made them to the middle:
 * the kernel has all that it wrote, the disk need not.
 */
static void
explore (const struct create_options *o)
{
  struct disk *begin = empty ();
  static const char text[] = "A disk image was being made here by "
    "nbdkit-qcow2-plugin, and is not complete.\n";
  char mark[512] = "";

  memset (&now, 0, sizeof now);
  now.options = o;
  exists[IMAGE] = exists[DATA] = false;
  explore_from (begin);
  memcpy (mark, text, sizeof text);
  disk_write (begin, mark, sizeof mark, 0);
  exists[IMAGE] = true;
  if (o->data_file)
    disk_write (disk_data (begin), mark, sizeof mark, 0);
  exists[DATA] = o->data_file != NULL;
  now.was_killed = true;
  if (o->cluster_size <= 65536)
    explore_from (begin);
  disk_free (begin);
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
    o.size = UINT64_C (256) << 10;
    o.data_file = NAME_DATA;
    o.preallocation = PREALLOCATE_OFF;
    explore (&o);
    o.preallocation = PREALLOCATE_FULL;
    o.data_file_raw = true;
    explore (&o);
  }
  printf ("%" PRIu64 " states, of which %" PRIu64 " are images; it was made "
          "again in %" PRIu64 "\n", states_seen, images_seen, tried_again);
  return EXIT_SUCCESS;
}
