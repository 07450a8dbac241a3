/* SPDX-License-Identifier: BSD-3-Clause */

/* Every storage call and every allocation of some work fails in turn,
 * from the opening to the end: once, or from then on.  Then
 *
 *   - a request ends with success or with an error that fits the fault;
 *     what it says is true: each sector holds the new contents after
 *     success, and the new or the old ones after an error;
 *   - a flush that succeeds is believed: after a crash every sector holds
 *     what it promised or something written since;
 *   - without a new fault the next requests succeed, unless a sync failed,
 *     after which nothing is written any more;
 *   - on a full disk no flush fails;
 *   - the image has no corruption (leaks are allowed) after a crash at the
 *     fault, before the next flush and at the end, and after the close, and
 *     holds exactly what the guest saw after a close that succeeded;
 *   - all metadata is in the tracker, or an event has said that it is not;
 *   - nothing is taken for corruption.
 *
 * A short count of a system call is no fault at all: it changes nothing.
 *
 * The engine's storage is a recorder (recorder.h), for SHORT a file; on
 * it lies the storage that fails (faulty.h).
 *
 *   test-faults [-c CONFIGURATION] [-k KIND[-on]] [-n AT] [-s SEED]
 *               [-t SECONDS]
 *
 * With -t, calls are chosen so that it takes about so long; else each
 * call fails once.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "checked.h"
#include "faults.h"
#include "faulty.h"
#include "image-internal.h"
#include "report.h"
#include "resize.h"
#include "selfcheck.h"

#define OPS 26
#define K 1024u

const struct fault_config *config;
uint64_t seed = 1;

static struct values *initial;  /* of each sector */
static struct values *now;      /* for the guest */
static struct values *disk;     /* after a crash */

/* The same when the fault had happened, and at the end of the last request
 * before the next flush.
 */
enum { AT_FAULT, BEFORE_FLUSH, NR_CRASHES };
static struct crash {
  const char *what;
  bool seen;
  size_t moment;
  struct values *disk;
} crashes[NR_CRASHES] = {
  [AT_FAULT] = { .what = "after a crash at the fault" },
  [BEFORE_FLUSH] = { .what = "after a crash before the next flush" },
};
static bool flush_came;
static unsigned sectors;

static char *original;          /* disk.qcow2 */
static uint64_t original_size;
static char *original_data;     /* its data file, or NULL */
static uint64_t original_data_size;

static char last_report[500];
static uint64_t runs, failed_requests;

static void
quiet (enum report_level level, const char *text)
{
  if (level == REPORT_ERROR)
    snprintf (last_report, sizeof last_report, "%s", text);
}

void
fail (const char *fs, ...)
{
  va_list args;

  faults_off ();
  printf ("FAIL: -c %s -k %s%s -n %" PRIu64 " -s %" PRIu64 ": ",
          config->name, fault_names[faults.kind],
          faults.forever ? "-on" : "", faults.at, seed);
  va_start (args, fs);
  vprintf (fs, args);
  va_end (args);
  printf ("\nlast error: %s\n", last_report);
  exit (EXIT_FAILURE);
}

void *
memory (uint64_t size)
{
  void *p = malloc (size + 1);

  if (!p)
    abort ();
  return p;
}

static void
full_disk (void *opaque)
{
  (void) opaque;
  recorder_set_space (recorder, 0);
}

/*----------------------------------------------------------------------
 * The work.
 */

enum op_kind { OP_WRITE, OP_ZERO, OP_TRIM, OP_READ, OP_FLUSH };

static uint64_t random_state;

static uint64_t
rnd (uint64_t n)
{
  random_state = random_state * UINT64_C (6364136223846793005) + 1;
  return (random_state >> 33) % n;
}

struct op {
  enum op_kind kind;
  bool fua, may_trim, whole;
  unsigned first, count;        /* sectors */
};

static void
choose (struct op *op, unsigned number)
{
  const uint64_t cluster = 4 * K;
  const uint64_t kind = rnd (100);
  uint64_t offset = rnd (config->size / SECTOR) * SECTOR, len;

  op->kind = kind < 48 ? OP_WRITE : kind < 62 ? OP_ZERO : kind < 77 ? OP_TRIM
    : kind < 87 ? OP_READ : OP_FLUSH;
  if (number % 8 == 7)
    op->kind = OP_FLUSH;
  op->fua = rnd (9) == 0;
  op->may_trim = rnd (2);
  if (rnd (2))
    offset = offset % (config->size / 8);
  /* Where the table grows is past what is there. */
  if (strcmp (config->name, "table") == 0 && rnd (2))
    offset = 1800 * K + offset % (700 * K);
  len = rnd (3) ? rnd (3 * cluster) + 1 : rnd (config->max_request) + 1;
  if (rnd (2)) {
    offset -= offset % cluster;
    len = (len + cluster - 1) / cluster * cluster;
  }
  offset -= offset % SECTOR;
  len = MIN ((len + SECTOR - 1) / SECTOR * SECTOR, config->size - offset);
  op->first = (unsigned) (offset / SECTOR);
  op->count = (unsigned) (len / SECTOR);
}

