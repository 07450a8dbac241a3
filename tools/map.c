/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-overlap map: what the clusters of the file are there for, counted
 * and drawn (picture.c).
 *
 * Each cluster counts once.  A table that the active disk shares with
 * snapshots is active.
 */

#include <config.h>

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "map.h"
#include "report.h"

unsigned
map_class_of (const struct survey_piece *piece)
{
  switch (piece->kind) {
  case SURVEY_METADATA:
    return piece->type;
  case SURVEY_DATA:
    return CLASS_DATA;
  case SURVEY_SHARED:
    return CLASS_SHARED;
  case SURVEY_COMPRESSED:
    return CLASS_COMPRESSED;
  case SURVEY_SNAPSHOT:
    return CLASS_SNAPSHOT + MIN (piece->snapshot,
                                 (uint32_t) MAP_SNAPSHOTS - 1);
  case SURVEY_LEAKED:
  default:
    return CLASS_LEAKED;
  }
}

const char *
map_class_text (const struct map *m, unsigned class, char *buf, size_t len)
{
  const unsigned n = class - CLASS_SNAPSHOT;
  struct image_snapshot info;

  if (class_is_metadata (class))
    return overlap_type_name ((enum overlap_type) class);
  switch (class) {
  case CLASS_DATA:
    return m->facts.snapshots > 0 ? "data, in no snapshot" : "data";
  case CLASS_SHARED:
    return "data shared with snapshots";
  case CLASS_COMPRESSED:
    return "compressed data";
  case CLASS_LEAKED:
    return "leaked";
  case CLASS_FREE:
    return "free";
  default:
    break;
  }
  if (n == MAP_SNAPSHOTS - 1 && m->facts.snapshots > MAP_SNAPSHOTS)
    return "only in other snapshots";
  image_snapshot_info (m->img, n, &info);
  snprintf (buf, len, "only in %.60s", info.name);
  return buf;
}

static int
count (void *opaque, const struct survey_piece *piece)
{
  struct map *m = opaque;

  m->count[map_class_of (piece)] += piece->count;
  if (piece->kind == SURVEY_SNAPSHOT)
    m->snapshots[piece->snapshot] += piece->count;
  return 0;
}

static int
take_stock (struct map *m)
{
  uint64_t used = 0;
  unsigned i;
  int r;

  m->snapshots = calloc (m->facts.snapshots + 1, sizeof *m->snapshots);
  if (!m->snapshots) {
    report_error ("not enough memory");
    return -1;
  }
  r = image_survey (m->img, count, m);
  for (i = 0; i < CLASS_FREE; ++i)
    used += m->count[i];
  m->count[CLASS_FREE] = m->facts.clusters - used;
  return r;
}

/*----------------------------------------------------------------------
 * Text and JSON.
 */

static void
print_row (const struct map *m, const char *what, uint64_t clusters)
{
  char number[UNITS_MAX], bytes[UNITS_MAX], share[UNITS_MAX];

  printf ("  %-32s %14s %12s %10s\n", what, units_number (clusters, number),
          units_bytes (clusters << m->facts.cluster_bits, bytes),
          units_share (clusters, m->facts.clusters, share));
}

static void
print_outside (const struct map *m)
{
  char limit[UNITS_MAX], bytes[UNITS_MAX], share[UNITS_MAX];

  if (!m->limited)
    return;
  printf ("\nWith a limit of %s, %s of the metadata is protected",
          units_parameter (m->options->limits[0], limit),
          units_share (m->trial.tracked, m->trial.clusters, share));
  if (m->trial.n_outside == 0)
    printf (", and nothing is outside the map.\n");
  else
    printf (";\n%zu range%s of the file, %s, %s outside the map.\n",
            m->trial.n_outside, m->trial.n_outside > 1 ? "s" : "",
            units_bytes (trial_outside_bytes (&m->trial), bytes),
            m->trial.n_outside > 1 ? "are" : "is");
}

