/* SPDX-License-Identifier: BSD-3-Clause */

/* An SVG file, written by hand: rectangles of one colour are one path in
 * relative coordinates and text stays text, which makes the file a tenth
 * of what a drawing library makes of it, and lets a browser search it.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "canvas.h"
#include "report.h"

struct svg {
  struct canvas canvas;
  const char *filename;
  FILE *f;
};

static FILE *
file_of (struct canvas *c)
{
  return ((struct svg *) c)->f;
}

static void
path (FILE *f, const struct rect *r, size_t n)
{
  size_t i;

  for (i = 0; i < n; ++i)
    fprintf (f, "M%d %dh%dv%dh%dz", r[i].x, r[i].y, r[i].w, r[i].h, -r[i].w);
}

static void
svg_rects (struct canvas *c, uint32_t colour, const struct rect *r, size_t n)
{
  FILE *f = file_of (c);

  fprintf (f, "<path fill='#%06x' d='", (unsigned) colour);
  path (f, r, n);
  fprintf (f, "'/>\n");
}

static void
svg_hatch (struct canvas *c, const struct rect *r, size_t n)
{
  FILE *f = file_of (c);

  fprintf (f, "<path fill='url(#hatch)' d='");
  path (f, r, n);
  fprintf (f, "'/>\n");
}

static void
svg_text (struct canvas *c, enum canvas_font font, enum canvas_anchor anchor,
          int x, int y, const char *text)
{
  static const char *const classes[] = { "", " class='s'", " class='b'" };
  FILE *f = file_of (c);

  fprintf (f, "<text x='%d' y='%d'%s%s>", x, y, classes[font],
           anchor == ANCHOR_RIGHT ? " text-anchor='end'" : "");
  for (; *text; ++text)
    switch (*text) {
    case '<': fputs ("&lt;", f); break;
    case '>': fputs ("&gt;", f); break;
    case '&': fputs ("&amp;", f); break;
    default: fputc (*text, f);
    }
  fprintf (f, "</text>\n");
}

static int
svg_finish (struct canvas *c)
{
  struct svg *svg = (struct svg *) c;
  int r = 0;

  fprintf (svg->f, "</svg>\n");
  if (ferror (svg->f))
    r = -1;
  if (fclose (svg->f) != 0)
    r = -1;
  if (r < 0)
    report_error ("%s: writing it: %s", svg->filename, strerror (errno));
  free (svg);
  return r;
}

static const struct canvas_ops svg_ops = {
  .rects = svg_rects,
  .hatch = svg_hatch,
  .text = svg_text,
  .finish = svg_finish,
};

struct canvas *
canvas_new_svg (const char *filename, int width, int height)
{
  struct svg *svg = calloc (1, sizeof *svg);

  if (!svg) {
    report_error ("not enough memory");
    return NULL;
  }
  svg->canvas.ops = &svg_ops;
  svg->filename = filename;
  svg->f = fopen (filename, "we");
  if (!svg->f) {
    report_error ("%s: %s", filename, strerror (errno));
    free (svg);
    return NULL;
  }
  fprintf (svg->f, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' "
           "height='%d' viewBox='0 0 %d %d'>\n", width, height, width,
           height);
  fprintf (svg->f, "<style>text{font:13px DejaVu Sans,Verdana,sans-serif;"
           "fill:#222}.s{font-size:11px;fill:#555}"
           ".b{font-size:16px;font-weight:bold}</style>\n"
           "<pattern id='hatch' width='7' height='7' "
           "patternUnits='userSpaceOnUse'><path d='M-1 8L8 -1M-1 1L1 -1M6 "
           "8L8 6' stroke='#000' stroke-opacity='.45'/></pattern>\n");
  return &svg->canvas;
}