static int
call_engine (struct image *img, const struct op *op, uint8_t *buf)
{
  const uint64_t offset = (uint64_t) op->first * SECTOR;
  const size_t len = (size_t) op->count * SECTOR;

  switch (op->kind) {
  case OP_WRITE:
    return image_write (img, buf, len, offset, op->fua);
  case OP_ZERO:
    return image_zero (img, offset, len,
                       op->may_trim ? IMAGE_ZERO_MAY_TRIM : 0, op->fua);
  case OP_TRIM:
    return image_trim (img, offset, len, op->fua);
  case OP_READ:
    return image_read (img, buf, len, offset);
  case OP_FLUSH:
  default:
    return image_flush (img);
  }
}

/* Before a request: had the fault happened, had a sync failed? */
struct before {
  bool fired, sync_failed;
};

/* May a request end with R? */
static void
judge_result (const struct op *op, unsigned number,
              const struct before *before, int r)
{
  const bool reads = op->kind == OP_READ;
  const bool hit = faults.fired && (faults.forever || !before->fired);
  bool good = r == 0;

  if (before->sync_failed && !reads)
    good = r == -EIO || (r == 0 && op->kind == OP_TRIM);
  else if (faults.sync_failed && !reads)
    good = r == 0 || r == -EIO || r == -ENOSPC;
  else
    switch (faults.kind) {
    case FAULT_EIO: case FAULT_PARTIAL:
      good |= hit && r == -EIO;
      break;
    case FAULT_ENOSPC:
      good |= hit && !reads && (r == -EIO || r == -ENOSPC);
      break;
    case FAULT_FULL:
      good |= faults.fired && r == -ENOSPC && !reads
        && op->kind != OP_FLUSH;
      break;
    case FAULT_MEMORY:
      good |= hit && (r == -EIO || r == -ENOMEM);
      break;
    case FAULT_SHORT: case FAULT_KINDS: default:
      break;
    }
  if (!good)
    fail ("request %u (kind %d, sectors %u+%u%s) ends with %s%s", number,
          (int) op->kind, op->first, op->count, op->fua ? ", fua" : "",
          strerror (-r), before->fired ? "" : ", the first at the fault");
  failed_requests += r < 0;
}

/* Make it known what the request may have changed. */
static void
learn (const struct op *op, const uint8_t *buf, int r)
{
  static const uint8_t zeroes[SECTOR];
  unsigned i;

  if (op->kind == OP_FLUSH) {
    if (r == 0)
      memcpy (disk, now, sectors * sizeof *now);
    return;
  }
  for (i = 0; i < op->count; ++i) {
    struct values *n = &now[op->first + i], *d = &disk[op->first + i];
    const uint8_t *sector = buf + i * SECTOR;
    tag t = tag_of (op->kind == OP_WRITE || op->kind == OP_READ ? sector
                    : zeroes);

    if (op->kind == OP_READ) {
      if (r < 0)
        continue;
      if (!may_be (n, t))
        fail ("sector %u reads as none of the %u things it may be",
              op->first + i, n->n);
      set_only (n, t);
      continue;
    }
    add_value (d, t);
    if (r == 0 && op->kind != OP_TRIM)
      set_only (n, t);
    else
      add_value (n, t);
    if (r == 0 && op->fua)
      *d = *n;
  }
}

static int
do_op (struct image *img, const struct op *op, unsigned number)
{
  const struct before before = { faults.fired, faults.sync_failed };
  uint8_t *buf = memory ((size_t) op->count * SECTOR);
  uint64_t words[2] = { number + 1, 0 };
  size_t i;
  int r;

  for (i = 0; i < (size_t) op->count * SECTOR; i += sizeof words) {
    words[1] = op->first * SECTOR + i;
    memcpy (buf + i, words, sizeof words);
  }
  faults_on ();
  r = call_engine (img, op, buf);
  faults_off ();
  judge_result (op, number, &before, r);
  learn (op, buf, r);
  free (buf);
  return r;
}

