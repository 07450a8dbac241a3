/* SPDX-License-Identifier: BSD-3-Clause */

/* Guests at work; see work.h.
 *
 * The engine runs on storages of this test: the storage_open_file here
 * is taken by the linker before that of the library.
 *
 * With one client a seed gives the same run always.  With more than one
 * the threads meet as they happen to; the recorder lets others run
 * before, in and after every operation, to make that happen more often.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "report.h"
#include "resize.h"
#include "work.h"

char work_problem[1024];
bool work_disk_lies;

static const struct base *base;
static struct recorder *recorder;
static struct disk *state;
static bool state_opened;       /* last, not the recorder */
static atomic_bool disk_fails;  /* now and then, at the moment */
static _Thread_local bool met_failure; /* this thread has met that */
static uint64_t guest_size;     /* bytes, of the disk that is worked on */
static uint64_t work_end;       /* where requests end: not what is new */

/* The sizes that it had, one after the other, at moments of the recorder:
 * from BEGAN on it may be so large, from ENDED on it is.
 */
static struct { uint64_t size; size_t began, ended; } sizes[3];
static unsigned nr_sizes;
size_t work_repaired;
static pthread_mutex_t problem_lock = PTHREAD_MUTEX_INITIALIZER;

static void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

void
work_on (const struct base *b, struct recorder *rec)
{
  base = b;
  recorder = rec;
}

void
work_on_state (struct disk *s)
{
  state = s;
}

int
storage_open_file (const char *path, bool writable, bool nofollow,
                   struct storage **s)
{
  const char *slash = strrchr (path, '/');

  (void) writable;
  (void) nofollow;
  if (strcmp (path, NAME_RECORDER) == 0)
    *s = recorder_open (recorder);
  else if (strcmp (path, NAME_STATE) == 0)
    *s = disk_open (state, NAME_STATE);
  else if (slash && strcmp (slash + 1, NAME_DATA) == 0)
    *s = state_opened ? disk_open (disk_data (state), path)
      : recorder_open_data (recorder);
  else if (base->backing)
    *s = disk_open (base->backing, path);
  else
    return -ENOENT;
  return 0;
}

static void
set_guest_size (const struct image *img)
{
  guest_size = image_size (img);
  work_end = guest_size < base->disk_size ? guest_size : base->disk_size;
}

static uint64_t
rnd (uint64_t *random, uint64_t n)
{
  *random ^= *random >> 12;
  *random ^= *random << 25;
  *random ^= *random >> 27;
  return (*random * UINT64_C (0x2545f4914f6cdd1d) >> 32) % n;
}

/* The first thing that went wrong. */
static void
note_problem (const char *text)
{
  pthread_mutex_lock (&problem_lock);
  if (work_problem[0] == '\0')
    snprintf (work_problem, sizeof work_problem, "%s", text);
  pthread_mutex_unlock (&problem_lock);
}

void
work_forget_problem (void)
{
  work_problem[0] = '\0';
}

static void
take_report (enum report_level level, const char *text)
{
  /* The commit's thread may say so when the disk works again. */
  if (level == REPORT_ERROR && !atomic_load (&disk_fails) && !met_failure)
    note_problem (text);
}

/* What a failing disk does.  The recorder holds a lock. */
static int
fail_sometimes (void *opaque, enum recorder_op op)
{
  if (op == RECORDER_SYNC || !atomic_load (&disk_fails)
      || rnd (opaque, 25) != 0)
    return 0;
  met_failure = true;
  return -EIO;
}

static void
take_event (void *opaque, const struct event *event)
{
  (void) opaque;
  if (event->kind == EVENT_IMAGE_CORRUPTED)
    note_problem ("the image is found corrupt");
}

static void
set_config (struct image_config *c, const char *name)
{
  const unsigned flags = base->kind->flags;

  image_config_init (c);
  c->filename = name;
  c->commit_interval = 0;
  c->event = take_event;
  c->discard = !(flags & KIND_IGNORE);
  if (flags & KIND_COMPRESS)
    c->compress = COMPRESS_IMAGE;
  if (flags & KIND_TINY) {
    c->compressed_cache_size = UINT64_C (2) << base->kind->cluster_bits;
    c->l2_cache_size = 1;
    c->refcount_cache_size = 1;
  }
  if (flags & KIND_ENCRYPTED)
    c->passphrase = KIND_PASSPHRASE;
  if (flags & KIND_REPAIR)
    c->check = CHECK_ALL;
  if (flags & KIND_DETECT)
    c->detect_zeroes = DETECT_ZEROES_UNMAP;
}

