/* SPDX-License-Identifier: BSD-3-Clause */

/* Names that are options of QEMU's block layer: "json:{...}".
 *
 * The object describes a stack of nodes, each of which has a driver and
 * stands on the one that is its "file":
 *
 *     {"driver": "qcow2", "file": {"driver": "file", "filename": "base"}}
 *
 * An inner object may be spelled by dots, too ("file.filename": "base").
 * QEMU makes one flat list of dotted keys of it, and so does this.  Then
 * the stack is followed from the top, at most
 *
 *     qcow2 or raw -> raw, any number -> file, host_device or nbd
 *
 * where a raw node, one at most, may cut out a part ("offset", "size").  A
 * qcow2 node may have a "backing" beside its "file", which is such a stack
 * again and replaces what the header of that file names (null: nothing is
 * below it), and a "data-file".  QEMU writes both into names itself, if the
 * files were given so when it opened them.
 *
 * Every key that is understood is taken from the list; those that only
 * tell QEMU how to go about it (caches, threads, locks, its own names) are
 * taken and forgotten.  A key that is left over in the end is refused, for
 * nobody knows what the disk would be with it; so is a key that comes
 * twice, in whichever spelling.
 *
 * QEMU's JSON has strings in single quotes, too.  The JSON itself is
 * jansson's matter.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name-internal.h"
#include "checked.h"
#include "cleanup.h"

#define MAX_DEPTH 32            /* of objects */
#define MAX_STACK 8             /* of nodes */
#define MAX_OPTIONS 170         /* each takes 6 bytes of a name at least */
#define MAX_KEY 320             /* bytes, with the dots */

struct option {
  char key[MAX_KEY];
  json_t *value;                /* a scalar, or an array; borrowed */
  bool taken;
};

struct options {
  unsigned count;
  struct option list[MAX_OPTIONS];
};

/* Options of a node that cannot change what is read: how it is opened,
 * locked, cached and written, and what QEMU calls it.  The secret of an
 * encrypted image is known to QEMU alone, too.  A dot at the end stands for
 * all that begins so.
 */
static const char *const harmless[] = {
  "aio", "aio-max-batch", "auto-read-only", "cache.direct",
  "cache.no-flush", "detect-zeroes", "discard", "drop-cache",
  "force-share", "locking", "node-name", "pr-manager", "read-only",
  "x-check-cache-dropped",
};
static const char *const harmless_qcow2[] = {
  "cache-clean-interval", "cache-size", "discard-no-unref",
  "encrypt.format", "encrypt.key-secret", "l2-cache-entry-size",
  "l2-cache-size", "lazy-refcounts", "overlap-check", "overlap-check.",
  "pass-discard-other", "pass-discard-request", "pass-discard-snapshot",
  "refcount-cache-size",
};
static const char *const harmless_nbd[] = {
  "open-timeout", "reconnect-delay", "server.keep-alive", "tls-hostname",
};

/* Flattening. */

static struct option *
find (struct options *o, const char *key)
{
  unsigned i;

  for (i = 0; i < o->count; i++)
    if (strcmp (o->list[i].key, key) == 0)
      return &o->list[i];
  return NULL;
}

/* (Messages have no more than the beginning of a key, so that there is room
 * for what is to be done.)
 */
static int
add (struct options *o, const char *key, json_t *value,
     struct format_error *e)
{
  if (find (o, key))
    return format_fail (e, -EINVAL, "'%.100s' is there twice; " GIVE_ANOTHER,
                        key);
  if (o->count == ARRAY_SIZE (o->list))
    return format_fail (e, -E2BIG, "it has more than %d keys; " GIVE_ANOTHER,
                        MAX_OPTIONS);
  snprintf (o->list[o->count].key, MAX_KEY, "%s", key);
  o->list[o->count++].value = value;
  return 0;
}

