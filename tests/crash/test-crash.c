/* SPDX-License-Identifier: BSD-3-Clause */

/* What is left of an image after a crash, at many moments of random
 * work and with many losses of what was not synced:
 *
 *   - qemu-img check finds no corruption (leaks are allowed);
 *   - the engine opens it for writing;
 *   - each guest sector holds what the last flush promised, or something
 *     that was written to it since; never a third thing;
 *   - it can be worked with from there.
 *
 * The same with a disk that fails: writes fail now and then, space runs
 * out (which must never fail a flush), or a sync fails (after which
 * nothing may succeed that promises something).  In the end the disk lies
 * about its syncs, and that must be noticed.
 *
 * The engine runs on the recording storage: this program has a
 * storage_open_file of its own, which the linker takes before that of
 * the library.  Nothing here is concurrent, so that a seed always gives
 * the same run.
 *
 *   test-crash [CONFIGURATION [SEED [STATES [MODE]]]]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/wait.h>

#include "image.h"
#include "recorder.h"
#include "report.h"
#include "storage-write.h"

#define SECTOR 512u
#define DISK_SIZE (2048u * 1024)
#define SECTORS (DISK_SIZE / SECTOR)
#define MAX_REQUEST (192u * 1024)

/* Shell commands that make disk.qcow2 in the current directory. */
static const struct config {
  const char *name;
  unsigned ops;
  const char *make;
} configs[] = {
  { "plain-64k", 300,
    "qemu-img create -q -f qcow2 disk.qcow2 2M" },
  { "plain-4k", 300,
    "qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 2M" },
  { "tiny-clusters", 250,
    "qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 2M" },
  { "wide-refcounts", 250,
    "qemu-img create -q -f qcow2 -o cluster_size=512,refcount_bits=64 "
    "disk.qcow2 2M" },
  { "version-2", 250,
    "qemu-img create -q -f qcow2 -o compat=0.10,cluster_size=4k "
    "disk.qcow2 2M" },
  { "full", 250,
    "qemu-img create -q -f qcow2 -o cluster_size=4k,preallocation=metadata "
    "disk.qcow2 2M && "
    "qemu-io -f qcow2 -c 'write -P 7 0 2M' disk.qcow2 >out" },
  { "snapshots", 300,
    "qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 2M && "
    "qemu-io -f qcow2 -c 'write -P 7 0 1M' disk.qcow2 >out && "
    "qemu-img snapshot -c one disk.qcow2 && "
    "qemu-io -f qcow2 -c 'write -P 8 512k 1M' disk.qcow2 >out && "
    "qemu-img snapshot -c two disk.qcow2" },
  { "compressed", 300,
    "truncate -s 2M raw && "
    "qemu-io -f raw -c 'write -P 9 0 1500k' raw >out && "
    "qemu-img convert -c -O qcow2 -o cluster_size=4k raw disk.qcow2" },
};
#define NR_CONFIGS (sizeof configs / sizeof configs[0])

/* How the disk behaves. */
static enum mode {
  SOUND, WRITE_ERRORS, NO_SPACE, SYNC_ERROR, LIES,
} mode;
static const char *const modes[] = {
  "sound", "write-errors", "no-space", "sync-error", "lies",
};

/* What is left of it in mode NO_SPACE, in bytes. */
#define SPACE (320u * 1024)

static const struct config *config;
static uint64_t seed;

/* The engine reports every failure that is injected: keep the last. */
static char last_report[1024];

static void
quiet (enum report_level level, const char *text)
{
  if (level == REPORT_ERROR)
    snprintf (last_report, sizeof last_report, "%s", text);
}

static void __attribute__ ((noreturn, format (printf, 1, 2)))
fail (const char *fs, ...)
{
  va_list args;

  printf ("FAIL: %s, %s, seed %" PRIu64 ": ", config->name, modes[mode],
          seed);
  va_start (args, fs);
  vprintf (fs, args);
  va_end (args);
  printf ("\nlast error: %s\n", last_report);
  exit (EXIT_FAILURE);
}

