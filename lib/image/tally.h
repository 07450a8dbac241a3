/* SPDX-License-Identifier: BSD-3-Clause */

/* References to host clusters, counted.  See tally.c. */

#ifndef QCOW2_TALLY_H
#define QCOW2_TALLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TALLY_PAGE 64           /* clusters */

struct tally_page {
  uint64_t first;               /* cluster, a multiple of TALLY_PAGE */
  struct tally_page *next;
  uint8_t counts[];             /* as in a refcount block */
};

struct tally {
  unsigned order;               /* log2 of a count's bits */
  struct tally_page **hash;
  size_t hash_size, pages;
  struct tally_page *last;      /* the page used last */
};

/* Start at nothing.  0 or -ENOMEM. */
int tally_init (struct tally *t, unsigned order);
void tally_free (struct tally *t);

/* One reference more to a cluster.  0; -ERANGE if the count is as high
 * as it can be (it stays there); -ENOMEM.
 */
int tally_add (struct tally *t, uint64_t cluster);

uint64_t tally_get (struct tally *t, uint64_t cluster);

/* Every page that there is, in no order: begin with I = 0, *PAGE = NULL;
 * false at the end.  No tally_add between the calls.
 */
bool tally_next (const struct tally *t, size_t *i,
                 struct tally_page **page);

#endif /* QCOW2_TALLY_H */
