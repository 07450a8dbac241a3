/* SPDX-License-Identifier: BSD-3-Clause */

/* Who shares a commit, and who waits for whom (lib/image/commit-group.c).
 * How long is waited at most is set to what no test could wait for, or to
 * next to nothing, so that nothing here depends on the machine's speed.
 */

#include <config.h>

#include "cleanup.h"
#include "data.h"
#include "held-test.h"
#include "run-suite.h"

#define K 1024u
#define MEG (1024 * K)
#define SECOND UINT64_C (1000000000)

static struct request first = { .kind = FLUSH }, second = { .kind = FLUSH };

/* Leaders wait at most so long. */
static void
wait_at_most (uint64_t nanoseconds)
{
  struct commit *c = &img->commit;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  c->group.longest = nanoseconds;
  c->group.usual = 1000 * SECOND;
}

static void
write_in_place (int c)
{
  ck_assert_int_eq (write_byte (0, 4 * K, c), 0);
}

static void
begin (uint64_t longest)
{
  make_image ("", "64M");
  ck_assert_int_eq (write_byte (0, 64 * K, 1), 0);
  ck_assert_int_eq (image_flush (img), 0);
  wait_at_most (longest);
}

/* Somebody asked for the commit that comes after the running one. */
static void
wait_until_asked (void)
{
  struct commit *c = &img->commit;
  bool asked = false;

  while (!asked) {
    usleep (1000);
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    asked = c->group.asking > 0;
  }
}

/* How often a sync was started, and how that ends. */
static atomic_uint starts;
static atomic_int start_result;

static int
start_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
            uint64_t len)
{
  if (kind != STORAGE_MEMORY_START_SYNC)
    return hold_hook (opaque, kind, offset, len);
  atomic_fetch_add (&starts, 1);
  return atomic_load (&start_result);
}

/* The first client's flush is answered, while the second's has waited for
 * it to end.
 */
static void
one_after_the_other (void)
{
  write_in_place (2);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  storage_memory_set_hook (storage, start_hook, NULL);
  start (&first);
  wait_until_held ();
  write_in_place (3);
  start (&second);
  wait_until_asked ();
  let_go ();
  done (&first, 0);
}

START_TEST (two_clients_that_flush_in_turns_share_each_commit)
{
  uint64_t started;

  begin (1000 * SECOND);
  one_after_the_other ();
  started = img->commit.started;
  /* It is the second's turn, but the first will be back. */
  expect_waiting (&second);
  write_in_place (4);
  ck_assert_int_eq (image_flush (img), 0);
  done (&second, 0);
  ck_assert_uint_eq (img->commit.started, started + 1);
  expect_byte (0, 4 * K, 4);
  stop_clean ();
}
END_TEST

/* Who will have to wait begins to write what the commit will; who will
 * not leaves that to the commit.
 */
START_TEST (who_waits_for_others_starts_the_sync)
{
  begin (1000 * SECOND);
  one_after_the_other ();
  expect_waiting (&second);
  ck_assert_uint_eq (atomic_load (&starts), 1);
  write_in_place (4);
  ck_assert_int_eq (image_flush (img), 0);
  done (&second, 0);
  ck_assert_uint_eq (atomic_load (&starts), 1);
  stop_clean ();
}
END_TEST

/* What the kernel tells who starts a sync it may tell nobody else. */
START_TEST (a_loss_told_when_a_sync_was_started_stops_all_writes)
{
  begin (1000 * SECOND);
  atomic_store (&start_result, -EIO);
  one_after_the_other ();
  expect_waiting (&second);
  ck_assert_int_eq (write_byte (0, 4 * K, 4), -EIO);
  ck_assert_int_eq (image_flush (img), -EIO);
  done (&second, -EIO);
  ck_assert_int_eq (image_stop (img), -EIO);
  image_close (img);
}
END_TEST

START_TEST (a_single_client_waits_for_nobody)
{
  uint64_t started;
  int i;

  begin (1000 * SECOND);
  started = img->commit.started;
  for (i = 0; i < 5; ++i) {
    write_in_place (i);
    ck_assert_int_eq (image_flush (img), 0);
  }
  ck_assert_uint_eq (img->commit.started, started + 5);
  ck_assert_uint_eq (img->commit.group.missed, 0);
  stop_clean ();
}
END_TEST

START_TEST (who_does_not_come_back_is_not_waited_for_again)
{
  begin (1);
  one_after_the_other ();
  done (&second, 0);
  ck_assert_uint_eq (img->commit.group.missed, 1);
  /* The next time nobody is waited for, however long one might. */
  wait_at_most (1000 * SECOND);
  one_after_the_other ();
  done (&second, 0);
  ck_assert_uint_eq (img->commit.group.skip, 0);
  /* And then again. */
  one_after_the_other ();
  expect_waiting (&second);
  ck_assert_int_eq (image_flush (img), 0);
  done (&second, 0);
  ck_assert_uint_eq (img->commit.group.missed, 0);
  stop_clean ();
}
END_TEST

