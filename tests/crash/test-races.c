/* SPDX-License-Identifier: BSD-3-Clause */

/* Many threads read, write, zero, trim and flush the same few clusters.
 * All of it is recorded, and then judged sector by sector: there must be
 * an order in which each request took effect at one moment between its
 * begin and its end (order.h).
 *
 * A sector is not written in one moment by every file system, so its
 * first and its last word are judged each for itself.
 *
 *   test-races               the engine on a storage in memory
 *   test-races URI [OPS]     a server, one connection for each thread
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "checked.h"
#include "image.h"
#include "order.h"
#include "report.h"
#include "storage-memory.h"
#include "storage-write.h"

#define SECTOR 512u
#define THREADS 8u
#define DISK (1024u * 1024)
#define MOST 64u                /* sectors of a request */
#define SECTORS (DISK / SECTOR)

static struct image *img;       /* or */
static const char *uri;

static unsigned cluster;        /* bytes, to which trims are aligned */
static unsigned hot;            /* sectors of the area in demand */

enum kind { READ, WRITE, ZERO, TRIM, FLUSH, STATUS };

struct op {
  enum kind kind;
  unsigned first, count;        /* sectors */
  uint64_t value;
  uint64_t begin, end;
  uint64_t *seen;               /* of a read: two words for each sector */
};

struct worker {
  unsigned number;
  struct nbd_handle *nbd;
  unsigned ops;
  struct op *history;
  uint64_t random;
  pthread_t thread;
};

static _Atomic uint64_t moment = 1;

static void __attribute__ ((noreturn))
fail (const char *what)
{
  printf ("FAIL: %s\n", what);
  exit (EXIT_FAILURE);
}

static void *
memory (size_t n, size_t size)
{
  void *p = calloc (n + 1, size);

  if (!p)
    abort ();
  return p;
}

/*----------------------------------------------------------------------
 * Doing it.
 */

static int
add_status (void *opaque, uint64_t offset, uint64_t len, unsigned status)
{
  (void) opaque;
  (void) offset;
  (void) len;
  (void) status;
  return 0;
}

static int
in_process (const struct op *op, void *buf, bool fua)
{
  const uint64_t offset = (uint64_t) op->first * SECTOR;
  const size_t len = (size_t) op->count * SECTOR;

  switch (op->kind) {
  case READ: return image_read (img, buf, len, offset);
  case WRITE: return image_write (img, buf, len, offset, fua);
  case ZERO:
    return image_zero (img, offset, len,
                       op->value & 1 ? IMAGE_ZERO_MAY_TRIM : 0, fua);
  case TRIM: return image_trim (img, offset, len, fua);
  case STATUS:
    return image_extents (img, offset, len, false, add_status, NULL);
  case FLUSH: default: return image_flush (img);
  }
}

static int
by_nbd (struct nbd_handle *nbd, const struct op *op, void *buf, bool fua)
{
  const uint64_t offset = (uint64_t) op->first * SECTOR;
  const size_t len = (size_t) op->count * SECTOR;
  const uint32_t flags = fua ? LIBNBD_CMD_FLAG_FUA : 0;

  switch (op->kind) {
  case READ: return nbd_pread (nbd, buf, len, offset, 0);
  case WRITE: return nbd_pwrite (nbd, buf, len, offset, flags);
  case ZERO:
    return nbd_zero (nbd, len, offset,
                     flags | (op->value & 1 ? 0 : LIBNBD_CMD_FLAG_NO_HOLE));
  case TRIM: return nbd_trim (nbd, len, offset, flags);
  case STATUS: return 0;
  case FLUSH: default: return nbd_flush (nbd, 0);
  }
}

static uint64_t
rnd (struct worker *w, uint64_t n)
{
  w->random = w->random * UINT64_C (6364136223846793005) + w->number * 2 + 1;
  return (w->random >> 33) % n;
}

static void
choose (struct worker *w, struct op *op, unsigned n)
{
  const unsigned per_cluster = cluster / SECTOR;
  const uint64_t kind = rnd (w, 100);
  const unsigned area = rnd (w, 8) ? hot : SECTORS;

  op->kind = kind < 40 ? READ : kind < 70 ? WRITE : kind < 80 ? ZERO
    : kind < 95 ? TRIM : kind < 98 ? FLUSH : STATUS;
  if (w->number == 0 && n % 2)
    op->kind = FLUSH;
  op->value = (uint64_t) (w->number + 1) << 32 | (n + 1);
  op->first = (unsigned) rnd (w, area);
  op->count = (unsigned) (rnd (w, 3) ? rnd (w, MIN (MOST, 16u)) + 1
                          : rnd (w, MOST) + 1);
  if (op->kind == TRIM || rnd (w, 4) == 0) {
    op->first -= op->first % per_cluster;
    op->count = (unsigned) round_up (op->count, per_cluster);
  }
  op->count = MIN (op->count, SECTORS - op->first);
}

