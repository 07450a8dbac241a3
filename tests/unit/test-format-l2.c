/* SPDX-License-Identifier: BSD-3-Clause */

/* L1 and L2 entries: what each combination of bits is, and compressed
 * descriptors against an oracle that takes them apart bit by bit.
 */

#include <config.h>

#include <inttypes.h>

#include "format-test.h"
#include "l2.h"

#define C 65536

static const struct {
  const char *what;
  uint64_t entry;
  uint32_t version;
  enum l2_kind kind;
} kinds[] = {
  { "nothing", 0, 3, L2_UNALLOCATED },
  { "data", 0x50000 | ENTRY_COPIED, 3, L2_NORMAL },
  { "shared data", 0x50000, 3, L2_NORMAL },
  { "data at the highest offset", (UINT64_C (1) << 56) - C, 3, L2_NORMAL },
  { "data, v2", 0x50000, 2, L2_NORMAL },
  { "zero", 1, 3, L2_ZERO_PLAIN },
  { "zero, v2", 1, 2, L2_INVALID },
  { "zero, allocated", 0x50001 | ENTRY_COPIED, 3, L2_ZERO_ALLOC },
  { "zero, allocated, shared", 0x50001, 3, L2_ZERO_ALLOC },
  { "zero, allocated, v2", 0x50001, 2, L2_INVALID },
  { "unaligned by a sector", 0x50200, 3, L2_INVALID },
  { "unaligned by half a cluster", 0x58000 | ENTRY_COPIED, 3, L2_INVALID },
  { "zero, unaligned", 0x50201, 3, L2_INVALID },
  { "COPIED without an offset", ENTRY_COPIED, 3, L2_INVALID },
  { "compressed", 0x12345 | ENTRY_COMPRESSED, 3, L2_COMPRESSED },
  { "compressed, v2", 0x12345 | ENTRY_COMPRESSED, 2, L2_COMPRESSED },
  { "reserved bits 1 to 8", 0x501fe, 3, L2_NORMAL },
  { "reserved bits 56 to 61", 0x50000 | UINT64_C (0x3f) << 56, 3,
    L2_NORMAL },
  { "reserved bits alone", L2_RESERVED, 3, L2_UNALLOCATED },
};

START_TEST (kind)
{
  ck_assert_msg (l2_kind_of (kinds[_i].entry, kinds[_i].version, C)
                 == kinds[_i].kind, "%s", kinds[_i].what);
}
END_TEST

/* What alignment is depends on the cluster size. */
START_TEST (alignment)
{
  uint64_t size, other;

  for (size = 512; size <= 2 << 20; size *= 2) {
    for (other = 512; other <= 2 << 20; other *= 2)
      ck_assert (l2_kind_of (other, 3, size)
                 == (other >= size ? L2_NORMAL : L2_INVALID));
  }
}
END_TEST

/* The constants cover a word without overlapping. */
START_TEST (masks)
{
  ck_assert_uint_eq (L1_RESERVED ^ ENTRY_OFFSET ^ ENTRY_COPIED, UINT64_MAX);
  ck_assert_uint_eq (L2_RESERVED ^ ENTRY_OFFSET ^ ENTRY_COPIED
                     ^ ENTRY_COMPRESSED ^ ENTRY_ZERO, UINT64_MAX);
}
END_TEST

/* Bits FROM to TO of an entry as a number. */
static uint64_t
field (uint64_t entry, unsigned from, unsigned to)
{
  uint64_t value = 0;
  unsigned bit;

  for (bit = from; bit <= to; bit++) {
    if (entry >> bit & 1)
      value |= UINT64_C (1) << (bit - from);
  }
  return value;
}

