/* SPDX-License-Identifier: BSD-3-Clause */

/* The file as a picture.
 *
 *     title, scale
 *     +----------------------------------+  legend: what is there, and
 *     | the map: cells of N clusters, in |  how much of it
 *     | rows, read like text             |
 *     +----------------------------------+
 *     | the beginning, enlarged: the     |
 *     | whole file on a logarithmic scale|
 *     +----------------------------------+
 *     | the densest place of metadata,   |
 *     | enlarged                         |
 *     +----------------------------------+
 *
 * N is a power of two, 1 for files of up to some 9000 clusters; the two
 * enlargements are drawn only if it is more.  So 1 GiB and 64 TiB have the
 * same size on paper.  A cell of more than one cluster is filled from below
 * with what is in it, in proportion; metadata, which is rare and what
 * this is about, lies as a spot on top, however little of it there is.
 *
 * Each part is an array of bins, a count for each class of clusters in
 * each, filled by one survey (two, since the densest place is known after
 * the first).  Neighbours of one look become one rectangle.
 */

#include <config.h>

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "canvas.h"
#include "checked.h"
#include "map.h"
#include "report.h"

#define LEFT 84                 /* where the map begins */
#define TOP 84
#define WIDTH 896               /* of the map */
#define MAX_COLUMNS 128
#define MAX_ROWS 72
#define GAP 26                  /* between parts */
#define STRIP_HEIGHT 72
#define STRIP_BINS 256
#define ZOOM_ROWS 4
#define LEGEND (LEFT + WIDTH + GAP)
#define LEGEND_WIDTH 300
#define LINE 20                 /* of the legend */

#define PAPER 0xffffff
#define FRAME 0x999999

static const uint32_t colours[CLASSES] = {
  [OVERLAP_MAIN_HEADER] = 0x000000,
  [OVERLAP_ACTIVE_L1] = 0xd7191c,
  [OVERLAP_ACTIVE_L2] = 0xf57c00,
  [OVERLAP_REFCOUNT_BLOCK] = 0x1a9641,
  [OVERLAP_REFCOUNT_TABLE] = 0x00441b,
  [OVERLAP_SNAPSHOT_TABLE] = 0x6a3d9a,
  [OVERLAP_INACTIVE_L1] = 0x98006d,
  [OVERLAP_INACTIVE_L2] = 0xe7298a,
  [OVERLAP_BITMAP_DIRECTORY] = 0x543005,
  [OVERLAP_CRYPTO_HEADER] = 0x01665e,
  [OVERLAP_BITMAP_TABLE] = 0x8c510a,
  [OVERLAP_BITMAP_DATA] = 0xbf812d,
  [CLASS_DATA] = 0x9ecae1,
  [CLASS_SHARED] = 0x6f9fce,
  [CLASS_COMPRESSED] = 0xb0aedb,
  [CLASS_SNAPSHOT] = 0xc7e9c0,
  [CLASS_SNAPSHOT + 1] = 0xfde0a5,
  [CLASS_SNAPSHOT + 2] = 0xf6cfe3,
  [CLASS_SNAPSHOT + 3] = 0xc9e9ea,
  [CLASS_SNAPSHOT + 4] = 0xe3d4c0,
  [CLASS_SNAPSHOT + 5] = 0xd5d5d5,
  [CLASS_LEAKED] = 0xffe600,
  [CLASS_FREE] = 0xf3f3f0,
};

/* Which metadata is shown if there is no room for all: the rarest. */
static const uint8_t by_rarity[] = {
  OVERLAP_MAIN_HEADER, OVERLAP_REFCOUNT_TABLE, OVERLAP_ACTIVE_L1,
  OVERLAP_SNAPSHOT_TABLE, OVERLAP_CRYPTO_HEADER, OVERLAP_BITMAP_DIRECTORY,
  OVERLAP_INACTIVE_L1, OVERLAP_BITMAP_TABLE, OVERLAP_BITMAP_DATA,
  OVERLAP_REFCOUNT_BLOCK, OVERLAP_INACTIVE_L2, OVERLAP_ACTIVE_L2,
};

_Static_assert (ARRAY_SIZE (by_rarity) == OVERLAP_TYPES,
                "each type has a place here, and a colour above");

/*----------------------------------------------------------------------
 * Bins.
 */

struct bin {
  uint64_t first, clusters;     /* of the file */
  uint64_t count[CLASSES];
};

struct bins {
  struct bin *bin;              /* owned; they follow each other */
  size_t n;
  uint64_t each;                /* clusters of each, 0: of different size */
};