/* The disk's failures. */
static bool inject_now;
static unsigned injected, syncs_seen, syncs_before_error;
static unsigned failed_ops, failed_in_mode;

static int
inject (void *opaque, enum recorder_op op)
{
  static unsigned state;
  bool hit = false;

  (void) opaque;
  if (!inject_now)
    return 0;
  if (mode == WRITE_ERRORS)
    hit = op != RECORDER_SYNC && rand_r (&state) % 25 == 0;
  else if (mode == SYNC_ERROR && op == RECORDER_SYNC)
    hit = syncs_seen++ == syncs_before_error;
  injected += hit;
  return hit ? -EIO : 0;
}

/* What the engine opens. */

static struct recorder *recorder;       /* under the name "recorder" */
static char *state;                     /* under the name "state" */
static uint64_t state_size;
static struct storage *opened;          /* the last one opened */

int
storage_open_file (const char *path, bool writable, bool nofollow,
                   struct storage **s)
{
  struct iovec iov;

  (void) writable;
  (void) nofollow;
  if (strcmp (path, "recorder") == 0) {
    opened = *s = recorder_open (recorder);
    return 0;
  }
  if (storage_open_memory (0, s) < 0)
    abort ();
  opened = *s;
  iov.iov_base = state;
  iov.iov_len = state_size;
  return storage_write (*s, &iov, 1, 0, false);
}

static struct image *
open_image (const char *name)
{
  struct image_config c;
  struct image *img;

  image_config_init (&c);
  c.filename = name;
  c.commit_interval = 0;
  if (image_open (&c, &img) < 0)
    fail ("cannot open the image (%s)", name);
  if (!image_is_writable (img))
    fail ("the image cannot be written to (%s)", name);
  return img;
}

static char *
read_file (const char *name, uint64_t *size)
{
  FILE *fp = fopen (name, "r");
  char *p;

  if (fp == NULL || fseek (fp, 0, SEEK_END) != 0)
    fail ("%s: %s", name, strerror (errno));
  *size = (uint64_t) ftell (fp);
  rewind (fp);
  p = malloc (*size + 1);
  if (p == NULL || fread (p, 1, *size, fp) != *size)
    fail ("%s: cannot be read", name);
  fclose (fp);
  return p;
}

static void
write_file (const char *name, const char *p, uint64_t size)
{
  FILE *fp = fopen (name, "w");

  if (fp == NULL || fwrite (p, 1, size, fp) != size || fclose (fp) != 0)
    fail ("%s: cannot be written", name);
}

/* The guest's view.  A sector's contents are known by a hash; each
 * write gives every sector contents of its own.
 */
typedef uint64_t tag;

static tag
hash (const char *sector)
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

static void
hash_all (const char *buf, tag *tags)
{
  unsigned i;

  for (i = 0; i < SECTORS; i++)
    tags[i] = hash (buf + i * SECTOR);
}

enum op_kind { OP_WRITE, OP_ZERO, OP_TRIM, OP_FLUSH };

struct op {
  enum op_kind kind;
  bool fua, failed;
  unsigned first, count;        /* sectors */
  size_t began, ended;          /* moments of the recorder */
  tag *want;                    /* of the sectors, as it wants them */
  tag *after;                   /* the same, when it had ended */
};

static struct op *ops;
static tag initial[SECTORS], current[SECTORS];
static char buffer[DISK_SIZE];

static uint64_t
rnd (uint64_t n)
{
  return ((uint64_t) random () << 31 | (uint64_t) random ()) % n;
}

