/* SPDX-License-Identifier: BSD-3-Clause */

/* What a change makes of an L2 entry.  See map-entry.c. */

#ifndef QCOW2_MAP_ENTRY_H
#define QCOW2_MAP_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "l2.h"
#include "map.h"

/* Can the change be made by changing the entry alone?  Part of a
 * compressed cluster cannot become zero.
 */
bool map_entry_can_change (const struct l2_layout *l, struct l2_entry old,
                           uint32_t mask, enum map_change change);

/* What OLD, which is not L2_INVALID, becomes when the subclusters of
 * MASK change.  HOST: the new host offset (MAP_LINK).  BACKING: is there
 * a layer below?  *FREE_OLD: the host clusters of OLD are freed.
 */
struct l2_entry map_changed_entry (const struct l2_layout *l, bool backing,
                                   struct l2_entry old, uint32_t mask,
                                   enum map_change change, uint64_t host,
                                   bool *free_old);

#endif /* QCOW2_MAP_ENTRY_H */
