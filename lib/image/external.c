/* SPDX-License-Identifier: BSD-3-Clause */

/* Names of other files in images; see external.h.
 *
 * Names are names of files, or NBD URIs, and nothing else: QEMU would also
 * take other protocols ("ssh:..."), which is how images have made servers
 * open what they should not (CVE-2024-4467, CVE-2024-32498).  As in QEMU a
 * colon before the first slash makes a protocol; "file:" may stand before a
 * name, and is the way to write a name with such a colon.
 *
 * A backing file may also be named in QEMU's other spellings, of which
 * lib/format/backing-name.c makes the name of a file or an NBD URI.  That
 * is judged as if it had been named plainly: no spelling opens what a plain
 * name would not.
 *
 * URIs are compared as strings.  Only what cannot mean anything else than
 * it seems to counts as lying below a rule: a URI with a query can lead
 * to another server, an escape can hide a slash, so a rule must name such
 * a URI exactly.
 *
 * The rules are applied to real paths, and what is returned is a real
 * path.  Between this check and the opening somebody who may rename
 * directories there could still change what the path leads to: the
 * rules protect from the image's maker, not from the owner of a
 * directory that they allow.
 *
 * No locks are taken and nothing is kept.
 */

#include <config.h>

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name.h"
#include "cleanup.h"
#include "external.h"
#include "report.h"
#include "storage.h"

/* A report is one line of limited length.  A long name must not push
 * the end of it out, where it says what to do.
 */
#define NAME_FMT "'%.256s'"

/* The length of the protocol before NAME's first colon, 0 if none. */
static size_t
protocol_length (const char *name)
{
  size_t n = strcspn (name, ":/");

  return name[n] == ':' ? n : 0;
}

/* Let *NAME be without what says that it is the name of a file, or fail. */
static int
check_protocol (const char *naming_file, const char **name)
{
  size_t n;

  if (strncmp (*name, "file:", 5) == 0)
    *name += 5;
  else if ((n = protocol_length (*name)) > 0 || **name == ':') {
    report_error ("%s: the image names " NAME_FMT ": a name in an image "
                  "must be that of a file, and '%.*s:' makes it something "
                  "else (external-files= can allow files and NBD URIs such "
                  "as nbd://HOST/EXPORT only)",
                  naming_file, *name, n < 32 ? (int) n : 32, *name);
    return -ENOTSUP;
  }
  return 0;
}

/* FILE must be the name of a file. */
static int
check_file (const char *naming_file, const char *name, const char *file)
{
  const char *base = strrchr (file, '/');

  base = base ? base + 1 : file;
  if (*base && strcmp (base, ".") != 0 && strcmp (base, "..") != 0)
    return 0;
  report_error ("%s: the image names " NAME_FMT ", which is not the name "
                "of a file", naming_file, name);
  return -EINVAL;
}

/* The real path of the directory part of PATH. */
static int
real_directory (const char *path, char **real)
{
  const char *slash = strrchr (path, '/');
  CLEANUP_FREE char *dir = NULL;

  if (slash == NULL)
    dir = strdup (".");
  else if (slash == path)
    dir = strdup ("/");
  else
    dir = strndup (path, (size_t) (slash - path));
  if (dir == NULL)
    return -ENOMEM;
  *real = realpath (dir, NULL);
  return *real ? 0 : -errno;
}

/* Is the directory DIR equal to ROOT or below it?  Both are real
 * paths: only "/" ends in a slash.
 */
static bool
is_below (const char *dir, const char *root)
{
  const size_t n = strcmp (root, "/") == 0 ? 0 : strlen (root);

  return strncmp (dir, root, n) == 0 && (dir[n] == '\0' || dir[n] == '/');
}

/* May files in the directory DIR be opened for an image in HOME? */
static bool
is_allowed (const char *dir, const char *home, const char *const *rules)
{
  for (; *rules; rules++) {
    CLEANUP_FREE char *root = NULL;

    if (strcmp (*rules, "any") == 0)
      return true;
    if (strcmp (*rules, "same-dir") == 0 && strcmp (dir, home) == 0)
      return true;
    if (**rules != '/')
      continue;
    root = realpath (*rules, NULL);
    if (root && is_below (dir, root))
      return true;
  }
  return false;
}

/* A long name leads to more than one file. */
static int
refuse (const char *naming_file, const char *name, const char *file,
        const char *dir)
{
  if (strcmp (name, file) == 0)
    report_error ("%s: the image names " NAME_FMT ", which is in " NAME_FMT
                  ": external-files= does not allow that; add "
                  "external-files=DIRECTORY if you trust the image",
                  naming_file, name, dir);
  else
    report_error ("%s: the image names '%.80s'%s, of which " NAME_FMT " is in "
                  NAME_FMT ": external-files= does not allow that; add "
                  "external-files=DIRECTORY if you trust the image",
                  naming_file, name, strlen (name) > 80 ? "..." : "", file,
                  dir);
  return -EPERM;
}

static int
not_found (const char *naming_file, const char *name, const char *target,
           int err)
{
  errno = -err;
  report_error ("%s: the image names " NAME_FMT ": cannot find " NAME_FMT
                ": %m",
                naming_file, name, target);
  return err;
}

