/* SPDX-License-Identifier: BSD-3-Clause */

/* What the statistics file says: Prometheus's text exposition format,
 * version 0.0.4.
 *
 * Every series bears the name of the image, so that the files of several
 * servers can be collected in one folder.  Names follow Prometheus's
 * rules: base units (seconds, bytes), counters end in _total.
 *
 * A histogram is written from counts of each bucket, so that its sums
 * agree with themselves whatever is counted meanwhile.
 *
 * Numbers are written as integers and decimal fractions made of integers:
 * what printf makes of a double depends on the locale.
 */

#include <config.h>

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "cleanup.h"
#include "event-line.h"
#include "stats.h"

#define PREFIX "nbdkit_qcow2_"

#define US UINT64_C (1000)
#define MS (1000 * US)
#define S  (1000 * MS)

const uint64_t stats_bounds[STATS_BUCKETS - 1] = {
  10 * US, 25 * US, 50 * US, 100 * US, 250 * US, 500 * US,
  MS, 5 * MS / 2, 5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS,
  500 * MS, S, 5 * S / 2, 5 * S, 10 * S
};

/* As the label "request". */
static const char *const kind_names[STATS_KINDS] = {
  "read", "write", "zero", "trim", "flush", "block_status", "cache"
};

struct text {
  FILE *f;
  const char *image;            /* escaped */
};

/* TEXT as the value of a label, which is UTF-8 with three characters
 * escaped.
 */
static char *
escape (const char *text)
{
  json_t *valid = event_string (text);
  const char *p = json_string_value (valid);
  char *result = p ? malloc (2 * strlen (p) + 1) : NULL, *to = result;

  for (; result && *p; p++) {
    if (*p == '\\' || *p == '"' || *p == '\n')
      *to++ = '\\';
    *to++ = *p;
    if (*p == '\n')
      to[-1] = 'n';
  }
  if (to)
    *to = '\0';
  json_decref (valid);
  return result;
}

/* The two lines that introduce a metric. */
static void
head (const struct text *t, const char *name, const char *type,
      const char *help)
{
  fprintf (t->f, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n",
           name, help, name, type);
}

/* One value.  KEY, the name of a second label, may be NULL. */
static void
value (const struct text *t, const char *name, const char *key,
       const char *label, uint64_t v)
{
  fprintf (t->f, PREFIX "%s{image=\"%s\"", name, t->image);
  if (key)
    fprintf (t->f, ",%s=\"%s\"", key, label);
  fprintf (t->f, "} %" PRIu64 "\n", v);
}

static void
counter (const struct text *t, const char *name, const char *help,
         uint64_t v)
{
  head (t, name, "counter", help);
  value (t, name, NULL, NULL, v);
}

static void
gauge (const struct text *t, const char *name, const char *help, uint64_t v)
{
  head (t, name, "gauge", help);
  value (t, name, NULL, NULL, v);
}

/* Nanoseconds as seconds, without zeroes at the end. */
static const char *
seconds (uint64_t ns, char buf[32])
{
  size_t len = (size_t) snprintf (buf, 32, "%" PRIu64 ".%09" PRIu64,
                                  ns / S, ns % S);

  while (buf[len - 1] == '0')
    buf[--len] = '\0';
  if (buf[len - 1] == '.')
    buf[--len] = '\0';
  return buf;
}

static void
duration (const struct text *t, const char *kind,
          const struct stats_kind_total *k)
{
  const char name[] = PREFIX "request_duration_seconds";
  uint64_t sum = 0;
  char buf[32];
  unsigned i;

  for (i = 0; i < STATS_BUCKETS; i++) {
    sum += k->count[i];
    fprintf (t->f, "%s_bucket{image=\"%s\",request=\"%s\",le=\"%s\"} %"
             PRIu64 "\n", name, t->image, kind,
             i < STATS_BUCKETS - 1 ? seconds (stats_bounds[i], buf) : "+Inf",
             sum);
  }
  fprintf (t->f, "%s_sum{image=\"%s\",request=\"%s\"} %s\n", name, t->image,
           kind, seconds (k->nanoseconds, buf));
  fprintf (t->f, "%s_count{image=\"%s\",request=\"%s\"} %" PRIu64 "\n",
           name, t->image, kind, sum);
}

static void
requests (const struct text *t, const struct stats_kind_total *kinds)
{
  unsigned i;

  head (t, "request_duration_seconds", "histogram",
        "Time from the arrival of a request to its answer.");
  for (i = 0; i < STATS_KINDS; i++)
    duration (t, kind_names[i], &kinds[i]);
  head (t, "request_bytes_total", "counter",
        "Bytes of the disk that answered requests were about.");
  for (i = 0; i < STATS_KINDS; i++)
    if (i != STATS_FLUSH)
      value (t, "request_bytes_total", "request", kind_names[i],
             kinds[i].bytes);
  head (t, "request_errors_total", "counter",
        "Requests that were answered with an error.");
  for (i = 0; i < STATS_KINDS; i++)
    value (t, "request_errors_total", "request", kind_names[i],
           kinds[i].errors);
  head (t, "requests_in_flight", "gauge",
        "Requests that are not answered yet.");
  for (i = 0; i < STATS_KINDS; i++)
    value (t, "requests_in_flight", "request", kind_names[i],
           kinds[i].in_flight);
}

