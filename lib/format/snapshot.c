/* SPDX-License-Identifier: BSD-3-Clause */

/* The snapshot table: entries of variable length, one after another,
 * each starting at a multiple of 8.
 *
 * Nothing is allocated before the bytes that it would hold are known to
 * be in the buffer, so a short table cannot ask for much memory.  An
 * embedded NUL ends an ID or a name early, as it does for QEMU.  Takes
 * no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "header.h"
#include "snapshot.h"

/* What QEMU takes at most. */
#define MAX_EXTRA 1024

/* A table being decoded. */
struct decoder {
  const uint8_t *buf;
  size_t len;
  uint64_t cluster_size, file_size;
  struct format_error *e;
};

static void
snapshot_free (struct snapshot *s)
{
  free (s->id);
  free (s->name);
  free (s->extra);
}

void
snapshot_table_free (struct snapshot_table *t)
{
  uint32_t i;

  for (i = 0; i < t->count; i++)
    snapshot_free (&t->v[i]);
  free (t->v);
  memset (t, 0, sizeof *t);
}

/* The rules for a snapshot's L1 table. */
static int
check_l1 (const struct decoder *d, uint32_t i, const struct snapshot *s)
{
  const uint64_t bytes = (uint64_t) s->l1_size * 8;
  const uint64_t end = round_up (d->file_size, d->cluster_size);

  if (bytes > MAX_L1_BYTES)
    return format_fail (d->e, -EFBIG,
                        "snapshot table entry %" PRIu32 ": l1_size is %"
                        PRIu32 ", more than the %" PRIu64
                        " entries that are supported", i, s->l1_size,
                        MAX_L1_BYTES / 8);
  if (!is_aligned (s->l1_table_offset, d->cluster_size))
    return format_fail (d->e, -EINVAL,
                        "snapshot table entry %" PRIu32
                        ": l1_table_offset is 0x%" PRIx64
                        ", not a multiple of the cluster size %" PRIu64,
                        i, s->l1_table_offset, d->cluster_size);
  /* Without entries there is nothing at the offset. */
  if (bytes == 0)
    return 0;
  if (s->l1_table_offset == 0)
    return format_fail (d->e, -EINVAL,
                        "snapshot table entry %" PRIu32
                        ": l1_table_offset is 0, the place of the header",
                        i);
  if (s->l1_table_offset >= d->file_size
      || bytes > end - s->l1_table_offset)
    return format_fail (d->e, -EINVAL,
                        "snapshot table entry %" PRIu32
                        ": l1_table_offset is 0x%" PRIx64 ", where %"
                        PRIu64 " bytes do not fit before the end of the"
                        " file at %" PRIu64,
                        i, s->l1_table_offset, bytes, d->file_size);
  return 0;
}

/* The fields of the extra data that are known. */
static void
decode_extra (struct snapshot *s)
{
  if (s->extra_size >= 8)
    s->vm_state_size = load_be64 (s->extra);
  if (s->extra_size >= 16) {
    s->has_disk_size = true;
    s->disk_size = load_be64 (s->extra + 8);
  }
  if (s->extra_size >= 24) {
    s->icount = load_be64 (s->extra + 16);
    s->has_icount = s->icount != UINT64_MAX; /* all ones: none */
  }
}

/* Copy the parts of variable length, which start at P. */
static int
copy_strings (const struct decoder *d, struct snapshot *s,
              const uint8_t *p, size_t id_len, size_t name_len)
{
  if (s->extra_size) {
    s->extra = malloc (s->extra_size);
    if (s->extra == NULL)
      return format_fail (d->e, -ENOMEM, "snapshot table: out of memory");
    memcpy (s->extra, p, s->extra_size);
    p += s->extra_size;
  }
  s->id = strndup ((const char *) p, id_len);
  s->name = strndup ((const char *) p + id_len, name_len);
  if (s->id == NULL || s->name == NULL)
    return format_fail (d->e, -ENOMEM, "snapshot table: out of memory");
  return 0;
}

/* Bytes end at END of the table, and the buffer must have them all. */
static int
check_space (const struct decoder *d, uint32_t i, uint64_t end)
{
  if (end > MAX_SNAPSHOT_TABLE_BYTES)
    return format_fail (d->e, -EFBIG,
                        "snapshot table entry %" PRIu32
                        " ends at byte %" PRIu64 " of the table, more than"
                        " the %" PRIu64 " that are supported",
                        i, end, MAX_SNAPSHOT_TABLE_BYTES);
  if (end > d->len)
    return format_fail (d->e, -EMSGSIZE,
                        "snapshot table entry %" PRIu32 " ends at byte %"
                        PRIu64 " of the table, but only %zu bytes of it"
                        " are in the file", i, end, d->len);
  return 0;
}

