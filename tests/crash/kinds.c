/* SPDX-License-Identifier: BSD-3-Clause */

/* Kinds of images; see kinds.h.
 *
 * Disks are small, so that many states can be looked at, and their size
 * is no multiple of the cluster size.  With clusters above 64 KiB only
 * the beginning, the middle and the end of each are looked at.
 *
 * A refcount table grows when the file becomes longer than its blocks
 * can count.  That takes least with clusters of 512 bytes and wide
 * counts; such images are filled, before anything begins, until little
 * is left to that.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "byteorder.h"
#include "header.h"
#include "kinds.h"
#include "refcount.h"

#define KIB UINT64_C (1024)
#define GIB (KIB * KIB * KIB)

const struct kind kinds[] = {
  { "512",                 9, 3, 16, 0, 1 },
  { "4k",                 12, 3, 16, 0, 1 },
  { "4k-4",               12, 3, 16, 0, 4 },
  { "512-r64-far",         9, 3, 64, KIND_FAR, 1 },
  { "4k-snapshots",       12, 3, 16, KIND_SNAPSHOTS, 1 },
  { "4k-compressed",      12, 3, 16, KIND_COMPRESSED, 1 },
  { "4k-compress-1",      12, 3, 16, KIND_COMPRESS, 1 },
  { "4k-compress-4",      12, 3, 16, KIND_COMPRESS, 4 },
  { "4k-bitmaps",         12, 3, 16, KIND_BITMAPS, 1 },
  { "512-r64-bitmaps-2",   9, 3, 64, KIND_BITMAPS, 2 },
  { "64k-4",              16, 3, 16, 0, 4 },
  { "512-r1-2",            9, 3,  1, KIND_FULL, 2 },
  { "4k-backing-2",       12, 3, 16, KIND_BACKING, 2 },
  { "16k-extended-2",     14, 3, 16, KIND_EXTENDED, 2 },
  { "512-tiny-4",          9, 3, 16, KIND_TINY | KIND_FULL, 4 },
  { "512-r64-far-4",       9, 3, 64, KIND_FAR, 4 },
  { "1k-r8-2",            10, 3,  8, 0, 2 },
  { "2k-r64",             11, 3, 64, 0, 1 },
  { "2k-v2-2",            11, 2, 16, 0, 2 },
  { "4k-snapshots-4",     12, 3, 16, KIND_SNAPSHOTS, 4 },
  { "4k-compressed-4",    12, 3, 16, KIND_COMPRESSED, 4 },
  { "512-r32-far-2",       9, 3, 32, KIND_FAR, 2 },
  { "4k-v2-backing",      12, 2, 16, KIND_BACKING, 1 },
  { "4k-full-4",          12, 3, 16, KIND_FULL, 4 },
  { "4k-r2-snapshots",    12, 3,  2, KIND_SNAPSHOTS, 1 },
  { "4k-zstd-snapshots-2", 12, 3, 16,
    KIND_COMPRESSED | KIND_ZSTD | KIND_SNAPSHOTS, 2 },
  { "8k-r4-full",         13, 3,  4, KIND_FULL, 1 },
  { "16k-r32-2",          14, 3, 32, 0, 2 },
  { "32k-v2-full",        15, 2, 16, KIND_FULL, 1 },
  { "64k",                16, 3, 16, 0, 1 },
  { "64k-bitmaps-snapshots-4", 16, 3, 16,
    KIND_BITMAPS | KIND_SNAPSHOTS, 4 },
  { "1k-r1-bitmaps-full", 10, 3,  1, KIND_BITMAPS | KIND_FULL, 1 },
  { "64k-snapshots-2",    16, 3, 16, KIND_SNAPSHOTS, 2 },
  { "64k-backing-4",      16, 3, 16, KIND_BACKING, 4 },
  { "512-v2-tiny-snapshots-2", 9, 2, 16, KIND_TINY | KIND_SNAPSHOTS, 2 },
  { "1k-r1-tiny",     10, 3,  1, KIND_TINY, 1 },
  { "16k-extended-snapshots", 14, 3, 16, KIND_EXTENDED | KIND_SNAPSHOTS, 1 },
  { "16k-extended-compressed-4", 14, 3, 16,
    KIND_EXTENDED | KIND_COMPRESSED, 4 },
  { "32k-extended-backing-2", 15, 3, 16, KIND_EXTENDED | KIND_BACKING, 2 },
  { "64k-extended-full",  16, 3, 16, KIND_EXTENDED | KIND_FULL, 1 },
  { "4k-data",            12, 3, 16, KIND_DATA, 1 },
  { "64k-data-backing-2", 16, 3, 16, KIND_DATA | KIND_BACKING, 2 },
  { "512-data-full-4",     9, 3,  1, KIND_DATA | KIND_FULL, 4 },
  { "16k-extended-data-2", 14, 3, 16, KIND_EXTENDED | KIND_DATA, 2 },
  { "32k-extended-data-backing", 15, 3, 16,
    KIND_EXTENDED | KIND_DATA | KIND_BACKING, 1 },
  { "4k-raw",             12, 3, 16, KIND_DATA | KIND_RAW, 1 },
  { "512-raw-tiny-4",      9, 3, 16, KIND_DATA | KIND_RAW | KIND_TINY, 4 },
  { "16k-extended-raw-2", 14, 3, 16, KIND_EXTENDED | KIND_DATA | KIND_RAW,
    2 },
  { "4k-data-failing",    12, 3, 16, KIND_DATA | KIND_FAILING, 1 },
  { "1k-raw-failing-2",   10, 3, 16, KIND_DATA | KIND_RAW | KIND_FAILING,
    2 },
  { "4k-failing",         12, 3, 16, KIND_FAILING, 1 },
  { "512-r64-far-failing-2", 9, 3, 64, KIND_FAR | KIND_FAILING, 2 },
  { "1k-snapshots-failing-4", 10, 3, 16, KIND_SNAPSHOTS | KIND_FAILING, 4 },
  { "4k-compressed-failing", 12, 3, 16, KIND_COMPRESSED | KIND_FAILING, 1 },
  { "512-tiny-failing",    9, 3,  8, KIND_TINY | KIND_FULL | KIND_FAILING,
    1 },
  { "1k-r1-compress",     10, 3,  1, KIND_COMPRESS, 1 },
  { "2k-v2-compress-backing-2", 11, 2, 16, KIND_COMPRESS | KIND_BACKING, 2 },
  { "4k-r2-compress-tiny-2", 12, 3, 2, KIND_COMPRESS | KIND_TINY, 2 },
  { "8k-zstd-compress-snapshots", 13, 3, 16,
    KIND_COMPRESS | KIND_COMPRESSED | KIND_ZSTD | KIND_SNAPSHOTS, 1 },
  { "16k-extended-compress-4", 14, 3, 16,
    KIND_EXTENDED | KIND_COMPRESS | KIND_FULL, 4 },
  { "4k-compress-failing", 12, 3, 16, KIND_COMPRESS | KIND_FAILING, 1 },
  { "64k-zstd-compress-2", 16, 3, 16, KIND_COMPRESS | KIND_ZSTD, 2 },
  { "4k-bitmaps-failing", 12, 3, 16, KIND_BITMAPS | KIND_FAILING, 1 },
  { "4k-luks",            12, 3, 16, KIND_LUKS, 1 },
  { "512-luks-snapshots-2", 9, 3, 16, KIND_LUKS | KIND_SNAPSHOTS, 2 },
  { "16k-luks-extended-4", 14, 3, 16, KIND_LUKS | KIND_EXTENDED, 4 },
  { "4k-luks-failing",    12, 3, 16, KIND_LUKS | KIND_FULL | KIND_FAILING,
    1 },
  { "4k-v2-luks",         12, 2, 16, KIND_LUKS, 1 },
  { "1k-v2-aes-2",        10, 2, 16, KIND_AES, 2 },
  { "64k-aes-backing",    16, 3, 16, KIND_AES | KIND_BACKING, 1 },
  { "4k-luks-bitmaps",    12, 3, 16, KIND_LUKS | KIND_BITMAPS, 1 },
  { "16k-extended-bitmaps-2", 14, 3, 16, KIND_EXTENDED | KIND_BITMAPS, 2 },
  { "4k-data-bitmaps-2",  12, 3, 16, KIND_DATA | KIND_BITMAPS, 2 },
  { "512-resize",          9, 3, 16, KIND_RESIZE, 1 },
  { "4k-resize-full-2",   12, 3, 16, KIND_RESIZE | KIND_FULL, 2 },
  { "512-r64-resize-backing", 9, 3, 64, KIND_RESIZE | KIND_BACKING, 1 },
  { "2k-v2-resize-backing", 11, 2, 16, KIND_RESIZE | KIND_BACKING, 1 },
  { "1k-resize-snapshots", 10, 3, 16, KIND_RESIZE | KIND_SNAPSHOTS, 1 },
  { "4k-resize-compressed", 12, 3, 16, KIND_RESIZE | KIND_COMPRESSED, 1 },
  { "16k-extended-resize-full", 14, 3, 16,
    KIND_RESIZE | KIND_EXTENDED | KIND_FULL, 1 },
  { "1k-resize-bitmaps",  10, 3, 16, KIND_RESIZE | KIND_BITMAPS, 1 },
  { "4k-resize-data",     12, 3, 16, KIND_RESIZE | KIND_DATA, 1 },
  { "4k-resize-raw",      12, 3, 16, KIND_RESIZE | KIND_DATA | KIND_RAW, 1 },
  { "4k-resize-luks",     12, 3, 16, KIND_RESIZE | KIND_LUKS | KIND_FULL,
    1 },
  { "4k-dirty",           12, 3, 16, KIND_DIRTY | KIND_FULL, 1 },
  { "512-r64-dirty-snapshots-2", 9, 3, 64, KIND_DIRTY | KIND_SNAPSHOTS, 2 },
  { "16k-extended-dirty-compressed", 14, 3, 16,
    KIND_EXTENDED | KIND_DIRTY | KIND_COMPRESSED, 1 },
  { "4k-repair",          12, 3, 16, KIND_REPAIR | KIND_FULL, 1 },
  { "1k-r8-repair-snapshots", 10, 3, 8, KIND_REPAIR | KIND_SNAPSHOTS, 1 },
  { "4k-rebuild",         12, 3, 16,
    KIND_REPAIR | KIND_REBUILD | KIND_FULL, 1 },
  { "512-r64-rebuild",     9, 3, 64,
    KIND_REPAIR | KIND_REBUILD | KIND_FULL, 1 },
  { "4k-detect-2",        12, 3, 16, KIND_DETECT | KIND_FULL, 2 },
  { "16k-extended-detect", 14, 3, 16, KIND_EXTENDED | KIND_DETECT, 1 },
  { "4k-ignore",          12, 3, 16, KIND_IGNORE | KIND_FULL, 1 },
  { "128k-2",             17, 3, 16, 0, 2 },
  { "256k-r1",            18, 3,  1, KIND_FULL, 1 },
  { "512k",               19, 3,  8, KIND_BACKING, 1 },
  { "1m-v2",              20, 2, 16, 0, 1 },
  { "2m-r64-2",           21, 3, 64, 0, 2 },
  /* So that any two things that go together do so somewhere: see
   * check_pairs in test-explore.c.
   */
  { "many-1", 17, 3, 16,
    KIND_BACKING | KIND_COMPRESSED | KIND_ZSTD | KIND_BITMAPS | KIND_TINY
    | KIND_REPAIR | KIND_IGNORE | KIND_FAILING,
    4 },
  { "many-2", 17, 3, 32,
    KIND_DATA | KIND_RAW | KIND_AES | KIND_RESIZE | KIND_REPAIR
    | KIND_REBUILD | KIND_DETECT,
    1 },
  { "many-3", 17, 3, 32,
    KIND_EXTENDED | KIND_DATA | KIND_LUKS | KIND_TINY
    | KIND_DIRTY | KIND_IGNORE,
    1 },
  { "many-4", 9, 3, 64,
    KIND_BACKING | KIND_COMPRESS | KIND_BITMAPS | KIND_FAR | KIND_RESIZE
    | KIND_DIRTY | KIND_DETECT,
    2 },
  { "many-5", 17, 2, 16,
    KIND_SNAPSHOTS | KIND_COMPRESSED | KIND_COMPRESS | KIND_REPAIR
    | KIND_REBUILD | KIND_DETECT | KIND_FAILING,
    1 },
  { "many-6", 10, 3, 4,
    KIND_SNAPSHOTS | KIND_BACKING | KIND_AES | KIND_FULL | KIND_DIRTY
    | KIND_IGNORE | KIND_FAILING,
    1 },
  { "many-7", 9, 3, 64,
    KIND_BITMAPS | KIND_AES | KIND_FAR | KIND_TINY | KIND_REPAIR
    | KIND_REBUILD | KIND_IGNORE,
    1 },
  { "many-8", 17, 3, 4,
    KIND_COMPRESSED | KIND_ZSTD | KIND_EXTENDED | KIND_TINY | KIND_RESIZE
    | KIND_DETECT | KIND_FAILING,
    2 },
  { "many-9", 14, 3, 1,
    KIND_BACKING | KIND_EXTENDED | KIND_LUKS | KIND_RESIZE | KIND_REPAIR
    | KIND_REBUILD | KIND_IGNORE,
    1 },
  { "many-10", 10, 3, 32,
    KIND_BACKING | KIND_COMPRESSED | KIND_COMPRESS | KIND_ZSTD
    | KIND_DIRTY | KIND_IGNORE,
    2 },
  { "many-11", 17, 3, 4,
    KIND_EXTENDED | KIND_BITMAPS | KIND_DATA | KIND_RAW | KIND_AES
    | KIND_FULL | KIND_DIRTY | KIND_IGNORE,
    4 },
  { "many-12", 17, 3, 16,
    KIND_BACKING | KIND_COMPRESS | KIND_ZSTD | KIND_FULL | KIND_REPAIR
    | KIND_REBUILD | KIND_DETECT,
    1 },
  { "many-13", 9, 3, 16,
    KIND_LUKS | KIND_TINY | KIND_DETECT,
    1 },
  { "many-14", 17, 2, 16,
    KIND_TINY | KIND_REPAIR | KIND_IGNORE,
    2 },
};
const unsigned nr_kinds = sizeof kinds / sizeof kinds[0];

