/* SPDX-License-Identifier: BSD-3-Clause */

/* What memory the tracker of an image should be given.  See advice.c. */

#ifndef QCOW2_ADVICE_H
#define QCOW2_ADVICE_H

#include <stdint.h>

struct image;

struct memory_advice {
  uint64_t bitmap_size;         /* bytes, for overlap-structures.* */
  uint64_t total_limit;
};

/* For IMG as it is and until its disk is full, as long as it is not made
 * larger and gets no more snapshots.  PIECES: of metadata, as walk_metadata
 * has visited them.  IMG's map, counts and snapshots have been read; it is
 * not being written to.  No I/O.
 */
void advise_memory (const struct image *img, uint64_t pieces,
                    struct memory_advice *advice);

#endif /* QCOW2_ADVICE_H */
