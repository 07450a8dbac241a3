/* SPDX-License-Identifier: BSD-3-Clause */

/* Memory of tests, which end where there is none. */

#ifndef QCOW2_MEMORY_H
#define QCOW2_MEMORY_H

#include <stdlib.h>

static inline void *
check_memory (void *p)
{
  if (p == NULL)
    abort ();
  return p;
}

#endif /* QCOW2_MEMORY_H */