static struct base bases[sizeof kinds / sizeof kinds[0]];

static void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

static void __attribute__ ((noreturn))
give_up (const char *what)
{
  printf ("FAIL: %s: %s\n", what, strerror (errno));
  exit (EXIT_FAILURE);
}

static void __attribute__ ((format (printf, 1, 2)))
run (const char *fs, ...)
{
  char command[1000];
  va_list args;

  va_start (args, fs);
  vsnprintf (command, sizeof command, fs, args);
  va_end (args);
  fflush (stdout);
  if (system (command) != 0)
    give_up (command);
}

const char *
kind_named (const struct kind *k, const char *file)
{
  static char s[200];

  snprintf (s, sizeof s, k->flags & KIND_ENCRYPTED
            ? "--object secret,id=s,data=" KIND_PASSPHRASE " --image-opts "
            "driver=qcow2,encrypt.key-secret=s,file.filename=%s"
            : "-f qcow2 %s", file);
  return s;
}

static uint64_t
hot_length (const struct kind *k)
{
  static const uint64_t by_bits[] = {
    192, 256, 384, 512, 512, 768, 1024, 1536,
  };

  if (k->cluster_bits <= 16)
    return by_bits[k->cluster_bits - 9] * KIB;
  return UINT64_C (10) << k->cluster_bits;
}

