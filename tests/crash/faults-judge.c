/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image may hold after a fault; see faults.h.
 *
 * A sector is known by a hash of it.  As long as it is not certain which
 * of several requests has taken effect it may have several values.
 *
 * The engine opens all its storages through faulty.h, so that opening
 * can fail, too; faults are off while an image is judged.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "faults.h"
#include "faulty.h"
#include "fsck.h"
#include "states.h"

#define NAME_STATE "state"

/* Every so many images are judged by qemu-img as well. */
#define SHARE 150

struct recorder *recorder;
unsigned lost_protection;
uint64_t judged, asked_qemu;

static struct disk *state;      /* under NAME_STATE */
static bool state_opened;       /* and not the recorder */

tag
tag_of (const uint8_t *sector)
{
  uint64_t h = UINT64_C (0xcbf29ce484222325), w;
  unsigned i;

  for (i = 0; i < SECTOR; i += 8) {
    memcpy (&w, sector + i, 8);
    h = (h ^ w) * UINT64_C (0x100000001b3);
    h ^= h >> 29;
  }
  return h;
}

bool
may_be (const struct values *s, tag t)
{
  unsigned i;

  for (i = 0; i < s->n; ++i)
    if (s->v[i] == t)
      return true;
  return false;
}

void
set_only (struct values *s, tag t)
{
  s->n = 1;
  s->v[0] = t;
}

void
add_value (struct values *s, tag t)
{
  if (may_be (s, t))
    return;
  if (s->n == MAX_VALUES)
    fail ("too many values");
  s->v[s->n++] = t;
}

/*----------------------------------------------------------------------
 * Opening.
 */

int __real_storage_open_file (const char *path, bool writable, bool nofollow,
                              struct storage **s);
int __wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                              struct storage **s);

int
__wrap_storage_open_file (const char *path, bool writable, bool nofollow,
                          struct storage **s)
{
  const bool was_on = faults_off ();
  const char *slash = strrchr (path, '/');
  struct storage *below = NULL;
  int r = 0;

  if (strcmp (path, NAME_RECORDER) == 0)
    below = recorder_open (recorder);
  else if (strcmp (path, NAME_STATE) == 0)
    below = disk_open (state, NAME_STATE);
  else if ((recorder || state_opened) && slash && strcmp (slash + 1, NAME_DATA) == 0)
    below = state_opened ? disk_open (disk_data (state), NAME_DATA)
      : recorder_open_data (recorder);
  if (was_on)
    faults_on ();
  if (!below)
    r = __real_storage_open_file (path, writable, nofollow, &below);
  if (r < 0)
    return r;
  *s = faulty_open (below);
  return 0;
}

static void
count_events (void *opaque, const struct event *event)
{
  (void) opaque;
  lost_protection += event->kind == EVENT_OVERLAP_MEMORY_LIMIT_REACHED;
}

bool
has_data_file (void)
{
  return strstr (config->make, "data_file=") != NULL
    || strstr (config->make, "data-file=") != NULL;
}

void
set_config (struct image_config *c, const char *name)
{
  state_opened = strcmp (name, NAME_STATE) == 0;
  image_config_init (c);
  c->filename = name;
  c->commit_interval = 0;
  c->l2_cache_size = config->l2_cache;
  c->refcount_cache_size = config->l2_cache;
  if (config->flags & WRITE_COMPRESSED)
    c->compress = COMPRESS_IMAGE;
  if (config->flags & ENCRYPTED)
    c->passphrase = FAULTS_PASSPHRASE;
  if (config->overlap_limit) {
    c->overlap_total_limit = config->overlap_limit;
    c->overlap_bitmap_size = 512;
    c->overlap_limit = OVERLAP_LIMIT_VERIFY;
  }
  c->event = count_events;
}

int
open_image (const char *name, struct image **img)
{
  struct image_config c;

  set_config (&c, name);
  return image_open (&c, img);
}

const char *
qemu_name (const char *file)
{
  static char s[200];

  snprintf (s, sizeof s, config->flags & ENCRYPTED
            ? "--object secret,id=s,data=" FAULTS_PASSPHRASE " --image-opts "
            "driver=qcow2,encrypt.key-secret=s,file.filename=%s"
            : "-f qcow2 %s", file);
  return s;
}

/*----------------------------------------------------------------------
 * Judging.
 */