static bool
bins_init (struct bins *b, size_t n)
{
  b->bin = calloc (n, sizeof *b->bin);
  if (!b->bin)
    report_error ("not enough memory");
  return b->bin != NULL;
}

/* Bins of EACH clusters from FIRST to END. */
static bool
bins_linear (struct bins *b, uint64_t first, uint64_t end, uint64_t each)
{
  size_t i;

  b->each = each;
  b->n = (size_t) div_up (end - first, each);
  if (!bins_init (b, b->n))
    return false;
  for (i = 0; i < b->n; ++i) {
    b->bin[i].first = first + i * each;
    b->bin[i].clusters = MIN (each, end - b->bin[i].first);
  }
  return true;
}

/* Where cluster C begins on a logarithmic scale of WIDTH pixels. */
static int
log_place (uint64_t c, uint64_t end)
{
  return (int) (log1p ((double) c) / log1p ((double) end) * WIDTH);
}

/* Bins that grow, from one cluster on. */
static bool
bins_logarithmic (struct bins *b, uint64_t end)
{
  const double ratio = exp (log1p ((double) end) / STRIP_BINS);
  uint64_t at = 0, next;

  if (!bins_init (b, STRIP_BINS + 1))
    return false;
  while (at < end && b->n <= STRIP_BINS) {
    next = (uint64_t) ((double) (at + 1) * ratio);
    next = b->n == STRIP_BINS ? end : MIN (MAX (next, at + 1), end);
    b->bin[b->n].first = at;
    b->bin[b->n++].clusters = next - at;
    at = next;
  }
  return true;
}

/* The bin of a cluster, which is not before the first. */
static size_t
bin_of (const struct bins *b, uint64_t cluster)
{
  size_t lo = 0, hi = b->n, mid;

  if (b->each)
    return (size_t) ((cluster - b->bin[0].first) / b->each);
  while (hi - lo > 1) {
    mid = lo + (hi - lo) / 2;
    if (b->bin[mid].first <= cluster)
      lo = mid;
    else
      hi = mid;
  }
  return lo;
}

static void
bins_add (struct bins *b, unsigned class, uint64_t first, uint64_t count)
{
  const struct bin *last;
  uint64_t end = first + count, n;
  size_t i;

  if (b->n == 0)
    return;
  last = &b->bin[b->n - 1];
  first = MAX (first, b->bin[0].first);
  end = MIN (end, last->first + last->clusters);
  for (i = first < end ? bin_of (b, first) : 0; first < end; ++i) {
    n = MIN (end, b->bin[i].first + b->bin[i].clusters) - first;
    b->bin[i].count[class] += n;
    first += n;
  }
}

/* Whatever is not something else is free. */
static void
bins_close (struct bins *b)
{
  unsigned class;
  size_t i;

  for (i = 0; i < b->n; ++i) {
    b->bin[i].count[CLASS_FREE] = b->bin[i].clusters;
    for (class = 0; class < CLASS_FREE; ++class)
      b->bin[i].count[CLASS_FREE] -= b->bin[i].count[class];
  }
}

static uint64_t
bin_metadata (const struct bin *bin)
{
  uint64_t sum = 0;
  unsigned class;

  for (class = 0; class < OVERLAP_TYPES; ++class)
    sum += bin->count[class];
  return sum;
}

/*----------------------------------------------------------------------
 * Rectangles, by colour.
 */

struct layer {
  struct rect *r;               /* owned */
  size_t n, room;
};

struct picture {
  struct map *map;
  struct canvas *canvas;
  bool failed;                  /* no memory */

  unsigned columns, cell;       /* of the map; pixels of a cell */
  struct bins bins, strip, zoom;
  int strip_y, zoom_y, height;  /* 0: there is none */

  struct layer fill[CLASSES], spot[CLASSES], hatch, lines;
};

static void
layer_add (struct picture *p, struct layer *l, struct rect r)
{
  struct rect *last = l->n > 0 ? &l->r[l->n - 1] : NULL, *more;

  if (r.w <= 0 || r.h <= 0)
    return;
  if (last && last->y == r.y && last->h == r.h && last->x + last->w == r.x) {
    last->w += r.w;
    return;
  }
  if (l->n == l->room) {
    more = realloc (l->r, (l->room * 2 + 64) * sizeof *more);
    if (!more) {
      p->failed = true;
      return;
    }
    l->r = more;
    l->room = l->room * 2 + 64;
  }
  l->r[l->n++] = r;
}