static void
run_op (struct worker *w, struct op *op, uint8_t *buf)
{
  const bool fua = rnd (w, 20) == 0;
  unsigned i;
  int r;

  if (op->kind == WRITE)
    for (i = 0; i < op->count * SECTOR / 8; ++i)
      memcpy (buf + i * 8, &op->value, 8);
  op->begin = atomic_fetch_add (&moment, 1);
  r = w->nbd ? by_nbd (w->nbd, op, buf, fua) : in_process (op, buf, fua);
  op->end = atomic_fetch_add (&moment, 1);
  if (r < 0)
    fail (w->nbd ? nbd_get_error () : strerror (-r));
  if (op->kind != READ)
    return;
  op->seen = memory (op->count * 2, 8);
  for (i = 0; i < op->count; ++i) {
    memcpy (&op->seen[i * 2], buf + i * SECTOR, 8);
    memcpy (&op->seen[i * 2 + 1], buf + i * SECTOR + SECTOR - 8, 8);
  }
}

static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint8_t *buf = memory (DISK, 1);
  unsigned n;

  for (n = 0; n < w->ops; ++n) {
    choose (w, &w->history[n], n);
    run_op (w, &w->history[n], buf);
  }
  free (buf);
  return NULL;
}

/*----------------------------------------------------------------------
 * Judging it.
 */

/* The operations on one word, WHICH 0 or 1, of a sector. */
static size_t
collect (const struct worker *workers, size_t n, unsigned sector,
         unsigned which, struct order_op *ops, const struct op **whose)
{
  size_t i, found = 0;
  unsigned j;

  for (i = 0; i < n; ++i)
    for (j = 0; j < workers[i].ops; ++j) {
      const struct op *op = &workers[i].history[j];

      if (op->kind > TRIM || sector < op->first
          || sector - op->first >= op->count)
        continue;
      ops[found].write = op->kind != READ;
      ops[found].value = op->kind == WRITE ? op->value
        : op->kind == READ ? op->seen[(sector - op->first) * 2 + which] : 0;
      ops[found].begin = op->begin;
      ops[found].end = op->end;
      whose[found++] = op;
    }
  return found;
}

static void
print_op (const struct order_op *o, const struct op *op)
{
  static const char *const names[] = { "read", "write", "zero", "trim" };

  printf ("  %s of sectors %u+%u, value %" PRIx64 ", from %" PRIu64
          " to %" PRIu64 "\n", names[op->kind], op->first, op->count,
          o->value, o->begin, o->end);
}

static void
judge (const struct worker *workers, size_t n, unsigned total)
{
  struct order_op *ops = memory (total, sizeof *ops);
  const struct op **whose = memory (total, sizeof *whose);
  unsigned sector, which;
  uint64_t judged = 0;
  const char *what;
  size_t found, a = 0, b = 0;

  for (sector = 0; sector < SECTORS; ++sector)
    for (which = 0; which < 2; ++which) {
      found = collect (workers, n, sector, which, ops, whose);
      judged += found;
      what = order_check (ops, found, &a, &b);
      if (what) {
        printf ("sector %u, word %u: %s\n", sector, which, what);
        print_op (&ops[a], whose[a]);
        print_op (&ops[b], whose[b]);
        fail ("there is no legal order");
      }
    }
  printf ("%" PRIu64 " effects on single words have a legal order\n",
          judged);
  fflush (stdout);
  free (ops);
  free (whose);
}

static struct nbd_handle *
connect_to (const char *to)
{
  struct nbd_handle *nbd = nbd_create ();

  if (!nbd || nbd_connect_uri (nbd, to) < 0)
    fail (nbd_get_error ());
  if (nbd_get_size (nbd) != DISK)
    fail ("the disk must have 1 MiB");
  return nbd;
}

