/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: the name of a backing file, which is the whole input.
 *
 * What is accepted is a place that can be judged: a file's name as it
 * stands in the input, or a URI in which nothing but our own hand has put
 * what separates its parts.  What is refused is explained by one printable
 * line that says what to do.
 */

#include <config.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

static void
check_text (const struct format_error *e)
{
  const char *p;

  MUST (memchr (e->text, '\0', sizeof e->text) != NULL);
  for (p = e->text; *p; p++)
    MUST ((unsigned char) *p >= 0x20 && *p != 0x7f);
  MUST (strstr (e->text, "backing-file=") || strstr (e->text, "longer than"));
}

static unsigned
count (const char *text, char c)
{
  unsigned n = 0;

  for (; *text; text++)
    n += *text == c;
  return n;
}

/* Scheme, host, port, path and query are where they are expected. */
static void
check_uri (const char *uri, const char *name)
{
  const char *host = strstr (uri, "://"), *path;

  MUST (host);
  host += 3;
  path = strchr (host, '/');
  if (strncmp (name, "nbd+tcp:", 8) == 0) {
    MUST (strncmp (uri, "nbd://", 6) == 0 && strcmp (host, name + 10) == 0);
    return;
  }
  MUST (path && count (uri, '#') == 0 && count (uri, '@') == 0);
  if (strncmp (uri, "nbd+unix://", 11) == 0) {
    const char *query = strchr (path, '?');

    MUST (path == host && query && count (uri, '?') == 1);
    MUST (strncmp (query, "?socket=/", 9) == 0);
    MUST (count (query, '=') == 1 && count (uri, '&') == 0);
    return;
  }
  MUST (strncmp (uri, "nbd://", 6) == 0
        || strncmp (uri, "nbd+vsock://", 12) == 0);
  MUST (path > host && count (uri, '?') == 0);
  MUST (strspn (host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                "0123456789-._:[]") == (size_t) (path - host));
}

static void
check_name (const struct backing_name *n, const char *name)
{
  MUST (memchr (n->place, '\0', sizeof n->place) != NULL);
  MUST (n->place[0] != '\0');
  MUST (!n->format || strcmp (n->format, "qcow2") == 0
        || strcmp (n->format, "raw") == 0);
  MUST (n->windowed || (n->offset == 0 && n->size == UINT64_MAX));
  MUST (n->offset <= INT64_MAX);
  MUST (n->size == UINT64_MAX || (n->size <= INT64_MAX && n->size % 512 == 0));
  if (strncmp (name, "json:", 5) != 0)
    MUST (!n->format && !n->windowed && !n->no_backing && !n->backing
          && !n->data_file);
  if (n->is_uri)
    check_uri (n->place, name);
  else if (strncmp (name, "json:", 5) != 0)
    MUST (strstr (name, n->place));
}

/* What the name says of the files below: the same, but that a place may be
 * left to a header.
 */
static void
check_inner (const struct backing_name *n, unsigned depth)
{
  MUST (depth < 32);
  MUST (!n->backing || !n->no_backing);
  MUST (!n->format || strcmp (n->format, "raw") != 0
        || (!n->backing && !n->data_file));
  if (n->data_file) {
    MUST (n->data_file->place[0] != '\0' && !n->data_file->backing);
    check_name (n->data_file, "json:");
  }
  if (!n->backing)
    return;
  if (n->backing->place[0] != '\0')
    check_name (n->backing, "json:");
  check_inner (n->backing, depth + 1);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct format_error e = { "" };
  struct backing_name n;
  char *name = malloc (size + 1);

  MUST (name != NULL);
  memcpy (name, data, size);
  name[size] = '\0';
  if (*name && backing_name_parse (name, &n, &e) == 0) {
    check_name (&n, name);
    check_inner (&n, 0);
    backing_name_clear (&n);
  }
  else if (*name)
    check_text (&e);
  free (name);
  return 0;
}
