/* SPDX-License-Identifier: BSD-3-Clause */

/* What qemu-img makes must pass, whatever it was asked for: headers with
 * their extensions, snapshot tables and bitmap directories.
 */

#include <config.h>

#include "bitmap.h"
#include "format-test.h"
#include "qemu-img.h"
#include "snapshot.h"

static const char *const cluster_sizes[] = {
  "512", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k",
  "512k", "1M", "2M",
};

/* The image, decoded. */
struct decoded {
  uint8_t *buf;
  size_t len;
  uint64_t file_size;
  struct header h;
};

static void
decode_file (const char *name, struct decoded *d)
{
  struct format_error e;
  uint64_t cluster_size;

  d->buf = read_file (name, &d->len);
  d->file_size = file_size (name);
  ck_accepted (name, header_probe (d->buf, MIN (d->len, (size_t) 512),
                                   &cluster_size, &e), &e);
  ck_accepted (name, header_decode (d->buf, MIN (d->len, cluster_size),
                                    d->file_size, &d->h, &e), &e);
  ck_assert_uint_eq (d->h.cluster_size, cluster_size);
}

/* Make an image of SIZE with these options, decode it, remove it. */
static struct header
made_with (const char *options, const char *size)
{
  struct temporary t;
  struct decoded d;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o %s %s %s", options, t.name, size);
  decode_file (t.name, &d);
  temporary_remove (&t);
  free (d.buf);
  return d.h;
}

/* Cluster sizes: from 512 bytes to 2 MiB. */
START_TEST (matrix)
{
  static const char *const sizes[] = { "0", "1", "1000001", "100M", "30G" };
  const char *cluster = cluster_sizes[_i];
  char options[200];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (sizes); i++) {
    struct header h;

    snprintf (options, sizeof options, "compat=0.10,cluster_size=%s",
              cluster);
    h = made_with (options, sizes[i]);
    ck_assert_uint_eq (h.version, 2);
    ck_assert_uint_eq (h.cluster_bits, 9 + (unsigned) _i);
    ck_assert_uint_eq (h.refcount_order, 4);

    snprintf (options, sizeof options, "compat=1.1,cluster_size=%s",
              cluster);
    h = made_with (options, sizes[i]);
    ck_assert_uint_eq (h.version, 3);
    ck_assert_uint_ge (h.l1_size,
                       header_l1_entries (h.cluster_bits, false, h.size));
  }
}
END_TEST

START_TEST (refcount_bits)
{
  static const char *const clusters[] = { "512", "64k", "2M" };
  char options[200];
  size_t i;

  for (i = 0; i < ARRAY_SIZE (clusters); i++) {
    struct header h;

    snprintf (options, sizeof options, "cluster_size=%s,refcount_bits=%d",
              clusters[i], 1 << _i);
    h = made_with (options, "1G");
    ck_assert_int_eq ((int) h.refcount_order, _i);
  }
}
END_TEST

START_TEST (features)
{
  struct header h;

  h = made_with ("compression_type=zstd,lazy_refcounts=on", "10M");
  ck_assert_uint_eq (h.incompatible, INCOMPAT_COMPRESSION);
  ck_assert_uint_eq (h.compatible, COMPAT_LAZY_REFCOUNTS);
  ck_assert_uint_eq (h.compression_type, COMPRESSION_ZSTD);

  h = made_with ("extended_l2=on,cluster_size=16k", "10M");
  ck_assert_uint_eq (h.incompatible, INCOMPAT_EXTL2);
  h = made_with ("extended_l2=on", "64T");
  ck_assert_uint_eq (h.incompatible, INCOMPAT_EXTL2);

  h = made_with ("preallocation=metadata", "100M");
  ck_assert_uint_eq (h.size, 100 << 20);
  h = made_with ("preallocation=falloc,cluster_size=512", "3M");
  ck_assert_uint_eq (h.size, 3 << 20);
  h = made_with ("preallocation=full,compat=0.10", "1M");
  ck_assert_uint_eq (h.size, 1 << 20);
}
END_TEST

/* The largest tables that QEMU makes. */
START_TEST (largest)
{
  struct header h;

  h = made_with ("cluster_size=512", "128G");
  ck_assert_uint_eq (h.l1_size, MAX_L1_BYTES / 8);
  h = made_with ("cluster_size=64k", "2P");
  ck_assert_uint_eq (h.l1_size, MAX_L1_BYTES / 8);
  h = made_with ("cluster_size=2M", "64T");
  ck_assert_uint_eq (h.size, UINT64_C (64) << 40);
}
END_TEST