static void
check_compressed (uint64_t entry, uint32_t cluster_bits)
{
  const unsigned x = 62 - (cluster_bits - 8);
  const uint64_t offset = field (entry, 0, x - 1);
  const uint64_t sectors = field (entry, x, 61) + 1;
  struct compressed_place place = { 0, 0 };
  bool good = l2_compressed_place (entry, cluster_bits, &place);

  /* The last byte is the last one of its sector.  (Check's assertions
   * are too slow to make one for each of a million entries.)
   */
  if (good != (offset <= MAX_HOST_OFFSET)
      || (good && (place.offset != offset
                   || place.offset + place.length
                      != (offset / 512 + sectors) * 512)))
    ck_abort_msg ("cluster_bits %u, entry 0x%llx: %s, 0x%llx, %llu bytes",
                  cluster_bits, (unsigned long long) entry,
                  good ? "good" : "bad", (unsigned long long) place.offset,
                  (unsigned long long) place.length);
}

START_TEST (compressed)
{
  const uint32_t cluster_bits = (uint32_t) _i;
  const unsigned times = getenv ("QCOW2_VALGRIND") ? 2000 : 100000;
  uint64_t state = 3;
  unsigned n;

  check_compressed (ENTRY_COMPRESSED, cluster_bits);
  check_compressed (UINT64_MAX & ~ENTRY_COPIED, cluster_bits);
  check_compressed (ENTRY_COMPRESSED | MAX_HOST_OFFSET, cluster_bits);
  check_compressed (ENTRY_COMPRESSED | UINT64_C (1) << 56, cluster_bits);
  for (n = 0; n < times; n++) {
    state = state * UINT64_C (6364136223846793005) + 1;
    /* Few large ones, so that small clusters see good offsets too. */
    check_compressed (((state ^ state << 29) >> n % 32) | ENTRY_COMPRESSED,
                      cluster_bits);
  }
}
END_TEST

/* Entries written out: 64 KiB clusters have x = 54. */
/* What the encoder makes, the decoder takes apart; the encoder refuses
 * what there is no room for.
 */
START_TEST (compressed_encoded)
{
  const uint32_t cluster_bits = (uint32_t) _i;
  const unsigned offset_bits = MIN (62 - (cluster_bits - 8), 56u);
  const uint64_t cluster = UINT64_C (1) << cluster_bits;
  uint64_t state = 5, entry, offset, length;
  struct compressed_place p;
  const unsigned times = getenv ("QCOW2_VALGRIND") ? 1000 : 20000;
  unsigned n;

  for (n = 0; n < times; n++) {
    state = state * UINT64_C (6364136223846793005) + 1442695040888963407;
    offset = (state >> 3) >> n % 60;
    length = (state >> 20) % (2 * cluster) + 1;
    if (!l2_compressed_entry (offset, length, cluster_bits, &entry)) {
      if (offset >> offset_bits == 0
          && offset % 512 + length <= 2 * cluster)
        ck_abort_msg ("%u: %ju bytes at %ju", cluster_bits,
                      (uintmax_t) length, (uintmax_t) offset);
      continue;
    }
    ck_assert_uint_eq (entry >> 62, 1);
    ck_assert (l2_compressed_place (entry, cluster_bits, &p));
    ck_assert_uint_eq (p.offset, offset);
    ck_assert_uint_ge (p.length, length);
    ck_assert_uint_lt (p.length, length + 512);
  }
  ck_assert (!l2_compressed_entry (UINT64_C (1) << offset_bits, 512,
                                   cluster_bits, &entry));
  ck_assert (!l2_compressed_entry (512, 2 * cluster + 1, cluster_bits,
                                   &entry));
}
END_TEST

START_TEST (compressed_literal)
{
  struct compressed_place p;

  ck_assert (l2_compressed_place (UINT64_C (0x4000000000050000), 16, &p));
  ck_assert_uint_eq (p.offset, 0x50000);
  ck_assert_uint_eq (p.length, 512);
  ck_assert (l2_compressed_place (UINT64_C (0x40c00000000501f0), 16, &p));
  ck_assert_uint_eq (p.offset, 0x501f0);
  ck_assert_uint_eq (p.length, 4 * 512 - 0x1f0);
  /* 512-byte clusters: one bit of sectors, offset bits up to 60. */
  ck_assert (l2_compressed_place (UINT64_C (0x6000000000000201), 9, &p));
  ck_assert_uint_eq (p.offset, 0x201);
  ck_assert_uint_eq (p.length, 1023);
  ck_assert (!l2_compressed_place (UINT64_C (0x4100000000000200), 9, &p));
  /* 2 MiB clusters: 49 bits of offset. */
  ck_assert (l2_compressed_place (UINT64_C (0x7fffffffffffffff), 21, &p));
  ck_assert_uint_eq (p.offset, (UINT64_C (1) << 49) - 1);
  ck_assert_uint_eq (p.length, 8192 * 512 - 511);
}
END_TEST