struct image *
work_open (const char *name)
{
  struct image_config c;
  struct image *img;

  state_opened = strcmp (name, NAME_STATE) == 0;
  report_set_sink (take_report);
  set_config (&c, name);
  if (image_open (&c, &img) < 0) {
    note_problem ("the image cannot be opened");
    return NULL;
  }
  /* What is damaged is reported before it is repaired. */
  if (base->kind->flags & KIND_REBUILD && image_is_writable (img))
    work_forget_problem ();
  if (!image_is_writable (img))
    note_problem ("the image cannot be written to");
  return img;
}

/*----------------------------------------------------------------------
 * Requests.
 */

/* Of the first so many; it has not been cut off as a whole. */
static const struct window *
choose_window (uint64_t *random, unsigned windows)
{
  const struct window *w = &base->windows[rnd (random, windows)];

  return w->offset < work_end ? w : &base->windows[0];
}

/* A place in a window: mostly any sector, often the begin of a cluster,
 * often in the first eighth, where requests meet.
 */
static uint64_t
choose_offset (uint64_t *random)
{
  const uint64_t cluster = UINT64_C (1) << base->kind->cluster_bits;
  const unsigned windows = (unsigned) rnd (random, 2) ? base->nr_windows
    : base->nr_windows / 8 + 1;
  const struct window *w = choose_window (random, windows);
  uint64_t offset = w->offset + rnd (random, w->len / SECTOR) * SECTOR;

  if (base->nr_windows == 1 && rnd (random, 2))
    offset = w->offset + (offset - w->offset) / 8 / SECTOR * SECTOR;
  if (offset >= work_end)
    offset = w->offset + (offset - w->offset) % (work_end - w->offset);
  if (rnd (random, 2))
    offset -= offset % cluster;
  return offset;
}

static uint64_t
choose_length (uint64_t *random, uint64_t offset)
{
  const uint64_t cluster = UINT64_C (1) << base->kind->cluster_bits;
  uint64_t len = (rnd (random, 4096) + 1) * SECTOR;

  switch (rnd (random, 8)) {
  case 0:                       /* much */
    len %= work_end / 4;
    break;
  case 1: case 2: case 3:       /* whole clusters, one or a few */
    len = (rnd (random, 3) + 1) * cluster;
    break;
  case 4:                       /* a few and a bit */
    len %= 3 * cluster;
    break;
  default:                      /* within one */
    len %= cluster;
    break;
  }
  len = len / SECTOR * SECTOR;
  if (len == 0)
    len = SECTOR;
  return len < work_end - offset ? len : work_end - offset;
}

/* What has certainly changed when it has ended.  What a trim does to
 * parts of clusters that were compressed cannot be foreseen, once some
 * are no more: it is not asked to, where there are subclusters.
 */
static void
set_effect (struct op *op)
{
  const struct kind *k = base->kind;
  const bool sub = k->flags & KIND_EXTENDED
    && !(k->flags & (KIND_COMPRESSED | KIND_COMPRESS));
  const uint64_t cluster = UINT64_C (1) << (k->cluster_bits - (sub ? 5 : 0));

  op->from = op->offset;
  op->end = op->offset + op->len;
  if (op->kind != OP_TRIM)
    return;
  op->from = (op->from + cluster - 1) / cluster * cluster;
  if (op->end != guest_size)
    op->end = op->end / cluster * cluster;
  if (op->end < op->from || (k->version == 2 && k->flags & KIND_BACKING)
      || k->flags & KIND_IGNORE)
    op->end = op->from;
  if (k->flags & KIND_EXTENDED
      && k->flags & (KIND_COMPRESSED | KIND_COMPRESS)) {
    op->offset = op->from;
    op->len = op->end - op->from;
  }
}

static void
choose (struct op *op, uint64_t *random)
{
  const uint64_t kind = rnd (random, 100);

  memset (op, 0, sizeof *op);
  op->kind = kind < 52 ? OP_WRITE : kind < 67 ? OP_ZERO
    : kind < 86 ? OP_TRIM : OP_FLUSH;
  if (op->kind == OP_FLUSH)
    return;
  op->fua = rnd (random, 10) == 0;
  op->may_trim = rnd (random, 2);
  op->offset = choose_offset (random);
  op->len = choose_length (random, op->offset);
  set_effect (op);
}