START_TEST (backing)
{
  static const char *const compat[] = { "0.10", "1.1" };
  struct temporary base, overlay;
  struct decoded d;

  temporary_name (&base, "raw");
  temporary_name (&overlay, "qcow2");
  qemu_img ("create -f raw %s 1M", base.name);
  qemu_img ("create -f qcow2 -o compat=%s -b %s -F raw %s", compat[_i],
            base.name, overlay.name);
  decode_file (overlay.name, &d);
  ck_assert_str_eq (d.h.backing_file, base.name);
  ck_assert_str_eq (d.h.backing_format, "raw");
  free (d.buf);

  qemu_img ("rebase -u -b '' %s", overlay.name);
  decode_file (overlay.name, &d);
  ck_assert_str_eq (d.h.backing_file, "");
  ck_assert_str_eq (d.h.backing_format, "");
  free (d.buf);
  temporary_remove (&base);
  temporary_remove (&overlay);
}
END_TEST

START_TEST (data_file)
{
  struct temporary image, data;
  struct decoded d;

  temporary_name (&image, "qcow2");
  temporary_name (&data, "raw");
  qemu_img ("create -f qcow2 -o data_file=%s,data_file_raw=on %s 1M",
            data.name, image.name);
  decode_file (image.name, &d);
  ck_assert_uint_eq (d.h.incompatible, INCOMPAT_DATA_FILE);
  ck_assert_uint_eq (d.h.autoclear, AUTOCLEAR_DATA_FILE_RAW);
  ck_assert_str_eq (d.h.data_file, data.name);
  free (d.buf);
  temporary_remove (&image);
  temporary_remove (&data);
}
END_TEST

/* qemu-img times its key derivation with the thread's CPU clock, and gives
 * up where the kernel counts that in ticks and none has passed: ask again.
 */
static void
qemu_img_encrypted (const char *format, uint32_t method, const char *name)
{
  char command[300];
  int r;

  snprintf (command, sizeof command,
            "qemu-img create -f qcow2 --object secret,id=s,data=abc"
            " -o encrypt.format=%s,encrypt.key-secret=s%s %s 1M >/dev/null",
            format, method == CRYPT_LUKS ? ",encrypt.iter-time=10" : "", name);
  for (int tries = 0; (r = system (command)) != 0 && tries < 200; tries++)
    ;
  ck_assert_msg (r == 0, "failed: %s", command);
}

START_TEST (encrypted)
{
  static const struct {
    const char *format;
    uint32_t method;
  } kinds[] = { { "luks", CRYPT_LUKS }, { "aes", CRYPT_AES } };
  struct temporary t;
  struct decoded d;

  temporary_name (&t, "qcow2");
  qemu_img_encrypted (kinds[_i].format, kinds[_i].method, t.name);
  decode_file (t.name, &d);
  ck_assert_uint_eq (d.h.crypt_method, kinds[_i].method);
  ck_assert (d.h.has_crypto == (kinds[_i].method == CRYPT_LUKS));
  if (d.h.has_crypto)
    ck_assert (memcmp (d.buf + d.h.crypto_offset, "LUKS\xba\xbe", 6) == 0);
  free (d.buf);
  temporary_remove (&t);
}
END_TEST

/* Snapshots, one of them taken at another size where that is allowed. */
START_TEST (snapshots)
{
  static const char *const options[] = {
    "compat=0.10", "compat=1.1", "compat=1.1,cluster_size=512",
    "compat=1.1,cluster_size=2M", "compat=1.1,refcount_bits=64",
  };
  const bool v3 = _i > 0;
  struct snapshot_table table;
  struct format_error e;
  struct temporary t;
  struct decoded d;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o %s %s 1000000", options[_i], t.name);
  qemu_img ("snapshot -c one %s", t.name);
  if (v3)
    qemu_img ("resize %s 3000320", t.name);
  qemu_img ("snapshot -c 'the second' %s", t.name);
  decode_file (t.name, &d);
  temporary_remove (&t);

  ck_assert_uint_eq (d.h.nb_snapshots, 2);
  ck_accepted ("table",
               snapshot_table_decode (d.buf + d.h.snapshots_offset,
                                      d.len - d.h.snapshots_offset, 2,
                                      d.h.cluster_size, d.file_size, &table,
                                      &e), &e);
  ck_assert_str_eq (table.v[0].id, "1");
  ck_assert_str_eq (table.v[0].name, "one");
  ck_assert_str_eq (table.v[1].id, "2");
  ck_assert_str_eq (table.v[1].name, "the second");
  ck_assert (table.v[0].has_disk_size);
  /* qemu-img makes disks of whole sectors. */
  ck_assert_uint_eq (table.v[0].disk_size, 1000448);
  ck_assert_uint_eq (table.v[1].disk_size, v3 ? 3000320 : 1000448);
  ck_assert_uint_eq (d.h.size, table.v[1].disk_size);
  ck_assert_uint_gt (table.v[0].date_sec, 1000000000);
  snapshot_table_free (&table);
  free (d.buf);
}
END_TEST

