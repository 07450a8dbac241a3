/* SPDX-License-Identifier: BSD-3-Clause */

/* Which layer of a long chain of backing files has a block of guest data.
 * See depths.c.
 */

#ifndef QCOW2_DEPTHS_H
#define QCOW2_DEPTHS_H

#include <stddef.h>
#include <stdint.h>

#include "tlb.h"

struct layer;

struct depths {
  struct tlb tlb;
  unsigned n;
  struct layer *layers[];       /* from the first one down; not owned */
};

/* For the chain that begins with FIRST, if that is worth it: *DEPTHS may
 * become NULL.  0 or -ENOMEM.
 */
int depths_open (struct layer *first, struct depths **depths);
void depths_close (struct depths *depths);

/* As layer_read of the first layer. */
int depths_read (struct depths *depths, void *buf, size_t len,
                 uint64_t offset);

#endif /* QCOW2_DEPTHS_H */
