/* SPDX-License-Identifier: BSD-3-Clause */

/* The snapshot table: one row for each rule of the specification's
 * "Snapshots" and each limit.
 */

#include <config.h>

#include "format-test.h"
#include "snapshot.h"

#define CLUSTER 4096
#define FILE_SIZE (20 * CLUSTER + 100) /* the last cluster is short */

/* What goes into an entry. */
struct entry {
  uint64_t l1_offset;
  uint32_t l1_size;
  const char *id, *name;
  uint32_t extra_size;          /* filled with 24 bytes of fields, then
                                   with rubbish */
};

/* Append an entry at *AT; the buffer is large enough. */
static void
put_entry (uint8_t *buf, size_t *at, const struct entry *x)
{
  uint8_t *p = buf + *at;
  uint8_t extra[24];

  store_be64 (p, x->l1_offset);
  store_be32 (p + 8, x->l1_size);
  store_be16 (p + 12, (uint16_t) strlen (x->id));
  store_be16 (p + 14, (uint16_t) strlen (x->name));
  store_be32 (p + 16, 1111);
  store_be32 (p + 20, 2222);
  store_be64 (p + 24, 3333);
  store_be32 (p + 32, 4444);
  store_be32 (p + 36, x->extra_size);
  p += 40;
  store_be64 (extra, 5555);
  store_be64 (extra + 8, 6666);
  store_be64 (extra + 16, 7777);
  memset (p, 0xee, x->extra_size);
  memcpy (p, extra, MIN (x->extra_size, (uint32_t) sizeof extra));
  p += x->extra_size;
  memcpy (p, x->id, strlen (x->id));
  p += strlen (x->id);
  memcpy (p, x->name, strlen (x->name));
  p += strlen (x->name);
  *at = (size_t) round_up ((size_t) (p - buf), 8);
}

/* Decode from a copy that is exactly LEN bytes long. */
static int
decode_table (const uint8_t *buf, size_t len, uint32_t count,
              struct snapshot_table *t, struct format_error *e)
{
  uint8_t *exact = malloc (len ? len : 1);
  int r;

  ck_assert_ptr_nonnull (exact);
  memcpy (exact, buf, len);
  r = snapshot_table_decode (exact, len, count, CLUSTER, FILE_SIZE, t, e);
  free (exact);
  if (r < 0) {
    ck_assert_ptr_null (t->v);
    ck_assert_uint_eq (t->count, 0);
  }
  return r;
}

/* Entries of different shapes, all fields. */
START_TEST (fields)
{
  static const struct entry entries[] = {
    { 0x3000, 7, "1", "first", 16 },
    { 0x5000, 8, "22", "", 0 },
    { 0, 0, "", "a longer name of a snapshot", 30 },
    { 0x3000, 1, "4", "4", 7 }, { 0x3000, 1, "5", "5", 8 },
    { 0x3000, 1, "6", "6", 15 }, { 0x3000, 1, "7", "7", 23 },
    { 0x3000, 1, "8", "8", 24 },
  };
  struct snapshot_table t;
  struct format_error e;
  uint8_t buf[2048] = { 0 };
  size_t at = 0, i;

  for (i = 0; i < ARRAY_SIZE (entries); i++)
    put_entry (buf, &at, &entries[i]);
  /* What follows the table is not looked at. */
  memset (buf + at, 0xff, sizeof buf - at);
  ck_accepted ("fields", decode_table (buf, sizeof buf, ARRAY_SIZE (entries),
                                       &t, &e), &e);
  ck_assert_uint_eq (t.count, ARRAY_SIZE (entries));
  ck_assert_uint_eq (t.bytes, at);
  for (i = 0; i < t.count; i++) {
    const struct snapshot *s = &t.v[i];
    const struct entry *x = &entries[i];

    ck_assert_uint_eq (s->l1_table_offset, x->l1_offset);
    ck_assert_uint_eq (s->l1_size, x->l1_size);
    ck_assert_str_eq (s->id, x->id);
    ck_assert_str_eq (s->name, x->name);
    ck_assert_uint_eq (s->date_sec, 1111);
    ck_assert_uint_eq (s->date_nsec, 2222);
    ck_assert_uint_eq (s->vm_clock_nsec, 3333);
    ck_assert_uint_eq (s->vm_state_size, x->extra_size >= 8 ? 5555 : 4444);
    ck_assert (s->has_disk_size == (x->extra_size >= 16));
    if (s->has_disk_size)
      ck_assert_uint_eq (s->disk_size, 6666);
    ck_assert (s->has_icount == (x->extra_size >= 24));
    if (s->has_icount)
      ck_assert_uint_eq (s->icount, 7777);
    ck_assert_uint_eq (s->extra_size, x->extra_size);
  }
  /* Unknown extra data is kept. */
  ck_assert_uint_eq (t.v[2].extra[7], 5555 & 255);
  ck_assert_uint_eq (t.v[2].extra[24], 0xee);
  ck_assert_uint_eq (t.v[2].extra[29], 0xee);
  snapshot_table_free (&t);
  ck_assert_ptr_null (t.v);
  ck_assert_uint_eq (t.count, 0);
}
END_TEST