/* For KIND_FAR: what is filled, so that the file nearly fills what one
 * cluster of the table can count.
 */
static uint64_t
far_length (const struct kind *k)
{
  return k->flags & KIND_FAR ? (UINT64_C (128) / k->refcount_bits) * 960 * KIB
    : 0;
}

static void
make_windows (struct base *b)
{
  const uint64_t cluster = UINT64_C (1) << b->kind->cluster_bits;
  const uint64_t piece = 4 * KIB;
  uint64_t offset;
  unsigned n = 0, i;

  b->windows = check_memory (calloc (3 * 11 + 1, sizeof *b->windows));
  if (b->kind->cluster_bits <= 16)
    b->windows[n++] = (struct window) { b->hot, b->disk_size - b->hot };
  else {
    for (offset = b->hot; offset + cluster <= b->disk_size;
         offset += cluster) {
      b->windows[n++] = (struct window) { offset, piece };
      b->windows[n++] = (struct window) { offset + cluster / 2, piece };
      b->windows[n++] = (struct window) { offset + cluster - piece, piece };
    }
    b->windows[n++] = (struct window) { offset, b->disk_size - offset };
  }
  b->nr_windows = n;
  for (i = 0; i < n; i++)
    b->sectors += (unsigned) (b->windows[i].len / SECTOR);
}

