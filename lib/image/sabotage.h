/* SPDX-License-Identifier: BSD-3-Clause */

/* Breaking the rules of crash safety, one at a time, on purpose: so that
 * a test can show that the tests notice (tests/crash/test-sabotage.c).
 *
 * Only libqcow2sabotage.la, which tests link instead of libqcow2image.la,
 * is compiled with QCOW2_SABOTAGE.  Elsewhere SABOTAGED is a constant and
 * no code remains of it; tests/crash/check-no-sabotage.sh looks.
 */

#ifndef QCOW2_SABOTAGE_H
#define QCOW2_SABOTAGE_H

#include <stdbool.h>

enum sabotage {
  SABOTAGE_NONE,
  SABOTAGE_POINTER_SYNC,        /* no sync before the pointers */
  SABOTAGE_QUARANTINE,          /* what is freed is free at once */
  SABOTAGE_BLOCK_ORDER,         /* no sync between block and entry */
  SABOTAGE_CUT_FREED,           /* the freed are taken after the commit */
  SABOTAGE_CUT_SLICE,           /* slices are written as they are now */
  SABOTAGE_IN_FLIGHT,           /* freeing waits for no request */
  SABOTAGE_SELF_COUNT,          /* a new block does not count itself */
  SABOTAGE_LAST_SYNC,           /* no sync after the pointers */
  SABOTAGE_FUA,                 /* FUA commits nothing */
  SABOTAGE_UNPACKED,            /* what was unpacked is never forgotten */
  SABOTAGE_PACKER,              /* it stays in a cluster that is released */
  SABOTAGE_DATA_SYNC,           /* syncs are not for the data file */
  SABOTAGE_RAW_FILL,            /* what is filled in is not durable */
  SABOTAGE_BITMAP_MARK,         /* bitmaps are not marked in use */
  SABOTAGE_BITMAP_COMMIT,       /* their new directory is not committed */
  SABOTAGE_BITMAP_OLD,          /* the old one is freed before that */
  SABOTAGE_GROW_CLEAR,          /* the size comes before the zeroes */
  SABOTAGE_GROW_L1,             /* a larger L1 table is not committed */
  SABOTAGE_DIRTY_BIT,           /* cleared before the repair */
  SABOTAGE_REBUILD_SYNC,        /* no sync before the header */
  SABOTAGE_HOLES,               /* nobody looks what the hole is made in */
  NR_SABOTAGES
};

#ifdef QCOW2_SABOTAGE
extern enum sabotage sabotage_now; /* set by the test; in commit.c */
#define SABOTAGED(rule) (sabotage_now == (rule))
#else
#define SABOTAGED(rule) false
#endif

#endif /* QCOW2_SABOTAGE_H */