/* Read everything: the model knows then which it is of several values. */
static void
read_all (struct image *img)
{
  const struct op op = { .kind = OP_READ, .count = sectors };
  uint8_t *buf = memory (config->size);

  if (image_read (img, buf, config->size, 0) < 0)
    fail ("the disk cannot be read after the fault");
  learn (&op, buf, 0);
  free (buf);
}

static void
check_tracker (struct image *img)
{
  const unsigned before = lost_protection;
  struct overlap_stats stats;
  const char *why;

  overlap_get_stats (img->guard.overlap, &stats);
  if (verify_tracker (img) > 0)
    fail ("metadata is missing in the tracker");
  if (!overlap_verify (img->guard.overlap, &why))
    fail ("the tracker: %s", why);
  if (stats.outside_windows > 0 && before == 0)
    fail ("%" PRIu64 " windows left the tracker without an event",
          stats.outside_windows);
  if (atomic_load (&img->guard.corrupt))
    fail ("a fault was taken for corruption");
}

/* The fault is over: everything works again, or nothing is written. */
static void
go_on (struct image *img)
{
  const enum fault_kind kind = faults.kind;
  struct op op;
  unsigned n;
  int r;

  if (kind == FAULT_FULL && faults.fired)
    recorder_set_space (recorder, UINT64_C (1) << 40);
  faults.kind = FAULT_KINDS;
  for (n = 0; n < 6; ++n) {
    choose (&op, n == 5 ? 7 : n);
    r = do_op (img, &op, OPS + n);
    if (faults.sync_failed && op.kind == OP_FLUSH && r == 0)
      fail ("a failed sync was forgiven");
  }
  faults.kind = kind;
}

/* What a stop may say; before it a sync had FAILED. */
static void
judge_stop (int r, bool fired, bool failed)
{
  /* The bitmaps come last, and may be lost alone. */
  if (r == 0 && faults.sync_failed
      && (failed || !strstr (config->make, "qemu-img bitmap")))
    fail ("stopping forgives a failed sync");
  if (r < 0 && fired && !failed)
    fail ("stopping fails after the fault is over");
  if (r < 0 && !faults.fired)
    fail ("stopping fails");
  if (r < 0 && !fired && faults.kind == FAULT_FULL)
    fail ("stopping fails for want of space: %s", strerror (-r));
}

/* The calls of the end fail as well, if none failed before. */
static void
stop_and_judge (struct image *img)
{
  const bool fired = faults.fired, failed = faults.sync_failed;
  int r;

  read_all (img);
  if (!fired)
    faults_on ();
  r = image_stop (img);
  faults_off ();
  judge_stop (r, fired, failed);
  if (faults.changes_since > 0)
    fail ("%" PRIu64 " changes after a failed sync", faults.changes_since);
  image_close (img);

  if (faults.kind == FAULT_SHORT) {
    judge_file ("after the close", "work.qcow2", now);
    return;
  }
  if (r == 0)
    memcpy (disk, now, sectors * sizeof *now);
  judge_crash ("after the close", recorder_now (recorder), disk);
}

static void
start (void)
{
  unsigned i;

  runs++;
  faults.calls = faults.changes_since = 0;
  faults.fired = faults.sync_failed = false;
  faults.full = full_disk;
  lost_protection = 0;
  last_report[0] = 0;
  for (i = 0; i < NR_CRASHES; ++i)
    crashes[i].seen = false;
  flush_came = false;
  random_state = seed * 1000003 + strlen (config->name);
  if (faults.kind == FAULT_SHORT) {
    recorder = NULL;
    if (system ("cp disk.qcow2 work.qcow2") != 0
        || (original_data && system ("cp first.data disk.data") != 0))
      fail ("work.qcow2 cannot be made");
    return;
  }
  recorder = recorder_create (original, original_size);
  if (original_data)
    recorder_add_data (recorder, original_data, original_data_size);
}

static const char *
work_name (void)
{
  return faults.kind == FAULT_SHORT ? "work.qcow2" : NAME_RECORDER;
}

/* The server ends here. */
static void
judge_now (const char *what)
{
  if (faults.changes_since > 0)
    fail ("%s: %" PRIu64 " changes after a failed sync", what,
          faults.changes_since);
  if (recorder)
    judge_crash (what, recorder_now (recorder), disk);
}