static void
print_text (const struct map *m)
{
  struct image_snapshot info;
  char text[80];
  unsigned i, k;

  tool_print_image (m->options, &m->facts);
  printf ("  %-32s %14s %12s %10s\n", "", "clusters", "size", "share");
  for (i = 0; i < CLASSES; ++i) {
    if (i == CLASS_SNAPSHOT) {  /* each, here */
      for (k = 0; k < m->facts.snapshots; ++k) {
        image_snapshot_info (m->img, k, &info);
        snprintf (text, sizeof text, "only in %.60s", info.name);
        print_row (m, text, m->snapshots[k]);
      }
      i = CLASS_LEAKED;
    }
    if (m->count[i] > 0)
      print_row (m, map_class_text (m, i, text, sizeof text), m->count[i]);
  }
  print_outside (m);
}

static json_t *
types_to_json (const struct map *m)
{
  json_t *types = json_object ();
  unsigned i;

  for (i = 0; i < OVERLAP_TYPES; ++i)
    json_object_set_new (types, overlap_type_name ((enum overlap_type) i),
                         json_integer ((json_int_t) m->count[i]));
  return types;
}

static json_t *
snapshots_to_json (const struct map *m)
{
  json_t *all = json_array ();
  struct image_snapshot info;
  uint32_t i;

  for (i = 0; i < m->facts.snapshots; ++i) {
    image_snapshot_info (m->img, i, &info);
    json_array_append_new (all, json_pack (
      "{s:o, s:o, s:I}", "id", tool_json_string (info.id),
      "name", tool_json_string (info.name),
      "clusters", (json_int_t) m->snapshots[i]));
  }
  return all;
}

static json_t *
outside_to_json (const struct map *m)
{
  json_t *all = json_array ();
  size_t i;

  for (i = 0; i < m->trial.n_outside; ++i)
    json_array_append_new (all, json_pack (
      "{s:I, s:I}", "start", (json_int_t) m->trial.outside[i].start,
      "length", (json_int_t) m->trial.outside[i].length));
  return all;
}

static void
print_json (const struct map *m)
{
  json_t *all = tool_image_to_json (m->options, &m->facts);

  json_object_update_new (all, json_pack (
    "{s:I, s:o, s:I, s:I, s:I, s:o, s:I, s:I}",
    "clusters", (json_int_t) m->facts.clusters,
    "metadata", types_to_json (m),
    "data", (json_int_t) m->count[CLASS_DATA],
    "shared-data", (json_int_t) m->count[CLASS_SHARED],
    "compressed-data", (json_int_t) m->count[CLASS_COMPRESSED],
    "snapshots", snapshots_to_json (m),
    "leaked", (json_int_t) m->count[CLASS_LEAKED],
    "free", (json_int_t) m->count[CLASS_FREE]));
  if (m->limited) {
    json_object_set_new (all, "limit", json_integer (
      (json_int_t) m->options->limits[0]));
    json_object_set_new (all, "outside", outside_to_json (m));
  }
  tool_print_json (all);
}

/*----------------------------------------------------------------------
 * All of it.
 */

static int
try_limit (struct map *m)
{
  if (m->options->n_limits == 0)
    return 0;
  if (!m->facts.sound) {
    report_error ("%s: its metadata is damaged, so that it is not known what "
                  "would be outside the map; leave out --limit",
                  m->options->image);
    return -1;
  }
  m->limited = true;
  return trial_run (m->img, false, m->options->bitmap_size,
                    m->options->limits[0], &m->trial);
}

int
map_main (const struct options *options)
{
  struct map m = { .options = options };
  int r;

  if (options->n_limits > 1) {
    report_error ("map: --limit can be given once");
    return STATUS_FAILED;
  }
  if (tool_open (options, &m.img) < 0)
    return STATUS_FAILED;
  offline_facts (m.img, &m.facts);
  r = take_stock (&m);
  if (r == 0)
    r = try_limit (&m);
  if (r == 0 && options->svg)
    r = picture_draw (&m, false, options->svg);
  if (r == 0 && options->png)
    r = picture_draw (&m, true, options->png);
  if (r == 0 && options->json)
    print_json (&m);
  else if (r == 0 && !options->quiet)
    print_text (&m);
  trial_free (&m.trial);
  free (m.snapshots);
  image_close (m.img);
  return tool_finish (r == 0 ? STATUS_OK : STATUS_FAILED);
}