/* The directory of PATH must be allowed. */
static int
check_directory (const char *naming_file, const char *name, const char *file,
                 const char *path, const char *home,
                 const char *const *rules)
{
  CLEANUP_FREE char *dir = NULL;
  int err = real_directory (path, &dir);

  if (err < 0)
    return not_found (naming_file, name, path, err);
  if (!is_allowed (dir, home, rules))
    return refuse (naming_file, name, file, dir);
  return 0;
}

/* Does RULE allow the URI? */
static bool
uri_matches (const char *uri, const char *rule)
{
  const size_t n = strlen (rule);
  const char *last = strrchr (uri, '/') + 1; /* its scheme has one */

  if (strcmp (rule, "any") == 0 || strcmp (uri, rule) == 0)
    return true;
  if (!storage_is_nbd_uri (rule) || rule[n - 1] != '/')
    return false;
  return strncmp (uri, rule, n) == 0 && !strpbrk (uri, "?#%@")
    && !strstr (uri, "/../") && !strstr (uri, "/./")
    && strcmp (last, "..") != 0 && strcmp (last, ".") != 0;
}

/* A URI that RULES allow is its own path.  NAME may be another way to
 * write it, which rules are not.
 */
static int
resolve_uri (const char *naming_file, const char *name, const char *uri,
             const char *const *rules, char **path)
{
  for (; *rules; rules++) {
    if (uri_matches (uri, *rules)) {
      *path = strdup (uri);
      return *path ? 0 : not_found (naming_file, name, uri, -ENOMEM);
    }
  }
  if (strcmp (name, uri) == 0)
    report_error ("%s: the image names " NAME_FMT ": external-files= does "
                  "not allow that; add external-files=URI if you trust the "
                  "image", naming_file, name);
  else
    report_error ("%s: the image names " NAME_FMT ", which is " NAME_FMT
                  ": external-files= does not allow that; add "
                  "external-files=URI if you trust the image", naming_file,
                  name, uri);
  return -EPERM;
}

/* The directory that relative names in NAMING_FILE start from.  An export
 * is in none.
 */
static int
home_directory (const char *naming_file, const char *name, const char *file,
                char **home)
{
  int err;

  if (storage_is_nbd_uri (naming_file)) {
    if (*file != '/') {
      report_error ("%s: the image names " NAME_FMT ", which is relative, "
                    "but an image over NBD is in no directory; give "
                    "backing-file= or data-file=, or correct it with "
                    "'qemu-img rebase -u' or 'qemu-img amend'",
                    naming_file, name);
      return -EINVAL;
    }
    *home = strdup ("");
    return *home ? 0 : not_found (naming_file, name, file, -ENOMEM);
  }
  err = real_directory (naming_file, home);
  return err < 0 ? not_found (naming_file, name, naming_file, err) : 0;
}

/* FILE, for which the image has NAME. */
static int
resolve_file (const char *naming_file, const char *name, const char *file,
              const char *const *rules, char **path)
{
  CLEANUP_FREE char *home = NULL;
  CLEANUP_FREE char *target = NULL;
  CLEANUP_FREE char *real = NULL;
  int err = check_file (naming_file, name, file);

  if (err == 0)
    err = home_directory (naming_file, name, file, &home);
  if (err < 0)
    return err;

  if (*file == '/')
    target = strdup (file);
  else if (asprintf (&target, "%s/%s", home, file) == -1)
    target = NULL;
  if (target == NULL)
    return not_found (naming_file, name, file, -ENOMEM);

  err = check_directory (naming_file, name, file, target, home, rules);
  if (err < 0)
    return err;

  /* It may be a link to a place that is not allowed. */
  real = realpath (target, NULL);
  if (real == NULL)
    return not_found (naming_file, name, target, -errno);
  err = check_directory (naming_file, name, file, real, home, rules);
  if (err < 0)
    return err;

  *path = real;
  real = NULL;
  return 0;
}

int
external_resolve (const char *naming_file, const char *name,
                  const char *const *rules, char **path)
{
  const char *file = name;
  int err;

  if (storage_is_nbd_uri (name))
    return resolve_uri (naming_file, name, name, rules, path);
  err = check_protocol (naming_file, &file);
  return err < 0 ? err : resolve_file (naming_file, name, file, rules, path);
}

int
external_parse_backing (const char *naming_file, const char *name,
                        struct backing_name *parsed)
{
  const size_t len = strlen (name);
  struct format_error e;
  int err;

  if (storage_is_nbd_uri (name) && len < sizeof parsed->place) {
    memset (parsed, 0, sizeof *parsed);
    parsed->is_uri = true;
    memcpy (parsed->place, name, len + 1);
    return 0;
  }
  err = backing_name_parse (name, parsed, &e);
  if (err < 0)
    report_error ("%s: the image names " NAME_FMT " as its backing file: %s",
                  naming_file, name, e.text);
  return err;
}

int
external_resolve_backing (const char *naming_file, const char *name,
                          const struct backing_name *parsed,
                          const char *const *rules, char **path)
{
  return parsed->is_uri
    ? resolve_uri (naming_file, name, parsed->place, rules, path)
    : resolve_file (naming_file, name, parsed->place, rules, path);
}