static void
choose (struct op *op, uint64_t cluster)
{
  const uint64_t kind = rnd (100);
  uint64_t offset = rnd (DISK_SIZE), len;

  memset (op, 0, sizeof *op);
  op->kind = kind < 55 ? OP_WRITE : kind < 70 ? OP_ZERO :
    kind < 85 ? OP_TRIM : OP_FLUSH;
  op->fua = rnd (12) == 0;

  /* Often where something was just done, and often whole clusters. */
  if (rnd (2))
    offset = offset % (DISK_SIZE / 8);
  len = rnd (4) ? rnd (3 * cluster) + 1 : rnd (MAX_REQUEST) + 1;
  if (rnd (2)) {
    offset -= offset % cluster;
    len += cluster - 1;
    len -= len % cluster;
  }
  len = len < MAX_REQUEST ? len : MAX_REQUEST;
  op->first = (unsigned) (offset / SECTOR);
  op->count = (unsigned) ((len + SECTOR - 1) / SECTOR);
  if (op->count > SECTORS - op->first)
    op->count = SECTORS - op->first;
}

static int
run_op (struct image *img, struct op *op, unsigned number)
{
  const uint64_t offset = (uint64_t) op->first * SECTOR;
  const size_t len = (size_t) op->count * SECTOR;
  uint64_t words[2];
  size_t i;

  switch (op->kind) {
  case OP_WRITE:
    words[0] = number + 1;
    for (i = 0; i < len; i += sizeof words) {
      words[1] = offset + i;
      memcpy (buffer + i, words, sizeof words);
    }
    return image_write (img, buffer, len, offset, op->fua);
  case OP_ZERO:
    return image_zero (img, offset, len,
                       number % 2 ? IMAGE_ZERO_MAY_TRIM : 0, op->fua);
  case OP_TRIM:
    return image_trim (img, offset, len, op->fua);
  case OP_FLUSH:
  default:
    return image_flush (img);
  }
}

/* May a request that began when so many failures were injected end with
 * R?
 */
static void
judge_result (const struct op *op, unsigned number, unsigned before, int r)
{
  bool good;

  if (!inject_now)
    good = r == 0;
  else if (mode == NO_SPACE)
    good = r == 0 || (r == -ENOSPC && op->kind != OP_FLUSH);
  else if (mode == SYNC_ERROR)
    good = injected ? r == -EIO : r == 0;
  else
    good = r == 0 || (r == -EIO && injected > before);
  if (!good)
    fail ("request %u (kind %d, %u+%u) ends with %s", number,
          (int) op->kind, op->first, op->count, strerror (-r));
}

/* Do it, and learn what the guest sees then.  Written and zeroed sectors
 * must be what they should; a trimmed one, or one whose request failed,
 * may also be as before.
 */
static void
do_op (struct image *img, struct op *op, unsigned number)
{
  static const char zeroes[SECTOR];
  static char back[MAX_REQUEST];
  const unsigned before = injected;
  unsigned i;
  int r;

  op->began = recorder_now (recorder);
  r = run_op (img, op, number);
  op->ended = recorder_now (recorder);
  op->failed = r < 0;
  failed_ops += op->failed;
  judge_result (op, number, before, r);
  if (op->kind == OP_FLUSH)
    return;

  if (image_read (img, back, (size_t) op->count * SECTOR,
                  (uint64_t) op->first * SECTOR) < 0)
    fail ("reading after request %u", number);
  op->want = malloc (op->count * sizeof (tag));
  op->after = malloc (op->count * sizeof (tag));
  for (i = 0; i < op->count; i++) {
    tag *now = &current[op->first + i], seen = hash (back + i * SECTOR);

    op->want[i] = hash (op->kind == OP_WRITE ? buffer + i * SECTOR : zeroes);
    if (seen != op->want[i] &&
        !(seen == *now && (op->failed || op->kind == OP_TRIM)))
      fail ("sector %u is wrong after request %u", op->first + i, number);
    op->after[i] = *now = seen;
  }
}

static void
free_op (struct op *op)
{
  free (op->want);
  free (op->after);
}

/* Which contents a sector may have after a crash at the moment CRASH:
 * that of the last flush, and all since.  OK[i] is whether SEEN[i] is
 * among them.
 */
