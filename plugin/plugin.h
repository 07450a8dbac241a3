/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of the plugin offer each other.  All of it is called
 * from nbdkit's callbacks: configuration, opening and closing by one
 * thread, events_sink and log_report by any.
 */

#ifndef QCOW2_PLUGIN_H
#define QCOW2_PLUGIN_H

#include <stdbool.h>
#include <stdint.h>

#include "create.h"
#include "event.h"
#include "image.h"
#include "report.h"

/* config.c: the parameters. */

struct plugin_config {
  struct image_config image;    /* .filename NULL: not given */
  const char *event_log;        /* path or fd:N; NULL: none */
  const char *event_socket;     /* path; NULL: none */
  const char *stats;            /* path; NULL: none */
  unsigned stats_interval;      /* seconds */
  bool create;                  /* make the image first */
  struct create_options create_options;
  bool resize, resize_shrink;   /* change the disk's size first */
  uint64_t new_size;            /* bytes */
};
extern struct plugin_config config;

/* The text of nbdkit qcow2 --help. */
extern const char config_help[];

/* Defaults; before any other function of this file. */
void config_init (void);

/* nbdkit's .config and .config_complete: 0, or -1 after an error that
 * names the parameter, the value and what is allowed.
 */
int config_set (const char *key, const char *value);
int config_complete (void);

/* Let the image's name not depend on the current directory, which nbdkit
 * changes when it forks.  -1 after an error.
 */
int config_make_absolute (void);

/* Forget the passphrases, when no image will be opened with them. */
void config_wipe_passphrases (void);

/* Free what the parameters took.  The image is closed by then. */
void config_free (void);

/* A connection, as nbdkit's callbacks get it. */
struct handle {
  struct image *image;          /* the active disk, or a snapshot */
  bool readonly;
  bool by_bitmap;               /* block status is what a bitmap says */
  uint32_t bitmap;              /* which */
  const char *description;      /* of the export */
};

/* exports.c: what beside the active disk has a name. */

struct nbdkit_exports;

/* Add all exports.  -1 after an error. */
int exports_list (struct image *image, struct nbdkit_exports *exports);

/* Open the export NAME, which is not that of the active disk, and close
 * it.  NULL after an error.
 */
struct handle *exports_open (struct image *image, const char *name);
void exports_close (const struct handle *handle);

/* Close those whose connections were not closed; before the image. */
void exports_close_all (void);

/* events.c: the event log.  Each function may be called without the
 * ones before it, and all but events_open twice.
 */

/* Open WHERE (path or fd:N; NULL: no event log) before the fork, so
 * that relative paths work and mistakes are seen.  IMAGE is the file
 * that is served.  -1 after an error.
 */
int events_open (const char *where, const char *image);

/* Start the writing thread, after the fork.  -1 after an error. */
int events_start (void);

/* Write what is queued, for a bounded time, and stop the thread. */
void events_stop (void);

/* Free everything, after events_stop. */
void events_close (void);

/* How many there were of each kind, and how many did not reach a reader. */
void events_count (uint64_t kinds[EVENT_KINDS], uint64_t *not_read);

/* The engine's event_sink; OPAQUE is unused. */
void events_sink (void *opaque, const struct event *event);

/* log.c: the engine's report_sink. */

void log_report (enum report_level level, const char *text);

#endif /* QCOW2_PLUGIN_H */