/* Cut, then grown. */
static int
resize_under_fault (void)
{
  static const uint8_t zeroes[SECTOR];
  const unsigned first = (unsigned) (small_size () / SECTOR);
  const tag zero = tag_of (zeroes);
  struct image_config c;
  unsigned i;
  int r;

  for (i = first; i < sectors; i++)
    add_value (&disk[i], zero);
  set_config (&c, work_name ());
  r = image_resize (&c, small_size (), true);
  for (i = first; i < sectors && r == 0; i++) {
    set_only (&disk[i], zero);
    now[i] = disk[i];
  }
  if (r == 0) {
    set_config (&c, work_name ());
    r = image_resize (&c, large_size (), false);
  }
  if (r < 0 && !faults.fired)
    fail ("the size cannot be changed");
  return r;
}

/* A request has ended, at the fault or later. */
static void
crash_may_come (const struct op *op)
{
  struct crash *c = &crashes[crashes[AT_FAULT].seen ? BEFORE_FLUSH : AT_FAULT];

  flush_came |= c == &crashes[BEFORE_FLUSH] && op->kind == OP_FLUSH;
  if (flush_came)
    return;
  c->seen = true;
  c->moment = recorder_now (recorder);
  memcpy (c->disk, disk, sectors * sizeof *disk);
}

/* One run, with the fault that is described in FAULTS.  False if the work
 * was over before it happened.
 */
static bool
run (void)
{
  const bool forever = faults.forever;
  struct image *img = NULL;
  struct op op;
  bool fired;
  unsigned n, i;
  int r;

  start ();
  memcpy (now, initial, sectors * sizeof *now);
  memcpy (disk, initial, sectors * sizeof *disk);

  faults_on ();
  r = config->flags & RESIZED ? resize_under_fault () : 0;
  if (r < 0) {
    faults_off ();
    judge_now ("after a failed change of the size");
    fired = true;
    goto out;
  }
  r = open_image (work_name (), &img);
  if (r == 0 && image_is_writable (img))
    r = image_begin_writing (img);
  else if (r == 0)
    fail ("a fault at open makes the image read-only");
  else
    img = NULL;
  faults_off ();
  if (r < 0 && !faults.fired)
    fail ("the image cannot be opened");

  for (n = 0; r == 0 && n < OPS; ++n) {
    choose (&op, n);
    do_op (img, &op, n);
    if (faults.fired && recorder)
      crash_may_come (&op);
  }
  for (i = 0; i < NR_CRASHES; ++i)
    if (crashes[i].seen)
      judge_crash (crashes[i].what, crashes[i].moment, crashes[i].disk);
  if (r == 0) {
    if (recorder)
      judge_crash ("after a crash at the end", recorder_now (recorder),
                   disk);
    check_tracker (img);
    go_on (img);
    check_tracker (img);
    stop_and_judge (img);
  }
  else {
    image_close (img);
    judge_now ("after a failed opening");
  }
  fired = faults.fired;
 out:
  if (recorder)
    recorder_free (recorder);
  faults.forever = forever;
  return fired;
}

/*----------------------------------------------------------------------
 * The campaign.
 */

static char *
read_file (const char *name, uint64_t *size)
{
  struct disk *d = disk_load (name);
  char *bytes;

  if (!d)
    fail ("%s: %s", name, strerror (errno));
  *size = disk_size (d);
  bytes = memory (*size);
  disk_read (d, bytes, *size, 0);
  disk_free (d);
  return bytes;
}

static void
prepare (void)
{
  char *raw, command[400];
  uint64_t size;
  unsigned i;

  snprintf (command, sizeof command, "qemu-img convert %s -O raw first.raw",
            qemu_name ("disk.qcow2"));
  if (system (config->make) != 0 || system (command) != 0)
    fail ("cannot make the image");
  original = read_file ("disk.qcow2", &original_size);
  if (has_data_file ()) {
    if (system ("cp disk.data first.data") != 0)
      fail ("first.data cannot be made");
    original_data = read_file ("first.data", &original_data_size);
  }
  raw = read_file ("first.raw", &size);
  sectors = (unsigned) (size / SECTOR);
  if (size != config->size)
    fail ("the disk has %" PRIu64 " bytes", size);
  initial = memory (sectors * sizeof *initial);
  now = memory (sectors * sizeof *now);
  disk = memory (sectors * sizeof *disk);
  for (i = 0; i < NR_CRASHES; ++i)
    crashes[i].disk = memory (sectors * sizeof *disk);
  for (i = 0; i < sectors; ++i)
    set_only (&initial[i], tag_of ((uint8_t *) raw + i * SECTOR));
  free (raw);
}

static void
finish (void)
{
  unsigned i;

  free (original);
  free (original_data);
  original_data = NULL;
  free (initial);
  free (now);
  free (disk);
  for (i = 0; i < NR_CRASHES; ++i)
    free (crashes[i].disk);
}

