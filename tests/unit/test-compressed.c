/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing clusters compressed, and reading them through the cache, on an
 * engine in which rules can be broken (sabotage.h): where a test depends
 * on a rule, it shows that it would notice.
 */

#include <config.h>

#include "engine-test.h"
#include "refcount.h"
#include "run-suite.h"
#include "sabotage.h"

#define K 1024u
#define SECTOR 512u

static enum image_compress compress;
static uint64_t cache_size;

static void
with_compression (struct image_config *config)
{
  config->compress = compress;
  config->compressed_cache_size = cache_size;
}

static void
setup (void)
{
  configure = with_compression;
  compress = COMPRESS_IMAGE;
  cache_size = UINT64_C (1) << 20;
  sabotage_now = SABOTAGE_NONE;
}

static enum l2_kind
kind_at (uint64_t offset)
{
  struct map_extent e;

  ck_assert_int_eq (map_lookup (img, offset, 1, &e), 0);
  return e.kind;
}

static uint64_t
entry_at (uint64_t offset)
{
  struct map_extent e;

  ck_assert_int_eq (map_lookup (img, offset, 1, &e), 0);
  ck_assert_int_eq (e.kind, L2_COMPRESSED);
  return e.entry;
}

static int
write_noise (uint64_t offset, uint64_t len)
{
  uint64_t *buf = malloc (len), state = offset | 1, i;
  int r;

  ck_assert_ptr_nonnull (buf);
  for (i = 0; i < len / 8; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    buf[i] = state;
  }
  r = image_write (img, buf, len, offset, false);
  free (buf);
  return r;
}

/*----------------------------------------------------------------------
 * What becomes of a write.
 */

static const struct {
  const char *options;
  uint64_t cluster;
} images[] = {
  { "-o cluster_size=1k", K },
  { "-o cluster_size=4k,compression_type=zstd", 4 * K },
  { "-o cluster_size=4k,refcount_bits=1", 4 * K },
  { "-o cluster_size=16k,extended_l2=on", 16 * K },
  { "-o compat=0.10", 64 * K },
  { "-o cluster_size=2M,compression_type=zstd", 2048 * K },
};

START_TEST (kinds_of_clusters)
{
  const uint64_t c = images[_i].cluster;
  char size[30];

  snprintf (size, sizeof size, "%ju", (uintmax_t) (20 * c + SECTOR));
  make_image (images[_i].options, size);

  /* Whole ones, in one request with parts of others. */
  ck_assert_int_eq (write_byte (c / 2, 3 * c, 'a'), 0);
  ck_assert_int_eq (kind_at (c / 2), L2_NORMAL);
  ck_assert_int_eq (kind_at (c), L2_COMPRESSED);
  ck_assert_int_eq (kind_at (2 * c), L2_COMPRESSED);
  ck_assert_int_eq (kind_at (3 * c), L2_NORMAL);
  expect_byte (c / 2, 3 * c, 'a');
  expect_byte (0, c / 2, 0);

  /* What was plain becomes compressed, and the other way round. */
  ck_assert_int_eq (write_byte (3 * c, c, 'b'), 0);
  ck_assert_int_eq (kind_at (3 * c), L2_COMPRESSED);
  ck_assert_int_eq (write_byte (c + 5, 10, 'c'), 0);
  ck_assert_int_eq (kind_at (c), L2_NORMAL);
  expect_byte (c, 5, 'a');
  expect_byte (c + 5, 10, 'c');
  expect_byte (c + 15, c - 15, 'a');

  /* Zeroes, and what does not get smaller, over all kinds. */
  ck_assert_int_eq (write_byte (c, 6 * c, 0), 0);
  ck_assert_int_ne (kind_at (c), L2_NORMAL);
  ck_assert_int_ne (kind_at (2 * c), L2_COMPRESSED);
  expect_byte (c, 6 * c, 0);
  ck_assert_int_eq (write_noise (2 * c, c), 0);
  ck_assert_int_eq (kind_at (2 * c), L2_NORMAL);
  ck_assert_int_eq (write_noise (2 * c, 2 * c), 0);
  ck_assert_int_eq (write_byte (2 * c, c, 'd'), 0);
  ck_assert_int_eq (kind_at (2 * c), L2_COMPRESSED);
  ck_assert_int_eq (write_noise (2 * c, c), 0);
  ck_assert_int_eq (kind_at (2 * c), L2_NORMAL);

  /* The last cluster is whole up to the disk's end. */
  ck_assert_int_eq (write_byte (20 * c, SECTOR, 'e'), 0);
  ck_assert_int_eq (kind_at (20 * c), L2_COMPRESSED);
  expect_byte (20 * c, SECTOR, 'e');
  stop_clean ();
}
END_TEST