/* By the plugin: it takes qemu-img two seconds to time its key derivation.
 * That QEMU agrees with the result is seen when it opens it.  AES-128 has
 * the shortest key material.
 */
static void
make_luks (const struct base *b)
{
  const struct kind *k = b->kind;
  char backing[200] = "";

  if (k->flags & KIND_BACKING)
    snprintf (backing, sizeof backing, "create.backing-file=%s.raw "
              "create.backing-fmt=raw ", k->name);
  /* (A data file is there for other kinds, too.) */
  run ("rm -f disk.qcow2 %s && nbdkit -U - qcow2 disk.qcow2 create=%" PRIu64
       " create.cluster-size=%u create.compat=%s create.refcount-bits=%u "
       "create.extended-l2=%s create.encrypt.format=luks "
       "create.encrypt.cipher-alg=aes-128 create.encrypt.iter-time=1 %s%s"
       "passphrase=" KIND_PASSPHRASE " --run true",
       k->flags & KIND_DATA ? NAME_DATA : "", b->disk_size,
       1u << k->cluster_bits, k->version == 2 ? "0.10" : "1.1",
       k->refcount_bits, k->flags & KIND_EXTENDED ? "on" : "off", backing,
       k->flags & KIND_DATA ? "create.data-file=" NAME_DATA " " : "");
}

