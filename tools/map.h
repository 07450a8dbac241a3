/* SPDX-License-Identifier: BSD-3-Clause */

/* What the map of a file knows, as its files share it. */

#ifndef QCOW2_MAP_TOOL_H
#define QCOW2_MAP_TOOL_H

#include "survey.h"
#include "tool.h"
#include "trial.h"

/* What a cluster can be: a class is a line of the legend, and a colour. */
#define MAP_SNAPSHOTS 6         /* that have a class of their own */
enum map_class {
  /* The types of metadata come first, under their own numbers. */
  CLASS_DATA = OVERLAP_TYPES,
  CLASS_SHARED,
  CLASS_COMPRESSED,
  CLASS_SNAPSHOT,               /* MAP_SNAPSHOTS of them, the last one for
                                   all that are left */
  CLASS_LEAKED = CLASS_SNAPSHOT + MAP_SNAPSHOTS,
  CLASS_FREE,
  CLASSES
};

static inline bool
class_is_metadata (unsigned class)
{
  return class < OVERLAP_TYPES;
}

struct map {
  const struct options *options;
  struct image *img;
  struct offline_facts facts;
  uint64_t count[CLASSES];      /* clusters */
  uint64_t *snapshots;          /* clusters of each; owned */
  struct trial trial;           /* with options->limits[0] */
  bool limited;                 /* there is such a limit */
};

unsigned map_class_of (const struct survey_piece *piece);

/* "active L2 tables", "only in snapshot 'x'": LEN bytes of BUF. */
const char *map_class_text (const struct map *m, unsigned class, char *buf,
                            size_t len);

/* ---- picture.c ---- */

/* Draw the map to a file.  0, or -1 (reported). */
int picture_draw (struct map *m, bool png, const char *filename);

#endif /* QCOW2_MAP_TOOL_H */
