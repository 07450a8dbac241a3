/* SPDX-License-Identifier: BSD-3-Clause */

/* The kinds of images that the explorer begins with. */

#ifndef QCOW2_KINDS_H
#define QCOW2_KINDS_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "history.h"

#define KIND_SNAPSHOTS  1       /* two, which share L2 tables */
#define KIND_BACKING    2       /* a raw file, shorter than the disk, but
                                   longer with KIND_RESIZE */
#define KIND_COMPRESSED 4       /* all clusters were compressed */
#define KIND_FULL       8       /* all clusters are there */
#define KIND_FAR       16       /* the refcount table will have to grow */
#define KIND_TINY      32       /* caches as small as they get */
#define KIND_ZSTD      64       /* with KIND_COMPRESSED, KIND_COMPRESS */
#define KIND_EXTENDED 128       /* extended L2 entries */
#define KIND_FAILING  256       /* the disk fails now and then */
#define KIND_COMPRESS 512       /* whole clusters are written compressed */
#define KIND_DATA    1024       /* an external data file */
#define KIND_RAW     2048       /* with that: it is raw */
#define KIND_BITMAPS 4096       /* two dirty bitmaps, one disabled */
#define KIND_LUKS    8192       /* encrypted */
#define KIND_AES    16384       /* in QEMU's old way */
#define KIND_ENCRYPTED (KIND_LUKS | KIND_AES)
#define KIND_RESIZE  32768      /* the disk shrinks, and grows again */
#define KIND_DIRTY   65536      /* marked dirty, with wrong counts */
#define KIND_REPAIR 131072      /* wrong counts; opened with check=all */
#define KIND_REBUILD 262144     /* with that: a refcount block is lost */
#define KIND_DETECT 524288      /* zeroes are detected, and trimmed */
#define KIND_IGNORE 1048576     /* trims are ignored */
#define KIND_DAMAGED (KIND_DIRTY | KIND_REPAIR)

/* The passphrase of those. */
#define KIND_PASSPHRASE "abc"

struct kind {
  const char *name;
  unsigned cluster_bits, version, refcount_bits;
  unsigned flags;
  unsigned clients;             /* which work at once */
};

extern const struct kind kinds[];
extern const unsigned nr_kinds;

/* The arguments that name FILE, an image of that kind, to QEMU's tools.
 * It stands until the next call.
 */
const char *kind_named (const struct kind *k, const char *file);

/* An image of that kind, before anything happens to it. */
struct base {
  const struct kind *kind;
  char *bytes;                  /* of the file */
  uint64_t size;
  uint64_t disk_size;           /* guest bytes */
  uint64_t hot;                 /* the part from here on is worked on */
  uint64_t small, huge;         /* what KIND_RESIZE makes of it */
  struct window *windows;
  unsigned nr_windows, sectors;
  tag *initial;
  struct disk *backing;         /* or NULL */
  char *data;                   /* bytes of the data file, or NULL */
  uint64_t data_size;
};

/* Its files as they are at first; to be freed. */
struct disk *base_disk (const struct base *b);

/* Made in the current directory at the first call, with QEMU's tools. */
const struct base *base_get (unsigned kind);
void bases_free (void);

/* The tags of all sectors of the windows, out of a raw disk. */
void base_read_raw (const struct base *b, const char *path, tag *tags);

#endif /* QCOW2_KINDS_H */
