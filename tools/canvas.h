/* SPDX-License-Identifier: BSD-3-Clause */

/* A sheet to draw on, that becomes an SVG or a PNG file.  See
 * canvas-svg.c, canvas-png.c.  Lengths are whole pixels from the upper left
 * corner; colours are 0xRRGGBB.
 */

#ifndef QCOW2_CANVAS_H
#define QCOW2_CANVAS_H

#include <stddef.h>
#include <stdint.h>

struct rect {
  int x, y, w, h;
};

enum canvas_font { FONT_NORMAL, FONT_SMALL, FONT_BOLD };
enum canvas_anchor { ANCHOR_LEFT, ANCHOR_RIGHT };

struct canvas;

struct canvas_ops {
  void (*rects) (struct canvas *c, uint32_t colour, const struct rect *r,
                 size_t n);
  /* Stripes over them. */
  void (*hatch) (struct canvas *c, const struct rect *r, size_t n);
  /* A line of text whose base line is at Y. */
  void (*text) (struct canvas *c, enum canvas_font font,
                enum canvas_anchor anchor, int x, int y, const char *text);
  /* Write the file and free C.  0, or -1 (reported). */
  int (*finish) (struct canvas *c);
};

struct canvas {
  const struct canvas_ops *ops;
};

/* NULL if that is not possible (reported).  FILENAME must live as long as
 * the canvas.
 */
struct canvas *canvas_new_svg (const char *filename, int width, int height);
struct canvas *canvas_new_png (const char *filename, int width, int height);

#endif /* QCOW2_CANVAS_H */