static int
flatten (struct options *o, json_t *object, const char *prefix,
         unsigned depth, struct format_error *e)
{
  const char *name;
  json_t *value;
  int r = 0;

  if (depth == MAX_DEPTH)
    return format_fail (e, -EINVAL, "its objects are nested more than %d "
                        "deep; " GIVE_ANOTHER, MAX_DEPTH);
  json_object_foreach (object, name, value) {
    const bool inner = json_is_object (value);
    char key[MAX_KEY];

    if (snprintf (key, sizeof key, "%s%s%s", prefix, name, inner ? "." : "")
        >= MAX_KEY)
      return format_fail (e, -EINVAL, "'%.40s%.60s' is not a key that is "
                          "known here; " GIVE_ANOTHER, prefix, name);
    r = inner ? flatten (o, value, key, depth + 1, e)
      : add (o, key, value, e);
    if (r < 0)
      return r;
  }
  return 0;
}

/* Taking. */

/* Is there any option whose key begins with PREFIX? */
static bool
has_below (const struct options *o, const char *prefix)
{
  const size_t len = strlen (prefix);
  unsigned i;

  for (i = 0; i < o->count; i++)
    if (strncmp (o->list[i].key, prefix, len) == 0)
      return true;
  return false;
}

/* The option NAME of the node whose keys begin with NODE, or NULL. */
static struct option *
take (struct options *o, const char *node, const char *name)
{
  struct option *option;
  char key[MAX_KEY];

  if (snprintf (key, sizeof key, "%s%s", node, name) >= MAX_KEY)
    return NULL;
  option = find (o, key);
  if (option)
    option->taken = true;
  return option;
}

/* *TEXT: NULL if it is not there.  A NUMBER may be meant, and is put into
 * BUF.
 */
static int
take_text (struct options *o, const char *node, const char *name,
           char *buf, size_t len, const char **text, struct format_error *e)
{
  const struct option *option = take (o, node, name);

  *text = NULL;
  if (!option)
    return 0;
  if (buf && json_is_integer (option->value)) {
    snprintf (buf, len, "%" JSON_INTEGER_FORMAT,
              json_integer_value (option->value));
    *text = buf;
    return 0;
  }
  *text = json_string_value (option->value);
  return *text ? 0 : format_fail (e, -EINVAL, "'%.100s' is not a string; "
                                  GIVE_ANOTHER, option->key);
}

static int
take_string (struct options *o, const char *node, const char *name,
             const char **text, struct format_error *e)
{
  return take_text (o, node, name, NULL, 0, text, e);
}

/* *SIZE, in bytes, stays as it is if the option is not there. */
static int
take_size (struct options *o, const char *node, const char *name,
           uint64_t *size, bool *there, struct format_error *e)
{
  char buf[32];
  const char *text;
  char *end;
  int r = take_text (o, node, name, buf, sizeof buf, &text, e);

  if (r < 0 || !text)
    return r;
  errno = 0;
  *size = strtoull (text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno || *size > INT64_MAX)
    return format_fail (e, -EINVAL, "'%.100s%s' is '%.60s', not a number of "
                        "bytes below 2^63; " GIVE_ANOTHER, node, name, text);
  *there = true;
  return 0;
}

static void
take_harmless (struct options *o, const char *node,
               const char *const *names, size_t count)
{
  size_t i;
  unsigned j;

  for (i = 0; i < count; i++) {
    const size_t len = strlen (names[i]);

    for (j = 0; j < o->count; j++) {
      const char *key = o->list[j].key;
      const size_t n = strlen (node);

      if (strncmp (key, node, n) == 0 && strncmp (key + n, names[i], len) == 0
          && (names[i][len - 1] == '.' || key[n + len] == '\0'))
        o->list[j].taken = true;
    }
  }
}

/* Nodes. */

static bool
is (const char *text, const char *word)
{
  return text && strcmp (text, word) == 0;
}

/* The part that a raw node cuts out. */
static int
window (struct options *o, const char *node, struct backing_name *n,
        struct format_error *e)
{
  uint64_t offset = 0, size = UINT64_MAX;
  bool windowed = false;
  int r = take_size (o, node, "offset", &offset, &windowed, e);

