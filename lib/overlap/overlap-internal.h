/* SPDX-License-Identifier: BSD-3-Clause */

#ifndef QCOW2_OVERLAP_INTERNAL_H
#define QCOW2_OVERLAP_INTERNAL_H

#include "overlap.h"

/* overlap-types.c: the types that may own a cluster beside TYPE. */
overlap_set type_allows (enum overlap_type type);

#endif /* QCOW2_OVERLAP_INTERNAL_H */