/* With compress=off nothing is. */
START_TEST (off)
{
  compress = COMPRESS_OFF;
  make_image ("", "1M");
  ck_assert_int_eq (write_byte (0, 128 * K, 'a'), 0);
  ck_assert_int_eq (kind_at (0), L2_NORMAL);
  stop_clean ();
}
END_TEST

/* A sector cannot be saved where a cluster is one. */
START_TEST (sector_clusters)
{
  make_image ("-o cluster_size=512", "1M");
  ck_assert_int_eq (write_byte (0, 4 * K, 'a'), 0);
  ck_assert_int_eq (kind_at (0), L2_NORMAL);
  stop_clean ();
}
END_TEST

/* The neighbours of a cluster that fails are written, or not; it keeps
 * its old contents, and nothing is leaked.
 */
START_TEST (write_fails)
{
  make_image ("-o cluster_size=4k", "1M");
  ck_assert_int_eq (write_byte (0, 8 * K, 'a'), 0);
  fail_next (STORAGE_MEMORY_WRITE, UINT64_MAX, EIO, 1);
  ck_assert_int_eq (write_byte (0, 4 * K, 'b'), -EIO);
  expect_byte (0, 8 * K, 'a');
  fail_next (STORAGE_MEMORY_WRITE, UINT64_MAX, ENOSPC, 1);
  ck_assert_int_eq (write_byte (0, 4 * K, 'c'), 0);
  expect_byte (0, 4 * K, 'c');
  stop_clean ();
}
END_TEST

START_TEST (wrong_type)
{
  static struct chain chain;
  struct image_config config;
  struct temporary t;
  struct image *i;
  struct storage *s;

  report_set_sink (quiet_sink);
  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o compression_type=%s %s 1M",
            _i ? "zstd" : "zlib", t.name);
  image_config_init (&config);
  config.filename = t.name;
  config.compress = _i ? COMPRESS_DEFLATE : COMPRESS_ZSTD;
  ck_assert_int_eq (storage_open_file (t.name, true, false, &s), 0);
  chain.length = 1;
  ck_assert_int_eq (image_open_in_chain (&config, s, &chain, &i), -ENOTSUP);
  config.compress = _i ? COMPRESS_ZSTD : COMPRESS_DEFLATE;
  ck_assert_int_eq (storage_open_file (t.name, true, false, &s), 0);
  ck_assert_int_eq (image_open_in_chain (&config, s, &chain, &i), 0);
  image_close (i);
  temporary_remove (&t);
}
END_TEST

/*----------------------------------------------------------------------
 * The cache.
 */

/* A cluster is read in part; then its host cluster is given to another
 * one, whose entry is the same.
 */