/* What an extended entry's subcluster is, said in words. */
static enum l2_kind
oracle_subcluster (uint64_t word, uint64_t bitmap, unsigned sub)
{
  const uint64_t offset = word & ENTRY_OFFSET;
  unsigned i;

  if (word & ENTRY_COMPRESSED)
    return bitmap == 0 ? L2_COMPRESSED : L2_INVALID;
  if (offset % C != 0 || (offset == 0 && (word & ENTRY_COPIED)))
    return L2_INVALID;
  for (i = 0; i < 32; i++) {
    if (field (bitmap, i, i) && (field (bitmap, 32 + i, 32 + i)
                                 || offset == 0))
      return L2_INVALID;
  }
  if (field (bitmap, sub, sub))
    return L2_NORMAL;
  if (field (bitmap, 32 + sub, 32 + sub))
    return offset ? L2_ZERO_ALLOC : L2_ZERO_PLAIN;
  return offset ? L2_UNALLOC_KEPT : L2_UNALLOCATED;
}

/* Kinds and runs of all subclusters of an entry. */
static void
check_extended (uint64_t word, uint64_t bitmap)
{
  static const struct l2_layout layout = {
    .cluster_size = C, .version = 3, .extended = true
  };
  const struct l2_entry e = { .word = word, .bitmap = bitmap };
  unsigned sub, n, run;
  bool good = true;

  for (sub = 0; sub < 32 && good; sub++) {
    const enum l2_kind want = oracle_subcluster (word, bitmap, sub);

    for (n = 1; sub + n < 32; n++) {
      if (oracle_subcluster (word, bitmap, sub + n) != want)
        break;
    }
    run = l2_run (&layout, e, sub, want);
    good = l2_kind (&layout, e, sub) == want && run == n;
  }
  /* An assertion costs a write to a file. */
  if (!good)
    ck_abort_msg ("entry %016" PRIx64 " %016" PRIx64 ", before %u", word,
                  bitmap, sub);
}

/* Each subcluster and its two neighbours in all their 64 states, the
 * others all in each of the four, for each kind of first word.
 */
START_TEST (extended)
{
  static const uint64_t words[] = {
    0, 1, 0x50000 | ENTRY_COPIED, 0x50001, 0x58000, ENTRY_COPIED,
    ENTRY_COMPRESSED | 0x12345, L2_RESERVED,
  };
  static const uint64_t others[] = {
    0, UINT32_MAX, (uint64_t) UINT32_MAX << 32, UINT64_MAX,
  };
  const unsigned at = (unsigned) _i;
  const unsigned step = getenv ("QCOW2_VALGRIND") ? 21 : 1;
  uint64_t bitmap, bit;
  unsigned w, o, state, i;

  for (w = 0; w < sizeof words / sizeof words[0]; w++)
    for (o = 0; o < 4; o++)
      for (state = 0; state < 64; state += step) {
        bitmap = others[o];
        for (i = 0; i < 3; i++) {
          bit = UINT64_C (1) << (at + i) % 32;
          bitmap &= ~(bit | bit << 32);
          bitmap |= (state >> 2 * i & 1) * bit;
          bitmap |= (state >> (2 * i + 1) & 1) * (bit << 32);
        }
        check_extended (words[w], bitmap);
      }
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("format-l2");
  TCase *tc = tcase_create ("l2");

  tcase_add_loop_test (tc, kind, 0, ARRAY_SIZE (kinds));
  tcase_add_test (tc, alignment);
  tcase_add_test (tc, masks);
  tcase_add_loop_test (tc, extended, 0, 32);
  tcase_add_loop_test (tc, compressed, 9, 22);
  tcase_add_loop_test (tc, compressed_encoded, 9, 22);
  tcase_add_test (tc, compressed_literal);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