static void
layer_draw (struct picture *p, struct layer *l, uint32_t colour)
{
  if (l->n > 0)
    p->canvas->ops->rects (p->canvas, colour, l->r, l->n);
  free (l->r);
  memset (l, 0, sizeof *l);
}

/* Draw and forget everything that was added. */
static void
draw_layers (struct picture *p)
{
  unsigned class;

  for (class = CLASSES; class-- > 0; )
    layer_draw (p, &p->fill[class], colours[class]);
  layer_draw (p, &p->lines, PAPER);
  if (p->hatch.n > 0)
    p->canvas->ops->hatch (p->canvas, p->hatch.r, p->hatch.n);
  free (p->hatch.r);
  memset (&p->hatch, 0, sizeof p->hatch);
  for (class = CLASSES; class-- > 0; )
    layer_draw (p, &p->spot[class], colours[class]);
}

/*----------------------------------------------------------------------
 * Cells.
 */

/* Is there nothing in it but what stays protected at any limit? */
static bool
is_pinned (const struct bin *bin)
{
  uint64_t pinned = 0;
  unsigned type;

  for (type = 0; type < OVERLAP_TYPES; ++type)
    if (OVERLAP_PINNED & OVERLAP_BIT (type))
      pinned += bin->count[type];
  return pinned == bin->clusters;
}

/* Is any of it outside the map of the tracker? */
static bool
is_outside (const struct picture *p, const struct bin *bin)
{
  const struct trial *t = &p->map->trial;
  const unsigned bits = p->map->facts.cluster_bits;
  size_t i;

  if (is_pinned (bin))
    return false;
  for (i = 0; i < t->n_outside; ++i)
    if (bin->first < (t->outside[i].start + t->outside[i].length) >> bits
        && t->outside[i].start >> bits < bin->first + bin->clusters)
      return true;
  return false;
}

/* Fill a rectangle from below with what a bin has; free is the rest. */
static void
fill_from_below (struct picture *p, const struct bin *bin, struct rect r)
{
  uint64_t left = bin->clusters - bin_metadata (bin);
  int bottom = r.y + r.h, h;
  unsigned class;

  for (class = OVERLAP_TYPES; class <= CLASS_FREE && left > 0; ++class) {
    if (bin->count[class] == 0)
      continue;
    /* Of what is left of the height, so that rounding adds up. */
    h = (int) ((double) bin->count[class] / (double) left
               * (bottom - r.y) + 0.5);
    h = MAX (h, 1);
    h = class == CLASS_FREE ? bottom - r.y : MIN (h, bottom - r.y);
    layer_add (p, &p->fill[class],
               (struct rect) { r.x, bottom - h, r.w, h });
    bottom -= h;
    left -= bin->count[class];
  }
  if (bottom > r.y)
    layer_add (p, &p->fill[CLASS_FREE],
               (struct rect) { r.x, r.y, r.w, bottom - r.y });
}

/* The spot of metadata in a cell: larger, the more there is. */
static void
add_spot (struct picture *p, const struct bin *bin, struct rect r)
{
  const uint64_t sum = bin_metadata (bin);
  unsigned types[3], n = 0, i;
  int side, x;

  for (i = 0; i < OVERLAP_TYPES && n < ARRAY_SIZE (types); ++i)
    if (bin->count[by_rarity[i]] > 0)
      types[n++] = by_rarity[i];
  if (n == 0)
    return;
  side = r.w - 1;
  if (sum * 2 < bin->clusters)
    side = MAX (r.w * 5 / 8, 4);
  if (sum * 64 < bin->clusters)
    side = MAX (r.w / 2, 3);
  x = r.x + (r.w - 1 - side) / 2;
  for (i = 0; i < n; ++i)
    layer_add (p, &p->spot[types[i]], (struct rect) {
      x + side * (int) i / (int) n, r.y + (r.h - 1 - side) / 2,
      side * (int) (i + 1) / (int) n - side * (int) i / (int) n, side });
}

static void
add_cell (struct picture *p, const struct bin *bin, struct rect r)
{
  unsigned class;

  if (bin->clusters == 1) {
    for (class = 0; class < CLASS_FREE && bin->count[class] == 0; ++class)
      ;
    layer_add (p, &p->fill[class], r);
  }
  else {
    fill_from_below (p, bin, r);
    add_spot (p, bin, r);
  }
  if (is_outside (p, bin))
    layer_add (p, &p->hatch, r);
}

