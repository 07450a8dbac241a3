/* SPDX-License-Identifier: BSD-3-Clause */

/* Events as lines of JSON, in the form of QEMU's machine protocol: one
 * object a line, with a time, a name and data.
 *
 * Takes no locks.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "cleanup.h"
#include "event-line.h"

json_t *
event_string (const char *text)
{
  CLEANUP_FREE char *copy = NULL;
  json_t *s = json_string (text);
  char *p;

  if (s || !text)
    return s;
  copy = strdup (text);
  if (!copy)
    return NULL;
  for (p = copy; *p; p++)
    if ((unsigned char) *p >= 0x80)
      *p = '?';
  return json_string (copy);
}

/* JSON's numbers are signed here. */
static json_int_t
to_json_int (uint64_t v)
{
  return v > INT64_MAX ? INT64_MAX : (json_int_t) v;
}

static void
set_int (json_t *data, const char *key, uint64_t v)
{
  json_object_set_new (data, key, json_integer (to_json_int (v)));
}

static json_t *
event_data (const struct event *e)
{
  json_t *data = json_pack ("{s:o}", "image", event_string (e->image));

  if (!data)
    return NULL;
  if (e->kind == EVENT_IMAGE_CORRUPTED) {
    /* The node is the export; there is only the one named "". */
    json_object_set_new (data, "node-name", json_string (""));
    json_object_set_new (data, "msg", event_string (e->msg));
    if (e->has_range) {
      set_int (data, "offset", e->offset);
      set_int (data, "size", e->size);
    }
    json_object_set_new (data, "fatal", json_boolean (e->fatal));
    return data;
  }
  set_int (data, "start", e->offset);
  set_int (data, "length", e->size);
  if (e->kind == EVENT_OVERLAP_MEMORY_LIMIT_REACHED) {
    set_int (data, "limit", e->limit);
    set_int (data, "used", e->used);
    json_object_set_new (data, "policy", event_string (e->policy));
    json_object_set_new (data, "protected", json_boolean (e->is_protected));
  }
  return data;
}

/* The whole line.  Takes over DATA. */
static char *
make_line (const char *name, json_t *data)
{
  struct timeval now;
  json_t *root;
  char *text, *line;
  size_t len;

  if (!data)
    return NULL;
  gettimeofday (&now, NULL);
  root = json_pack ("{s:{s:I, s:I}, s:s, s:o}",
                    "timestamp",
                    "seconds", (json_int_t) now.tv_sec,
                    "microseconds", (json_int_t) now.tv_usec,
                    "event", name, "data", data);
  text = root ? json_dumps (root, JSON_PRESERVE_ORDER) : NULL;
  json_decref (root);
  if (!text)
    return NULL;
  len = strlen (text);
  line = realloc (text, len + 2);
  if (!line) {
    free (text);
    return NULL;
  }
  line[len] = '\n';
  line[len + 1] = '\0';
  return line;
}

char *
event_line (const struct event *e)
{
  return make_line (event_name (e->kind), event_data (e));
}

char *
event_line_lost (const char *image, uint64_t count)
{
  return make_line ("QCOW2_EVENTS_LOST",
                    json_pack ("{s:o, s:I}", "image", event_string (image),
                               "count", to_json_int (count)));
}
