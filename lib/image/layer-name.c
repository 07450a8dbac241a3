/* SPDX-License-Identifier: BSD-3-Clause */

/* Which file is below an image, and which format does it have?
 *
 * Three may say so.  The user does (backing-file=, backing-format=) for the
 * top image, and is believed; in a json: name for all that is below, which no
 * rule restricts then.  Else the header does.  Else the name of the
 * image itself, in the header of another one above it, may contain what is
 * below it ("backing" in a json: name), and so on down: this replaces what
 * the header says, but for a place or a format that it leaves out.  The
 * header that has the name is then the one whose directory relative names
 * begin at, and whose name messages give; the rules (external-files=) are
 * the same for all names in images.
 *
 * Which of the two formats it is is never guessed from the contents: a guest
 * can write a qcow2 header into a raw disk.
 *
 * No locks but those on the files.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "external.h"
#include "image-internal.h"
#include "layer-name.h"
#include "other-file.h"
#include "report.h"

/* What the name above IMG says of what is below it. */
static const struct backing_name *
inner_name (const struct image *img)
{
  return img->config.names ? img->config.names->backing : NULL;
}

bool
layer_is_named (const struct image *img)
{
  return !img->config.no_backing
    && (inner_name (img) || img->header.backing_file[0] != '\0');
}

/*----------------------------------------------------------------------
 * The place.
 */

/* A name by the user that says more than a place. */
static int
parse_chosen (const struct image *img, struct layer_name *n)
{
  static const char *const any[] = { "any", NULL };
  struct format_error e;
  int r;

  n->name = img->config.backing_file;
  if (strncmp (n->name, "json:", 5) != 0)
    return 0;
  n->by = img->config.filename;
  n->stronger = true;
  n->rules = any;
  n->place = n->own = calloc (1, sizeof *n->own);
  if (!n->own)
    return -ENOMEM;
  r = backing_name_parse (n->name, n->own, &e);
  if (r < 0)
    report_error ("%s: backing-file=%.256s: %s", n->by, n->name, e.text);
  return r;
}

/* The name in the header. */
static int
parse_header (const struct image *img, struct layer_name *n)
{
  n->by = img->config.filename;
  n->name = img->header.backing_file;
  n->rules = img->config.external_files;
  n->place = n->own = calloc (1, sizeof *n->own);
  return n->own ? external_parse_backing (n->by, n->name, n->own) : -ENOMEM;
}

/* INNER leaves the place to the header.  (QEMU would merge two lists of
 * options here.)
 */
static int
inherit (const struct image *img, const struct backing_name *inner,
         struct layer_name *n)
{
  const struct layer_names *names = img->config.names;
  int r;

  if (img->header.backing_file[0] == '\0'
      || strncmp (img->header.backing_file, "json:", 5) == 0) {
    report_error ("%s: the image names '%.256s', where a 'backing' does not "
                  "say which file it is, and the header of %s has %s; correct "
                  "it with 'qemu-img rebase -u'", names->by, names->name,
                  img->config.filename, img->header.backing_file[0]
                  ? "another such name" : "none");
    return -EINVAL;
  }
  r = parse_header (img, n);
  if (r < 0)
    return r;
  n->own->windowed = inner->windowed;
  n->own->offset = inner->offset;
  n->own->size = inner->size;
  return 0;
}

/*----------------------------------------------------------------------
 * The format.
 */

/* The image says it in two places, and differently.  QEMU believes the
 * first; who made the image had the second in mind.
 */
static int
two_formats (const struct image *img, const char *name, const char *named)
{
  report_error ("%s: the image says that its backing file has the format %s, "
                "but names '%.256s', which has the driver %s; %scorrect it "
                "with 'qemu-img rebase -u'", img->config.filename,
                img->header.backing_format, name, named, img->is_top
                ? "give backing-format=qcow2 or backing-format=raw, or "
                : "");
  return -EINVAL;
}

static int
no_format (const struct image *img, const struct layer_name *n)
{
  if (n->inner)
    report_error ("%s: the image names '%.256s', where a 'backing' has no "
                  "'driver', and it is not guessed; correct it with "
                  "'qemu-img rebase -u'", n->by, n->name);
  else
    report_error ("%s: the image does not say which format its backing file "
                  "%.256s has, and it is not guessed; say it with %s'qemu-img "
                  "rebase -u -b %.256s -F FORMAT %s'", img->config.filename,
                  n->name, img->is_top ? "backing-format=qcow2 or "
                  "backing-format=raw, or in the image with " : "", n->name,
                  img->config.filename);
  return -ENOTSUP;
}

/* NAMED: the format in the name, or NULL. */
static int
find_format (const struct image *img, struct layer_name *n,
             const char *named)
{
  const char *format = img->config.backing_format
    ? img->config.backing_format : img->header.backing_format;

  if (named && n->stronger && img->config.backing_format
      && strcmp (format, named) != 0) {
    report_error ("%s: backing-format=%s was given, but backing-file= has the "
                  "driver %s; give one of them", img->config.filename, format,
                  named);
    return -EINVAL;
  }
  if (named && (n->stronger || *format == '\0'))
    format = named;
  if (named && !img->config.backing_format && strcmp (format, named) != 0)
    return two_formats (img, n->name, named);
  if (*format == '\0')
    return no_format (img, n);
  n->qcow2 = strcmp (format, "qcow2") == 0;
  if (!n->qcow2 && strcmp (format, "raw") != 0) {
    report_error ("%s: backing format '%s' is not supported (qcow2 and raw "
                  "are)", img->config.filename, format);
    return -ENOTSUP;
  }
  if (n->qcow2 || (!n->names.backing && !n->names.data_file))
    return 0;
  report_error ("%s: the image names '%.256s', where a raw file has a "
                "'backing' or a 'data-file'; %scorrect it with 'qemu-img "
                "rebase -u'", n->by, n->name, img->is_top
                ? "give backing-format=qcow2, or " : "");
  return -EINVAL;
}

/*----------------------------------------------------------------------
 * Both.
 */

int
layer_name_find (const struct image *img, struct layer_name *n)
{
  const struct backing_name *inner = inner_name (img), *says;
  int r = 0;

  n->inner = n->stronger = inner != NULL;
  if (img->config.backing_file)
    r = parse_chosen (img, n);
  else if (!inner)
    r = parse_header (img, n);
  else if (inner->place[0] == '\0')
    r = inherit (img, inner, n);
  else {
    n->by = img->config.names->by;
    n->name = img->config.names->name;
    n->rules = img->config.names->rules;
    n->place = inner;
  }
  if (r < 0)
    return r;
  says = inner ? inner : n->own;
  if (!says)
    return find_format (img, n, NULL);
  n->no_backing = says->no_backing;
  n->names.backing = says->backing;
  n->names.data_file = says->data_file;
  n->names.by = inner ? img->config.names->by : n->by;
  n->names.name = inner ? img->config.names->name : n->name;
  n->names.rules = inner ? img->config.names->rules : n->rules;
  return find_format (img, n, says->format);
}

void
layer_name_clear (struct layer_name *n)
{
  if (n->own)
    backing_name_clear (n->own);
  free (n->own);
  n->own = NULL;
}

int
layer_name_open (const struct image *img, const struct layer_name *n,
                 struct storage **s)
{
  static const char what[] = "backing file";
  const struct layer_names from = {
    .by = n->by, .name = n->name, .rules = n->rules,
  };

  return n->place
    ? other_file_open_parsed (img, what, &from, n->place, s)
    : other_file_open (img, what, n->name, true, false, s);
}