/* Lines between cells. */
static void
add_grid (struct picture *p, size_t cells, unsigned columns, int cell, int y)
{
  const int rows = (int) div_up (cells, columns);
  int i;

  for (i = 1; i <= (int) columns; ++i)
    layer_add (p, &p->lines, (struct rect) {
      LEFT + i * cell - 1, y, 1, rows * cell });
  for (i = 1; i <= rows; ++i)
    layer_add (p, &p->lines, (struct rect) {
      LEFT, y + i * cell - 1, (int) columns * cell, 1 });
}

/* Where in the file a row begins.  Rows of an enlargement are so close
 * together that only what they are behind its first says something.
 */
static void
draw_row_label (struct picture *p, const struct bins *b, size_t i, int y)
{
  const unsigned bits = p->map->facts.cluster_bits;
  const uint64_t base = b->bin[0].first, first = b->bin[i].first;
  char size[UNITS_MAX], label[UNITS_MAX + 2];

  snprintf (label, sizeof label, "%s%s", i > 0 && base > 0 ? "+ " : "",
            i == 0 && base == 0 ? "0"
            : units_bytes ((i > 0 ? first - base : first) << bits, size));
  p->canvas->ops->text (p->canvas, FONT_SMALL, ANCHOR_RIGHT, LEFT - 8, y,
                        label);
}

/* Rows of cells, with places of the file on the left. */
static void
draw_cells (struct picture *p, const struct bins *b, unsigned columns,
            int cell, int y, unsigned label_rows)
{
  size_t i;

  for (i = 0; i < b->n; ++i) {
    const int row = (int) (i / columns), column = (int) (i % columns);

    add_cell (p, &b->bin[i], (struct rect) {
      LEFT + column * cell, y + row * cell, cell, cell });
    if (column == 0 && row % (int) label_rows == 0)
      draw_row_label (p, b, i, y + row * cell + 9);
  }
  add_grid (p, b->n, columns, cell, y);
  draw_layers (p);
}

/* A bar for each bin, wide for the first clusters. */
static void
draw_strip (struct picture *p)
{
  const uint64_t end = p->map->facts.clusters;
  const int h = STRIP_HEIGHT;
  size_t i, k;

  for (i = 0; i < p->strip.n; ++i) {
    const struct bin *bin = &p->strip.bin[i];
    const int x = LEFT + log_place (bin->first, end);
    const int x2 = LEFT + log_place (bin->first + bin->clusters, end);
    struct rect r = { x, p->strip_y, x2 - x, h };

    if (is_outside (p, bin))
      layer_add (p, &p->hatch, r);
    /* Metadata hangs from above, each type at least visible. */
    for (k = 0; k < OVERLAP_TYPES; ++k) {
      const unsigned class = by_rarity[k];
      const int part = (int) ((double) bin->count[class]
                              / (double) bin->clusters * h);

      if (bin->count[class] == 0)
        continue;
      r.h = MAX (part, 6);
      layer_add (p, &p->fill[class], r);
      r.y += r.h;
    }
    r.h = MAX (p->strip_y + h - r.y, 0);
    fill_from_below (p, bin, r);
  }
  draw_layers (p);
}

/*----------------------------------------------------------------------
 * Words.
 */

static void
text (struct picture *p, enum canvas_font font, int x, int y,
      const char *words)
{
  p->canvas->ops->text (p->canvas, font, ANCHOR_LEFT, x, y, words);
}

/* For a picture only printable ASCII is safe in any font. */
static void
clean (char *name)
{
  for (; *name; ++name)
    if (*name < 0x20 || *name > 0x7e)
      *name = '?';
}

static void
draw_title (struct picture *p)
{
  const struct map *m = p->map;
  const char *slash = strstr (m->options->image, "://") ? NULL
    : strrchr (m->options->image, '/');
  char a[UNITS_MAX], b[UNITS_MAX], line[300];

  snprintf (line, sizeof line, "%.60s: what is where in the file",
            slash && slash[1] ? slash + 1 : m->options->image);
  clean (line);
  text (p, FONT_BOLD, LEFT, 28, line);
  snprintf (line, sizeof line, "A disk of %s in clusters of %s, %" PRIu32
            " snapshot%s.", units_bytes (m->facts.size, a),
            units_bytes (UINT64_C (1) << m->facts.cluster_bits, b),
            m->facts.snapshots, m->facts.snapshots == 1 ? "" : "s");
  text (p, FONT_NORMAL, LEFT, 50, line);
  if (p->bins.each == 1)
    snprintf (line, sizeof line, "Each cell is one cluster of the file, row "
              "by row.");
  else
    snprintf (line, sizeof line, "Each cell is %s clusters (%s) of the file, "
              "row by row; a spot is metadata.",
              units_number (p->bins.each, a),
              units_bytes (p->bins.each << m->facts.cluster_bits, b));
  text (p, FONT_NORMAL, LEFT, 70, line);
}

