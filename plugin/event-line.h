/* SPDX-License-Identifier: BSD-3-Clause */

/* Events as lines of JSON.  See event-line.c. */

#ifndef QCOW2_EVENT_LINE_H
#define QCOW2_EVENT_LINE_H

#include <stdint.h>

#include <jansson.h>

#include "event.h"

/* The line, which ends in a newline.  Allocated; NULL for want of memory.
 */
char *event_line (const struct event *e);

/* The same for QCOW2_EVENTS_LOST. */
char *event_line_lost (const char *image, uint64_t count);

/* TEXT as a JSON string.  File names are bytes of any kind: what is not
 * UTF-8 keeps its ASCII characters.  NULL for want of memory.
 */
json_t *event_string (const char *text);

#endif /* QCOW2_EVENT_LINE_H */
