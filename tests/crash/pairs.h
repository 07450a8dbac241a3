/* SPDX-License-Identifier: BSD-3-Clause */

/* Do any two features meet in one of the things that are tested? */

#ifndef QCOW2_PAIRS_H
#define QCOW2_PAIRS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAIRS_BIT(feature) (UINT64_C (1) << (feature))

struct pairs {
  unsigned nr_features;         /* at most 64 */
  const char *(*name) (unsigned feature);
  /* Those that cannot go together with it: said of one of the two. */
  uint64_t (*apart) (unsigned feature);
  size_t nr_things;
  uint64_t (*has) (size_t thing);
  const char *thing;            /* what they are called */
};

/* True if any two features that are not apart are together in some thing,
 * and none that are.  Else it is printed which.
 */
bool pairs_are_there (const struct pairs *p);

#endif /* QCOW2_PAIRS_H */