  if (r == 0)
    r = take_size (o, node, "size", &size, &windowed, e);
  if (r < 0 || !windowed)
    return r;
  if (n->windowed)
    return format_fail (e, -ENOTSUP, "'%.60soffset' or '%.60ssize' cuts out "
                        "a part of a part; " EXPORT_IT, node, node);
  if (size != UINT64_MAX && !is_aligned (size, 512))
    return format_fail (e, -EINVAL, "'%.100ssize' is %" PRIu64 ", which is "
                        "not a multiple of 512; " GIVE_ANOTHER, node, size);
  n->windowed = true;
  n->offset = offset;
  n->size = size;
  return 0;
}

/* (A backing of the backing file need not say which, or where: the header
 * there does.)
 */
static bool
may_inherit (const char *node)
{
  return strncmp (node, "backing.", 8) == 0 && !strstr (node, "data-file.");
}

static int
parse_file (struct options *o, const char *node, struct backing_name *n,
            struct format_error *e)
{
  const char *filename;
  int r = take_string (o, node, "filename", &filename, e);

  if (r < 0 || (!filename && may_inherit (node)))
    return r;
  if (!filename)
    return format_fail (e, -EINVAL, "'%.100sfilename' is missing; "
                        GIVE_ANOTHER, node);
  return backing_name_file (filename, n, e);
}

/* Where an NBD server is: all three find it below NODE. */
static int
nowhere (const char *node, const char *what, struct format_error *e)
{
  return format_fail (e, -EINVAL, "it does not say where its NBD server is "
                      "('%.100s%s' is missing); " GIVE_ANOTHER, node, what);
}

static int
parse_unix (struct options *o, const char *node, const char *export,
            struct backing_name *n, struct format_error *e)
{
  const char *path;
  int r = take_string (o, node, "path", &path, e);

  if (r < 0)
    return r;
  return path ? backing_name_unix (path, export, n, e)
    : nowhere (node, "path", e);
}

static int
parse_inet (struct options *o, const char *node, const char *export,
            struct backing_name *n, struct format_error *e)
{
  const char *host, *port = NULL;
  char number[32];
  int r = take_string (o, node, "host", &host, e);

  if (r == 0)
    r = take_text (o, node, "port", number, sizeof number, &port, e);
  if (r < 0)
    return r;
  return host ? backing_name_tcp (host, port, export, n, e)
    : nowhere (node, "host", e);
}

static int
parse_vsock (struct options *o, const char *node, const char *export,
             struct backing_name *n, struct format_error *e)
{
  const char *cid, *port = NULL;
  char first[32], second[32];
  int r = take_text (o, node, "cid", first, sizeof first, &cid, e);

  if (r == 0)
    r = take_text (o, node, "port", second, sizeof second, &port, e);
  if (r < 0)
    return r;
  return cid && port ? backing_name_vsock (cid, port, export, n, e)
    : nowhere (node, cid ? "port" : "cid", e);
}

/* By the key "server", or in the older way, which has its keys in the node
 * itself.
 */
static int
parse_server (struct options *o, const char *node, const char *export,
              struct backing_name *n, struct format_error *e)
{
  char server[MAX_KEY + 8], path[MAX_KEY + 8];
  const char *type;
  int r;

  snprintf (server, sizeof server, "%sserver.", node);
  snprintf (path, sizeof path, "%spath", node);
  r = take_string (o, server, "type", &type, e);
  if (r < 0)
    return r;
  if (!type)
    return find (o, path) ? parse_unix (o, node, export, n, e)
      : parse_inet (o, node, export, n, e);
  if (strcmp (type, "unix") == 0)
    return parse_unix (o, server, export, n, e);
  if (strcmp (type, "inet") == 0)
    return parse_inet (o, server, export, n, e);
  if (strcmp (type, "vsock") == 0)
    return parse_vsock (o, server, export, n, e);
  return format_fail (e, -ENOTSUP, "'%.100stype' is '%.60s' (inet, unix and "
                      "vsock are served); " GIVE_ANOTHER, server, type);
}

static int
parse_nbd (struct options *o, const char *node, struct backing_name *n,
           struct format_error *e)
{
  const char *export;
  int r = take_string (o, node, "export", &export, e);

  if (r < 0)
    return r;
  if (take (o, node, "tls-creds"))
    return format_fail (e, -ENOTSUP, "'%.100stls-creds' means an object of "
                        "one QEMU's command line; give backing-file=nbds://"
                        "HOST/EXPORT (see nbdkit-qcow2-plugin(1))", node);
  take_harmless (o, node, harmless_nbd, ARRAY_SIZE (harmless_nbd));
  return parse_server (o, node, export, n, e);
}

