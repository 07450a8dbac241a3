/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker compared with the tables.  See selfcheck.c. */

#ifndef QCOW2_SELFCHECK_H
#define QCOW2_SELFCHECK_H

#include <stdint.h>

struct image;

/* Is everything that the tables name in the tracker under its type, and
 * nothing else?  Reports what is not, in lines that say "self-check", and
 * returns how many clusters.  For -D qcow2.overlap=1 and tests; slow.
 */
uint64_t verify_tracker (struct image *img);

#endif /* QCOW2_SELFCHECK_H */