START_TEST (a_commit_for_another_reason_answers_who_waits_for_others)
{
  begin (1000 * SECOND);
  one_after_the_other ();
  expect_waiting (&second);
  ck_assert_int_eq (commit_now (img), 0);
  done (&second, 0);
  stop_clean ();
}
END_TEST

/* Who came just after such a commit saw a leader that still slept, and
 * waited for it: but it was answered and led no more.
 */
START_TEST (who_comes_after_that_commit_is_not_left_waiting)
{
  int i;

  begin (1000 * SECOND);
  for (i = 0; i < 10; ++i) {
    one_after_the_other ();
    expect_waiting (&second);
    ck_assert_int_eq (commit_now (img), 0);
    ck_assert_int_eq (image_flush (img), 0); /* the leader wakes up */
    done (&second, 0);
  }
  stop_clean ();
}
END_TEST

/*----------------------------------------------------------------------
 * Data in place, on a storage that lets its syncs go side by side.
 */

static void
begin_apart (void)
{
  begin (1000 * SECOND);
  storage_memory_set_syncs_apart (storage, true);
}

/* The first client's sync is at work. */
static void
hold_a_sync (void)
{
  write_in_place (2);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&first);
  wait_until_held ();
}

/* How many syncs there were, and how they end. */
static atomic_uint syncs;
static atomic_int sync_result;

static atomic_uint durable_writes;

static int
sync_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
           uint64_t len)
{
  (void) opaque;
  (void) offset;
  (void) len;
  if (kind == STORAGE_MEMORY_WRITE_DURABLE)
    atomic_fetch_add (&durable_writes, 1);
  if (kind != STORAGE_MEMORY_SYNC)
    return 0;
  atomic_fetch_add (&syncs, 1);
  return atomic_load (&sync_result);
}

START_TEST (flushes_of_data_in_place_do_not_wait_for_each_other)
{
  uint64_t started;

  begin_apart ();
  started = img->commit.started;
  hold_a_sync ();
  write_in_place (3);
  ck_assert_int_eq (image_flush (img), 0);
  let_go ();
  done (&first, 0);
  ck_assert_uint_eq (img->commit.started, started);
  stop_clean ();
}
END_TEST

/* What is synced already needs no sync; what is being synced by another is
 * not synced yet.
 */
START_TEST (a_flush_does_not_rely_on_a_sync_that_has_not_ended)
{
  begin_apart ();
  hold_a_sync ();
  storage_memory_set_hook (storage, sync_hook, NULL);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (atomic_load (&syncs), 1);
  let_go ();
  done (&first, 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (atomic_load (&syncs), 1);
  stop_clean ();
}
END_TEST

/* After a flush was found to need no sync alone others may write what does;
 * if it comes to cover that, it takes nothing from those who then flush.
 */
START_TEST (a_sync_apart_leaves_to_do_what_needs_one_alone)
{
  begin_apart ();
  hold_a_sync ();
  storage_memory_set_syncs_apart (storage, false);
  let_go ();
  done (&first, 0);
  storage_memory_set_hook (storage, sync_hook, NULL);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (atomic_load (&syncs), 1);
  stop_clean ();
}
END_TEST

/* One commit was needed, and now none is: who waits for the next one does
 * not run it, or all would take turns from then on.
 */
START_TEST (who_waits_for_a_commit_that_is_not_needed_syncs_apart)
{
  struct request third = { .kind = FLUSH };
  uint64_t started;

  begin (1000 * SECOND);
  write_in_place (2);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&first);
  wait_until_held ();
  started = img->commit.started;
  write_in_place (3);
  start (&second);
  start (&third);
  expect_waiting (&second);
  expect_waiting (&third);
  storage_memory_set_syncs_apart (storage, true);
  let_go ();
  done (&first, 0);
  done (&second, 0);
  done (&third, 0);
  ck_assert (guard_is_synced (img));
  ck_assert_uint_eq (img->commit.started, started);
  ck_assert_uint_eq (img->commit.group.asking, 0);
  stop_clean ();
}
END_TEST

START_TEST (pointers_that_wait_are_committed_by_a_flush)
{
  uint64_t started;

  begin_apart ();
  started = img->commit.started;
  ck_assert_int_eq (write_byte (MEG, 4 * K, 2), 0);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_ge (img->commit.started, started + 1);
  /* What a crash would leave. */
  ck_assert (commit_metadata_is_clean (img));
  stop_clean ();
}
END_TEST

/* The pointer to the second client's cluster is set apart by the commit
 * that runs, and not written yet.
 */
START_TEST (a_flush_of_data_waits_for_the_commit_of_its_pointer)
{
  begin_apart ();
  ck_assert_int_eq (write_byte (MEG, 4 * K, 2), 0);
  hold_next (STORAGE_MEMORY_SYNC, 0, 0);
  start (&first);
  wait_until_held ();
  ck_assert_int_eq (write_byte (MEG, 4 * K, 3), 0);
  start (&second);
  expect_waiting (&second);
  let_go ();
  done (&first, 0);
  /* And then for nobody: the first would not come back for a commit. */
  done (&second, 0);
  stop_clean ();
}
END_TEST

