/* SPDX-License-Identifier: BSD-3-Clause */

/* Do the dirty bitmaps of an image know what was changed? */

#ifndef QCOW2_DIRTIED_H
#define QCOW2_DIRTIED_H

#include <stdbool.h>

#include "disk.h"
#include "header.h"
#include "kinds.h"

/* BASE is of KIND_BITMAPS, the disk now has TAGS.  A bitmap that is not in
 * use must have all that is not as it was at first, and a disabled one
 * nothing.  CLOSED: it was closed in order, so that none may be in use.
 * If that is not so *PROBLEM says what is wrong.
 */
bool dirtied_is_known (const struct disk *d, const struct header *h,
                       const struct base *base, const tag *tags,
                       bool closed, const char **problem);

#endif /* QCOW2_DIRTIED_H */