static int
perform (struct image *img, const struct op *op)
{
  char *buf;
  int r;

  switch (op->kind) {
  case OP_WRITE:
    buf = check_memory (malloc (op->len));
    history_fill (op->number, op->offset, op->len, buf);
    r = image_write (img, buf, op->len, op->offset, op->fua);
    free (buf);
    return r;
  case OP_ZERO:
    if (base->kind->flags & KIND_DETECT && op->number % 2) {
      buf = check_memory (calloc (1, op->len));
      r = image_write (img, buf, op->len, op->offset, op->fua);
      free (buf);
      return r;
    }
    return image_zero (img, op->offset, op->len,
                       op->may_trim ? IMAGE_ZERO_MAY_TRIM : 0, op->fua);
  case OP_TRIM:
    return image_trim (img, op->offset, op->len, op->fua);
  case OP_FLUSH: case NR_OPS:
  default:
    return image_flush (img);
  }
}

int
work_read_tags (struct image *img, tag *tags)
{
  unsigned i, n = 0;
  uint64_t j, len;
  char *buf;
  int r = 0;

  for (i = 0; i < base->nr_windows && r == 0; i++) {
    const struct window *w = &base->windows[i];

    len = image_size (img) - MIN (w->offset, image_size (img));
    len = MIN (len, w->len);
    buf = check_memory (malloc (len));
    r = image_read (img, buf, len, w->offset);
    for (j = 0; j < w->len; j += SECTOR)
      tags[n++] = j < len ? history_tag (buf + j, w->offset + j) : TAG_GONE;
    free (buf);
  }
  return r;
}

/*----------------------------------------------------------------------
 * Clients.
 */

struct client {
  pthread_t thread;
  struct image *img;
  struct history *history;
  unsigned number, requests;
  uint64_t random;
  int result;
};

static _Thread_local uint64_t pause_random;

static void
pause_now (void *opaque)
{
  (void) opaque;
  if (pause_random == 0)
    pause_random = (uint64_t) (uintptr_t) &pause_random | 1;
  switch (rnd (&pause_random, 16)) {
  case 0:
    usleep ((useconds_t) rnd (&pause_random, 200));
    break;
  case 1: case 2: case 3: case 4: case 5:
    sched_yield ();
    break;
  default:
    break;
  }
}

/* Read a part of a window, for the history to judge. */
static int
read_something (struct client *c)
{
  const struct window *w = choose_window (&c->random, base->nr_windows);
  const uint64_t left = work_end - w->offset;
  const uint64_t there = left < w->len ? left : w->len;
  const uint64_t skip = rnd (&c->random, there / SECTOR) * SECTOR;
  uint64_t len = (rnd (&c->random, 64) + 1) * SECTOR, began, i;
  char *buf;
  tag *tags;
  int r;

  len = len < there - skip ? len : there - skip;
  buf = check_memory (malloc (len));
  tags = check_memory (calloc (len / SECTOR, sizeof *tags));
  began = history_begin_read (c->history);
  r = image_read (c->img, buf, len, w->offset + skip);
  for (i = 0; i < len && r == 0; i += SECTOR)
    tags[i / SECTOR] = history_tag (buf + i, w->offset + skip + i);
  if (r == 0)
    history_end_read (c->history, began, w->offset + skip, len, tags);
  free (buf);
  free (tags);
  return r;
}

static void *
be_client (void *opaque)
{
  struct client *c = opaque;
  struct op op, *now;
  bool failed;
  unsigned i;

  pause_random = c->random;
  for (i = 0; i < c->requests && c->result == 0; i++) {
    if (rnd (&c->random, 3) == 0)
      c->result = read_something (c);
    if (c->result < 0)
      break;
    choose (&op, &c->random);
    op.client = c->number;
    now = history_begin (c->history, &op, recorder_now (recorder));
    c->result = perform (c->img, now);
    failed = c->result == -EIO && atomic_load (&disk_fails);
    if (failed)
      c->result = 0;
    if (c->result == 0)
      history_end (c->history, now, recorder_now (recorder), failed);
  }
  return NULL;
}

/* Of these requests each client does its part. */
static int
run_clients (struct image *img, struct history *h, unsigned requests,
             uint64_t seed)
{
  enum { MAX = 8 };
  struct client clients[MAX];
  const unsigned n = base->kind->clients;
  unsigned i;
  int r = 0;

  memset (clients, 0, sizeof clients);
  for (i = 0; i < n; i++) {
    clients[i].img = img;
    clients[i].history = h;
    clients[i].number = i;
    clients[i].requests = requests / n;
    clients[i].random = (seed * MAX + i) * UINT64_C (0x9e3779b97f4a7c15) | 1;
  }
  if (n == 1)
    be_client (&clients[0]);
  for (i = 0; n > 1 && i < n; i++) {
    if (pthread_create (&clients[i].thread, NULL, be_client,
                        &clients[i]) != 0)
      abort ();
  }
  for (i = 0; n > 1 && i < n; i++)
    pthread_join (clients[i].thread, NULL);
  for (i = 0; i < n; i++)
    r = clients[i].result < 0 ? clients[i].result : r;
  return r;
}

