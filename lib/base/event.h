/* SPDX-License-Identifier: BSD-3-Clause */

/* Events: what an operator must learn even if nobody reads the log.
 * The library fills these plain structs and calls the sink it was
 * given; turning them into JSON lines is the program's business.
 *
 * A sink is called from any thread, possibly with locks of the library
 * held: it must return soon, must not call back into the library, and
 * must copy what it keeps.
 */

#ifndef QCOW2_EVENT_H
#define QCOW2_EVENT_H

#include <stdbool.h>
#include <stdint.h>

enum event_kind {
  EVENT_OVERLAP_MEMORY_LIMIT_REACHED, /* QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED */
  EVENT_OVERLAP_PROTECTION_RESTORED,  /* QCOW2_OVERLAP_CHECK_PROTECTION_RESTORED */
  EVENT_IMAGE_CORRUPTED,              /* BLOCK_IMAGE_CORRUPTED */
};
#define EVENT_KINDS 3

struct event {
  enum event_kind kind;
  const char *image;            /* file name as the user gave it */
  const char *msg;              /* IMAGE_CORRUPTED: what was met */
  bool has_range;               /* offset, size are set */
  uint64_t offset;              /* host bytes */
  uint64_t size;                /* host bytes */
  bool fatal;                   /* IMAGE_CORRUPTED: writes stop */
  uint64_t limit;               /* LIMIT_REACHED: total-size-limit */
  uint64_t used;                /* LIMIT_REACHED: bytes accounted */
  const char *policy;           /* LIMIT_REACHED: overlap-limit */
  uint64_t enough;              /* LIMIT_REACHED: a limit that suffices,
                                   whole KiB */
  bool is_protected;            /* LIMIT_REACHED: range is still safe
                                   (policy verify or refuse) */
};

typedef void event_sink (void *opaque, const struct event *event);

/* The event's name as operators see it. */
const char *event_name (enum event_kind kind);

#endif /* QCOW2_EVENT_H */