/* The storage says which durable writes may go beside others; of two that
 * may not one could be told the other's loss.  They share a commit instead.
 */
START_TEST (durable_writes_that_may_not_go_apart_are_flushed)
{
  const char byte = 7;

  begin (1000 * SECOND);
  storage_memory_set_hook (storage, sync_hook, NULL);
  ck_assert_int_eq (image_write (img, &byte, 1, 0, true), 0);
  ck_assert_uint_eq (atomic_load (&durable_writes), 1);
  ck_assert_uint_eq (atomic_load (&syncs), 0);
  storage_memory_set_writes_apart (storage, false);
  ck_assert_int_eq (image_write (img, &byte, 1, 0, true), 0);
  ck_assert_uint_eq (atomic_load (&durable_writes), 1);
  ck_assert_uint_eq (atomic_load (&syncs), 1);
  stop_clean ();
}
END_TEST

/* A write of a part of an encrypted sector writes all of it, and may so make
 * the file longer.
 */
START_TEST (whole_sectors_are_asked_about_if_encrypted)
{
  uint64_t offset, len;

  begin (1000 * SECOND);
  ck_assert (data_writes_apart (img, 1000, 100));
  storage_memory_asked_apart (storage, &offset, &len);
  ck_assert_uint_eq (offset, 1000);
  ck_assert_uint_eq (len, 100);
  img->header.crypt_method = CRYPT_LUKS;
  ck_assert (data_writes_apart (img, 1000, 100));
  img->header.crypt_method = CRYPT_NONE;
  storage_memory_asked_apart (storage, &offset, &len);
  ck_assert_uint_eq (offset, 512);
  ck_assert_uint_eq (len, 1024);
  stop_clean ();
}
END_TEST

static void
with_no_memory (struct image_config *config)
{
  config->overlap_total_limit = 1;
}

/* It is a commit that brings back what is outside the tracker. */
START_TEST (while_something_is_outside_each_flush_has_a_commit)
{
  uint64_t started;

  configure = with_no_memory;
  begin_apart ();
  configure = NULL;
  ck_assert (overlap_has_outside (img->guard.overlap));
  started = img->commit.started;
  write_in_place (2);
  ck_assert_int_eq (image_flush (img), 0);
  ck_assert_uint_eq (img->commit.started, started + 1);
  stop_clean ();
}
END_TEST

START_TEST (a_loss_told_to_one_of_several_syncs_stops_all_writes)
{
  begin_apart ();
  hold_a_sync ();
  write_in_place (3);
  atomic_store (&sync_result, -EIO);
  storage_memory_set_hook (storage, sync_hook, NULL);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_int_eq (write_byte (0, 4 * K, 4), -EIO);
  atomic_store (&sync_result, 0);
  ck_assert_int_eq (image_flush (img), -EIO);
  ck_assert_uint_eq (atomic_load (&syncs), 1);
  /* The other was told of nothing, but knows. */
  let_go ();
  done (&first, -EIO);
  ck_assert_int_eq (image_stop (img), -EIO);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("commit-group");
  TCase *tc = tcase_create ("commit-group");

  if (!have_qemu_img ())
    return 77;
  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, two_clients_that_flush_in_turns_share_each_commit);
  tcase_add_test (tc, who_waits_for_others_starts_the_sync);
  tcase_add_test (tc, a_loss_told_when_a_sync_was_started_stops_all_writes);
  tcase_add_test (tc, a_single_client_waits_for_nobody);
  tcase_add_test (tc, who_does_not_come_back_is_not_waited_for_again);
  tcase_add_test (tc,
                  a_commit_for_another_reason_answers_who_waits_for_others);
  tcase_add_test (tc, who_comes_after_that_commit_is_not_left_waiting);
  tcase_add_test (tc, flushes_of_data_in_place_do_not_wait_for_each_other);
  tcase_add_test (tc, a_flush_does_not_rely_on_a_sync_that_has_not_ended);
  tcase_add_test (tc, a_sync_apart_leaves_to_do_what_needs_one_alone);
  tcase_add_test (tc, who_waits_for_a_commit_that_is_not_needed_syncs_apart);
  tcase_add_test (tc, pointers_that_wait_are_committed_by_a_flush);
  tcase_add_test (tc, a_flush_of_data_waits_for_the_commit_of_its_pointer);
  tcase_add_test (tc, durable_writes_that_may_not_go_apart_are_flushed);
  tcase_add_test (tc, whole_sectors_are_asked_about_if_encrypted);
  tcase_add_test (tc, while_something_is_outside_each_flush_has_a_commit);
  tcase_add_test (tc, a_loss_told_to_one_of_several_syncs_stops_all_writes);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