/* The fixed part P of entry I, which starts at AT, into *S (all zeroes
 * before); where the entry ends, and where its strings divide.
 */
static int
decode_fixed (const struct decoder *d, uint32_t i, uint64_t at,
              const uint8_t *p, struct snapshot *s, uint64_t *end,
              uint32_t lengths[2])
{
  s->l1_table_offset = load_be64 (p);
  s->l1_size = load_be32 (p + 8);
  lengths[0] = load_be16 (p + 12);
  lengths[1] = load_be16 (p + 14);
  s->date_sec = load_be32 (p + 16);
  s->date_nsec = load_be32 (p + 20);
  s->vm_clock_nsec = load_be64 (p + 24);
  s->vm_state_size = load_be32 (p + 32);
  s->extra_size = load_be32 (p + 36);
  if (s->extra_size > MAX_EXTRA)
    return format_fail (d->e, -EFBIG,
                        "snapshot table entry %" PRIu32
                        ": extra_data_size is %" PRIu32 ", more than the"
                        " %d bytes that are supported", i, s->extra_size,
                        MAX_EXTRA);
  *end = at + SNAPSHOT_MIN_ENTRY + s->extra_size + lengths[0] + lengths[1];
  return check_space (d, i, *end);
}

/* Decode entry I, which starts at *AT, into *S (all zeroes before), and
 * move *AT past it.  On failure the caller frees *S.
 */
static int
decode_entry (const struct decoder *d, uint32_t i, uint64_t *at,
              struct snapshot *s)
{
  uint32_t lengths[2];
  uint64_t end;
  int r = check_space (d, i, *at + SNAPSHOT_MIN_ENTRY);

  if (r == 0)
    r = decode_fixed (d, i, *at, d->buf + *at, s, &end, lengths);
  if (r == 0)
    r = check_l1 (d, i, s);
  if (r == 0)
    r = copy_strings (d, s, d->buf + *at + SNAPSHOT_MIN_ENTRY, lengths[0],
                      lengths[1]);
  if (r < 0)
    return r;
  decode_extra (s);
  *at = round_up (end, 8);
  return 0;
}

bool
snapshot_walk (struct snapshot_walk *w, const uint8_t buf[SNAPSHOT_MIN_ENTRY],
               uint64_t cluster_size, uint64_t file_size, struct snapshot *s)
{
  const struct decoder d = {
    .len = SIZE_MAX, .cluster_size = cluster_size, .file_size = file_size,
    .e = &w->why,
  };
  uint32_t lengths[2];
  uint64_t end;

  memset (s, 0, sizeof *s);
  if (decode_fixed (&d, w->index, w->at, buf, s, &end, lengths) < 0)
    return false;
  s->has_disk_size = s->extra_size >= 16;
  w->sound = check_l1 (&d, w->index, s) == 0;
  w->at = round_up (end, 8);
  w->index++;
  return true;
}

int
snapshot_table_decode (const uint8_t *buf, size_t len, uint32_t count,
                       uint64_t cluster_size, uint64_t file_size,
                       struct snapshot_table *t, struct format_error *e)
{
  const struct decoder d = {
    .buf = buf, .len = len, .cluster_size = cluster_size,
    .file_size = file_size, .e = e,
  };
  uint64_t at = 0;
  uint32_t i;
  int r;

  memset (t, 0, sizeof *t);
  if (count == 0)
    return 0;
  if (count > MAX_SNAPSHOTS)
    return format_fail (e, -EFBIG, "nb_snapshots is %" PRIu32
                        ", more than the %d that are supported",
                        count, MAX_SNAPSHOTS);
  r = check_space (&d, count - 1, (uint64_t) count * SNAPSHOT_MIN_ENTRY);
  if (r < 0)
    return r;
  t->v = calloc (count, sizeof *t->v);
  if (t->v == NULL)
    return format_fail (e, -ENOMEM, "snapshot table: out of memory");

  for (i = 0; i < count; i++) {
    t->count = i + 1;           /* so that a half-made entry is freed */
    r = decode_entry (&d, i, &at, &t->v[i]);
    if (r < 0) {
      snapshot_table_free (t);
      return r;
    }
  }
  t->bytes = at;
  return 0;
}