static void
draw_swatch (struct picture *p, int y, uint32_t colour, bool hatched)
{
  const struct rect outer = { LEGEND, y - 11, 14, 14 };
  const struct rect inner = { LEGEND + 1, y - 10, 12, 12 };

  p->canvas->ops->rects (p->canvas, FRAME, &outer, 1);
  p->canvas->ops->rects (p->canvas, colour, &inner, 1);
  if (hatched)
    p->canvas->ops->hatch (p->canvas, &inner, 1);
}

static int
draw_legend_line (struct picture *p, int y, unsigned class)
{
  struct map *m = p->map;
  char name[80], a[UNITS_MAX], words[120];

  draw_swatch (p, y, colours[class], false);
  snprintf (words, sizeof words, "%s",
            map_class_text (m, class, name, sizeof name));
  words[31] = '\0';
  clean (words);
  text (p, FONT_NORMAL, LEGEND + 22, y, words);
  p->canvas->ops->text (
    p->canvas, FONT_SMALL, ANCHOR_RIGHT, LEGEND + LEGEND_WIDTH, y,
    units_bytes (m->count[class] << m->facts.cluster_bits, a));
  return y + LINE;
}

static void
draw_legend (struct picture *p)
{
  const struct map *m = p->map;
  char a[UNITS_MAX], words[120];
  int y = TOP + 10;
  unsigned class;

  for (class = 0; class < CLASSES; ++class) {
    if (class == CLASS_DATA)
      y += LINE / 2;
    if (m->count[class] > 0)
      y = draw_legend_line (p, y, class);
  }
  if (!m->limited)
    return;
  y += LINE / 2;
  draw_swatch (p, y, colours[CLASS_FREE], true);
  snprintf (words, sizeof words, "not protected, limit %s",
            units_parameter (m->options->limits[0], a));
  text (p, FONT_NORMAL, LEGEND + 22, y, words);
}

static void
draw_strip_words (struct picture *p)
{
  const uint64_t end = p->map->facts.clusters;
  const unsigned bits = p->map->facts.cluster_bits;
  char a[UNITS_MAX];
  uint64_t c;
  int x, free_from = 0;

  text (p, FONT_NORMAL, LEFT, p->strip_y - 8, "The beginning enlarged: the "
        "whole file on a logarithmic scale; metadata hangs from above");
  for (c = 0; c < end; c = c == 0 ? 1 : c * 4) {
    const struct rect tick = { LEFT + log_place (c, end),
                               p->strip_y + STRIP_HEIGHT, 1, 5 };

    x = tick.x;
    p->canvas->ops->rects (p->canvas, FRAME, &tick, 1);
    if (x < free_from || x > LEFT + WIDTH - 50)
      continue;
    text (p, FONT_SMALL, x + 3, p->strip_y + STRIP_HEIGHT + 14,
          c == 0 ? "0" : units_bytes (c << bits, a));
    free_from = x + 70;
  }
}

static void
draw_zoom_words (struct picture *p)
{
  char a[UNITS_MAX], b[UNITS_MAX], line[200];

  snprintf (line, sizeof line, "Where metadata is densest, enlarged: each "
            "cell is %s cluster%s (%s)",
            units_number (p->zoom.each, a), p->zoom.each == 1 ? "" : "s",
            units_bytes (p->zoom.each << p->map->facts.cluster_bits, b));
  text (p, FONT_NORMAL, LEFT, p->zoom_y - 8, line);
}

/*----------------------------------------------------------------------
 * All of it.
 */

static int
add_piece (void *opaque, const struct survey_piece *piece)
{
  struct picture *p = opaque;
  const unsigned class = map_class_of (piece);

  bins_add (&p->bins, class, piece->first, piece->count);
  bins_add (&p->strip, class, piece->first, piece->count);
  return 0;
}

static int
add_to_zoom (void *opaque, const struct survey_piece *piece)
{
  struct picture *p = opaque;

  bins_add (&p->zoom, map_class_of (piece), piece->first, piece->count);
  return 0;
}