static void
judge (size_t crash, const tag *seen, bool *ok)
{
  static tag promised[SECTORS];
  unsigned last = 0, n, i;

  memcpy (promised, initial, sizeof promised);
  for (n = 0; n < config->ops; n++) {
    if (ops[n].kind == OP_FLUSH && !ops[n].failed && ops[n].ended <= crash)
      last = n;
  }
  for (n = 0; n < last; n++) {
    for (i = 0; ops[n].after && i < ops[n].count; i++)
      promised[ops[n].first + i] = ops[n].after[i];
  }

  for (i = 0; i < SECTORS; i++)
    ok[i] = seen[i] == promised[i];
  for (n = last; n < config->ops && ops[n].began < crash; n++) {
    const struct op *op = &ops[n];

    for (i = 0; op->after && i < op->count; i++) {
      const tag t = seen[op->first + i];
      bool same = t == op->after[i] || (op->failed && t == op->want[i]);

      if (op->fua && !op->failed && op->ended <= crash)
        ok[op->first + i] = same;
      else
        ok[op->first + i] |= same;
    }
  }
}

/* 0 sound, 3 leaks; anything else fails. */
static void
qemu_check (size_t crash)
{
  int status;

  write_file ("state.qcow2", state, state_size);
  status = system ("qemu-img check -q -f qcow2 state.qcow2 >check.out 2>&1");
  if (!WIFEXITED (status) ||
      (WEXITSTATUS (status) != 0 && WEXITSTATUS (status) != 3)) {
    recorder_print (recorder, crash);
    fflush (stdout);
    status = system ("tail -n 20 check.out");
    fail ("qemu-img check finds corruption after a crash at %zu", crash);
  }
}

/* The image as it came out of the crash takes requests like any other. */
static void
go_on (size_t crash)
{
  struct image *img = open_image ("state");
  struct op op;
  unsigned n;

  if (image_begin_writing (img) < 0)
    fail ("cannot begin to write");
  hash_all (buffer, current);
  for (n = 0; n < 40; n++) {
    choose (&op, image_cluster_size (img));
    do_op (img, &op, config->ops + n);
    free_op (&op);
  }
  if (image_stop (img) < 0)
    fail ("cannot stop");

  free (state);
  if (storage_size (opened, &state_size) < 0)
    abort ();
  state = malloc (state_size);
  if (state == NULL || storage_read (opened, state, state_size, 0) < 0)
    abort ();
  image_close (img);
  qemu_check (crash);
}

/* The requests that touched a sector, and the flushes. */
static void
print_history (unsigned sector)
{
  static const char *const kinds[] = { "write", "zero", "trim", "flush" };
  unsigned n;

  for (n = 0; n < config->ops; n++) {
    const struct op *op = &ops[n];

    if (op->kind != OP_FLUSH &&
        (op->first > sector || sector - op->first >= op->count))
      continue;
    printf ("  request %u, moments %zu to %zu: %s", n, op->began, op->ended,
            kinds[op->kind]);
    if (op->kind != OP_FLUSH)
      printf (" sectors %u+%u", op->first, op->count);
    printf ("%s%s\n", op->fua && op->kind != OP_FLUSH ? ", fua" : "",
            op->failed ? ", failed" : "");
  }
}

static void
check_state (size_t crash, enum recorder_loss loss, uint64_t loss_seed)
{
  static tag seen[SECTORS];
  static bool ok[SECTORS];
  struct image *img;
  unsigned i;

  state = recorder_crash (recorder, crash, loss, loss_seed, &state_size);
  qemu_check (crash);
  img = open_image ("state");
  if (image_read (img, buffer, DISK_SIZE, 0) < 0)
    fail ("reading after a crash at %zu, loss %d", crash, (int) loss);
  image_close (img);

  hash_all (buffer, seen);
  judge (crash, seen, ok);
  for (i = 0; i < SECTORS; i++) {
    if (!ok[i]) {
      recorder_print (recorder, crash);
      print_history (i);
      fail ("sector %u holds a third thing after a crash at %zu, loss %d",
            i, crash, (int) loss);
    }
  }
  if (loss_seed % 5 == 0)
    go_on (crash);
  free (state);
}

