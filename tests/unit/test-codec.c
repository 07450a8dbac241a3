/* SPDX-License-Identifier: BSD-3-Clause */

/* Unpacking, with streams that zlib and libzstd make and with clusters
 * that "qemu-img convert -c" packed; then streams that are cut short,
 * damaged, too long, or followed by something else.  Packing, so that
 * others can unpack it.
 */

#include <config.h>

#include <zlib.h>
#include <zstd.h>

#include "codec.h"
#include "format-test.h"
#include "l2.h"
#include "qemu-img.h"

#define MAX_STREAM (3 << 20)

static uint8_t *data, *out, *stream;
static struct codec *codecs[3]; /* by type, used again and again */

static void
setup (void)
{
  uint64_t state = 9;
  size_t i;

  data = malloc (MAX_CLUSTER_SIZE);
  stream = malloc (MAX_STREAM);
  ck_assert (data && stream);
  /* Text-like: few different bytes, some of it repeated from before. */
  for (i = 0; i < MAX_CLUSTER_SIZE; i++) {
    state = state * UINT64_C (6364136223846793005) + 1442695040888963407;
    data[i] = i > 5000 && (i / 300) % 3 == 0 ? data[i - 4097]
      : (uint8_t) ("abcdefgh"[state >> 61]);
  }
}

static void
teardown (void)
{
  size_t i;

  free (data);
  free (stream);
  for (i = 0; i < ARRAY_SIZE (codecs); i++) {
    codec_free (codecs[i]);
    codecs[i] = NULL;
  }
}

/* Unpack exactly LEN bytes of IN, nothing before or after which may be
 * touched, into OUT_LEN bytes, nothing after which may.
 */
static int
unpack (enum compression_type type, const uint8_t *in, size_t len,
        size_t out_len)
{
  uint8_t *exact = malloc (len ? len : 1);
  int r;

  out = malloc (out_len);
  ck_assert (exact && out);
  memcpy (exact, in, len);
  memset (out, 0xaa, out_len);
  if (!codecs[type])
    codecs[type] = codec_create (type);
  ck_assert_ptr_nonnull (codecs[type]);
  r = codec_unpack (codecs[type], exact, len, out, out_len);
  free (exact);
  return r;
}

static void
ck_unpacks (enum compression_type type, size_t len, size_t cluster)
{
  ck_assert_int_eq (unpack (type, stream, len, cluster), 0);
  ck_assert (memcmp (out, data, cluster) == 0);
  free (out);
}

static void
ck_eio (enum compression_type type, size_t len, size_t cluster)
{
  ck_assert_int_eq (unpack (type, stream, len, cluster), -EIO);
  free (out);
}

/* Pack LEN bytes of data to the end of a stream of *AT bytes. */
static void
deflate_data (size_t *at, size_t from, size_t len, int window, int flush)
{
  z_stream s = {
    .next_in = data + from, .avail_in = (uInt) len,
    .next_out = stream + *at, .avail_out = (uInt) (MAX_STREAM - *at),
  };

  ck_assert_int_eq (deflateInit2 (&s, 6, Z_DEFLATED, -window, 8,
                                  Z_DEFAULT_STRATEGY), Z_OK);
  ck_assert_int_eq (deflate (&s, flush),
                    flush == Z_FINISH ? Z_STREAM_END : Z_OK);
  *at += s.total_out;
  deflateEnd (&s);
}