static void
write_pattern (const struct kind *k, int pattern, uint64_t offset,
               uint64_t len)
{
  run ("qemu-io %s -c 'write -q -P %d %" PRIu64 " %" PRIu64 "'",
       kind_named (k, "disk.qcow2"), pattern, offset, len);
}

static void
take_snapshot (const struct kind *k, const char *name)
{
  run ("qemu-img snapshot -c %s %s", name, k->flags & KIND_ENCRYPTED
       ? kind_named (k, "disk.qcow2") : "disk.qcow2");
}

static void
make_image (const struct base *b)
{
  const struct kind *k = b->kind;
  const uint64_t len = b->disk_size - b->hot;
  char options[200], backing[100] = "", width[40] = "";

  if (k->version == 3)
    snprintf (width, sizeof width, ",refcount_bits=%u", k->refcount_bits);
  snprintf (options, sizeof options, "compat=%s,cluster_size=%u%s%s%s%s%s",
            k->version == 2 ? "0.10" : "1.1", 1u << k->cluster_bits, width,
            k->flags & KIND_ZSTD ? ",compression_type=zstd" : "",
            k->flags & KIND_EXTENDED ? ",extended_l2=on" : "",
            k->flags & KIND_DATA ? ",data_file=" NAME_DATA : "",
            k->flags & KIND_RAW ? ",data_file_raw=on" : "");
  if (k->flags & KIND_BACKING) {
    run ("rm -f %s.raw && truncate -s %" PRIu64 " %s.raw && "
         "qemu-io -f raw -c 'write -q -P 9 %" PRIu64 " %" PRIu64 "' %s.raw",
         k->name, b->hot + len / 4 * 3 / SECTOR * SECTOR, k->name,
         b->hot + len / 8 / SECTOR * SECTOR, len / 2 / SECTOR * SECTOR,
         k->name);
    if (k->flags & KIND_RESIZE) /* what must not show when it has grown */
      run ("qemu-io -f raw -c 'truncate %" PRIu64 "' -c 'write -q -P 2 %"
           PRIu64 " %" PRIu64 "' %s.raw", b->huge, b->disk_size,
           b->huge - b->disk_size, k->name);
    snprintf (backing, sizeof backing, " -b %s.raw -F raw", k->name);
  }
  if (k->flags & KIND_COMPRESSED)
    run ("rm -f first.raw && truncate -s %" PRIu64 " first.raw && "
         "qemu-io -f raw -c 'write -q -P 6 %" PRIu64 " %" PRIu64 "' "
         "first.raw && qemu-img convert -c -f raw -O qcow2 -o %s first.raw "
         "disk.qcow2", b->disk_size, b->hot, len / 4 * 3 / SECTOR * SECTOR,
         options);
  else if (k->flags & KIND_LUKS)
    make_luks (b);
  else
    run ("qemu-img create -q -f qcow2 %s -o %s%s disk.qcow2 %" PRIu64,
         k->flags & KIND_AES
         ? "--object secret,id=s,data=" KIND_PASSPHRASE
         " -o encrypt.format=aes,encrypt.key-secret=s" : "",
         options, backing, b->disk_size);
  if (k->flags & KIND_COMPRESSED && k->flags & KIND_BACKING)
    run ("qemu-img rebase -q -u -f qcow2%s disk.qcow2", backing);
  if (k->flags & KIND_FAR)
    write_pattern (k, 5, 0, b->hot);
  if (k->flags & KIND_FULL)
    write_pattern (k, 4, b->hot, len);
  /* QEMU sets zero flags in raw ones, too. */
  if (k->flags & KIND_RAW)
    run ("qemu-io %s -c 'write -q -P 3 %" PRIu64 " %" PRIu64 "' "
         "-c 'write -q -z %" PRIu64 " %" PRIu64 "'",
         kind_named (k, "disk.qcow2"), b->hot, len,
         b->hot + len / 4 / SECTOR * SECTOR, len / 2 / SECTOR * SECTOR);
  if (k->flags & KIND_SNAPSHOTS) {
    write_pattern (k, 7, b->hot, len / 2 / SECTOR * SECTOR);
    take_snapshot (k, "one");
    write_pattern (k, 8, b->hot + len / 4 / SECTOR * SECTOR,
                   len / 2 / SECTOR * SECTOR);
    take_snapshot (k, "two");
  }
}