/* Few clusters get large cells, many share one. */
static bool
choose_scale (struct picture *p)
{
  const uint64_t clusters = MAX (p->map->facts.clusters, UINT64_C (1));
  uint64_t each = 1;

  p->columns = 32;
  while (p->columns < MAX_COLUMNS
         && clusters > p->columns * p->columns / 2)
    p->columns *= 2;
  while (div_up (clusters, each) > MAX_COLUMNS * MAX_ROWS)
    each *= 2;
  p->cell = WIDTH / p->columns;
  if (!bins_linear (&p->bins, 0, clusters, each))
    return false;
  return each == 1 || bins_logarithmic (&p->strip, clusters);
}

/* Around the cell that has most metadata, but for the first. */
static bool
choose_zoom (struct picture *p)
{
  const uint64_t cells = ZOOM_ROWS * MAX_COLUMNS;
  const uint64_t clusters = p->map->facts.clusters;
  const uint64_t each = MAX (p->bins.each / (cells / 2), UINT64_C (1));
  const uint64_t span = each * cells;
  const uint64_t around = (span - MIN (span, p->bins.each)) / 2;
  uint64_t first, best = 0;
  size_t i, densest = 0;

  if (p->bins.each == 1)
    return true;
  for (i = 1; i < p->bins.n; ++i)
    if (bin_metadata (&p->bins.bin[i]) > best) {
      best = bin_metadata (&p->bins.bin[i]);
      densest = i;
    }
  first = p->bins.bin[densest].first;
  first -= MIN (first, around);
  first = clusters > span ? MIN (first, clusters - span) : 0;
  first = first / each * each;
  return bins_linear (&p->zoom, first, MIN (first + span, clusters), each);
}

static int
survey (struct picture *p)
{
  if (!choose_scale (p)
      || image_survey (p->map->img, add_piece, p) != 0)
    return -1;
  bins_close (&p->bins);
  bins_close (&p->strip);
  if (!choose_zoom (p))
    return -1;
  if (p->zoom.n > 0
      && image_survey (p->map->img, add_to_zoom, p) != 0)
    return -1;
  bins_close (&p->zoom);
  return 0;
}

/* Where everything goes. */
static void
lay_out (struct picture *p)
{
  const int rows = (int) div_up (p->bins.n, p->columns);
  int legend = TOP, y = TOP + rows * (int) p->cell;
  unsigned class;

  if (p->strip.n > 0) {
    p->strip_y = y + 2 * GAP;
    y = p->strip_y + STRIP_HEIGHT + GAP;
  }
  if (p->zoom.n > 0) {
    p->zoom_y = y + GAP + 8;
    y = p->zoom_y + (int) div_up (p->zoom.n, MAX_COLUMNS)
      * (WIDTH / MAX_COLUMNS);
  }
  for (class = 0; class < CLASSES; ++class)
    legend += p->map->count[class] > 0 ? LINE : 0;
  legend += p->map->limited ? 3 * LINE : 2 * LINE;
  p->height = MAX (y, legend) + GAP;
}

static void
draw (struct picture *p)
{
  const struct rect all = { 0, 0, LEGEND + LEGEND_WIDTH + GAP, p->height };

  p->canvas->ops->rects (p->canvas, PAPER, &all, 1);
  draw_title (p);
  draw_legend (p);
  draw_cells (p, &p->bins, p->columns, (int) p->cell, TOP,
              p->cell >= 14 ? 2 : 4);
  if (p->strip.n > 0) {
    draw_strip (p);
    draw_strip_words (p);
  }
  if (p->zoom.n > 0) {
    draw_cells (p, &p->zoom, MAX_COLUMNS, WIDTH / MAX_COLUMNS, p->zoom_y, 2);
    draw_zoom_words (p);
  }
}

int
picture_draw (struct map *m, bool png, const char *filename)
{
  struct picture p = { .map = m };
  int r = survey (&p);

  if (r == 0) {
    lay_out (&p);
    p.canvas = (png ? canvas_new_png : canvas_new_svg)
      (filename, LEGEND + LEGEND_WIDTH + GAP, p.height);
    r = p.canvas ? 0 : -1;
  }
  if (r == 0) {
    draw (&p);
    r = p.canvas->ops->finish (p.canvas);
    if (p.failed) {
      report_error ("not enough memory to draw all of %s", filename);
      r = -1;
    }
  }
  free (p.bins.bin);
  free (p.strip.bin);
  free (p.zoom.bin);
  return r;
}
