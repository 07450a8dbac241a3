/* SPDX-License-Identifier: BSD-3-Clause */

/* For the tests of events: numbered events, and readers that see whether
 * each has come or was counted as lost.
 */

#ifndef QCOW2_EVENT_TEST_H
#define QCOW2_EVENT_TEST_H

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "plugin.h"

static inline double
seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return (double) t.tv_sec + (double) t.tv_nsec / 1e9;
}

/* Events FROM to TO - 1; the number is the event's "start". */
static inline void
emit (uint64_t from, uint64_t to)
{
  struct event e = {
    .kind = EVENT_OVERLAP_PROTECTION_RESTORED, .image = "disk.qcow2",
    .size = 65536
  };

  for (e.offset = from; e.offset < to; e.offset++)
    events_sink (NULL, &e);
}

/* One line of F as an object; NULL at the end. */
static inline json_t *
next_event (FILE *f)
{
  static char *line;
  static size_t size;
  ssize_t len = getline (&line, &size, f);
  json_t *root, *stamp;

  if (len == -1)
    return NULL;
  ck_assert_int_eq (line[len - 1], '\n');
  line[len - 1] = '\0';
  root = json_loads (line, JSON_REJECT_DUPLICATES, NULL);
  ck_assert_msg (root != NULL, "not JSON: %s", line);
  ck_assert_uint_eq (json_object_size (root), 3);
  stamp = json_object_get (root, "timestamp");
  ck_assert (llabs (json_integer_value (json_object_get (stamp, "seconds"))
                    - (json_int_t) time (NULL)) < 3600);
  ck_assert (json_integer_value (json_object_get (stamp, "microseconds"))
             < 1000000);
  return root;
}

static inline uint64_t
event_number (const json_t *root, const char *key)
{
  return (uint64_t) json_integer_value
    (json_object_get (json_object_get (root, "data"), key));
}

struct losses {
  uint64_t events, lines;       /* lost; that said so */
};

/* The numbers of the events rise by one from FROM to TO - 1; where they do
 * not, a line says how many are missing.  Reads until all are accounted
 * for, also if the last ones are missing.  Takes some PAUSE microseconds
 * for a line.
 */
static inline struct losses
follow (FILE *f, uint64_t from, uint64_t to, unsigned pause)
{
  struct losses lost = { 0, 0 };
  uint64_t next = from, n;

  while (next < to) {
    json_t *root = next_event (f);
    const json_t *data = json_object_get (root, "data");

    ck_assert_msg (root != NULL, "the end, after %u", (unsigned) next);
    ck_assert_str_eq (json_string_value (json_object_get (data, "image")),
                      "disk.qcow2");
    if (strcmp (json_string_value (json_object_get (root, "event")),
                "QCOW2_EVENTS_LOST") == 0) {
      n = event_number (root, "count");
      ck_assert_uint_gt (n, 0);
      next += n;
      lost.events += n;
      lost.lines++;
    }
    else
      ck_assert_uint_eq (event_number (root, "start"), next++);
    json_decref (root);
    if (pause)
      usleep (pause);
  }
  ck_assert_uint_eq (next, to);
  return lost;
}

/* The same, and nothing is lost. */
static inline void
follow_all (FILE *f, uint64_t from, uint64_t to)
{
  ck_assert_uint_eq (follow (f, from, to, 0).events, 0);
}

#endif /* QCOW2_EVENT_TEST_H */