static void
reuse_place (void)
{
  uint64_t entry;

  make_image ("-o cluster_size=4k", "1M");
  ck_assert_int_eq (write_byte (0, 4 * K, 'a'), 0);
  entry = entry_at (0);
  expect_byte (100, 50, 'a');
  ck_assert_int_eq (write_byte (0, 100, 'x'), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (write_byte (8 * K, 4 * K, 'b'), 0);
  ck_assert_uint_eq (entry_at (8 * K), entry);
}

START_TEST (nothing_stale)
{
  uint8_t byte;

  reuse_place ();
  expect_byte (8 * K + 100, 50, 'b');
  stop_clean ();

  sabotage_now = SABOTAGE_UNPACKED;
  reuse_place ();
  ck_assert_int_eq (image_read (img, &byte, 1, 8 * K + 100), 0);
  ck_assert_int_eq (byte, 'a');
  stop_clean ();
}
END_TEST

static struct image_stats
stats (void)
{
  struct image_stats s;

  image_get_stats (img, &s);
  return s;
}

/* Parts come out of the cache, whole clusters do not go into it. */
START_TEST (cached)
{
  unsigned i;

  make_image ("-o cluster_size=64k", "1M");
  ck_assert_int_eq (write_byte (0, 256 * K, 'a'), 0);
  expect_byte (0, 256 * K, 'a');
  ck_assert_uint_eq (stats ().unpacked_misses, 0);
  for (i = 0; i < 16; ++i)
    expect_byte (64 * K + i * 4 * K, 4 * K, 'a');
  ck_assert_uint_eq (stats ().unpacked_misses, 1);
  ck_assert_uint_eq (stats ().unpacked_hits, 15);
  watch.n = 0;
  expect_byte (0, 256 * K, 'a');
  stop_clean ();

  cache_size = 64 * K - 1;
  make_image ("-o cluster_size=64k", "1M");
  ck_assert_int_eq (write_byte (0, 256 * K, 'a'), 0);
  expect_byte (64 * K, 4 * K, 'a');
  ck_assert_uint_eq (stats ().unpacked_misses, 0);
  stop_clean ();
}
END_TEST

/* A stream that cannot be unpacked is an error each time, not stale
 * contents the second time.
 */
START_TEST (bad_stream)
{
  struct compressed_place place;
  uint8_t rubbish[16], buf[K];
  struct iovec iov = { .iov_base = rubbish, .iov_len = sizeof rubbish };
  unsigned i;

  make_image ("-o cluster_size=4k", "1M");
  ck_assert_int_eq (write_byte (0, 8 * K, 'a'), 0);
  ck_assert (l2_compressed_place (entry_at (0), 12, &place));
  memset (rubbish, 0xff, sizeof rubbish);
  ck_assert_int_eq (storage_write (storage, &iov, 1, place.offset, false), 0);
  for (i = 0; i < 3; ++i)
    ck_assert_int_eq (image_read (img, buf, sizeof buf, 0), -EIO);
  ck_assert_int_eq (write_byte (0, 4 * K, 'b'), 0);
  expect_byte (0, K, 'b');
  expect_byte (4 * K, K, 'a');
  stop_clean ();
}
END_TEST

/* The clusters of one request are unpacked by several threads: each comes
 * to its own place, whatever lies between them, and one that cannot be
 * unpacked fails the request.
 */
START_TEST (many_in_one_request)
{
  struct compressed_place place;
  uint8_t rubbish[16], *buf = malloc (512 * K);
  struct iovec iov = { .iov_base = rubbish, .iov_len = sizeof rubbish };
  unsigned i;

  make_image ("-o cluster_size=4k", "512k");
  ck_assert_int_eq (image_start (img), 0);
  for (i = 0; i < 128; ++i)
    if (i % 29 != 28)
      ck_assert_int_eq (write_byte (i * 4 * K, 4 * K, (uint8_t) (i + 1)), 0);
  ck_assert_int_eq (write_byte (50 * 4 * K, K, 51), 0);

  ck_assert_int_eq (image_read (img, buf, 512 * K - K, K), 0);
  for (i = K; i < 512 * K; ++i)
    ck_assert_uint_eq (buf[i - K],
                       i / (4 * K) % 29 == 28 ? 0 : i / (4 * K) + 1);

  ck_assert (l2_compressed_place (entry_at (40 * 4 * K), 12, &place));
  memset (rubbish, 0xff, sizeof rubbish);
  ck_assert_int_eq (storage_write (storage, &iov, 1, place.offset, false), 0);
  ck_assert_int_eq (image_read (img, buf, 512 * K, 0), -EIO);
  ck_assert_int_eq (image_read (img, buf, 160 * K, 0), 0);
  ck_assert_int_eq (image_read (img, buf, 300 * K, 164 * K), 0);
  ck_assert_int_eq (write_byte (40 * 4 * K, 4 * K, 0), 0);
  free (buf);
  stop_clean ();
}
END_TEST

/*----------------------------------------------------------------------
 * The packer.
 */

#define STREAMS 300

static struct stream {
  uint64_t offset, len;         /* len 0: none */
} streams[STREAMS];

static uint64_t
count_of (uint64_t cluster)
{
  uint64_t value;

  ck_assert_int_eq (refcounts_get (img, cluster, &value), 0);
  return value;
}

/* How many streams touch a host cluster? */
static uint64_t
touching (uint64_t cluster)
{
  uint64_t n = 0;
  unsigned i;

  for (i = 0; i < STREAMS; ++i)
    n += streams[i].len > 0
      && streams[i].offset >> img->cluster_bits <= cluster
      && (streams[i].offset + streams[i].len - 1) >> img->cluster_bits
      >= cluster;
  return n;
}

/* What is in the quarantine is counted, too. */
static void
ck_counts (const struct stream *s, bool quarantine)
{
  uint64_t c = s->offset >> img->cluster_bits;

  for (; c <= (s->offset + s->len - 1) >> img->cluster_bits; ++c)
    if (count_of (c) < touching (c)
        || (!quarantine && count_of (c) > touching (c)))
      ck_abort_msg ("cluster %ju is touched by %ju streams, its count is %ju",
                    (uintmax_t) c, (uintmax_t) touching (c),
                    (uintmax_t) count_of (c));
}

static void
add_stream (struct stream *s, uint64_t len)
{
  uint64_t offset;
  unsigned i;

  ck_assert_int_eq (alloc_packed (img, len, &offset), 0);
  ck_assert (is_aligned (offset, SECTOR));
  for (i = 0; i < STREAMS; ++i)
    if (streams[i].len > 0 && streams[i].offset < offset + len
        && offset < streams[i].offset + streams[i].len)
      ck_abort_msg ("two streams at %ju", (uintmax_t) offset);
  s->offset = offset;
  s->len = len;
  ck_counts (s, true);
}

static void
drop_stream (struct stream *s)
{
  const uint64_t first = s->offset >> img->cluster_bits;
  const uint64_t last = (s->offset + s->len - 1) >> img->cluster_bits;

  freed_give_back (img, first, last - first + 1);
  s->len = 0;
}

/* Streams come and go, among other clusters, with counts of every width.
 */
START_TEST (streams_and_counts)
{
  const uint64_t max = refcount_max ((uint32_t) _i);
  uint64_t random = 7, first, count;
  char options[60];
  bool zeroes;
  unsigned n;

  snprintf (options, sizeof options, "-o cluster_size=4k,refcount_bits=%u",
            1u << _i);
  make_image (options, "1M");
  ck_assert_int_eq (image_begin_writing (img), 0);
  ck_assert_int_eq (image_prepare_write (img), 0);
  memset (streams, 0, sizeof streams);
  for (n = 0; n < 3000; ++n) {
    struct stream *s;

    random = random * UINT64_C (6364136223846793005) + 1442695040888963407;
    s = &streams[(random >> 33) % STREAMS];
    if (s->len > 0)
      drop_stream (s);
    else
      add_stream (s, ((random >> 50) % 7 + 1) * SECTOR);
    if (s->len > 0)
      ck_assert_uint_le (count_of (s->offset >> img->cluster_bits), max);
    if (n % 50 == 0)
      ck_assert_int_eq (alloc_data (img, 1, &first, &count, &zeroes), 0);
    if (n % 16 == 0) {          /* the quarantine ends */
      freed_take (&img->freed);
      freed_release (img);
    }
  }
  freed_take (&img->freed);
  freed_release (img);
  for (n = 0; n < STREAMS; ++n)
    if (streams[n].len > 0)
      ck_counts (&streams[n], false);
  ck_assert_int_eq (image_stop (img), 0);
  image_close (img);
}
END_TEST

/* One behind another, on into the next cluster, and no half of a sector.
 */
START_TEST (packed)
{
  const unsigned n = 1000;
  uint64_t offset, last = 0, end = 0;
  unsigned i;

  make_image ("-o cluster_size=64k", "1M");
  ck_assert_int_eq (image_begin_writing (img), 0);
  for (i = 0; i < n; ++i) {
    ck_assert_int_eq (alloc_packed (img, 5 * SECTOR, &offset), 0);
    if (i > 0)
      ck_assert_uint_eq (offset, last + 5 * SECTOR);
    last = offset;
    end = offset + 5 * SECTOR;
  }
  ck_assert_uint_le (end, 5 * 64 * K + n * 5 * SECTOR);
  image_stop (img);
  image_close (img);
}
END_TEST

/* All that is in the packer's host cluster goes: it is given to another,
 * and the packer must not go on there.
 */
static uint64_t
leave (uint64_t *other)
{
  uint64_t offset, count;
  bool zeroes;

  make_image ("-o cluster_size=4k", "1M");
  ck_assert_int_eq (image_begin_writing (img), 0);
  ck_assert_int_eq (image_prepare_write (img), 0);
  ck_assert_int_eq (alloc_packed (img, SECTOR, &offset), 0);
  freed_give_back (img, offset >> 12, 1);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_int_eq (alloc_data (img, 1, other, &count, &zeroes), 0);
  ck_assert_uint_eq (*other, offset >> 12);
  ck_assert_int_eq (alloc_packed (img, SECTOR, &offset), 0);
  image_stop (img);
  image_close (img);
  return offset >> 12;
}

START_TEST (left_when_released)
{
  uint64_t other;

  ck_assert_uint_ne (leave (&other), other);
  sabotage_now = SABOTAGE_PACKER;
  ck_assert_uint_eq (leave (&other), other);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("compressed");
  TCase *tc = tcase_create ("compressed");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, NULL);
  tcase_add_loop_test (tc, kinds_of_clusters, 0, ARRAY_SIZE (images));
  tcase_add_test (tc, off);
  tcase_add_test (tc, sector_clusters);
  tcase_add_test (tc, write_fails);
  tcase_add_loop_test (tc, wrong_type, 0, 2);
  tcase_add_test (tc, nothing_stale);
  tcase_add_test (tc, cached);
  tcase_add_test (tc, bad_stream);
  tcase_add_test (tc, many_in_one_request);
  tcase_add_loop_test (tc, streams_and_counts, 0, 7);
  tcase_add_test (tc, packed);
  tcase_add_test (tc, left_when_released);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