static double
seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* All calls in turn, or a part of them that takes about LIMIT seconds: a
 * first run without a fault counts them.
 */
static void
campaign (double limit)
{
  const bool all = config->flags & EACH_EIO && faults.kind == FAULT_EIO
    && !faults.forever && !getenv ("QCOW2_VALGRIND");
  const double began = seconds ();
  uint64_t calls, step = 1, done = 1;
  double each;

  faults.at = UINT64_MAX;
  if (run ())
    fail ("a fault that was not wanted");
  calls = faults.calls;
  if (limit > 0 && !all) {
    each = seconds () - began;
    step = (uint64_t) ((double) calls * each / limit) + 1;
  }
  for (faults.at = seed % step; faults.at < calls; faults.at += step) {
    run ();
    done++;
    if (limit > 0 && !all && seconds () - began > 2 * limit)
      break;
  }
  if (limit <= 0)
    printf ("%-11s %-7s %-4s %6" PRIu64 " calls, %.1f s\n", config->name,
            fault_names[faults.kind], faults.forever ? "on" : "once", calls,
            seconds () - began);
  fflush (stdout);
}

static bool
has_mode (enum fault_kind kind, bool forever)
{
  return !(forever ? kind == FAULT_PARTIAL || kind == FAULT_FULL : false);
}

static struct { const char *config, *kind; uint64_t at; double limit; }
wanted = { NULL, NULL, UINT64_MAX, 0 };

static bool
is_wanted (void)
{
  char name[40];

  snprintf (name, sizeof name, "%s%s", fault_names[faults.kind],
            faults.forever ? "-on" : "");
  return has_mode (faults.kind, faults.forever)
    && (!wanted.kind || strcmp (wanted.kind, name) == 0);
}

static void
run_config (void)
{
  int forever, kind;

  prepare ();
  for (kind = 0; kind < FAULT_KINDS; ++kind)
    for (forever = 0; forever < 2; ++forever) {
      faults.kind = (enum fault_kind) kind;
      faults.forever = forever;
      if (!is_wanted ())
        continue;
      if (wanted.at != UINT64_MAX) {
        faults.at = wanted.at;
        run ();
      }
      else
        campaign (wanted.limit);
    }
  finish ();
}

static int
options (int argc, char *argv[])
{
  int c;

  while ((c = getopt (argc, argv, "c:k:n:s:t:")) != -1)
    switch (c) {
    case 'c': wanted.config = optarg; break;
    case 'k': wanted.kind = optarg; break;
    case 'n': wanted.at = strtoull (optarg, NULL, 10); break;
    case 's': seed = strtoull (optarg, NULL, 10); break;
    case 't': wanted.limit = atof (optarg); break;
    default: return -1;
    }
  return 0;
}

int
main (int argc, char *argv[])
{
  const char *sanitizer = getenv ("QCOW2_SANITIZER");
  char dir[] = "tmp-faults.XXXXXX", command[100];
  const unsigned modes = 2 * FAULT_KINDS - 2;
  size_t i;

  if (options (argc, argv) < 0)
    return EXIT_FAILURE;
  if (argc == 1)
    wanted.limit = getenv ("QCOW2_VALGRIND") || (sanitizer && *sanitizer)
      ? 6 : 10;
  if (system ("qemu-img --version >/dev/null 2>&1 && "
              "qemu-io --version >/dev/null 2>&1") != 0) {
    fprintf (stderr, "skipped: needs qemu-img and qemu-io\n");
    return 77;
  }
  if (!mkdtemp (dir) || chdir (dir) == -1) {
    perror (dir);
    return EXIT_FAILURE;
  }
  if (!all_pairs_are_there ())
    return EXIT_FAILURE;
  report_set_sink (quiet);
  wanted.limit /= (double) (nr_fault_configs * modes);
  for (i = 0; i < nr_fault_configs; ++i) {
    config = &fault_configs[i];
    if (wanted.config ? strcmp (wanted.config, config->name) == 0
        : wanted.limit <= 0 || !(config->flags & LONG_ONLY))
      run_config ();
  }
  printf ("%" PRIu64 " runs, %" PRIu64 " failed requests, %" PRIu64
          " images judged, %" PRIu64 " of them by qemu-img\n", runs,
          failed_requests, judged, asked_qemu);
  if (failed_requests == 0 && !wanted.config && !wanted.kind)
    fail ("no request failed: this test looks wrongly");

  /* After a failure the directory stays, for whoever looks into it. */
  snprintf (command, sizeof command, "rm -rf ../%s", dir);
  return system (command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
