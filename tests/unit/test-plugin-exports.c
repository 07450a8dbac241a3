/* SPDX-License-Identifier: BSD-3-Clause */

/* Which name is which export: the active disk, snapshots, and bitmaps. */

#include <config.h>

#include "plugin-test.h"

static char buffer[512];

/* The export without a name is there, and no other. */
START_TEST (test_active_disk)
{
  void *h = serve ();

  told.export_name = "other\nname";
  ck_assert_ptr_null (p->open (0));
  ck_assert_str_eq (told.message, "export 'other?name': there is no such "
                    "export, expected '' (the active disk)");
  told.export_name = NULL;
  ck_assert_ptr_null (p->open (0));
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (told.exports, " ");
  ck_assert_str_eq (p->default_export (0, 0), "");
  ck_assert_str_eq (p->export_description (h), "an image");
  p->close (h);
}
END_TEST

static const struct image_snapshot snapshots[] = {
  { .id = "1", .name = "2" },
  { .id = "2", .name = "same" },
  { .id = "3", .name = "same" },
  { .id = "4", .name = "" },
  { .id = "5", .name = "tw\no" },
  { .id = "6", .name = "\xc3\xbc" },
  { .id = "7", .name = "\xc3(" },
  { .id = "2", .name = "" },    /* cannot be named */
};

/* Which name is which snapshot? */
START_TEST (test_snapshots)
{
  static const struct { const char *name; int index; } names[] = {
    { "snapshot:2", 0 }, { "snapshot:1", 0 }, { "snapshot:same", 1 },
    { "snapshot:3", 2 }, { "snapshot-id:3", 2 }, { "snapshot-id:2", 1 },
    { "snapshot:", 3 }, { "snapshot:tw\no", 4 }, { "snapshot:nosuch", -1 },
    { "snapshot-id:same", -1 }, { "snapshot", -1 }, { "same", -1 },
    { "snapshot-id:", -1 }
  };
  void *h = serve (), *s1, *s2;
  size_t i;

  engine.snapshots = snapshots;
  engine.nr_snapshots = ARRAY_SIZE (snapshots);
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (told.exports, " snapshot:2 snapshot:same snapshot-id:3 "
                    "snapshot-id:4 snapshot-id:5 snapshot:\xc3\xbc "
                    "snapshot-id:7 ");
  for (i = 0; i < ARRAY_SIZE (names); i++) {
    told.export_name = names[i].name;
    s1 = p->open (0);
    ck_assert_msg (!s1 == (names[i].index < 0), "%s", names[i].name);
    if (!s1)
      continue;
    ck_assert_int_eq (p->can_write (s1), 0);
    ck_assert_int_eq (p->get_size (s1), names[i].index + 1);
    ck_assert_int_eq (p->pread (s1, buffer, 1, 0, 0), 0);
    ck_assert_ptr_eq (engine.asked, &views[names[i].index]);
    ck_assert_str_ne (p->export_description (s1), "an image");
    /* One engine for all its connections. */
    s2 = p->open (1);
    ck_assert_ptr_nonnull (s2);
    p->close (s1);
    ck_assert_int_eq (views_open[names[i].index], 1);
    p->close (s2);
    ck_assert_int_eq (views_open[names[i].index], 0);
  }
  /* The writer beside them is still the last to leave. */
  ck_assert_uint_eq (engine.flushes, 0);
  p->close (h);
  ck_assert_uint_eq (engine.flushes, 1);

  /* It cannot be opened; nobody closes it. */
  told.export_name = "snapshot:same";
  engine.open_result = -EIO;
  ck_assert_ptr_null (p->open (0));
  engine.open_result = 0;
  ck_assert_ptr_nonnull (p->open (0));
  p->cleanup ();
  p->unload ();
  ck_assert_int_eq (views_open[1], 0);
  ck_assert_uint_eq (engine.closes, 1);
}
END_TEST

static const struct image_bitmap bitmaps[] = {
  { .name = "daily", .granularity = 65536, .recording = true },
  { .name = "lost", .unusable = "it is inconsistent" },
  { .name = "tw\no", .granularity = 512 },
  { .name = "weekly", .granularity = 4096 },
};

/* The active disk with the block status of a bitmap. */
START_TEST (test_bitmaps)
{
  static const struct extent extents[] = { { 0, 100, 1 }, { 100, 100, 0 },
                                           { 0, 0, 0 } };
  void *h = serve (), *b1, *b2;

  engine.bitmaps = bitmaps;
  engine.nr_bitmaps = ARRAY_SIZE (bitmaps);
  engine.extents = extents;
  ck_assert_int_eq (p->list_exports (0, 0, NULL), 0);
  ck_assert_str_eq (told.exports, " bitmap:daily bitmap:weekly ");
  told.export_name = "bitmap:nosuch";
  ck_assert_ptr_null (p->open (0));
  told.export_name = "bitmap:lost";
  ck_assert_ptr_null (p->open (0));
  ck_assert_str_eq (told.message, "export 'bitmap:lost': it is inconsistent");

  told.export_name = "bitmap:tw\no";
  b1 = p->open (0);
  told.export_name = "bitmap:weekly";
  b2 = p->open (0);
  ck_assert (b1 && b2 && b1 != b2);
  ck_assert_int_eq (p->can_write (b2), 0);
  ck_assert_int_eq (p->get_size (b2), INT64_C (1) << 40);
  ck_assert_int_eq (p->pread (b2, buffer, 1, 0, 0), 0);
  ck_assert_ptr_eq (engine.asked, &the_image);
  ck_assert_int_eq (p->extents (b2, 200, 0, 0, NULL), 0);
  ck_assert_int_eq (engine.asked_bitmap, 3);
  ck_assert_uint_eq (told.nr_extents, 2);
  ck_assert_uint_eq (told.extents[0].status, NBDKIT_EXTENT_HOLE);
  ck_assert_uint_eq (told.extents[1].status, 0);
  engine.asked_bitmap = -1;
  ck_assert_int_eq (p->extents (h, 200, 0, 0, NULL), 0);
  ck_assert_int_eq (engine.asked_bitmap, -1);
  p->close (b1);
  p->close (b2);
  ck_assert_uint_eq (engine.flushes, 0);
  p->close (h);
  ck_assert_uint_eq (engine.flushes, 1);
  ck_assert_uint_eq (engine.closes, 0);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-exports");
  TCase *tc = plugin_case (suite);

  tcase_add_test (tc, test_active_disk);
  tcase_add_test (tc, test_snapshots);
  tcase_add_test (tc, test_bitmaps);
  return run_suite (suite);
}
