/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a small image that is sound; see small-image.h.
 *
 * Clusters are taken one after the other and counted as they are taken;
 * the refcount blocks come last and count themselves.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include <zlib.h>

#include "small-image.h"

#define COPIED (UINT64_C (1) << 63)
#define COMPRESSED (UINT64_C (1) << 62)

#define MAX_CLUSTERS 4096

struct maker {
  const struct small_plan *plan;
  struct small_image *out;
  uint64_t cs;                  /* bytes of a cluster */
  uint64_t next;                /* the next cluster to take */
  uint64_t counts[MAX_CLUSTERS];
  uint64_t packed;              /* where the next stream goes, 0 nowhere */
};

static void
put (struct maker *m, uint64_t at, unsigned width, uint64_t value)
{
  unsigned i;

  if (at + width > m->out->len)
    abort ();
  for (i = 0; i < width; ++i)
    m->out->bytes[at + i] = (uint8_t) (value >> 8 * (width - 1 - i));
}

static uint64_t
get8 (const struct maker *m, uint64_t at)
{
  uint64_t value = 0;
  unsigned i;

  for (i = 0; i < 8; ++i)
    value = value << 8 | m->out->bytes[at + i];
  return value;
}

/* N clusters of zeroes at the end of the file. */
static uint64_t
take (struct maker *m, uint64_t n)
{
  struct small_image *out = m->out;
  const uint64_t at = m->next * m->cs;
  uint64_t i;

  if (m->next + n > MAX_CLUSTERS)
    abort ();
  for (i = 0; i < n; ++i)
    m->counts[m->next + i] = 1;
  m->next += n;
  out->len = m->next * m->cs;
  out->bytes = realloc (out->bytes, out->len);
  if (out->bytes == NULL)
    abort ();
  memset (out->bytes + at, 0, n * m->cs);
  return at;
}

static void
fill (uint8_t *to, uint64_t n, unsigned seed)
{
  uint64_t i;

  for (i = 0; i < n; ++i)
    to[i] = (uint8_t) (seed * 37 + i / 16 * 3 + 1);
}

static uint64_t
normal_entry (struct maker *m, const uint8_t *content)
{
  uint64_t at = take (m, 1);

  memcpy (m->out->bytes + at, content, m->cs);
  return at | COPIED;
}

/* Two streams share a cluster if its count may be 2. */
static uint64_t
compressed_entry (struct maker *m, const uint8_t *content)
{
  const unsigned x = 62 - (m->plan->cluster_bits - 8);
  uint8_t stream[8192];
  z_stream z = { .next_in = (uint8_t *) content, .avail_in = (uInt) m->cs,
                 .next_out = stream, .avail_out = sizeof stream };
  uint64_t at, n;

  if (deflateInit2 (&z, 9, Z_DEFLATED, -12, 1, Z_DEFAULT_STRATEGY) != Z_OK
      || deflate (&z, Z_FINISH) != Z_STREAM_END)
    abort ();
  n = sizeof stream - z.avail_out;
  deflateEnd (&z);
  if (n > m->cs)
    abort ();
  if (m->packed && m->packed % m->cs + n <= m->cs) {
    at = m->packed;
    m->counts[at / m->cs]++;
    m->packed = 0;
  }
  else {
    at = take (m, 1);
    m->packed = m->plan->refcount_order >= 2 ? at + n : 0;
  }
  memcpy (m->out->bytes + at, stream, n);
  return COMPRESSED | ((at % 512 + n - 1) / 512) << x | at;
}

/* Guest cluster I: its entry, and what is in it. */
static uint64_t
entry_of (struct maker *m, uint64_t i)
{
  const struct small_plan *plan = m->plan;
  uint8_t content[4096];
  uint64_t room, entry;
  bool zero = false;

  fill (content, m->cs, (unsigned) i + plan->pattern);
  m->out->holes[i] = 0;
  switch ((i * 7 + plan->pattern) % 6) {
  case 0:
    m->out->holes[i] = 1;
    return 0;
  case 1:
    if (plan->version < 3) {
      m->out->holes[i] = 1;
      return 0;
    }
    return 1;
  case 2:
    entry = normal_entry (m, content);
    if (plan->version >= 3) {
      entry |= 1;
      zero = true;
    }
    break;
  case 3:
    if (plan->compressed) {
      entry = compressed_entry (m, content);
      break;
    }
    /* fallthrough */
  default:
    entry = normal_entry (m, content);
  }
  room = plan->disk - i * m->cs;
  if (!zero)
    memcpy (m->out->guest + i * m->cs, content, room < m->cs ? room : m->cs);
  return entry;
}

static void
make_tables (struct maker *m)
{
  const uint64_t per_table = m->cs / 8;
  const uint64_t clusters = (m->plan->disk + m->cs - 1) / m->cs;
  uint64_t i, table = 0;

  for (i = 0; i < clusters && i < m->plan->filled; ++i) {
    uint64_t entry;

    if (i % per_table == 0) {
      table = take (m, 1);
      put (m, m->out->l1 + i / per_table * 8, 8, table | COPIED);
      if (m->out->l2 == 0)
        m->out->l2 = table;
    }
    entry = entry_of (m, i);
    put (m, table + i % per_table * 8, 8, entry);
    if (entry && m->out->data == 0)
      m->out->data = m->out->len - m->cs;
  }
}

