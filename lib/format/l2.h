/* SPDX-License-Identifier: BSD-3-Clause */

/* Entries of L1 and L2 tables (qcow2 specification, "Cluster mapping").
 * Entries are given and returned in host byte order.
 *
 * An L2 entry is one word or, with extended L2 entries, a word and a
 * bitmap of its 32 subclusters.  This header alone knows which: others
 * have a struct l2_entry and ask what a subcluster is.  Where there are
 * no extended entries a cluster is its own, single subcluster.
 */

#ifndef QCOW2_L2_H
#define QCOW2_L2_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "byteorder.h"

#define ENTRY_COPIED     (UINT64_C (1) << 63)
#define ENTRY_COMPRESSED (UINT64_C (1) << 62)
#define ENTRY_ZERO       UINT64_C (1)
#define ENTRY_OFFSET     UINT64_C (0x00fffffffffffe00)

#define L1_RESERVED      UINT64_C (0x7f000000000001ff)
#define L2_RESERVED      UINT64_C (0x3f000000000001fe)

enum l2_kind {
  L2_UNALLOCATED,               /* reads from the backing file */
  L2_ZERO_PLAIN,                /* zeroes, no host cluster */
  L2_ZERO_ALLOC,                /* zeroes, a host cluster is kept */
  L2_NORMAL,                    /* data at the host offset */
  L2_UNALLOC_KEPT,              /* reads from the backing file, but the
                                   cluster has a host cluster (extended) */
  L2_COMPRESSED,
  L2_INVALID,                   /* see l2_kind */
};

/* What an entry of a table with 64-bit entries is.  L2_INVALID: a host
 * offset that is no multiple of the cluster size, the zero flag in a
 * version 2 image, COPIED without an offset.  Reserved bits are
 * ignored, as QEMU does.
 */
static inline enum l2_kind
l2_kind_of (uint64_t entry, uint32_t version, uint64_t cluster_size)
{
  uint64_t offset = entry & ENTRY_OFFSET;

  if (entry & ENTRY_COMPRESSED)
    return L2_COMPRESSED;
  if (offset & (cluster_size - 1))
    return L2_INVALID;
  if (entry & ENTRY_ZERO) {
    if (version < 3)
      return L2_INVALID;
    return offset ? L2_ZERO_ALLOC : L2_ZERO_PLAIN;
  }
  if (offset)
    return L2_NORMAL;
  return entry & ENTRY_COPIED ? L2_INVALID : L2_UNALLOCATED;
}

/* What the shape and the meaning of an image's entries depend on. */
struct l2_layout {
  uint64_t cluster_size;        /* bytes */
  uint32_t version;
  bool extended;                /* incompatible feature bit 4 */
  bool data_file;               /* incompatible feature bit 2 */
};

struct l2_entry {
  uint64_t word;
  uint64_t bitmap;              /* extended: bit i says that subcluster i
                                   is allocated, bit 32+i that it reads as
                                   zeroes; else 0 */
};

/* Log2 of an entry's bytes, and of the subclusters of a cluster. */
static inline unsigned
l2_entry_bits (const struct l2_layout *l)
{
  return l->extended ? 4 : 3;
}

static inline unsigned
l2_subcluster_bits (const struct l2_layout *l)
{
  return l->extended ? 5 : 0;
}

/* A bit for each subcluster of a cluster. */
static inline uint32_t
l2_all_subclusters (const struct l2_layout *l)
{
  return l->extended ? UINT32_MAX : 1;
}

/* Entry I of a table as it is on disk. */
static inline struct l2_entry
l2_load (const struct l2_layout *l, const uint64_t *table, size_t i)
{
  struct l2_entry e = { 0, 0 };

  if (!l->extended)
    e.word = be64toh (table[i]);
  else {
    e.word = be64toh (table[2 * i]);
    e.bitmap = be64toh (table[2 * i + 1]);
  }
  return e;
}

static inline void
l2_store (const struct l2_layout *l, uint64_t *table, size_t i,
          struct l2_entry e)
{
  if (!l->extended)
    table[i] = htobe64 (e.word);
  else {
    table[2 * i] = htobe64 (e.word);
    table[2 * i + 1] = htobe64 (e.bitmap);
  }
}

/* l2_kind for entries that are extended, or lead to a data file; l2_run
 * for extended entries.
 */
enum l2_kind l2_other_kind (const struct l2_layout *l, struct l2_entry e,
                            unsigned sub);
unsigned l2_extended_run (struct l2_entry e, unsigned sub,
                          enum l2_kind kind);

/* What subcluster SUB of an entry is.  L2_INVALID, which all of an
 * entry's subclusters are or none: as l2_kind_of, and a subcluster both
 * allocated and zero, one allocated without a host offset, a bitmap
 * with a compressed cluster.  In a data file 0 is a host offset as any
 * other if the entry is COPIED, and nothing is compressed.
 */
static inline enum l2_kind
l2_kind (const struct l2_layout *l, struct l2_entry e, unsigned sub)
{
  if (!l->extended && !l->data_file)
    return l2_kind_of (e.word, l->version, l->cluster_size);
  return l2_other_kind (l, e, sub);
}

/* How many subclusters from SUB on are of the KIND that SUB is? */
static inline unsigned
l2_run (const struct l2_layout *l, struct l2_entry e, unsigned sub,
        enum l2_kind kind)
{
  return l->extended ? l2_extended_run (e, sub, kind) : 1;
}

/* Has a subcluster of this kind a host offset? */
static inline bool
l2_has_host (enum l2_kind kind)
{
  return kind == L2_NORMAL || kind == L2_ZERO_ALLOC
    || kind == L2_UNALLOC_KEPT;
}

/* A compressed cluster's place in the file. */
struct compressed_place {
  uint64_t offset;              /* host byte offset, any alignment */
  uint64_t length;              /* bytes up to the end of the last
                                   512-byte sector; the stream may end
                                   before, the file too */
};

/* Take apart a compressed entry (specification, "Compressed Clusters
 * Descriptor").  False if the offset has bits above 55.
 */
bool l2_compressed_place (uint64_t entry, uint32_t cluster_bits,
                          struct compressed_place *place);

/* The entry for LENGTH bytes, more than 0, at host offset OFFSET.  False
 * if there is no room in it for one of them.
 */
bool l2_compressed_entry (uint64_t offset, uint64_t length,
                          uint32_t cluster_bits, uint64_t *entry);

#endif /* QCOW2_L2_H */