START_TEST (no_icount)
{
  const struct entry entry = { 0x3000, 1, "1", "n", 24 };
  struct snapshot_table t;
  struct format_error e;
  uint8_t buf[128] = { 0 };
  size_t at = 0;

  put_entry (buf, &at, &entry);
  store_be64 (buf + 40 + 16, UINT64_MAX);
  ck_accepted ("icount", decode_table (buf, at, 1, &t, &e), &e);
  ck_assert (!t.v[0].has_icount);
  snapshot_table_free (&t);
}
END_TEST

START_TEST (empty)
{
  struct snapshot_table t;
  struct format_error e;

  ck_accepted ("empty", snapshot_table_decode (NULL, 0, 0, CLUSTER,
                                               FILE_SIZE, &t, &e), &e);
  ck_assert_uint_eq (t.count, 0);
  ck_assert_uint_eq (t.bytes, 0);
  snapshot_table_free (&t);
}
END_TEST

/* The second of two entries is what the row says. */
static const struct {
  const char *what;
  struct entry entry;
  int code;
  const char *words;
} rows[] = {
  { "L1 table in the last cluster", { 20 * CLUSTER, 512, "2", "n", 16 }, 0,
    NULL },
  { "L1 table out of the file", { 20 * CLUSTER, 513, "2", "n", 16 },
    -EINVAL, "entry 1|l1_table_offset is 0x14000|4104 bytes|end" },
  { "L1 table past the file", { 21 * CLUSTER, 1, "2", "n", 16 }, -EINVAL,
    "entry 1|l1_table_offset is 0x15000|end" },
  { "L1 table near 2^56", { (UINT64_C (1) << 56) - CLUSTER, 1, "2", "n", 16 },
    -EINVAL, "entry 1|l1_table_offset is 0xfffffffffff000" },
  { "L1 table that wraps", { UINT64_MAX - CLUSTER + 1, 1024, "2", "n", 16 },
    -EINVAL, "entry 1|l1_table_offset is 0xfffffffffffff000" },
  { "L1 table unaligned", { 0x3008, 1, "2", "n", 16 }, -EINVAL,
    "entry 1|l1_table_offset is 0x3008|4096" },
  { "L1 table unaligned, empty", { 0x3008, 0, "2", "n", 16 }, -EINVAL,
    "entry 1|l1_table_offset is 0x3008" },
  { "L1 table at 0", { 0, 1, "2", "n", 16 }, -EINVAL,
    "entry 1|l1_table_offset is 0" },
  { "L1 table too large", { 0x3000, (4 << 20) + 1, "2", "n", 16 }, -EFBIG,
    "entry 1|l1_size is 4194305|4194304" },
  { "L1 table of 2^32-1 entries", { 0x3000, UINT32_MAX, "2", "n", 16 },
    -EFBIG, "entry 1|l1_size is 4294967295" },
  { "extra data of 1024 bytes", { 0x3000, 1, "2", "n", 1024 }, 0, NULL },
  { "extra data of 1025 bytes", { 0x3000, 1, "2", "n", 1025 }, -EFBIG,
    "entry 1|extra_data_size is 1025|1024" },
  { "no ID and no name", { 0x3000, 1, "", "", 0 }, 0, NULL },
};

START_TEST (row)
{
  const struct entry first = { 0x3000, 1, "1", "one", 16 };
  struct snapshot_table t;
  struct format_error e;
  uint8_t buf[4096] = { 0 };
  size_t at = 0;
  int r;

  put_entry (buf, &at, &first);
  put_entry (buf, &at, &rows[_i].entry);
  r = decode_table (buf, at, 2, &t, &e);
  if (rows[_i].code)
    ck_refusal (rows[_i].what, r, rows[_i].code, &e, rows[_i].words);
  else {
    ck_accepted (rows[_i].what, r, &e);
    snapshot_table_free (&t);
  }
}
END_TEST

START_TEST (huge_extra)
{
  const struct entry entry = { 0x3000, 1, "1", "one", 16 };
  struct snapshot_table t;
  struct format_error e;
  uint8_t buf[128] = { 0 };
  size_t at = 0;

  put_entry (buf, &at, &entry);
  store_be32 (buf + 36, UINT32_MAX);
  ck_refusal ("extra 2^32-1", decode_table (buf, at, 1, &t, &e), -EFBIG, &e,
              "entry 0|extra_data_size is 4294967295");
}
END_TEST