static int
parse_protocol (struct options *o, const char *node, const char *driver,
                struct backing_name *n, struct format_error *e)
{
  take_harmless (o, node, harmless, ARRAY_SIZE (harmless));
  if (!driver || strcmp (driver, "file") == 0
      || strcmp (driver, "host_device") == 0)
    return parse_file (o, node, n, e);
  if (strcmp (driver, "nbd") == 0)
    return parse_nbd (o, node, n, e);
  return format_fail (e, -ENOTSUP, "'%.100sdriver' is '%.40s' (qcow2, raw, "
                      "file, host_device and nbd are served); " EXPORT_IT,
                      node, driver);
}

/* What NODE, below one of a format, stands on: a stack of raw nodes. */
static int
parse_place (struct options *o, const char *node, struct backing_name *n,
             struct format_error *e)
{
  char place[MAX_KEY + 8 * MAX_STACK + 16];
  const char *driver;
  unsigned depth;
  int r = 0;

  snprintf (place, sizeof place, "%s", node);
  for (depth = 0; r == 0 && depth < MAX_STACK; depth++) {
    const size_t len = strlen (place);

    r = take_string (o, place, "driver", &driver, e);
    if (r < 0 || !is (driver, "raw"))
      return r < 0 ? r : parse_protocol (o, place, driver, n, e);
    take_harmless (o, place, harmless, ARRAY_SIZE (harmless));
    r = window (o, place, n, e);
    snprintf (place + len, sizeof place - len, "file.");
  }
  return r < 0 ? r : format_fail (e, -EINVAL, "its nodes are stacked more "
                                  "than %d high; " GIVE_ANOTHER, MAX_STACK);
}

/* Another name, for what is given at the key NAME of the node NODE; *RET
 * stays NULL if nothing is.  KEY gets the beginning of its keys.
 */
static int
begin_inner (struct options *o, const char *node, const char *name,
             char key[MAX_KEY], struct backing_name **ret,
             struct format_error *e)
{
  struct backing_name *inner;

  if (snprintf (key, MAX_KEY, "%s%s.", node, name) >= MAX_KEY
      || !has_below (o, key))
    return 0;
  inner = calloc (1, sizeof *inner);
  if (!inner)
    return format_fail (e, -ENOMEM, "%s", strerror (ENOMEM));
  inner->size = UINT64_MAX;
  *ret = inner;
  return 0;
}

static int
parse_data_file (struct options *o, const char *node, struct backing_name *n,
                 struct format_error *e)
{
  char key[MAX_KEY];
  int r = begin_inner (o, node, "data-file", key, &n->data_file, e);

  return r == 0 && n->data_file ? parse_place (o, key, n->data_file, e) : r;
}

/* What is below the node NODE: what its header says, nothing, or what is
 * given, to be parsed from the keys that begin with KEY.  A string is the
 * name of a node of one QEMU, but an empty one is an older way to write null.
 */
static int
parse_backing (struct options *o, const char *node, struct backing_name *n,
               char key[MAX_KEY], struct format_error *e)
{
  struct option *backing = take (o, node, "backing");

  if (!backing)
    return begin_inner (o, node, "backing", key, &n->backing, e);
  n->no_backing = json_is_null (backing->value)
    || is (json_string_value (backing->value), "");
  return n->no_backing ? 0
    : format_fail (e, -ENOTSUP, "'%.100s' is the name of a node in one QEMU, "
                   "not of a file; " GIVE_ANOTHER, backing->key);
}

/* The top node of a stack, if it is one of a format: the others are below
 * it.  Without a driver the image tells its format elsewhere.
 */
static int
parse_format (struct options *o, const char *node, const char *driver,
              struct backing_name *n, struct format_error *e)
{
  int r = 0;

