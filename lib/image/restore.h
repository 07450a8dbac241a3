/* SPDX-License-Identifier: BSD-3-Clause */

/* Bringing back what left the tracker.  See restore.c. */

#ifndef QCOW2_RESTORE_H
#define QCOW2_RESTORE_H

struct image;

/* If ranges are outside the tracker and there is memory again, rebuild
 * one of them from the tables.  Cheap if not.  Called after each commit.
 */
void restore_tracker (struct image *img);

#endif /* QCOW2_RESTORE_H */