/* Open the image, let clients work, close it. */
static int
session (struct history *h, unsigned requests, uint64_t seed)
{
  struct image *img = work_open (NAME_RECORDER);
  int r;

  if (img == NULL)
    return -EIO;
  if (work_repaired == SIZE_MAX)
    work_repaired = recorder_now (recorder);
  set_guest_size (img);
  r = image_begin_writing (img);
  if (r == 0 && base->kind->clients > 1)
    r = image_start (img);
  atomic_store (&disk_fails, base->kind->flags & KIND_FAILING);
  if (r == 0)
    r = run_clients (img, h, requests, seed);
  atomic_store (&disk_fails, false);
  met_failure = false;
  if (r == 0)
    r = image_stop (img);
  else
    image_stop (img);
  image_close (img);
  return r;
}

/* What is cut off is gone, durably, and reads as zeroes if the disk grows
 * again.
 */
static int
resize (struct history *h, uint64_t size)
{
  struct op op = {
    .kind = OP_ZERO, .fua = true, .offset = size, .from = size,
    .len = guest_size - size, .end = guest_size,
  }, *now = NULL;
  struct image_config c;
  int r;

  state_opened = false;
  report_set_sink (take_report);
  set_config (&c, NAME_RECORDER);
  if (size < guest_size)
    now = history_begin (h, &op, recorder_now (recorder));
  sizes[nr_sizes].size = size;
  sizes[nr_sizes].began = recorder_now (recorder);
  r = image_resize (&c, size, true);
  sizes[nr_sizes++].ended = recorder_now (recorder);
  if (now)
    history_end (h, now, recorder_now (recorder), r < 0);
  return r;
}

bool
work_size_is_legal (uint64_t size, size_t crash)
{
  bool legal = size == base->disk_size;
  unsigned i;

  for (i = 0; i < nr_sizes && sizes[i].began <= crash; i++)
    legal = size == sizes[i].size || (legal && crash < sizes[i].ended);
  return legal;
}

/* Sessions, and what happens between them. */
static int
sessions (struct history *h, unsigned requests, uint64_t seed)
{
  int r;

  if (!(base->kind->flags & KIND_RESIZE)) {
    r = session (h, requests / 2, seed * 2);
    return r == 0 ? session (h, requests / 2, seed * 2 + 1) : r;
  }
  r = session (h, requests / 3, seed * 3);
  if (r == 0)
    r = resize (h, base->small);
  if (r == 0)
    r = session (h, requests / 3, seed * 3 + 1);
  if (r == 0)
    r = resize (h, base->huge);
  if (r == 0)
    r = session (h, requests / 3, seed * 3 + 2);
  return r;
}

int
work (struct history *h, unsigned requests, uint64_t seed)
{
  uint64_t random = seed * UINT64_C (0x9e3779b97f4a7c15) | 1;
  int r;

  nr_sizes = 0;
  work_repaired = base->kind->flags & KIND_REPAIR ? SIZE_MAX : 0;

  if (base->kind->clients > 1)
    recorder_set_pause (recorder, pause_now, NULL);
  recorder_set_hook (recorder, fail_sometimes, &random);
  if (work_disk_lies)
    recorder_lie (recorder);
  r = sessions (h, requests, seed);
  recorder_set_hook (recorder, NULL, NULL);
  return r;
}

int
work_on_after_crash (struct image *img, tag *tags, unsigned requests,
                     uint64_t first, uint64_t seed)
{
  uint64_t random = seed * UINT64_C (0x9e3779b97f4a7c15) | 1, j;
  unsigned i, w, s;
  struct op op;
  int r;

  set_guest_size (img);
  for (i = 0; i < requests; i++) {
    choose (&op, &random);
    op.number = first + i;
    r = perform (img, &op);
    if (r < 0)
      return r;
    for (w = s = 0; w < base->nr_windows && op.kind != OP_FLUSH; w++) {
      for (j = 0; j < base->windows[w].len; j += SECTOR, s++) {
        const uint64_t offset = base->windows[w].offset + j;

        if (offset >= op.from && offset < op.end)
          tags[s] = op.kind == OP_WRITE ? op.number : 0;
      }
    }
  }
  return image_stop (img);
}
