/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of the L2 cache share. */

#ifndef QCOW2_L2CACHE_INTERNAL_H
#define QCOW2_L2CACHE_INTERNAL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "image-internal.h"

static inline size_t
slice_entries (const struct image *img)
{
  return (size_t) 1 << img->map.slice_bits;
}

static inline size_t
slice_bytes (const struct image *img)
{
  return slice_entries (img) << l2_entry_bits (&img->map.layout);
}

static inline struct shard *
shard_of (struct image *img, uint64_t index)
{
  const struct l2cache *c = &img->l2cache;
  uint64_t h = index * UINT64_C (0x9e3779b97f4a7c15);

  return &c->shards[c->shard_bits ? h >> (64 - c->shard_bits) : 0];
}

/* Entry I of a slice. */
static inline struct l2_entry
slice_entry (const struct image *img, const struct slice *s, size_t i)
{
  return l2_load (&img->map.layout, s->entries, i);
}

static inline void
slice_set_entry (const struct image *img, struct slice *s, size_t i,
                 struct l2_entry e)
{
  l2_store (&img->map.layout, s->entries, i, e);
}

/* Host offset of a slice, given its L1 entry. */
static inline uint64_t
slice_offset (const struct image *img, uint64_t index, uint64_t l1_entry)
{
  const unsigned bits = img->map.l2_bits - img->map.slice_bits;
  uint64_t in_table = index & ((UINT64_C (1) << bits) - 1);

  return (l1_entry & ENTRY_OFFSET) + in_table * slice_bytes (img);
}

static inline uint64_t
l1_entry_of (struct image *img, uint64_t index)
{
  const unsigned bits = img->map.l2_bits - img->map.slice_bits;

  return atomic_load (&img->map.l1[index >> bits]);
}

#endif /* QCOW2_L2CACHE_INTERNAL_H */
