/* SPDX-License-Identifier: BSD-3-Clause */

/* Tables in the file, read for what is not 0: lib/image/entries.h. */

#include <config.h>

#include <errno.h>

#include "byteorder.h"
#include "entries.h"
#include "storage-memory.h"
#include "storage-test.h"

#define TABLE (192 * KIB)       /* host offset of the table */
#define COUNT 100000u

static int file = -1;
static struct storage *s;
static uint64_t want[COUNT + 1];        /* the last belongs to the next */
static char path[64];

static void
setup (void)
{
  memset (want, 0, sizeof want);
  disk_file (&file, path);
  s = open_rw (path);
}

static void
teardown (void)
{
  storage_close (s);
  close (file);
}

static void
put (uint64_t index, uint64_t entry)
{
  const uint64_t big = htobe64 (entry);

  want[index] = entry;
  ck_ok (write_buf (s, &big, sizeof big, TABLE + index * sizeof big));
}

/* All of the first COUNT_ entries, in order, and nothing else. */
static void
ck_entries (uint64_t count)
{
  struct entries e;
  uint64_t i, index, entry;

  entries_init (&e, s, TABLE, count);
  for (i = 0; i < count; ++i) {
    if (want[i] == 0)
      continue;
    ck_assert_int_eq (entries_next (&e, &index, &entry), 1);
    ck_assert_uint_eq (index, i);
    ck_assert_uint_eq (entry, want[i]);
  }
  ck_assert_int_eq (entries_next (&e, &index, &entry), 0);
  ck_assert_int_eq (entries_next (&e, &index, &entry), 0);
}

START_TEST (nothing_in_a_file_that_ends_before)
{
  ck_entries (0);
  ck_entries (1);
  ck_entries (COUNT);
}
END_TEST

START_TEST (the_last_entry_and_not_the_one_behind)
{
  put (0, 1);
  put (COUNT - 1, UINT64_MAX);
  put (COUNT, 7);
  ck_entries (1);
  ck_entries (COUNT - 1);
  ck_entries (COUNT);
}
END_TEST

START_TEST (around_the_ends_of_pieces)
{
  uint64_t i;

  for (i = ENTRIES_PIECE - 2; i < ENTRIES_PIECE + 2; ++i) {
    put (i, i);
    put (3 * i, 3 * i);
  }
  for (i = 0; i < 4; ++i) {
    ck_entries (ENTRIES_PIECE - 2 + i);
    ck_entries (3 * ENTRIES_PIECE - 2 + i);
  }
  ck_entries (COUNT);
}
END_TEST

/* Of three stretches, a few pages each, some are holes. */
START_TEST (holes_are_passed_over)
{
  uint64_t i, at;

  srandom (1);
  for (at = 0; at < COUNT; at += 512 * (1 + (uint64_t) random () % 30))
    for (i = 0; i < 3; ++i)
      if (at + i * 70 < COUNT)
        put (at + i * 70, at + i + 1);
  ck_entries (COUNT);
  ck_entries (COUNT / 2);
}
END_TEST

START_TEST (full_tables)
{
  uint64_t i, all[1024];

  for (i = 0; i < COUNT; ++i)
    want[i] = i + 1;
  for (i = 0; i < COUNT; ++i) {
    all[i % 1024] = htobe64 (i + 1);
    if (i % 1024 == 1023 || i == COUNT - 1)
      ck_ok (write_buf (s, all, (i % 1024 + 1) * 8, TABLE + i / 1024 * 8192));
  }
  ck_entries (COUNT);
  ck_entries (COUNT - 3);
}
END_TEST

/*----------------------------------------------------------------------
 * What is asked of the storage.
 */

struct asked {
  int reads, maps;
  int fail_read, fail_map;
};

static int
count_ops (void *opaque, enum storage_memory_op op, uint64_t offset,
           uint64_t len)
{
  struct asked *asked = opaque;

  (void) offset, (void) len;
  if (op == STORAGE_MEMORY_READ) {
    asked->reads++;
    return asked->fail_read;
  }
  asked->maps += op == STORAGE_MEMORY_MAP;
  return op == STORAGE_MEMORY_MAP ? asked->fail_map : 0;
}

/* 64 TiB of 64 KiB clusters, all of it data: it took one question for
 * holes for each piece.
 */
START_TEST (one_question_for_a_stretch_of_data)
{
  enum { ENTRIES = 131072 };
  const uint64_t one = htobe64 (1);
  struct asked asked = { .reads = 0 };
  struct entries e;
  uint64_t i, index, entry;

  storage_close (s);
  ck_ok (storage_open_memory (TABLE, &s));
  for (i = 0; i < ENTRIES; i += 512)
    ck_ok (write_buf (s, &one, sizeof one, TABLE + i * sizeof one));
  storage_memory_set_hook (s, count_ops, &asked);
  entries_init (&e, s, TABLE, ENTRIES);
  for (i = 0; entries_next (&e, &index, &entry) > 0; ++i)
    ck_assert_uint_eq (index, i * 512);
  ck_assert_uint_eq (i, ENTRIES / 512);
  ck_assert_int_le (asked.maps, 2);
  ck_assert_int_eq (asked.reads, ENTRIES / ENTRIES_PIECE);
  storage_memory_set_hook (s, NULL, NULL);
}
END_TEST

START_TEST (errors_are_of_the_storage)
{
  struct asked asked = { .fail_map = -EIO };
  const uint64_t one = htobe64 (1);
  struct entries e;
  uint64_t index, entry;

  storage_close (s);
  ck_ok (storage_open_memory (TABLE, &s));
  ck_ok (write_buf (s, &one, sizeof one, TABLE));
  storage_memory_set_hook (s, count_ops, &asked);

  /* It need not know about holes. */
  entries_init (&e, s, TABLE, 10);
  ck_assert_int_eq (entries_next (&e, &index, &entry), 1);
  ck_assert_int_eq (entries_next (&e, &index, &entry), 0);

  asked.fail_read = -EIO;
  entries_init (&e, s, TABLE, 10);
  ck_assert_int_eq (entries_next (&e, &index, &entry), -EIO);
  storage_memory_set_hook (s, NULL, NULL);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("entries");
  TCase *tc = tcase_create ("entries");

  tcase_set_timeout (tc, patience ());
  tcase_add_checked_fixture (tc, setup, teardown);
  tcase_add_test (tc, nothing_in_a_file_that_ends_before);
  tcase_add_test (tc, the_last_entry_and_not_the_one_behind);
  tcase_add_test (tc, around_the_ends_of_pieces);
  tcase_add_test (tc, holes_are_passed_over);
  tcase_add_test (tc, full_tables);
  tcase_add_test (tc, one_question_for_a_stretch_of_data);
  tcase_add_test (tc, errors_are_of_the_storage);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
