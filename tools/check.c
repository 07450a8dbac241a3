/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-overlap check: the library's consistency check, with the exit
 * statuses and the JSON fields of 'qemu-img check'.  It looks for one thing
 * more: guest data in clusters of metadata, "overlaps".
 *
 * Single mistakes are lines on standard error, the result is on standard
 * output.
 */

#include <config.h>

#include <inttypes.h>
#include <jansson.h>
#include <string.h>

#include "checked.h"
#include "report.h"
#include "tool.h"

/* (QEMU counts whole sectors, so a disk of one byte has none.) */
static uint64_t
total_clusters (const struct offline_facts *facts)
{
  return div_up (round_down (facts->size, 512),
                 UINT64_C (1) << facts->cluster_bits);
}

/* What a repair took away; it may have met more on the way. */
static uint64_t
fixed (uint64_t found, uint64_t left)
{
  return found > left ? found - left : 0;
}

static void
print_mistakes (uint64_t errors, uint64_t leaks)
{
  char buf[UNITS_MAX];

  printf ("%s error%s, ", units_number (errors, buf),
          errors == 1 ? "" : "s");
  printf ("%s leaked cluster%s", units_number (leaks, buf),
          leaks == 1 ? "" : "s");
}

/* What to do now, for those who have not read the manual page. */
static void
print_advice (enum image_check repair, const struct image_check_result *res)
{
  if (res->errors_left + res->overlaps > 0 && repair == CHECK_ALL)
    printf ("What is left cannot be repaired in place: copy the disk from a "
            "server of this\nimage (nbdkit -r) into a new one.\n");
  else if (res->errors_left + res->overlaps > 0)
    printf ("Keep a copy of the image, then repair it with --repair all.\n");
  else if (res->leaks_left > 0)
    printf ("Leaks do no harm; --repair leaks gives the space back.\n");
}

static void
print_text (const char *name, enum image_check repair,
            const struct offline_facts *facts,
            const struct image_check_result *res)
{
  char a[UNITS_MAX], b[UNITS_MAX], c[UNITS_MAX], d[UNITS_MAX];

  printf ("%s: ", name);
  print_mistakes (res->errors, res->leaks);
  if (res->overlaps > 0)
    printf (", guest data upon metadata in %s place%s",
            units_number (res->overlaps, a), res->overlaps == 1 ? "" : "s");
  if (res->repaired) {
    printf ("; after the repair: ");
    print_mistakes (res->errors_left, res->leaks_left);
  }
  printf ("\n");
  if (res->unseen)
    printf ("Broken pointers could not be followed: there may be more, and "
            "what seems to be leaked may be in use.\n");
  printf ("%s of %s guest clusters allocated (%s), %s compressed",
          units_number (res->allocated, a),
          units_number (total_clusters (facts), b),
          units_share (res->allocated, total_clusters (facts), c),
          units_number (res->compressed, d));
  printf (", %s fragmented\n", units_number (res->fragmented, a));
  printf ("Image end offset: %" PRIu64 "\n", res->end);
  if (res->faults > 0)
    printf ("The header has faults that 'qemu-img check' does not look at: "
            "the image is not served,\nnor repaired, as it is.\n");
  else
    print_advice (repair, res);
}

static void
set (json_t *all, const char *key, uint64_t value, bool always)
{
  if (value > 0 || always)
    json_object_set_new (all, key, json_integer ((json_int_t) value));
}

static void
print_json (const char *name, const struct offline_facts *facts,
            const struct image_check_result *res)
{
  json_t *all = json_pack ("{s:o, s:s}", "filename", tool_json_string (name),
                           "format", "qcow2");

  set (all, "check-errors", 0, true);
  set (all, "image-end-offset", res->end, true);
  set (all, "total-clusters", total_clusters (facts), false);
  set (all, "allocated-clusters", res->allocated, false);
  set (all, "compressed-clusters", res->compressed, false);
  set (all, "fragmented-clusters", res->fragmented, false);
  set (all, "corruptions", res->errors_left, false);
  set (all, "corruptions-fixed", fixed (res->errors, res->errors_left),
       false);
  set (all, "leaks", res->leaks_left, false);
  set (all, "leaks-fixed", fixed (res->leaks, res->leaks_left), false);
  set (all, "overlaps", res->overlaps, false);
  set (all, "header-faults", res->faults, false);
  tool_print_json (all);
}

static int
status (const struct image_check_result *res)
{
  if (res->errors_left + res->overlaps > 0)
    return STATUS_CORRUPT;
  return res->leaks_left > 0 ? STATUS_LEAKS : STATUS_OK;
}

int
check_main (const struct options *options)
{
  struct image_check_result res;
  struct offline_facts facts;
  struct image *img;

  if (tool_open_and_check (options, &img, &res) < 0)
    return STATUS_FAILED;
  offline_facts (img, &facts);
  image_close (img);
  if (options->json)
    print_json (options->image, &facts, &res);
  else if (!options->quiet)
    print_text (options->image, options->repair, &facts, &res);
  return tool_finish (status (&res));
}
