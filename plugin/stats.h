/* SPDX-License-Identifier: BSD-3-Clause */

/* The statistics file: counters of requests and of the engine, in the
 * text form that Prometheus reads.  See stats.c.
 */

#ifndef QCOW2_STATS_H
#define QCOW2_STATS_H

#include <stdbool.h>
#include <stdint.h>

#include "event.h"
#include "image.h"

enum stats_kind {
  STATS_READ, STATS_WRITE, STATS_ZERO, STATS_TRIM, STATS_FLUSH,
  STATS_BLOCK_STATUS, STATS_CACHE, STATS_KINDS
};

/* A request under way. */
struct stats_request {
  enum stats_kind kind;
  uint64_t begin;               /* nanoseconds; 0: it is not counted */
  uint32_t bytes;
};

/* Count a request: any thread, no lock, no system call but the reading
 * of a clock; without stats= next to nothing.
 */
struct stats_request stats_begin (enum stats_kind kind, uint32_t bytes);
void stats_end (const struct stats_request *rq, bool failed);

/* Keep the file PATH (NULL: none), written anew every INTERVAL seconds (0:
 * only now and at the end), about the file IMAGE.  Before the fork, so
 * that relative paths work and mistakes are seen.  -1 after an error.
 */
int stats_open (const char *path, unsigned interval, const char *image);

/* Write the file for the first time.  -1 after an error. */
int stats_publish (struct image *img);

/* Start the thread, after the fork, for an image that is open until
 * stats_stop.  -1 after an error.
 */
int stats_start (struct image *img);

/* Stop the thread, write the file once more, which says that nothing is
 * served any more, and free everything.  May be called without the others,
 * and twice.
 */
void stats_stop (void);

/* stats-text.c: what the file says. */

#define STATS_BUCKETS 20        /* the last one is for all that is longer */
extern const uint64_t stats_bounds[STATS_BUCKETS - 1]; /* nanoseconds */

struct stats_kind_total {
  uint64_t in_flight, errors, bytes, nanoseconds;
  uint64_t count[STATS_BUCKETS]; /* of each, not added up */
};

struct stats_snapshot {
  const char *image;            /* its name */
  bool serving;
  bool has_engine;              /* ENGINE and DISK_SIZE are set */
  struct image_stats engine;
  uint64_t disk_size;           /* bytes */
  uint64_t start_seconds;       /* since 1970 */
  struct stats_kind_total kinds[STATS_KINDS];
  uint64_t events[EVENT_KINDS], events_lost;
};

/* Allocated; NULL for want of memory. */
char *stats_text (const struct stats_snapshot *s);

#endif /* QCOW2_STATS_H */
