/* SPDX-License-Identifier: BSD-3-Clause */

/* Names of the events of event.h. */

#include <config.h>

#include <stdlib.h>

#include "event.h"

const char *
event_name (enum event_kind kind)
{
  switch (kind) {
  case EVENT_OVERLAP_MEMORY_LIMIT_REACHED:
    return "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED";
  case EVENT_OVERLAP_PROTECTION_RESTORED:
    return "QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED";
  case EVENT_IMAGE_CORRUPTED:
    return "BLOCK_IMAGE_CORRUPTED";
  default:
    abort ();
  }
}