static void
ask_qemu (const char *what, const struct disk *d)
{
  char command[400];
  int status;

  if (!disk_save (d, "state.qcow2"))
    fail ("state.qcow2 cannot be written");
  snprintf (command, sizeof command, "qemu-img check -q %s >check.out 2>&1",
            qemu_name ("state.qcow2"));
  status = system (command);
  ++asked_qemu;
  if (status != 0 && status != 3 << 8)
    fail ("%s: qemu-img check finds corruption", what);
}

static void
check_structure (const char *what, const struct disk *d)
{
  struct fsck_result result;

  if (!fsck (d, &result)) {
    disk_save (d, "bad.qcow2");
    fail ("%s: %s", what, result.problem);
  }
  if (judged++ % SHARE == 0)
    ask_qemu (what, d);
}

/* A dirty image has to be repaired before its counts are right. */
static void
repair_if_dirty (const char *what, struct disk *d)
{
  uint64_t features;
  struct image *img;

  disk_read (d, &features, sizeof features, HEADER_OFFSET_INCOMPATIBLE);
  if (!(config->flags & DIRTY) || !(be64toh (features) & INCOMPAT_DIRTY))
    return;
  if (open_image (NAME_STATE, &img) < 0 || image_begin_writing (img) < 0
      || image_stop (img) < 0)
    fail ("%s: cannot be repaired", what);
  image_close (img);
}

/* How much can be read of what is known; the rest was cut off.  What is
 * new is zero.
 */
static uint64_t
known_size (const char *what, struct image *img)
{
  const uint64_t size = image_size (img);
  uint8_t buf[16 * SECTOR];
  uint64_t at;
  unsigned i;

  if (size == config->size)
    return size;
  if (!(config->flags & RESIZED)
      || (size != small_size () && size != large_size ()))
    fail ("%s: the disk has %" PRIu64 " bytes", what, size);
  for (at = config->size; at < size; at += size / 4) {
    const uint64_t len = MIN (sizeof buf, size - at);

    if (image_read (img, buf, len, at) < 0)
      fail ("%s: cannot be read at %" PRIu64, what, at);
    for (i = 0; i < len; i++)
      if (buf[i])
        fail ("%s: not zero at %" PRIu64, what, at + i);
  }
  return MIN (size, config->size);
}

/* A raw data file, read alone, is the disk that the engine read. */
static void
check_raw_data (const char *what, const struct disk *d, const uint8_t *buf,
                uint64_t size)
{
  uint8_t sector[SECTOR];
  uint64_t at;

  if (!strstr (config->make, "data_file_raw=on"))
    return;
  for (at = 0; at < size; at += SECTOR) {
    disk_read (disk_data (d), sector, SECTOR, at);
    if (memcmp (sector, buf + at, SECTOR) != 0)
      fail ("%s: the raw data file has something else at %" PRIu64, what, at);
  }
}

void
judge (const char *what, struct disk *d, const struct values *allowed)
{
  uint8_t *buf = memory (config->size);
  struct image *img;
  uint64_t size;
  unsigned i;

  state = d;
  repair_if_dirty (what, d);
  check_structure (what, d);
  if (open_image (NAME_STATE, &img) < 0)
    fail ("%s: cannot be opened", what);
  if (!image_is_writable (img))
    fail ("%s: cannot be written to", what);
  size = known_size (what, img);
  if (image_read (img, buf, size, 0) < 0)
    fail ("%s: cannot be read", what);
  image_close (img);
  for (i = 0; i < size / SECTOR; ++i)
    if (!may_be (&allowed[i], tag_of (buf + i * SECTOR))) {
      disk_save (d, "bad.qcow2");
      fail ("%s: sector %u holds none of the %u things it may", what, i,
            allowed[i].n);
    }
  check_raw_data (what, d, buf, size);
  free (buf);
}

void
judge_crash (const char *what, size_t moment, const struct values *allowed)
{
  static const enum loss losses[] = {
    LOSE_NOTHING, LOSE_ALL, LOSE_TORN_SECTORS,
  };
  struct states *st = states_create (recorder);
  struct disk *d;
  unsigned i;

  states_goto (st, moment);
  for (i = 0; i < ARRAY_SIZE (losses); ++i) {
    d = states_make (st, losses[i], seed + faults.at);
    judge (what, d, allowed);
    disk_free (d);
  }
  states_free (st);
}

void
judge_file (const char *what, const char *path,
            const struct values *allowed)
{
  struct disk *d = disk_load (path);

  if (!d)
    fail ("%s: cannot be read", path);
  if (has_data_file ())
    disk_set_data (d, disk_load (NAME_DATA));
  judge (what, d, allowed);
  disk_free (d);
}