/* From now on they note writes; the second one does not. */
static void
make_bitmaps (const struct base *b)
{
  const unsigned granularity = b->kind->cluster_bits < 12 ? 512 : 4096;
  const char *name = b->kind->flags & KIND_ENCRYPTED
    ? kind_named (b->kind, "disk.qcow2") : "disk.qcow2";

  if (b->kind->flags & KIND_BITMAPS)
    run ("qemu-img bitmap --add -g %u %s on && "
         "qemu-img bitmap --add -g 65536 --disable %s off",
         granularity, name, name);
}

/* What a crash of a writer leaves that updates counts late: some are too
 * low, some too high.
 */
static void
damage_counts (char *block, const struct header *h, uint64_t clusters)
{
  const uint64_t of_block = refcount_block_entries (h->cluster_size,
                                                    h->refcount_order);
  const uint64_t n = of_block < clusters ? of_block : clusters;
  uint64_t i, count;

  for (i = 8; i < n; i++) {
    count = refcount_get (block, h->refcount_order, i);
    if (i % 3 == 0 && count > 0)
      refcount_set (block, h->refcount_order, i, count - 1);
    else if (i % 5 == 0 && count < refcount_max (h->refcount_order))
      refcount_set (block, h->refcount_order, i, count + 1);
  }
}

