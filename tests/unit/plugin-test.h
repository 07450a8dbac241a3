/* SPDX-License-Identifier: BSD-3-Clause */

/* The plugin between an engine and an nbdkit that are played: the real
 * nbdkit never shows some of what it may do.  plugin-fake-engine.c and
 * plugin-fake-nbdkit.c play; this is what tests set and see of them.
 */

#ifndef QCOW2_PLUGIN_TEST_H
#define QCOW2_PLUGIN_TEST_H

#include <check.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "image.h"
#include "run-suite.h"

struct nbdkit_plugin *plugin_init (void);

struct extent { uint64_t offset, len; unsigned status; };

/* The active disk, and the views of snapshots. */
struct image { int dummy; };
extern struct image the_image;
extern struct image views[8];
extern int views_open[ARRAY_SIZE (views)];

/* The engine: what it answers, and what it was asked last. */
extern struct engine {
  int open_result, begin_result, result;
  bool writable;
  uint64_t cluster_size;
  const struct extent *extents;
  const struct image_snapshot *snapshots;
  uint32_t nr_snapshots;
  const struct image_bitmap *bitmaps;
  uint32_t nr_bitmaps;
  int64_t asked_bitmap;         /* -1: none */

  unsigned calls, begins, flushes, starts, stops, closes;
  struct image *asked;          /* by the last read */
  uint64_t offset, len;
  unsigned flags;
  bool fua, one;
} engine;

/* nbdkit: which export its client wants, and what it was told. */
extern struct told {
  const char *export_name;
  int error;
  char message[1024];
  struct extent extents[16];
  unsigned nr_extents;
  char exports[2000];           /* names, each followed by a space */
} told;

/* What nbdkit sees of the plugin. */
static struct nbdkit_plugin *p;

static inline void
set_up (void)
{
  engine = (struct engine) { .writable = true, .cluster_size = 65536,
                             .asked_bitmap = -1 };
  told = (struct told) { .export_name = "" };
  memset (views_open, 0, sizeof views_open);
  p = plugin_init ();
  p->load ();
}

static inline void
configure (void)
{
  ck_assert_int_eq (p->config ("file", "disk.qcow2"), 0);
  ck_assert_int_eq (p->config_complete (), 0);
}

/* As far as a client that may write. */
static inline void *
serve (void)
{
  void *h;

  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  ck_assert_int_eq (p->after_fork (), 0);
  h = p->open (0);
  ck_assert_ptr_nonnull (h);
  return h;
}

/* A suite of one case, with a plugin that has just been loaded. */
static inline TCase *
plugin_case (Suite *suite)
{
  TCase *tc = tcase_create ("plugin");

  tcase_add_checked_fixture (tc, set_up, NULL);
  suite_add_tcase (suite, tc);
  return tc;
}

#endif /* QCOW2_PLUGIN_TEST_H */