START_TEST (bitmaps)
{
  struct bitmap_directory dir;
  struct format_error e;
  struct temporary t;
  struct decoded d;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=4k %s 100M", t.name);
  qemu_img ("bitmap --add -g 64k %s daily", t.name);
  qemu_img ("bitmap --add -g 512 --disable %s 'another one'", t.name);
  decode_file (t.name, &d);
  ck_assert (d.h.has_bitmaps);
  ck_assert_uint_eq (d.h.nb_bitmaps, 2);
  ck_assert_uint_eq (d.h.autoclear, AUTOCLEAR_BITMAPS);
  ck_accepted ("directory",
               bitmap_directory_decode (d.buf + d.h.bitmap_directory_offset,
                                        d.h.bitmap_directory_size, 2,
                                        d.h.cluster_size, d.file_size, &dir,
                                        &e), &e);
  ck_assert_str_eq (dir.v[0].name, "daily");
  ck_assert_uint_eq (dir.v[0].granularity_bits, 16);
  ck_assert_uint_eq (dir.v[0].flags, BITMAP_AUTO);
  ck_assert_str_eq (dir.v[1].name, "another one");
  ck_assert_uint_eq (dir.v[1].granularity_bits, 9);
  ck_assert_uint_eq (dir.v[1].flags, 0);
  ck_assert_uint_eq (dir.v[1].table_size, 100 * 2048 / 8 / 4096 + 1);
  bitmap_directory_free (&dir);
  free (d.buf);

  qemu_img ("bitmap --remove %s daily", t.name);
  qemu_img ("bitmap --remove %s 'another one'", t.name);
  decode_file (t.name, &d);
  ck_assert (!d.h.has_bitmaps);
  ck_assert_uint_eq (d.h.autoclear, 0);
  free (d.buf);
  temporary_remove (&t);
}
END_TEST

/* Tables that had to grow, and a disk that shrank: its L1 table may stay
 * larger than needed.
 */
START_TEST (resized)
{
  struct temporary t;
  struct decoded d;

  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=512 %s 1M", t.name);
  qemu_img ("resize %s 16M", t.name);
  decode_file (t.name, &d);
  ck_assert_uint_eq (d.h.size, 16 << 20);
  free (d.buf);
  qemu_img ("resize --shrink %s 1M", t.name);
  decode_file (t.name, &d);
  ck_assert_uint_eq (d.h.size, 1 << 20);
  free (d.buf);
  qemu_img ("amend -o refcount_bits=64 %s", t.name);
  decode_file (t.name, &d);
  ck_assert_uint_eq (d.h.refcount_order, 6);
  free (d.buf);
  qemu_img ("amend -o refcount_bits=16 %s", t.name);
  qemu_img ("amend -o compat=0.10 %s", t.name);
  decode_file (t.name, &d);
  ck_assert_uint_eq (d.h.version, 2);
  free (d.buf);
  temporary_remove (&t);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("format-images");
  TCase *tc = tcase_create ("images");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, matrix, 0, ARRAY_SIZE (cluster_sizes));
  tcase_add_loop_test (tc, refcount_bits, 0, 7);
  tcase_add_test (tc, features);
  tcase_add_test (tc, largest);
  tcase_add_loop_test (tc, backing, 0, 2);
  tcase_add_test (tc, data_file);
  tcase_add_loop_test (tc, encrypted, 0, 2);
  tcase_add_loop_test (tc, snapshots, 0, 5);
  tcase_add_test (tc, bitmaps);
  tcase_add_test (tc, resized);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
