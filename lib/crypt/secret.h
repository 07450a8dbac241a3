/* SPDX-License-Identifier: BSD-3-Clause */

/* Memory for keys: in no core dump, not swapped out where the limits
 * allow that, and wiped when it is freed.
 */

#ifndef QCOW2_SECRET_H
#define QCOW2_SECRET_H

#include <stddef.h>

/* SIZE zero bytes on pages of their own; NULL if there is no memory. */
void *secret_alloc (size_t size);

/* NULL is allowed. */
void secret_free (void *p);

#endif /* QCOW2_SECRET_H */