static void
zstd_data (size_t *at, size_t from, size_t len, int level, int checksum)
{
  ZSTD_CCtx *ctx = ZSTD_createCCtx ();
  size_t n;

  ZSTD_CCtx_setParameter (ctx, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter (ctx, ZSTD_c_checksumFlag, checksum);
  n = ZSTD_compress2 (ctx, stream + *at, MAX_STREAM - *at, data + from, len);
  ck_assert (!ZSTD_isError (n));
  *at += n;
  ZSTD_freeCCtx (ctx);
}

/* Every cluster size, with every window that zlib can be told. */
START_TEST (deflate_sizes)
{
  const size_t cluster = (size_t) 1 << _i;
  int window;

  for (window = 9; window <= 15; window++) {
    size_t len = 0;

    deflate_data (&len, 0, cluster, window, Z_FINISH);
    ck_unpacks (COMPRESSION_DEFLATE, len, cluster);
    /* Followed by rubbish. */
    memset (stream + len, 0xff, 1000);
    ck_unpacks (COMPRESSION_DEFLATE, len + 1000, cluster);
  }
}
END_TEST

/* The stream holds more than a cluster: the first one counts. */
START_TEST (deflate_longer)
{
  size_t len = 0;

  deflate_data (&len, 0, 70000, 12, Z_FINISH);
  ck_unpacks (COMPRESSION_DEFLATE, len, 65536);
}
END_TEST

/* The stream does not end where the cluster does, and goes on with what
 * is no deflate.
 */
START_TEST (deflate_no_end)
{
  size_t len = 0;

  deflate_data (&len, 0, 65536, 12, Z_SYNC_FLUSH);
  ck_unpacks (COMPRESSION_DEFLATE, len, 65536);
  memset (stream + len, 0xff, 1000);
  ck_unpacks (COMPRESSION_DEFLATE, len + 1000, 65536);
}
END_TEST

START_TEST (deflate_short)
{
  size_t len = 0, cut;

  deflate_data (&len, 0, 4096, 12, Z_FINISH);
  /* The end mark takes at most the last two bytes. */
  for (cut = 0; cut < len - 2; cut++)
    ck_eio (COMPRESSION_DEFLATE, cut, 4096);
  ck_eio (COMPRESSION_DEFLATE, len, 4097);
  ck_eio (COMPRESSION_DEFLATE, len, 8192);
}
END_TEST

START_TEST (zstd_sizes)
{
  static const int levels[] = { 1, 3, 19 };
  const size_t cluster = (size_t) 1 << _i;
  size_t i, len;

  for (i = 0; i < 2 * ARRAY_SIZE (levels); i++) {
    len = 0;
    zstd_data (&len, 0, cluster, levels[i / 2], i % 2);
    ck_unpacks (COMPRESSION_ZSTD, len, cluster);
    memset (stream + len, 0xff, 1000);
    ck_unpacks (COMPRESSION_ZSTD, len + 1000, cluster);
  }
}
END_TEST

/* Several frames, one of them empty, one of them to be skipped. */
START_TEST (zstd_frames)
{
  static const uint8_t skippable[] = {
    0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'
  };
  size_t len = 0;

  zstd_data (&len, 0, 1000, 3, 0);
  zstd_data (&len, 1000, 0, 3, 1);
  memcpy (stream + len, skippable, sizeof skippable);
  len += sizeof skippable;
  zstd_data (&len, 1000, 64535, 3, 1);
  ck_eio (COMPRESSION_ZSTD, len, 65536);
  zstd_data (&len, 65535, 1, 3, 1);
  ck_unpacks (COMPRESSION_ZSTD, len, 65536);
}
END_TEST

/* The cluster must be full at the end of a frame. */
START_TEST (zstd_longer)
{
  size_t len = 0;

  zstd_data (&len, 0, 65537, 3, 0);
  ck_eio (COMPRESSION_ZSTD, len, 65536);
  len = 0;
  zstd_data (&len, 0, 60000, 3, 0);
  zstd_data (&len, 60000, 6000, 3, 0);
  ck_eio (COMPRESSION_ZSTD, len, 65536);
}
END_TEST

START_TEST (zstd_short)
{
  size_t len = 0, cut;

  zstd_data (&len, 0, 4096, 3, 1);
  for (cut = 0; cut < len; cut++)
    ck_eio (COMPRESSION_ZSTD, cut, 4096);
  ck_eio (COMPRESSION_ZSTD, len, 4097);
  stream[len - 1] ^= 1;         /* the checksum */
  ck_eio (COMPRESSION_ZSTD, len, 4096);
}
END_TEST

/* A frame that asks for a window of 2 GiB, which streaming would have to
 * allocate, costs nothing here.
 */
START_TEST (zstd_window)
{
  static const uint8_t frame[] = {
    0x28, 0xb5, 0x2f, 0xfd,     /* magic */
    0x00,                       /* no content size, no checksum */
    21 << 3,                    /* window of 2^31 bytes */
    0x03, 0x20, 0x00, 'w',      /* last block: 1024 times 'w' */
  };

  memset (data, 'w', 1024);
  memcpy (stream, frame, sizeof frame);
  ck_unpacks (COMPRESSION_ZSTD, sizeof frame, 1024);
}
END_TEST

/* Damage anywhere ends with an error or with some data. */
START_TEST (garbage)
{
  const enum compression_type type =
    _i ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE;
  uint64_t state = 4;
  size_t len = 0;
  unsigned n;
  int r;

  if (type == COMPRESSION_ZSTD)
    zstd_data (&len, 0, 4096, 3, 0);
  else
    deflate_data (&len, 0, 4096, 12, Z_FINISH);
  for (n = 0; n < 3000; n++) {
    size_t at;
    uint8_t saved;

    state = state * UINT64_C (6364136223846793005) + 1;
    at = (size_t) (state >> 33) % len;
    saved = stream[at];
    stream[at] ^= (uint8_t) (1u << (state >> 61));
    r = unpack (type, stream, len, 4096);
    if (r != 0 && r != -EIO)
      ck_abort_msg ("byte %zu: %d", at, r);
    free (out);
    stream[at] = saved;
  }
  /* Zero bytes, and the wrong kind. */
  memset (stream, 0, 1000);
  ck_eio (type, 1000, 512);
  ck_eio (type, 0, 512);
  len = 0;
  if (type == COMPRESSION_ZSTD)
    deflate_data (&len, 0, 4096, 12, Z_FINISH);
  else
    zstd_data (&len, 0, 4096, 3, 0);
  ck_eio (type, len, 4096);
}
END_TEST

START_TEST (unknown_type)
{
  ck_eio ((enum compression_type) 2, 100, 512);
}
END_TEST

/* Every cluster size.  A deflate stream must do with a window of 12 bits.
 */
START_TEST (packing)
{
  const size_t cluster = (size_t) 512 << _i / 2;
  const enum compression_type type =
    _i % 2 ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE;
  struct codec *codec = codec_create (type);
  z_stream s = { .next_in = stream, .next_out = NULL };
  size_t n = 0, again;

  ck_assert_int_eq (codec_pack (codec, data, cluster, stream, cluster, &n),
                    0);
  ck_assert_uint_lt (n, cluster);
  ck_unpacks (type, n, cluster);
  if (type == COMPRESSION_DEFLATE) {
    out = malloc (cluster);
    ck_assert_int_eq (inflateInit2 (&s, -12), Z_OK);
    s.next_out = out;
    s.avail_in = (uInt) n;
    s.avail_out = (uInt) cluster;
    ck_assert_int_eq (inflate (&s, Z_FINISH), Z_STREAM_END);
    ck_assert_uint_eq (s.avail_out, 0);
    inflateEnd (&s);
    free (out);
  }
  /* The same codec, whatever happened before. */
  ck_assert_int_eq (codec_pack (codec, data, cluster, stream, 0, &again), 1);
  ck_assert_int_eq (codec_pack (codec, data, cluster, stream, n / 2, &again),
                    1);
  ck_assert_int_eq (codec_pack (codec, data, cluster, stream, cluster - 1,
                                &again), 0);
  ck_assert_uint_eq (again, n);
  ck_unpacks (type, n, cluster);
  codec_free (codec);
}
END_TEST

/* All compressed clusters of an image that qemu-img packed. */
static unsigned
unpack_image (const uint8_t *image, size_t size, const uint8_t *disk)
{
  struct format_error e;
  struct header h;
  unsigned found = 0;
  uint64_t i, j;

  ck_accepted ("packed image", header_decode (image, size, size, &h, &e), &e);
  for (i = 0; i < h.l1_size; i++) {
    const uint64_t l2 = load_be64 (image + h.l1_table_offset + i * 8)
      & ENTRY_OFFSET;

    for (j = 0; l2 && j < h.cluster_size / 8; j++) {
      const uint64_t entry = load_be64 (image + l2 + j * 8);
      const uint64_t guest = (i * h.cluster_size / 8 + j) * h.cluster_size;
      struct compressed_place p;

      if (!(entry & ENTRY_COMPRESSED))
        continue;
      ck_assert (l2_compressed_place (entry, h.cluster_bits, &p));
      ck_assert_uint_lt (p.offset, size);
      /* The last sector of the file may be short. */
      ck_assert_int_eq (unpack ((enum compression_type) h.compression_type,
                                image + p.offset,
                                MIN (p.length, size - p.offset),
                                h.cluster_size), 0);
      ck_assert (memcmp (out, disk + guest, h.cluster_size) == 0);
      free (out);
      found++;
    }
  }
  return found;
}

START_TEST (by_qemu_img)
{
  static const struct {
    const char *type, *cluster_size;
    unsigned clusters;
  } kinds[] = {
    { "zlib", "512", 4096 }, { "zlib", "4k", 512 }, { "zlib", "64k", 32 },
    { "zlib", "2M", 1 },
    { "zstd", "512", 4096 }, { "zstd", "4k", 512 }, { "zstd", "64k", 32 },
    { "zstd", "2M", 1 },
  };
  struct temporary raw, packed;
  uint8_t *image;
  size_t size;

  temporary_name (&raw, "raw");
  temporary_name (&packed, "qcow2");
  write_file (raw.name, data, MAX_CLUSTER_SIZE);
  qemu_img ("convert -c -f raw -O qcow2 -o cluster_size=%s,"
            "compression_type=%s %s %s", kinds[_i].cluster_size,
            kinds[_i].type, raw.name, packed.name);
  image = read_file (packed.name, &size);
  temporary_remove (&raw);
  temporary_remove (&packed);
  ck_assert_uint_eq (unpack_image (image, size, data), kinds[_i].clusters);
  free (image);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("codec");
  TCase *tc = tcase_create ("codec");
  /* valgrind takes minutes for the large ones, and packing is most of it. */
  const int most = getenv ("QCOW2_VALGRIND") ? 16 : 22;

  tcase_set_timeout (tc, 120);
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_loop_test (tc, deflate_sizes, 9, most);
  tcase_add_test (tc, deflate_longer);
  tcase_add_test (tc, deflate_no_end);
  tcase_add_test (tc, deflate_short);
  tcase_add_loop_test (tc, zstd_sizes, 9, most);
  tcase_add_test (tc, zstd_frames);
  tcase_add_test (tc, zstd_longer);
  tcase_add_test (tc, zstd_short);
  tcase_add_test (tc, zstd_window);
  tcase_add_loop_test (tc, garbage, 0, 2);
  tcase_add_test (tc, unknown_type);
  tcase_add_loop_test (tc, packing, 0, 2 * (most - 9));
  if (have_qemu_img ())
    tcase_add_loop_test (tc, by_qemu_img, 0, 8);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
