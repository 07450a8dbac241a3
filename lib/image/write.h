/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing guest data.  See write.c. */

#ifndef QCOW2_WRITE_H
#define QCOW2_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct image;

/* As image_write, but the caller has made sure that writing may begin.
 * *COMMIT is set if the write is durable only after a commit; with
 * DURABLE data whose mapping is durable is made so at once.
 */
int write_range (struct image *img, const void *buf, uint64_t len,
                 uint64_t offset, bool durable, bool *commit);

#endif /* QCOW2_WRITE_H */