/* All threads, and one reader of everything when they have ended. */
static void
stress (unsigned each, uint64_t seed)
{
  struct worker workers[THREADS + 1];
  const unsigned total = each * THREADS + 1;
  uint8_t *buf = memory (DISK, 1);
  struct op *last;
  unsigned i, j;

  memset (workers, 0, sizeof workers);
  for (i = 0; i <= THREADS; ++i) {
    workers[i].number = i;
    workers[i].ops = i < THREADS ? each : 1;
    workers[i].history = memory (workers[i].ops, sizeof (struct op));
    workers[i].random = seed * 1000 + i;
    if (uri)
      workers[i].nbd = connect_to (uri);
  }
  for (i = 0; i < THREADS; ++i)
    if (pthread_create (&workers[i].thread, NULL, work, &workers[i]) != 0)
      fail ("pthread_create");
  for (i = 0; i < THREADS; ++i)
    pthread_join (workers[i].thread, NULL);
  last = workers[THREADS].history;
  *last = (struct op) { .kind = READ, .count = SECTORS };
  run_op (&workers[THREADS], last, buf);
  judge (workers, THREADS + 1, total);

  for (i = 0; i <= THREADS; ++i) {
    for (j = 0; j < workers[i].ops; ++j)
      free (workers[i].history[j].seen);
    free (workers[i].history);
    if (workers[i].nbd)
      nbd_close (workers[i].nbd);
  }
  free (buf);
}

/*----------------------------------------------------------------------
 * In this process.
 */

#define CREATE "qemu-img create -q -f qcow2 -o cluster_size="
#define SHARE_ALL " && qemu-io -f qcow2 -c 'write -P 0 0 1M' disk.qcow2 " \
  ">/dev/null && qemu-img snapshot -c one disk.qcow2"

static const struct config {
  const char *name;
  unsigned cluster;             /* or subcluster */
  unsigned hot;
  uint64_t cache;
  const char *make;             /* the image */
  bool compress;
  const char *passphrase;
} configs[] = {
  { "64k", 65536, 512, 0, CREATE "64k disk.qcow2 1M", false, NULL },
  { "4k", 4096, 64, 0, CREATE "4k disk.qcow2 1M", false, NULL },
  { "512, tiny caches", 512, 256, 1, CREATE "512 disk.qcow2 1M", false,
    NULL },
  { "4k, all shared with a snapshot", 4096, 64, 1,
    CREATE "4k disk.qcow2 1M" SHARE_ALL, false, NULL },
  { "4k, compressed", 4096, 64, 32768, CREATE "4k disk.qcow2 1M", true,
    NULL },
  { "16k, extended L2 entries", 512, 64, 0,
    CREATE "16k,extended_l2=on disk.qcow2 1M", false, NULL },
  { "16k, extended, all shared with a snapshot", 512, 64, 1,
    CREATE "16k,extended_l2=on disk.qcow2 1M" SHARE_ALL, false, NULL },
  { "4k, data file", 4096, 64, 0,
    CREATE "4k,data_file=disk.data disk.qcow2 1M", false, NULL },
  { "4k, raw data file", 4096, 64, 1,
    CREATE "4k,data_file=disk.data,data_file_raw=on disk.qcow2 1M", false,
    NULL },
  { "4k, dirty bitmap", 4096, 64, 0, CREATE "4k disk.qcow2 1M && "
    "qemu-img bitmap --add -g 512 disk.qcow2 b", false, NULL },
  { "4k, encrypted", 4096, 64, 0,
    "rm -f disk.qcow2 && nbdkit -U - qcow2 disk.qcow2 create=1M "
    "create.cluster-size=4k create.encrypt.format=luks "
    "create.encrypt.cipher-alg=aes-128 create.encrypt.iter-time=1 "
    "passphrase=abc --run true", false, "abc" },
};

/* Calls of the storage take their time, some of them longer than others:
 * in memory they would hardly ever meet.
 */
static int
dawdle (void *opaque, enum storage_memory_op op, uint64_t offset,
        uint64_t len)
{
  static _Atomic unsigned calls;
  const unsigned n = atomic_fetch_add (&calls, 1) * 2654435761u >> 16;

  (void) opaque;
  (void) op;
  (void) offset;
  (void) len;
  if (n % 8 == 0)
    nanosleep (&(struct timespec) { .tv_nsec = n % 512 * 500 }, NULL);
  else if (n % 2)
    sched_yield ();
  return 0;
}

/* May the storage's syncs go side by side?  Both must do. */
static bool syncs_apart;

/* A storage in memory with what is in the file. */
int
storage_open_file (const char *path, bool writable, bool nofollow,
                   struct storage **s)
{
  FILE *fp = fopen (path, "r");
  struct iovec iov = { .iov_base = memory (DISK, 4) };
  int r;

