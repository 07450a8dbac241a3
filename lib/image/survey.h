/* SPDX-License-Identifier: BSD-3-Clause */

/* What every cluster of an image's file is there for.  See survey.c. */

#ifndef QCOW2_SURVEY_H
#define QCOW2_SURVEY_H

#include <stdint.h>

#include "overlap.h"

struct image;

enum survey_kind {
  SURVEY_METADATA,              /* of a type */
  SURVEY_DATA,                  /* guest data of the active disk alone */
  SURVEY_SHARED,                /* of the active disk and of snapshots */
  SURVEY_COMPRESSED,            /* compressed clusters, of any of them */
  SURVEY_SNAPSHOT,              /* of a snapshot, not of the active disk */
  SURVEY_LEAKED,                /* in use, says its count; nothing says why */
};

/* COUNT host clusters from FIRST on. */
struct survey_piece {
  enum survey_kind kind;
  enum overlap_type type;       /* METADATA */
  uint32_t snapshot;            /* SNAPSHOT: the first one that has it, as
                                   image_snapshot_info counts them */
  uint64_t first, count;
};

/* A return that is not 0 ends the survey. */
typedef int survey_fn (void *opaque, const struct survey_piece *piece);

/* Call FN for all clusters of the file that are in use, each once (with the
 * first of its owners, in the order above), in no order of places.  What FN
 * is not told of is free.  Pointers that lead nowhere are passed over.
 * IMG was opened offline.  Returns what FN returned, or a negative errno
 * (reported).
 */
int image_survey (struct image *img, survey_fn *fn, void *opaque);

#endif /* QCOW2_SURVEY_H */