static void
caches (const struct text *t, const struct image_stats *e)
{
  const struct {
    const char *name;
    uint64_t hits, misses;
  } c[] = {
    { "l2", e->l2_hits, e->l2_misses },
    { "refcount", e->refcount_hits, e->refcount_misses },
    { "decompressed", e->unpacked_hits, e->unpacked_misses },
  };
  unsigned i;

  head (t, "cache_hits_total", "counter",
        "Look-ups in a cache of the image that found something.");
  for (i = 0; i < 3; i++)
    value (t, "cache_hits_total", "cache", c[i].name, c[i].hits);
  head (t, "cache_misses_total", "counter",
        "Look-ups in a cache of the image that found nothing.");
  for (i = 0; i < 3; i++)
    value (t, "cache_misses_total", "cache", c[i].name, c[i].misses);
}

/* What the image is like, and what was done to it. */
static void
image (const struct text *t, const struct stats_snapshot *s)
{
  const struct image_stats *e = &s->engine;

  gauge (t, "disk_bytes", "Size of the disk that clients see.",
         s->disk_size);
  gauge (t, "image_file_bytes", "Length of the image file.", e->file_size);
  gauge (t, "image_corrupt", "1: the image is corrupt, nothing is written "
         "any more.", e->corrupt);
  gauge (t, "sync_failed", "1: a sync failed, writes fail until the server "
         "is started again.", e->failed);
  counter (t, "commits_total", "Commits of metadata.", e->commits);
  counter (t, "syncs_total", "Syncs of the image file.", e->syncs);
  counter (t, "clusters_allocated_total", "Host clusters that were handed "
           "out.", e->clusters_allocated);
  counter (t, "clusters_released_total", "Host clusters that became free.",
           e->clusters_released);
  gauge (t, "quarantined_clusters", "Host clusters that are freed by a "
         "commit to come.", e->quarantined);
}

static void
tracker (const struct text *t, const struct stats_snapshot *s)
{
  const struct image_stats *e = &s->engine;
  const struct overlap_stats *o = &e->overlap;

  counter (t, "overlap_checks_total", "Changes of the image file that were "
           "checked against its metadata.", e->guard_checks);
  counter (t, "overlap_refusals_total", "Changes that were refused because "
           "they would have hit metadata.", e->guard_refusals);
  counter (t, "overlap_outside_refusals_total", "Writes that "
           "overlap-limit=refuse refused.", e->outside_refusals);
  head (t, "tracker_memory_bytes", "gauge",
        "Memory that the map of metadata takes, by its parts.");
  value (t, "tracker_memory_bytes", "part", "directory", o->directory_bytes);
  value (t, "tracker_memory_bytes", "part", "runs", o->used
         - o->directory_bytes - o->bytemap_bytes
         - o->sieve_bytes - o->fixed_bytes);
  value (t, "tracker_memory_bytes", "part", "bytemap",
         o->bytemap_bytes);
  value (t, "tracker_memory_bytes", "part", "sieve", o->sieve_bytes);
  value (t, "tracker_memory_bytes", "part", "fixed", o->fixed_bytes);
  head (t, "tracker_memory_limit_bytes", "gauge",
        "overlap-structures.total-size-limit.");
  if (o->limit == UINT64_MAX)
    fprintf (t->f, PREFIX "tracker_memory_limit_bytes{image=\"%s\"} +Inf\n",
             t->image);
  else
    value (t, "tracker_memory_limit_bytes", NULL, NULL, o->limit);
  gauge (t, "tracker_windows", "Windows of the image file with metadata.",
         o->windows);
  gauge (t, "tracker_runs", "Runs of metadata in all windows.", o->runs);
  gauge (t, "tracker_outside_ranges", "Ranges of the image file outside the "
         "map for want of memory.", o->outside_ranges);
  gauge (t, "tracker_outside_clusters", "Host clusters in these ranges.",
         o->outside_clusters);
}

static void
events (const struct text *t, const struct stats_snapshot *s)
{
  unsigned i;

  head (t, "events_total", "counter", "Events, by their names.");
  for (i = 0; i < EVENT_KINDS; i++)
    value (t, "events_total", "event", event_name ((enum event_kind) i),
           s->events[i]);
  counter (t, "events_lost_total", "Events that did not reach a reader of "
           "event-log or event-socket.", s->events_lost);
}

char *
stats_text (const struct stats_snapshot *s)
{
  CLEANUP_FREE char *name = escape (s->image);
  char *buf = NULL;
  size_t len = 0;
  struct text t = { .image = name };
  bool good;

  t.f = name ? open_memstream (&buf, &len) : NULL;
  if (!t.f)
    return NULL;
  head (&t, "info", "gauge", "The program's version.");
  fprintf (t.f, PREFIX "info{image=\"%s\",version=\"%s\"} 1\n", name,
           PACKAGE_VERSION);
  gauge (&t, "serving", "1: the server runs; 0: it has ended, and this is "
         "its last word.", s->serving);
  gauge (&t, "start_time_seconds", "When the server was started, since "
         "1970.", s->start_seconds);
  requests (&t, s->kinds);
  if (s->has_engine) {
    image (&t, s);
    caches (&t, &s->engine);
    tracker (&t, s);
  }
  events (&t, s);
  good = !ferror (t.f);
  if (fclose (t.f) == 0 && good)
    return buf;
  free (buf);
  return NULL;
}