/* Of a broken table the entries up to where none can be made out. */
START_TEST (broken_walk)
{
  const struct entry entries[] = {
    { 0x3000, 1, "1", "one", 16 },
    { 0x3001, 1, "2", "not aligned", 24 },
    { 0x4000, 2, "3", "three", 0 },
    { 0x5000, 3, "4", "too much extra data", 16 },
  };
  struct snapshot_walk w = { .at = 0 };
  struct snapshot s;
  uint8_t buf[512] = { 0 };
  size_t at = 0, i, last = 0;

  for (i = 0; i < 4; i++) {
    last = at;
    put_entry (buf, &at, &entries[i]);
  }
  store_be32 (buf + last + 36, 1025);
  for (i = 0; i < 3; i++) {
    ck_assert (snapshot_walk (&w, buf + w.at, CLUSTER, FILE_SIZE, &s));
    ck_assert_uint_eq (w.index, i + 1);
    ck_assert_int_eq (w.sound, i != 1);
    ck_assert_uint_eq (s.l1_table_offset, entries[i].l1_offset);
    ck_assert_uint_eq (s.l1_size, entries[i].l1_size);
    ck_assert_int_eq (s.has_disk_size, i != 2);
    if (i == 1)
      ck_assert_ptr_nonnull (strstr (w.why.text, "entry 1"));
  }
  ck_assert_uint_eq (w.at, last);
  ck_assert (!snapshot_walk (&w, buf + last, CLUSTER, FILE_SIZE, &s));
  ck_assert_ptr_nonnull (strstr (w.why.text, "entry 3: extra_data_size"));
  w.at = MAX_SNAPSHOT_TABLE_BYTES - SNAPSHOT_MIN_ENTRY;
  ck_assert (!snapshot_walk (&w, buf, CLUSTER, FILE_SIZE, &s));
  ck_assert_ptr_nonnull (strstr (w.why.text, "ends at byte"));
}
END_TEST

/* At every length but those that hold all of it, more is asked for.  The
 * padding of the last entry need not be there.
 */
START_TEST (short_buffer)
{
  const struct entry entries[] = {
    { 0x3000, 1, "1", "one", 16 },
    { 0x3000, 1, "2", "second", 24 },
  };
  const size_t second = 40 + 24 + 1 + 6; /* without padding */
  struct snapshot_table t;
  struct format_error e;
  uint8_t buf[512] = { 0 };
  size_t at = 0, len, needed;

  put_entry (buf, &at, &entries[0]);
  needed = at + second;
  put_entry (buf, &at, &entries[1]);
  ck_assert_uint_lt (needed, at);
  for (len = 0; len < needed; len++)
    ck_refusal ("short", decode_table (buf, len, 2, &t, &e), -EMSGSIZE, &e,
                "snapshot table entry");
  for (len = needed; len <= at; len++) {
    ck_accepted ("long enough", decode_table (buf, len, 2, &t, &e), &e);
    ck_assert_uint_eq (t.bytes, at);
    snapshot_table_free (&t);
  }
}
END_TEST

/* The count alone must not cost anything. */
START_TEST (huge_count)
{
  static const struct {
    uint32_t count;
    int code;
    const char *words;
  } counts[] = {
    { 65536, -EMSGSIZE, "2621440" },
    { 65537, -EFBIG, "nb_snapshots is 65537|65536" },
    { UINT32_MAX, -EFBIG, "nb_snapshots is 4294967295" },
  };
  struct snapshot_table t;
  struct format_error e;
  const uint8_t buf[64] = { 0 };

  ck_refusal ("count", decode_table (buf, 64, counts[_i].count, &t, &e),
              counts[_i].code, &e, counts[_i].words);
}
END_TEST

/* Beyond 64 MiB, reading more would not help. */
START_TEST (huge_table)
{
  const size_t len = MAX_SNAPSHOT_TABLE_BYTES;
  const uint32_t each = 40 + 1024 + 2 * 65535; /* padded: 132136 */
  const uint32_t fit = (uint32_t) (len / round_up (each, 8));
  struct snapshot_table t;
  struct format_error e;
  uint8_t *buf = calloc (1, len);
  uint32_t i;

  ck_assert_ptr_nonnull (buf);
  for (i = 0; i < fit; i++) {
    uint8_t *p = buf + i * round_up (each, 8);

    store_be16 (p + 12, 65535);
    store_be16 (p + 14, 65535);
    store_be32 (p + 36, 1024);
  }
  ck_refusal ("larger", snapshot_table_decode (buf, len, 60000, CLUSTER,
                                               FILE_SIZE, &t, &e),
              -EFBIG, &e, "67108864");
  ck_accepted ("as large", snapshot_table_decode (buf, len, fit, CLUSTER,
                                                  FILE_SIZE, &t, &e), &e);
  ck_assert_uint_eq (t.bytes, fit * round_up (each, 8));
  snapshot_table_free (&t);
  free (buf);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("snapshot");
  TCase *tc = tcase_create ("snapshot");

  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, fields);
  tcase_add_test (tc, no_icount);
  tcase_add_test (tc, empty);
  tcase_add_loop_test (tc, row, 0, ARRAY_SIZE (rows));
  tcase_add_test (tc, huge_extra);
  tcase_add_test (tc, broken_walk);
  tcase_add_test (tc, short_buffer);
  tcase_add_loop_test (tc, huge_count, 0, 3);
  tcase_add_test (tc, huge_table);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
