/* SPDX-License-Identifier: BSD-3-Clause */

/* An export of an NBD server.
 *
 * To the engine this is a block device: its length is fixed, what lies
 * past its end is refused with ENOSPC, and there are no locks on it.
 * This file makes of each operation requests that the server takes:
 * whole blocks of its smallest size, none longer than its largest.
 *
 * An edge that is not a whole block is completed here: the block is
 * read, changed and written again.  This is safe because
 *
 * - no other change of the block happens in between (storage-nbd-blocks.c),
 * - the bytes around the change are written as they are, so that a
 *   reader, and a crash, see what they would have seen,
 * - a block is the server's unit, as a sector is a disk's, so that it is
 *   no more likely to be torn than a sector is,
 * - a block lies in one cluster: storage_block_size is for the engine,
 *   which does not write where it were not so, since the guard answered
 *   for the clusters of the write itself.
 *
 * Punching is writing zeroes with leave to make holes, which in contrast
 * to trimming says what is read afterwards.  If the server can tell
 * whether that is fast, it is done only then.
 *
 * Space is never reserved (-ENOTSUP): behind the server may be a sparse
 * file, so new tables are zeroed instead.
 *
 * Locks: that of the blocks, across I/O, for changes.
 */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "report.h"
#include "storage-impl.h"
#include "storage-nbd.h"
#include "storage-write.h"

struct storage_nbd {
  struct storage base;
  struct nbdconn *conn;
  const struct nbdconn_export *export;
  uint64_t size;                /* whole blocks of the export */
  struct nbdblocks blocks;

  /* Said, or learned, once. */
  atomic_bool told_no_locks, told_no_flush, no_punch;
};

static struct storage_nbd *
nbd_of (struct storage *s)
{
  return (struct storage_nbd *) s;
}

/* A request of the engine, and the blocks that it touches. */
struct span {
  uint64_t offset, end;         /* bytes */
  uint64_t low, high;           /* blocks */
  uint64_t max;
};

static struct span
make_span (const struct storage_nbd *n, uint64_t offset, uint64_t len)
{
  const struct span span = {
    .offset = offset,
    .end = offset + len,
    .low = round_down (offset, n->export->block),
    .high = round_up (offset + len, n->export->block),
    .max = n->export->max,
  };

  return span;
}

static bool
is_whole (const struct span *span)
{
  return span->low == span->offset && span->high == span->end;
}

/* The bytes from POS on that one request can have. */
static size_t
piece (const struct span *span, uint64_t pos)
{
  return (size_t) MIN (span->high - pos, span->max);
}

static void
nbd_storage_close (struct storage *s)
{
  struct storage_nbd *n = nbd_of (s);

  nbdconn_close (n->conn);
  nbdblocks_destroy (&n->blocks);
}

static int
nbd_size (struct storage *s, uint64_t *size)
{
  *size = nbd_of (s)->size;
  return 0;
}

/* Nobody knows what the server has allocated. */
static int
nbd_allocated (struct storage *s, uint64_t *bytes)
{
  *bytes = 0;
  (void) s;
  return -ENOTSUP;
}

/* Read the piece at POS of SPAN, of which BUF wants what is inside. */
static int
read_piece (struct storage_nbd *n, const struct span *span, uint64_t pos,
            size_t len, char *buf)
{
  CLEANUP_FREE char *bounce = NULL;
  const uint64_t begin = MAX (pos, span->offset);
  const uint64_t end = MIN (pos + len, span->end);
  int r;

  buf += begin - span->offset;
  if (begin == pos && end == pos + len)
    return nbdconn_read (n->conn, buf, len, pos);

  bounce = malloc (len);
  if (!bounce)
    return -ENOMEM;
  r = nbdconn_read (n->conn, bounce, len, pos);
  if (r == 0)
    memcpy (buf, bounce + (begin - pos), end - begin);
  return r;
}

static int
nbd_read (struct storage *s, void *buf, size_t len, uint64_t offset)
{
  struct storage_nbd *n = nbd_of (s);
  const size_t there = offset >= n->size ? 0
    : (size_t) MIN ((uint64_t) len, n->size - offset);
  const struct span span = make_span (n, offset, there);
  uint64_t pos;
  int r;

  memset ((char *) buf + there, 0, len - there);
  if (there == 0)
    return 0;
  for (pos = span.low; pos < span.high; pos += piece (&span, pos)) {
    r = read_piece (n, &span, pos, piece (&span, pos), buf);
    if (r < 0)
      return r;
  }
  return 0;
}

static int
nbd_sync (struct storage *s)
{
  struct storage_nbd *n = nbd_of (s);

  if (n->export->can_flush)
    return nbdconn_flush (n->conn);
  if (!atomic_exchange (&n->told_no_flush, true))
    report_warning ("%s: the server knows no flush: nobody can tell when "
                    "writes are durable", s->name);
  return 0;
}

