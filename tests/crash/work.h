/* SPDX-License-Identifier: BSD-3-Clause */

/* Guests at work on an image that lies on a recorder, and on one that
 * came out of a crash.
 */

#ifndef QCOW2_WORK_H
#define QCOW2_WORK_H

#include <stdbool.h>
#include <stdint.h>

#include "history.h"
#include "image.h"
#include "kinds.h"
#include "recorder.h"

/* What the engine opens under these names, see work.c. */
#define NAME_RECORDER "recorder"
#define NAME_STATE    "state"

/* Which image, recorder and state that are; set before an opening. */
void work_on (const struct base *b, struct recorder *rec);
void work_on_state (struct disk *state);

/* Open an image.  What goes wrong is said in work_problem, which is
 * empty as long as nothing did: a report of the engine, an event.
 */
struct image *work_open (const char *name);
extern char work_problem[1024];
void work_forget_problem (void);

/* Let so many requests happen, from the kind's number of clients at
 * once, then end; with KIND_RESIZE the disk shrinks and grows between
 * them.  Negative if one of them failed that should not.  With
 * KIND_FAILING a part of the writes to the disk, of its zeroes and holes
 * fails until the end begins.
 */
int work (struct history *h, unsigned requests, uint64_t seed);

/* A few requests on the image that came out of a crash, whose sectors
 * hold TAGS, which is kept up to date.  Numbers begin at FIRST.
 */
int work_on_after_crash (struct image *img, tag *tags, unsigned requests,
                         uint64_t first, uint64_t seed);

/* May the disk have so many bytes after a crash at this moment? */
bool work_size_is_legal (uint64_t size, size_t crash);

/* With KIND_REPAIR: from this moment of the recorder on it is repaired. */
extern size_t work_repaired;

/* Set for a disk whose syncs promise nothing: then the rule is broken. */
extern bool work_disk_lies;

/* The tags of all sectors of the windows; TAG_GONE beyond the end. */
int work_read_tags (struct image *img, tag *tags);

#endif /* QCOW2_WORK_H */