/* A snapshot of all there is: the same L2 tables and data, counted once
 * more, and nothing is COPIED any longer.
 */
static void
make_snapshot (struct maker *m, uint64_t l1_entries)
{
  struct small_image *out = m->out;
  uint64_t bytes = l1_entries * 8, i, j;
  uint64_t at = out->snapshots = take (m, 1);
  bool counted[MAX_CLUSTERS] = { false };

  out->snapshot_l1 = take (m, (bytes + m->cs - 1) / m->cs);
  for (i = 0; i < l1_entries; ++i) {
    uint64_t table = get8 (m, out->l1 + i * 8) & ~COPIED;

    put (m, out->l1 + i * 8, 8, table);
    put (m, out->snapshot_l1 + i * 8, 8, table);
    if (table == 0)
      continue;
    m->counts[table / m->cs]++;
    for (j = table; j < table + m->cs; j += 8) {
      const uint64_t entry = get8 (m, j) & ~COPIED;
      const uint64_t mask = entry & COMPRESSED
        ? (UINT64_C (1) << (62 - (m->plan->cluster_bits - 8))) - 1
        : UINT64_C (0x00fffffffffffe00);
      const uint64_t host = (entry & mask) / m->cs;

      put (m, j, 8, entry);
      /* A cluster that is shared already gets all of its new owners. */
      if (host && !counted[host])
        m->counts[host] *= 2;
      counted[host] = true;
    }
  }
  put (m, at, 8, out->snapshot_l1);
  put (m, at + 8, 4, l1_entries);
  put (m, at + 12, 2, 1);       /* lengths of id and name */
  put (m, at + 14, 2, 4);
  put (m, at + 36, 4, 16);      /* extra data: VM state, disk size */
  put (m, at + 48, 8, m->plan->disk);
  memcpy (out->bytes + at + 56, "1snap", 5);
}

static void
put_count (struct maker *m, uint64_t cluster)
{
  const unsigned bits = 1u << m->plan->refcount_order;
  const uint64_t per_block = m->cs * 8 / bits;
  const uint64_t block = get8 (m, m->out->reftable
                               + cluster / per_block * 8);
  const uint64_t index = cluster % per_block;
  const uint64_t value = m->counts[cluster];

  if (bits >= 8)
    put (m, block + index * bits / 8, bits / 8, value);
  else
    m->out->bytes[block + index * bits / 8] |=
      (uint8_t) (value << index * bits % 8);
}

static void
make_counts (struct maker *m)
{
  const uint64_t per_block = m->cs * 8 >> m->plan->refcount_order;
  uint64_t i;

  for (i = 0; i * per_block < m->next; ++i) {
    const uint64_t block = take (m, 1);

    if (i == m->cs / 8)
      abort ();
    put (m, m->out->reftable + i * 8, 8, block);
    if (i == 0)
      m->out->refblock = block;
  }
  for (i = 0; i < m->next; ++i)
    put_count (m, i);
}

static void
make_header (struct maker *m, uint64_t l1_entries)
{
  const struct small_plan *plan = m->plan;

  put (m, 0, 4, 0x514649fb);
  put (m, 4, 4, plan->version);
  put (m, 20, 4, plan->cluster_bits);
  put (m, 24, 8, plan->disk);
  put (m, 36, 4, l1_entries);
  put (m, 40, 8, m->out->l1);
  put (m, 48, 8, m->out->reftable);
  put (m, 56, 4, 1);
  put (m, 60, 4, plan->snapshot);
  put (m, 64, 8, m->out->snapshots);
  if (plan->version >= 3) {
    put (m, 96, 4, plan->refcount_order);
    put (m, 100, 4, 104);
  }
}

void
small_image_make (const struct small_plan *plan, struct small_image *image)
{
  struct maker *m = calloc (1, sizeof *m);
  uint64_t clusters, l1_entries;

  if (m == NULL)
    abort ();
  memset (image, 0, sizeof *image);
  m->plan = plan;
  m->out = image;
  m->cs = UINT64_C (1) << plan->cluster_bits;
  clusters = (plan->disk + m->cs - 1) / m->cs;
  l1_entries = (clusters + m->cs / 8 - 1) / (m->cs / 8);
  image->guest = calloc (1, plan->disk + 1);
  image->holes = malloc (clusters + 1);
  if (image->guest == NULL || image->holes == NULL)
    abort ();
  memset (image->holes, 1, clusters + 1);

  take (m, 1);                  /* the header */
  image->reftable = take (m, 1);
  image->l1 = take (m, (l1_entries * 8 + m->cs - 1) / m->cs + !l1_entries);
  make_tables (m);
  if (plan->snapshot)
    make_snapshot (m, l1_entries);
  make_counts (m);
  make_header (m, l1_entries);
  free (m);
}

void
small_image_free (struct small_image *image)
{
  free (image->bytes);
  free (image->guest);
  free (image->holes);
}