/* The disk's contents at first, as QEMU sees them. */
static void
learn_initial (void)
{
  uint64_t size;
  char *raw;

  if (system ("qemu-img convert -f qcow2 -O raw disk.qcow2 first.raw") != 0)
    fail ("qemu-img convert");
  raw = read_file ("first.raw", &size);
  if (size != DISK_SIZE)
    fail ("the disk has %" PRIu64 " bytes", size);
  hash_all (raw, initial);
  memcpy (current, initial, sizeof current);
  free (raw);
}

static void
work (void)
{
  struct image *img = open_image ("recorder");
  unsigned n;

  if (image_begin_writing (img) < 0)
    fail ("cannot begin to write");
  recorder_set_hook (recorder, inject, NULL);
  if (mode == NO_SPACE)
    recorder_set_space (recorder, SPACE);
  inject_now = true;
  injected = failed_ops = syncs_seen = 0;
  syncs_before_error = (unsigned) ((seed * 13 + config->ops +
                                    strlen (config->name) * 7) % 50);
  for (n = 0; n < config->ops; n++) {
    choose (&ops[n], image_cluster_size (img));
    do_op (img, &ops[n], n);
  }
  inject_now = false;
  if ((image_stop (img) < 0) != (mode == SYNC_ERROR))
    fail ("stopping does not end as it should");
  image_close (img);
  failed_in_mode += failed_ops;
}

static void
run (unsigned states)
{
  size_t crash, moments, syncs;
  uint64_t size;
  unsigned i;
  char *bytes;

  srandom ((unsigned) seed);
  if (system (config->make) != 0)
    fail ("cannot make the image");
  learn_initial ();
  bytes = read_file ("disk.qcow2", &size);
  recorder = recorder_create (bytes, size);
  free (bytes);
  if (mode == LIES)
    recorder_lie (recorder);
  ops = calloc (config->ops, sizeof *ops);

  work ();
  moments = recorder_now (recorder);
  syncs = recorder_syncs (recorder);
  for (i = 0; i < states; i++) {
    /* The end is one of them: a clean stop, nothing may be lost. */
    crash = i == 0 ? moments :
      i % 3 && syncs > 0 ? recorder_before_sync (recorder, rnd (syncs)) :
      rnd (moments + 1);
    check_state (crash, (enum recorder_loss) (i % 4), seed * 1000 + i);
  }
  printf ("%-14s %-12s seed %" PRIu64 ": %u requests, %u failed, "
          "%zu records, %zu syncs, %u states\n", config->name, modes[mode],
          seed, config->ops, failed_ops, moments, syncs, states);
  fflush (stdout);

  for (i = 0; i < config->ops; i++)
    free_op (&ops[i]);
  free (ops);
  recorder_free (recorder);
}

/* A request with FUA is durable when it ends, whatever was there before
 * it and is not durable itself.  Clusters have 4096 bytes; the first 16
 * are written and flushed.
 */
static const struct fua_case {
  enum op_kind before;          /* of clusters 1 and 2, OP_FLUSH: nothing */
  enum op_kind kind;            /* with FUA, of ... */
  unsigned first, count;        /* ... these sectors */
} fua_cases[] = {
  { OP_FLUSH, OP_WRITE, 9, 3 },         /* in place */
  { OP_TRIM,  OP_WRITE, 9, 3 },
  { OP_ZERO,  OP_WRITE, 8, 16 },
  { OP_WRITE, OP_WRITE, 9, 3 },
  { OP_FLUSH, OP_WRITE, 200, 3 },       /* nothing there yet */
  { OP_FLUSH, OP_ZERO,  9, 3 },         /* a part of a cluster, in place */
  { OP_TRIM,  OP_ZERO,  9, 3 },         /* which reads as zero already */
  { OP_ZERO,  OP_ZERO,  9, 3 },
  { OP_TRIM,  OP_ZERO,  8, 8 },
  { OP_FLUSH, OP_ZERO,  6, 30 },
  { OP_WRITE, OP_ZERO,  6, 30 },
  { OP_FLUSH, OP_TRIM,  8, 16 },
  { OP_ZERO,  OP_TRIM,  8, 16 },
};
#define NR_FUA_CASES (sizeof fua_cases / sizeof fua_cases[0])