  take_harmless (o, node, harmless, ARRAY_SIZE (harmless));
  if (!is (driver, "qcow2")) {
    r = window (o, node, n, e);
    n->format = driver || n->windowed ? "raw" : NULL;
  }
  else {
    n->format = "qcow2";
    take_harmless (o, node, harmless_qcow2, ARRAY_SIZE (harmless_qcow2));
  }
  return r == 0 && !is (n->format, "raw") ? parse_data_file (o, node, n, e)
    : r;
}

/* The stack at NODE, from its top to its bottom.  BELOW gets the keys of
 * N->backing, if there is one.
 */
static int
parse_stack (struct options *o, const char *node, struct backing_name *n,
             char below[MAX_KEY], struct format_error *e)
{
  char file[MAX_KEY + 8];
  const char *driver;
  int r = take_string (o, node, "driver", &driver, e);

  if (r < 0)
    return r;
  if (driver && strcmp (driver, "qcow2") != 0 && strcmp (driver, "raw") != 0) {
    n->format = "raw";
    return parse_protocol (o, node, driver, n, e);
  }
  r = parse_format (o, node, driver, n, e);
  if (r == 0)
    r = parse_backing (o, node, n, below, e);
  if (r == 0 && n->backing && is (n->format, "raw"))
    r = format_fail (e, -EINVAL, "'%.100sfile.*' is below a raw file, which "
                     "has nothing below it; " GIVE_ANOTHER, below);
  snprintf (file, sizeof file, "%sfile.", node);
  return r == 0 ? parse_place (o, file, n, e) : r;
}

/* The stack of the name, and the stacks that are below each other. */
static int
parse_stacks (struct options *o, struct backing_name *n,
              struct format_error *e)
{
  char node[MAX_KEY] = "", below[MAX_KEY] = "";
  int r;

  for (; n; n = n->backing) {
    r = parse_stack (o, node, n, below, e);
    if (r < 0)
      return r;
    memcpy (node, below, sizeof node);
  }
  return 0;
}

/* What nobody has taken is not understood. */
static int
refuse_rest (const struct options *o, struct format_error *e)
{
  unsigned i;

  for (i = 0; i < o->count; i++) {
    const char *key = o->list[i].key;

    if (o->list[i].taken)
      continue;
    return format_fail (e, -ENOTSUP, "'%.100s' is not a key that is known "
                        "here; " GIVE_ANOTHER, key);
  }
  return 0;
}

/* TEXT with the strings in single quotes in double quotes, to be freed. */
static char *
double_quotes (const char *text)
{
  char *ret = malloc (2 * strlen (text) + 1), *p = ret;
  char quote = '\0';

  if (!ret)
    return NULL;
  for (; *text; text++) {
    const char c = *text;

    if (quote && c == '\\' && text[1]) {
      if (text[1] != '\'')
        *p++ = c;
      *p++ = *++text;
    }
    else if (c == quote || (!quote && (c == '"' || c == '\''))) {
      if (quote)
        quote = '\0';
      else
        quote = c;
      *p++ = '"';
    }
    else {
      if (c == '"')
        *p++ = '\\';
      *p++ = c;
    }
  }
  *p = '\0';
  return ret;
}

static int
parse_object (json_t *root, struct backing_name *n, struct format_error *e)
{
  CLEANUP_FREE struct options *o = calloc (1, sizeof *o);
  int r;

  if (!o)
    return format_fail (e, -ENOMEM, "%s", strerror (ENOMEM));
  r = flatten (o, root, "", 0, e);
  if (r == 0)
    r = parse_stacks (o, n, e);
  return r == 0 ? refuse_rest (o, e) : r;
}

int
backing_name_json (const char *text, struct backing_name *n,
                   struct format_error *e)
{
  CLEANUP_FREE char *quoted = double_quotes (text);
  json_error_t error;
  json_t *root;
  int r;

  if (!quoted)
    return format_fail (e, -ENOMEM, "%s", strerror (ENOMEM));
  root = json_loads (quoted, JSON_REJECT_DUPLICATES, &error);
  if (!json_is_object (root)) {
    r = format_fail (e, -EINVAL, "that is not one JSON object (%.100s); "
                     GIVE_ANOTHER, root ? "something else" : error.text);
    json_decref (root);
    return r;
  }
  r = parse_object (root, n, e);
  json_decref (root);
  return r;
}