static int
nbd_lock (struct storage *s, enum storage_lock want,
          enum storage_locking mode, const char **conflict)
{
  (void) conflict;
  if (mode == LOCKING_ON)
    return -ENOTSUP;
  if (mode == LOCKING_AUTO && want == STORAGE_LOCK_WRITER
      && !atomic_exchange (&nbd_of (s)->told_no_locks, true))
    report_warning ("%s: there are no locks over NBD: make sure that nobody "
                    "else writes to this image", s->name);
  return 0;
}

static int
nbd_map (struct storage *s, uint64_t offset, uint64_t *len, bool *hole)
{
  struct storage_nbd *n = nbd_of (s);
  /* What a server may be asked at once, in bytes. */
  const uint64_t most = UINT64_C (1) << 30;
  uint64_t before, part;
  int r;

  if (offset >= n->size) {
    *hole = true;
    return 0;
  }
  *len = MIN (*len, n->size - offset);
  if (!n->export->can_map)
    return 0;

  before = offset - round_down (offset, n->export->block);
  part = round_up (before + MIN (*len, most), n->export->block);
  r = nbdconn_map (n->conn, offset - before, &part, hole);
  if (r == 0)
    *len = MIN (*len, part - before);
  return r;
}

static int
nbd_rotational (struct storage *s)
{
  return nbd_of (s)->export->rotational;
}

/* The vector that is written, and how far. */
struct source {
  const struct iovec *iov;      /* the present element */
  size_t done;                  /* bytes of it that were taken */
};

/* The next LEN bytes of SRC, copied. */
static void
take (struct source *src, char *to, size_t len)
{
  while (len > 0) {
    const size_t part = MIN (len, src->iov->iov_len - src->done);

    if (part > 0)
      memcpy (to, (const char *) src->iov->iov_base + src->done, part);
    to += part;
    len -= part;
    src->done += part;
    if (src->done == src->iov->iov_len) {
      src->iov++;
      src->done = 0;
    }
  }
}

/* The next LEN bytes of SRC, if they lie together: else NULL. */
static const char *
take_together (struct source *src, size_t len)
{
  const char *p;

  while (src->done == src->iov->iov_len) {
    src->iov++;
    src->done = 0;
  }
  if (src->iov->iov_len - src->done < len)
    return NULL;
  p = (const char *) src->iov->iov_base + src->done;
  src->done += len;
  return p;
}

/* Let BUF hold what is on the server in the blocks of the piece at POS
 * that SPAN does not cover whole.
 */
static int
read_edges (struct storage_nbd *n, const struct span *span, uint64_t pos,
            size_t len, char *buf)
{
  const uint32_t block = n->export->block;
  const uint64_t last = span->high - block;
  bool have_last = false;
  int r;

  if (pos < span->offset) {
    r = nbdconn_read (n->conn, buf, block, pos);
    if (r < 0)
      return r;
    have_last = pos == last;
  }
  if (span->end < span->high && pos + len == span->high && !have_last)
    return nbdconn_read (n->conn, buf + (last - pos), block, last);
  return 0;
}

/* Write the piece at POS of SPAN. */
static int
write_piece (struct storage_nbd *n, const struct span *span, uint64_t pos,
             size_t len, struct source *src, unsigned flags)
{
  CLEANUP_FREE char *bounce = NULL;
  const uint64_t begin = MAX (pos, span->offset);
  const uint64_t end = MIN (pos + len, span->end);
  const char *together;
  int r;

  if (begin == pos && end == pos + len) {
    together = take_together (src, len);
    if (together)
      return nbdconn_write (n->conn, together, len, pos, flags);
  }
  bounce = malloc (len);
  if (!bounce)
    return -ENOMEM;
  r = read_edges (n, span, pos, len, bounce);
  if (r < 0)
    return r;
  take (src, bounce + (begin - pos), end - begin);
  return nbdconn_write (n->conn, bounce, len, pos, flags);
}

/* Write SPAN, whose blocks were entered. */
static int
write_span (struct storage_nbd *n, const struct span *span,
            const struct iovec *iov, unsigned flags)
{
  struct source src = { .iov = iov };
  uint64_t pos;
  int r;

  for (pos = span->low; pos < span->high; pos += piece (span, pos)) {
    r = write_piece (n, span, pos, piece (span, pos), &src, flags);
    if (r < 0)
      return r;
  }
  return 0;
}

/* Changes of whole blocks alone need not be kept apart, where there is
 * nothing smaller.
 */
static void
enter_span (struct storage_nbd *n, const struct span *span,
            struct nbdblocks_range *range)
{
  if (n->export->block > 1)
    nbdblocks_enter (&n->blocks, range, span->low, span->high,
                     !is_whole (span));
}

static void
leave_span (struct storage_nbd *n, struct nbdblocks_range *range)
{
  if (n->export->block > 1)
    nbdblocks_leave (&n->blocks, range);
}

