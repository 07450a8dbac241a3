/* SPDX-License-Identifier: BSD-3-Clause */

/* A PNG file, drawn by cairo, if configure found it. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "canvas.h"
#include "report.h"

#ifdef HAVE_CAIRO

#include <cairo.h>

struct png {
  struct canvas canvas;
  const char *filename;
  cairo_surface_t *surface;
  cairo_t *cr;
};

static cairo_t *
cairo_of (struct canvas *c)
{
  return ((struct png *) c)->cr;
}

static void
set_colour (cairo_t *cr, uint32_t colour)
{
  cairo_set_source_rgb (cr, (colour >> 16 & 0xff) / 255.0,
                        (colour >> 8 & 0xff) / 255.0,
                        (colour & 0xff) / 255.0);
}

static void
path (cairo_t *cr, const struct rect *r, size_t n)
{
  size_t i;

  for (i = 0; i < n; ++i)
    cairo_rectangle (cr, r[i].x, r[i].y, r[i].w, r[i].h);
}

static void
png_rects (struct canvas *c, uint32_t colour, const struct rect *r, size_t n)
{
  cairo_t *cr = cairo_of (c);

  set_colour (cr, colour);
  path (cr, r, n);
  cairo_fill (cr);
}

static void
png_hatch (struct canvas *c, const struct rect *r, size_t n)
{
  cairo_t *cr = cairo_of (c);
  struct png *png = (struct png *) c;
  const int w = cairo_image_surface_get_width (png->surface);
  const int h = cairo_image_surface_get_height (png->surface);
  int x;

  cairo_save (cr);
  path (cr, r, n);
  cairo_clip (cr);
  cairo_set_source_rgba (cr, 0, 0, 0, 0.45);
  cairo_set_line_width (cr, 1);
  for (x = 0; x < w + h; x += 7) {
    cairo_move_to (cr, x, 0);
    cairo_line_to (cr, x - h, h);
  }
  cairo_stroke (cr);
  cairo_restore (cr);
}

static void
png_text (struct canvas *c, enum canvas_font font, enum canvas_anchor anchor,
          int x, int y, const char *text)
{
  static const double sizes[] = { 13, 11, 16 };
  cairo_t *cr = cairo_of (c);
  cairo_text_extents_t extents;

  cairo_select_font_face (cr, "DejaVu Sans", CAIRO_FONT_SLANT_NORMAL,
                          font == FONT_BOLD ? CAIRO_FONT_WEIGHT_BOLD
                          : CAIRO_FONT_WEIGHT_NORMAL);
  cairo_set_font_size (cr, sizes[font]);
  set_colour (cr, font == FONT_SMALL ? 0x555555 : 0x222222);
  cairo_text_extents (cr, text, &extents);
  cairo_move_to (cr, anchor == ANCHOR_RIGHT ? x - extents.x_advance : x, y);
  cairo_show_text (cr, text);
}

static int
png_finish (struct canvas *c)
{
  struct png *png = (struct png *) c;
  cairo_status_t status = cairo_status (png->cr);

  if (status == CAIRO_STATUS_SUCCESS)
    status = cairo_surface_write_to_png (png->surface, png->filename);
  if (status != CAIRO_STATUS_SUCCESS)
    report_error ("%s: %s", png->filename, cairo_status_to_string (status));
  cairo_destroy (png->cr);
  cairo_surface_destroy (png->surface);
  cairo_debug_reset_static_data ();     /* fonts are no leaks */
  free (png);
  return status == CAIRO_STATUS_SUCCESS ? 0 : -1;
}

static const struct canvas_ops png_ops = {
  .rects = png_rects,
  .hatch = png_hatch,
  .text = png_text,
  .finish = png_finish,
};

struct canvas *
canvas_new_png (const char *filename, int width, int height)
{
  struct png *png = calloc (1, sizeof *png);

  if (!png) {
    report_error ("not enough memory");
    return NULL;
  }
  png->canvas.ops = &png_ops;
  png->filename = filename;
  png->surface = cairo_image_surface_create (CAIRO_FORMAT_RGB24, width,
                                             height);
  png->cr = cairo_create (png->surface);
  return &png->canvas;
}

#else /* !HAVE_CAIRO */

struct canvas *
canvas_new_png (const char *filename, int width, int height)
{
  (void) width;
  (void) height;
  report_error ("%s: this program was built without cairo, and cannot draw "
                "PNG files; give --svg", filename);
  return NULL;
}

#endif /* !HAVE_CAIRO */