static void
damage (struct base *b)
{
  struct format_error e;
  struct header h;
  uint64_t entry;

  if (header_decode ((const uint8_t *) b->bytes, 1u << b->kind->cluster_bits,
                     b->size, &h, &e) < 0)
    give_up (e.text);
  entry = load_be64 (b->bytes + h.refcount_table_offset);
  if (b->kind->flags & KIND_REBUILD)
    store_be64 (b->bytes + h.refcount_table_offset, entry + GIB);
  else
    damage_counts (b->bytes + entry, &h, b->size >> h.cluster_bits);
  if (b->kind->flags & KIND_DIRTY)
    store_be64 (b->bytes + HEADER_OFFSET_INCOMPATIBLE,
                h.incompatible | INCOMPAT_DIRTY);
}

static char *
read_file (const char *path, uint64_t *size)
{
  FILE *fp = fopen (path, "r");
  struct stat st;
  char *p;

  if (fp == NULL || fstat (fileno (fp), &st) == -1)
    give_up (path);
  *size = (uint64_t) st.st_size;
  p = check_memory (malloc (*size + 1));
  if (fread (p, 1, *size, fp) != *size)
    give_up (path);
  fclose (fp);
  return p;
}

void
base_read_raw (const struct base *b, const char *path, tag *tags)
{
  FILE *fp = fopen (path, "r");
  char sector[SECTOR];
  unsigned i, n = 0;
  uint64_t j;

  if (fp == NULL)
    give_up (path);
  for (i = 0; i < b->nr_windows; i++) {
    const struct window *w = &b->windows[i];

    if (fseek (fp, (long) w->offset, SEEK_SET) != 0)
      give_up (path);
    for (j = 0; j < w->len; j += SECTOR) {
      if (fread (sector, 1, SECTOR, fp) == SECTOR)
        tags[n++] = history_tag (sector, w->offset + j);
      else if (feof (fp))
        tags[n++] = TAG_GONE;
      else
        give_up (path);
    }
  }
  fclose (fp);
}

/* In the middle of a cluster, if that is possible; and so large that the
 * L1 table must grow.
 */
static void
set_sizes (struct base *b)
{
  const uint64_t l2_table = UINT64_C (1) << (2 * b->kind->cluster_bits - 3);

  b->small = b->hot + (b->disk_size - b->hot) / 8 * 5 / SECTOR * SECTOR
    + SECTOR;
  b->huge = b->disk_size + l2_table * 2 + 5 * SECTOR;
}

const struct base *
base_get (unsigned kind)
{
  struct base *b = &bases[kind];
  char *bytes, name[100];
  uint64_t size;

  if (b->kind)
    return b;
  b->kind = &kinds[kind];
  b->hot = far_length (b->kind);
  b->disk_size = b->hot + hot_length (b->kind) + 3 * SECTOR;
  set_sizes (b);
  make_windows (b);
  make_image (b);
  make_bitmaps (b);
  b->bytes = read_file ("disk.qcow2", &b->size);
  if (b->kind->flags & KIND_DAMAGED)
    damage (b);
  b->initial = check_memory (calloc (b->sectors, sizeof (tag)));
  run ("qemu-img convert %s -O raw first.raw",
       kind_named (b->kind, "disk.qcow2"));
  base_read_raw (b, "first.raw", b->initial);
  if (b->kind->flags & KIND_BACKING) {
    snprintf (name, sizeof name, "%s.raw", b->kind->name);
    bytes = read_file (name, &size);
    b->backing = disk_create (bytes, size);
    free (bytes);
  }
  if (b->kind->flags & KIND_DATA)
    b->data = read_file (NAME_DATA, &b->data_size);
  run ("rm -f disk.qcow2 first.raw");
  return b;
}

struct disk *
base_disk (const struct base *b)
{
  struct disk *d = disk_create (b->bytes, b->size);

  if (b->data)
    disk_set_data (d, disk_create (b->data, b->data_size));
  return d;
}

void
bases_free (void)
{
  unsigned i;

  for (i = 0; i < nr_kinds; i++) {
    struct base *b = &bases[i];

    if (b->kind == NULL)
      continue;
    free (b->bytes);
    free (b->data);
    free (b->windows);
    free (b->initial);
    if (b->backing)
      disk_free (b->backing);
    memset (b, 0, sizeof *b);
  }
}