static void
run_fua_case (unsigned number)
{
  const struct fua_case *c = &fua_cases[number];
  struct op first = { .kind = OP_WRITE, .count = 128 };
  struct op before = { .kind = c->before, .first = 8, .count = 16 };
  struct op op = { .kind = c->kind, .first = c->first, .count = c->count,
                   .fua = true };
  struct image *img = open_image ("recorder");
  static char seen[DISK_SIZE];

  if (run_op (img, &first, 1) < 0 || image_flush (img) < 0 ||
      (c->before != OP_FLUSH && run_op (img, &before, 2) < 0) ||
      run_op (img, &op, 4) < 0)
    fail ("FUA case %u: a request failed", number);
  if (image_read (img, buffer, DISK_SIZE, 0) < 0)
    fail ("FUA case %u: reading", number);
  state = recorder_crash (recorder, recorder_now (recorder),
                          RECORDER_LOSE_ALL, 1, &state_size);
  image_close (img);

  img = open_image ("state");
  if (image_read (img, seen, DISK_SIZE, 0) < 0)
    fail ("FUA case %u: reading after the crash", number);
  image_close (img);
  free (state);
  if (memcmp (buffer + c->first * SECTOR, seen + c->first * SECTOR,
              c->count * SECTOR) != 0)
    fail ("FUA case %u: what was done is lost", number);
}

static void
check_fua (void)
{
  uint64_t size;
  unsigned i;
  char *bytes;

  if (system (config->make) != 0)
    fail ("cannot make the image");
  bytes = read_file ("disk.qcow2", &size);
  for (i = 0; i < NR_FUA_CASES; i++) {
    recorder = recorder_create (bytes, size);
    run_fua_case (i);
    recorder_free (recorder);
  }
  free (bytes);
}

/* Everything above finds nothing if it does not look: a run on a disk
 * whose syncs promise nothing must fail.
 */
static void
notice_lies (unsigned states)
{
  int status;
  pid_t pid;

  fflush (stdout);
  pid = fork ();
  if (pid == 0) {
    if (freopen ("lies.out", "w", stdout) == NULL)
      _exit (2);
    mode = LIES;
    run (states);
    _exit (0);
  }
  if (pid == -1 || waitpid (pid, &status, 0) != pid)
    fail ("fork: %s", strerror (errno));
  if (!WIFEXITED (status) || WEXITSTATUS (status) != EXIT_FAILURE)
    fail ("a disk that lies about its syncs was not noticed");
}

int
main (int argc, char *argv[])
{
  const unsigned states = argc > 3 ? (unsigned) atoi (argv[3]) : 40;
  char dir[] = "tmp-crash.XXXXXX", command[100];
  size_t i;

  if (system ("qemu-img --version >/dev/null 2>&1 && "
              "qemu-io --version >/dev/null 2>&1") != 0) {
    fprintf (stderr, "skipped: needs qemu-img and qemu-io\n");
    return 77;
  }
  if (mkdtemp (dir) == NULL || chdir (dir) == -1) {
    perror (dir);
    return EXIT_FAILURE;
  }
  report_set_sink (quiet);
  seed = argc > 2 ? strtoull (argv[2], NULL, 10) : 1;
  for (mode = SOUND; mode < LIES; mode++) {
    failed_in_mode = 0;
    for (i = 0; i < NR_CONFIGS; i++) {
      config = &configs[i];
      if ((argc < 2 || strcmp (argv[1], config->name) == 0) &&
          (argc < 5 || strcmp (argv[4], modes[mode]) == 0))
        run (states);
    }
    if (argc < 2 && mode != SOUND && failed_in_mode == 0)
      fail ("no request failed: this test looks wrongly");
  }
  config = &configs[1];
  if (argc < 2) {
    mode = SOUND;
    check_fua ();
    notice_lies (states);
  }

  /* After a failure the directory stays, for whoever looks into it. */
  snprintf (command, sizeof command, "rm -rf ../%s", dir);
  return system (command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