  (void) writable;
  (void) nofollow;
  if (!fp)
    return -errno;
  iov.iov_len = fread (iov.iov_base, 1, DISK * 4, fp);
  fclose (fp);
  r = storage_open_memory (0, s);
  if (r == 0)
    r = storage_write (*s, &iov, 1, 0, false);
  if (r == 0)
    storage_memory_set_hook (*s, dawdle, NULL);
  if (r == 0)
    storage_memory_set_syncs_apart (*s, syncs_apart);
  if (r == 0)
    storage_memory_set_writes_apart (*s, syncs_apart);
  free (iov.iov_base);
  return r;
}

static void
run_config (const struct config *c, unsigned each)
{
  struct image_config config;

  if (system (c->make) != 0)
    fail ("cannot make the image");
  image_config_init (&config);
  config.filename = "disk.qcow2";
  config.commit_interval = 1;
  config.l2_cache_size = config.refcount_cache_size = c->cache;
  if (c->compress) {
    config.compress = COMPRESS_IMAGE;
    config.compressed_cache_size = c->cache;
  }
  config.passphrase = c->passphrase;
  config.overlap_debug = true;
  cluster = c->cluster;
  hot = c->hot;
  if (image_open (&config, &img) < 0 || image_start (img) < 0
      || image_begin_writing (img) < 0)
    fail ("cannot open the image");
  printf ("%s, syncs %s: ", c->name, syncs_apart ? "apart" : "in turns");
  stress (each, 1);
  if (image_stop (img) < 0)
    fail ("cannot stop");
  image_close (img);
}

/*----------------------------------------------------------------------
 * Can the judge say no?
 */

#define W(v, b, e) { true, v, b, e }
#define R(v, b, e) { false, v, b, e }

static void
check_the_judge (void)
{
  static const struct { bool legal; struct order_op ops[5]; } cases[] = {
    { true, { R (0, 1, 2), W (7, 3, 4), R (7, 5, 6) } },
    { true, { W (7, 1, 9), R (0, 2, 3), R (7, 4, 5) } },
    { true, { W (7, 1, 9), W (8, 2, 8), R (8, 10, 11) } },
    { true, { W (7, 1, 3), W (0, 2, 5), R (7, 4, 6), R (0, 7, 8) } },
    /* Never written; before it is written. */
    { false, { R (7, 1, 2) } },
    { false, { R (7, 1, 2), W (7, 3, 4) } },
    /* Old values: after a write, after a zero, and never written. */
    { false, { W (7, 1, 2), W (8, 3, 4), R (7, 5, 6) } },
    { false, { W (7, 1, 2), W (0, 3, 4), R (7, 5, 6) } },
    { false, { W (7, 1, 2), R (0, 3, 4) } },
    { false, { W (7, 1, 9), R (7, 2, 3), R (0, 4, 5), R (7, 6, 7) } },
    /* Two reads see two writes in different orders. */
    { false, { W (7, 1, 20), W (8, 2, 21), R (7, 3, 4), R (8, 5, 6),
               R (7, 7, 8) } },
  };
  size_t i, n, a, b;

  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    for (n = 0; n < 5 && cases[i].ops[n].end > 0; ++n)
      ;
    if (!order_check (cases[i].ops, n, &a, &b) != cases[i].legal) {
      printf ("case %zu: ", i);
      fail ("misjudged");
    }
  }
}

int
main (int argc, char *argv[])
{
  char dir[] = "tmp-races.XXXXXX", command[100];
  const char *sanitizer = getenv ("QCOW2_SANITIZER");
  unsigned each = getenv ("QCOW2_VALGRIND") ? 60
    : sanitizer && *sanitizer ? 250 : 800;
  size_t i;

  check_the_judge ();
  if (argc > 1) {
    uri = argv[1];
    cluster = 65536;            /* a multiple of any that is used */
    hot = 512;
    if (argc > 2)
      each = (unsigned) atoi (argv[2]);
    stress (each, (uint64_t) getpid ());
    return EXIT_SUCCESS;
  }
  if (system ("qemu-img --version >/dev/null 2>&1") != 0) {
    fprintf (stderr, "skipped: needs qemu-img\n");
    return 77;
  }
  if (!mkdtemp (dir) || chdir (dir) == -1) {
    perror (dir);
    return EXIT_FAILURE;
  }
  for (i = 0; i < 2 * sizeof configs / sizeof configs[0]; ++i) {
    syncs_apart = i % 2;
    run_config (&configs[i / 2], each);
  }
  snprintf (command, sizeof command, "rm -rf ../%s", dir);
  return system (command) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
