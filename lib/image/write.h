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

/* The same, but zeroes become zero clusters (detect-zeroes.c). */
int write_detecting_zeroes (struct image *img, const void *buf, size_t len,
                            uint64_t offset, bool durable, bool *commit);

/* zero.c: as image_zero, under the same conditions as write_range.  What
 * changes is durable after a commit, if *COMMIT is set.
 */
int zero_range (struct image *img, uint64_t offset, uint64_t len,
                bool may_trim, bool *commit);

/* zero.c: the same for one whole cluster, by its entry alone, if that can
 * be; else -ENOTSUP.  The caller has the range lock, exclusive.
 */
int zero_whole_cluster (struct image *img, uint64_t offset);

/* detect-zeroes.c */
bool is_all_zeroes (const uint8_t *buf, size_t len);

#endif /* QCOW2_WRITE_H */
