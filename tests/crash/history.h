/* SPDX-License-Identifier: BSD-3-Clause */

/* What guests did to a disk, and what its sectors may hold after a crash
 * because of that.
 *
 * Any number of clients may be at work at once.  The rule: a sector may
 * hold what a request wrote that had begun, unless another one, which
 * began after that had ended, is durable: it had ended before a flush
 * began that has ended, or before a trim of the sector with FUA, or it had
 * FUA itself and has ended.  What was there at first counts as written
 * before everything.  A request that failed may have been done, but is never
 * durable, nor makes others so.
 *
 * Only the sectors of some windows of the disk are looked at, since with
 * large clusters there are too many.  They are numbered through.
 */

#ifndef QCOW2_HISTORY_H
#define QCOW2_HISTORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SECTOR 512u

/* The contents of a sector: 0 is all zeroes, else the number of the
 * request that wrote it, or a hash of anything else.
 */
typedef uint64_t tag;
#define TAG_GONE UINT64_MAX     /* beyond the end of the disk */

struct window {
  uint64_t offset, len;         /* guest bytes, whole sectors */
};

enum op_kind { OP_WRITE, OP_ZERO, OP_TRIM, OP_FLUSH, NR_OPS };
extern const char *const op_names[NR_OPS];

struct op {
  enum op_kind kind;
  bool fua, may_trim;
  uint64_t offset, len;         /* as it was asked for, whole sectors */
  uint64_t from, end;           /* what must have changed; may be empty */
  unsigned client;

  /* Set by the history. */
  uint64_t number;              /* its tag, from 1 */
  uint64_t began_at, ended_at;  /* a clock of its own */
  size_t began, ended;          /* moments of the recorder */
  bool failed;                  /* so it promises nothing */
};

struct history;

/* INITIAL has the tags of all sectors of the windows. */
struct history *history_create (const struct window *windows, unsigned n,
                                const tag *initial);
void history_free (struct history *h);

/* How many sectors there are. */
unsigned history_sectors (const struct history *h);

/* A request begins, or has ended, at that moment of the recorder.  The
 * history keeps a copy; begin returns it, with its number.  From any
 * thread.
 */
struct op *history_begin (struct history *h, const struct op *op,
                          size_t moment);
void history_end (struct history *h, struct op *op, size_t moment,
                  bool failed);

/* A read of a part of one window begins; it has ended, with TAGS.  The
 * history keeps a copy.  From any thread.
 */
uint64_t history_begin_read (struct history *h);
void history_end_read (struct history *h, uint64_t began_at,
                       uint64_t offset, uint64_t len, const tag *tags);

/* The bytes that a write puts there, and what bytes are. */
void history_fill (uint64_t number, uint64_t offset, uint64_t len,
                   char *buf);
tag history_tag (const char *sector, uint64_t offset);

/* When nobody adds to it any more: judge a crash at this moment (not
 * before an earlier one).
 */
void history_goto (struct history *h, size_t crash);
bool history_is_legal (const struct history *h, unsigned sector, tag seen);

/* Did every read see what it may?  What a request wrote that had begun
 * before the read ended, unless another one came after that and before
 * the read.  If not, *SECTOR is one that it did not, and *SEEN its tag.
 */
bool history_reads_are_legal (const struct history *h, unsigned *sector,
                              tag *seen);

/* All that was asked for a sector. */
void history_print (const struct history *h, unsigned sector);

#endif /* QCOW2_HISTORY_H */
