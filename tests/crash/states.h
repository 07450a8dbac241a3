/* SPDX-License-Identifier: BSD-3-Clause */

/* What a disk may hold after a power loss at one moment after the other.
 * The moments are asked for in ascending order, and what is certain is
 * done once only.
 */

#ifndef QCOW2_STATES_H
#define QCOW2_STATES_H

#include <stddef.h>
#include <stdint.h>

#include "disk.h"
#include "recorder.h"

enum loss {
  LOSE_NOTHING,                 /* a prefix: all arrived that was begun */
  LOSE_ALL,                     /* only what is certain */
  LOSE_SUBSET,                  /* whole operations */
  LOSE_TORN_SECTORS,            /* pieces of 512 bytes, at random */
  LOSE_TORN_PAGES,              /* pieces of 4096 bytes, at random */
  LOSE_REORDERED,               /* some of them, in any order */
  NR_LOSSES,
};
extern const char *const loss_names[NR_LOSSES];

struct states;

/* REC must not change as long as this is used. */
struct states *states_create (const struct recorder *rec);
void states_free (struct states *st);

/* Go to the moment CRASH, not before an earlier one.  Returns how many
 * operations are uncertain there.
 */
unsigned states_goto (struct states *st, size_t crash);

/* The disk after a crash at this moment; free it before going on.  For
 * LOSE_SUBSET bit I of CHOICE says whether the I-th uncertain operation
 * arrives (from 64 on none does); otherwise it is a seed.
 */
struct disk *states_make (const struct states *st, enum loss loss,
                          uint64_t choice);

/* Say what was uncertain, for the report of a failure. */
void states_print (const struct states *st);

#endif /* QCOW2_STATES_H */
