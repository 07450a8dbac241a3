/* SPDX-License-Identifier: BSD-3-Clause */

/* The names of backing files.
 *
 * The specification says only that the header has a name.  QEMU takes it
 * for the name of a file if no colon comes before its first slash; else
 * what is before the colon is a protocol, or "json", and then options of
 * its block layer follow.  Management programs have QEMU write such names
 * (a snapshot of a disk that was given by its options names it by them),
 * so images have them though nobody typed them.
 *
 * A name becomes one of two things here: a place that is a file, or a
 * place that is an NBD URI.  Whatever leads to something else is refused,
 * and so is an option that is not known: it could change what the disk
 * contains.  Options that only say how QEMU goes about it are passed
 * over.
 *
 * The result is text that others check (lib/image/external.c), so no part
 * of a name may change the meaning of another part: in a URI all is escaped
 * that could, and a file's name is never parsed again: a file named
 * "json:{}" can be had by "file:json:{}", as with QEMU.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name-internal.h"

int
backing_name_file (const char *name, struct backing_name *n,
                   struct format_error *e)
{
  const size_t len = strlen (name);

  if (len == 0)
    return format_fail (e, -EINVAL, "that is the name of a file, and empty; "
                        GIVE_ANOTHER);
  if (len >= sizeof n->place)
    return format_fail (e, -ENAMETOOLONG, "the name is too long");
  memcpy (n->place, name, len + 1);
  n->is_uri = false;
  return 0;
}

/* QEMU's URIs that others write as nbd://. */
static int
parse_tcp_uri (const char *rest, struct backing_name *n,
               struct format_error *e)
{
  static const char scheme[] = "nbd://";
  const size_t len = strlen (rest);

  if (len + sizeof scheme > sizeof n->place)
    return format_fail (e, -ENAMETOOLONG, "the name is too long");
  memcpy (n->place, scheme, sizeof scheme - 1);
  memcpy (n->place + sizeof scheme - 1, rest, len + 1);
  n->is_uri = true;
  return 0;
}

/* What follows PREFIX in NAME, or NULL. */
static const char *
after (const char *name, const char *prefix)
{
  const size_t n = strlen (prefix);

  return strncmp (name, prefix, n) == 0 ? name + n : NULL;
}

void
backing_name_clear (struct backing_name *n)
{
  struct backing_name *below, *next;

  for (below = n->backing; below; below = next) {
    next = below->backing;
    free (below->data_file);
    free (below);
  }
  free (n->data_file);
  n->backing = n->data_file = NULL;
}

int
backing_name_parse (const char *name, struct backing_name *n,
                    struct format_error *e)
{
  const size_t protocol = strcspn (name, ":/");
  const char *rest;

  memset (n, 0, sizeof *n);
  n->size = UINT64_MAX;
  if (strlen (name) > MAX_BACKING_NAME)
    return format_fail (e, -ENAMETOOLONG, "the name is longer than %d bytes",
                        MAX_BACKING_NAME);
  if (name[protocol] != ':')
    return backing_name_file (name, n, e);
  if ((rest = after (name, "file:")) || (rest = after (name, "host_device:")))
    return backing_name_file (rest, n, e);
  if ((rest = after (name, "json:"))) {
    int r = backing_name_json (rest, n, e);

    if (r < 0)
      backing_name_clear (n);
    return r;
  }
  if ((rest = after (name, "nbd+tcp://")))
    return parse_tcp_uri (rest, n, e);
  if ((rest = after (name, "nbd:")))
    return backing_name_nbd (rest, n, e);
  return format_fail (e, -ENOTSUP, "'%.*s:' makes it something else than a "
                      "file or an NBD export (a file of that name is "
                      "./NAME); " EXPORT_IT,
                      protocol < 32 ? (int) protocol : 32, name);
}