static int
nbd_write (struct storage *s, const struct iovec *iov, int cnt,
           uint64_t offset, bool durable)
{
  struct storage_nbd *n = nbd_of (s);
  struct nbdblocks_range range;
  struct span span;
  uint64_t len = 0;
  int r, i;

  for (i = 0; i < cnt; i++)
    len += iov[i].iov_len;
  if (offset + len > n->size)
    return -ENOSPC;

  span = make_span (n, offset, len);
  enter_span (n, &span, &range);
  r = write_span (n, &span, iov,
                  durable && n->export->can_fua ? NBDCONN_FUA : 0);
  leave_span (n, &range);
  if (r == 0 && durable && !n->export->can_fua)
    r = nbd_sync (s);
  return r;
}

/* Zero bytes the long way. */
static int
write_zeroes (struct storage *s, uint64_t offset, uint64_t len)
{
  static const char zeroes[65536];
  int r = 0;

  while (len > 0 && r == 0) {
    struct iovec iov = {
      .iov_base = (void *) (uintptr_t) zeroes,
      .iov_len = (size_t) MIN (len, (uint64_t) sizeof zeroes),
    };

    r = nbd_write (s, &iov, 1, offset, false);
    offset += iov.iov_len;
    len -= iov.iov_len;
  }
  return r;
}

/* Zeroes in whole blocks, by the server. */
static int
zero_blocks (struct storage_nbd *n, uint64_t begin, uint64_t end,
             unsigned flags)
{
  const struct span span = make_span (n, begin, end - begin);
  struct nbdblocks_range range;
  uint64_t pos;
  int r = 0;

  enter_span (n, &span, &range);
  for (pos = begin; pos < end && r == 0; pos += piece (&span, pos))
    r = nbdconn_zero (n->conn, pos, piece (&span, pos), flags);
  leave_span (n, &range);
  return r;
}

static int
nbd_zero (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_nbd *n = nbd_of (s);
  const uint64_t end = offset + len;
  const uint64_t begin_whole = round_up (offset, n->export->block);
  const uint64_t end_whole = round_down (end, n->export->block);
  int r;

  if (end > n->size)
    return -ENOSPC;
  if (!n->export->can_zero || begin_whole >= end_whole)
    return write_zeroes (s, offset, len);

  r = write_zeroes (s, offset, begin_whole - offset);
  if (r == 0)
    r = zero_blocks (n, begin_whole, end_whole, NBDCONN_NO_HOLE);
  if (r == 0)
    r = write_zeroes (s, end_whole, end - end_whole);
  return r;
}

static int
nbd_punch (struct storage *s, uint64_t offset, uint64_t len)
{
  struct storage_nbd *n = nbd_of (s);
  const struct span span = make_span (n, offset, len);
  int r;

  if (!n->export->can_zero || !is_whole (&span) || span.end > n->size
      || atomic_load_explicit (&n->no_punch, memory_order_relaxed))
    return -ENOTSUP;
  r = zero_blocks (n, offset, span.end,
                   n->export->can_fast_zero ? NBDCONN_FAST_ZERO : 0);
  if (r == -ENOTSUP)
    atomic_store_explicit (&n->no_punch, true, memory_order_relaxed);
  return r;
}

static int
nbd_reserve (struct storage *s, uint64_t offset, uint64_t len)
{
  return offset + len > nbd_of (s)->size ? -ENOSPC : -ENOTSUP;
}

static int
nbd_truncate (struct storage *s, uint64_t size)
{
  (void) s;
  (void) size;
  return -ENOTSUP;
}

static const struct storage_ops nbd_ops = {
  .close = nbd_storage_close,
  .size = nbd_size,
  .allocated = nbd_allocated,
  .read = nbd_read,
  .sync = nbd_sync,
  .lock = nbd_lock,
  .map = nbd_map,
  .is_rotational = nbd_rotational,
  .write = nbd_write,
  .zero = nbd_zero,
  .punch = nbd_punch,
  .reserve = nbd_reserve,
  .truncate = nbd_truncate,
};

int
storage_open_nbd (const char *uri, bool writable, bool trusted,
                  struct storage_patience patience, struct storage **s)
{
  CLEANUP_FREE struct storage_nbd *n = calloc (1, sizeof *n);
  int r;

  if (!n)
    return -ENOMEM;
  r = storage_init (&n->base, &nbd_ops, uri);
  if (r < 0)
    return r;
  r = nbdconn_open (uri, trusted, patience, &n->conn);
  if (r < 0) {
    free (n->base.name);
    return r;
  }

  nbdblocks_init (&n->blocks);
  n->export = nbdconn_export (n->conn);
  n->size = round_down (MIN (n->export->size, (uint64_t) INT64_MAX),
                        n->export->block);
  n->base.writable = writable && !n->export->read_only;
  n->base.block_size = n->export->block;
  *s = &n->base;
  n = NULL;
  return 0;
}
