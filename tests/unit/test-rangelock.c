/* SPDX-License-Identifier: BSD-3-Clause */

/* Range locks: who waits for whom, and that nobody starves. */

#include <config.h>

#include <check.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "rangelock.h"
#include "run-suite.h"

static struct rangelock ranges;

/* A thread that takes a range, says so, and waits to be told to let go. */
struct taker {
  uint64_t begin, end;
  bool exclusive;
  atomic_bool has, let_go;
  pthread_t thread;
};

static void *
take (void *opaque)
{
  struct taker *t = opaque;
  struct range_hold hold;

  rangelock_lock (&ranges, &hold, t->begin, t->end, t->exclusive);
  atomic_store (&t->has, true);
  while (!atomic_load (&t->let_go))
    usleep (1000);
  rangelock_unlock (&ranges, &hold);
  return NULL;
}

/* How many are in the list, granted or waiting. */
static unsigned
in_list (void)
{
  struct range_hold *h;
  unsigned n = 0;

  pthread_mutex_lock (&ranges.lock);
  for (h = ranges.first; h; h = h->next)
    ++n;
  pthread_mutex_unlock (&ranges.lock);
  return n;
}

static unsigned
in_places (void)
{
  unsigned i, n = 0;

  for (i = 0; i < RANGE_PLACES; ++i)
    n += atomic_load (&ranges.places[i].range) != 0;
  return n;
}

static unsigned
arrivals (void)
{
  return in_list () + in_places ();
}

static void
start (struct taker *t, uint64_t begin, uint64_t end, bool exclusive)
{
  unsigned before = arrivals ();

  t->begin = begin;
  t->end = end;
  t->exclusive = exclusive;
  atomic_store (&t->has, false);
  atomic_store (&t->let_go, false);
  ck_assert_int_eq (pthread_create (&t->thread, NULL, take, t), 0);
  while (arrivals () == before)
    usleep (1000);
}

static void
wait_has (struct taker *t)
{
  while (!atomic_load (&t->has))
    usleep (1000);
}

static void
finish (struct taker *t)
{
  atomic_store (&t->let_go, true);
  pthread_join (t->thread, NULL);
}

/* Whether T has its lock once others had a while to give it. */
static bool
has_soon (struct taker *t)
{
  usleep (20000);
  return atomic_load (&t->has);
}

START_TEST (shared_ranges_overlap)
{
  struct taker a, b;

  rangelock_init (&ranges);
  start (&a, 0, 10, false);
  start (&b, 5, 15, false);
  wait_has (&a);
  wait_has (&b);
  finish (&a);
  finish (&b);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (neighbours_do_not_wait)
{
  struct taker a, b, c;

  rangelock_init (&ranges);
  start (&a, 10, 20, true);
  start (&b, 20, 30, true);
  start (&c, 0, 10, true);
  wait_has (&a);
  wait_has (&b);
  wait_has (&c);
  finish (&b);
  finish (&a);
  finish (&c);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (an_exclusive_range_waits_and_is_waited_for)
{
  struct taker reader, writer, late;

  rangelock_init (&ranges);
  start (&reader, 0, 10, false);
  wait_has (&reader);
  start (&writer, 9, 12, true);
  ck_assert (!has_soon (&writer));
  /* A reader that comes after the writer does not overtake it. */
  start (&late, 0, 10, false);
  ck_assert (!has_soon (&late));
  finish (&reader);
  wait_has (&writer);
  ck_assert (!has_soon (&late));
  finish (&writer);
  wait_has (&late);
  finish (&late);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (shared_ranges_need_no_list)
{
  struct taker a, b, writer, late;

  rangelock_init (&ranges);
  start (&a, 0, 10, false);
  start (&b, 5, 6, false);
  wait_has (&a);
  wait_has (&b);
  ck_assert_uint_eq (in_list (), 0);
  /* An exclusive one somewhere else waits for neither, and is in nobody's
   * way; but who comes after it has to look at the list.
   */
  start (&writer, 20, 30, true);
  wait_has (&writer);
  start (&late, 5, 6, false);
  wait_has (&late);
  ck_assert_uint_eq (in_list (), 2);
  ck_assert_uint_eq (in_places (), 2);
  finish (&a);
  finish (&writer);
  finish (&late);
  finish (&b);
  ck_assert_uint_eq (arrivals (), 0);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (what_is_no_range_for_a_place_goes_to_the_list)
{
  struct taker wide, far, writer;

  rangelock_init (&ranges);
  start (&wide, 0, 1024, false);
  wait_has (&wide);
  start (&far, UINT64_C (1) << 54, (UINT64_C (1) << 54) + 1, false);
  wait_has (&far);
  ck_assert_uint_eq (in_list (), 2);
  start (&writer, 1023, 1024, true);
  ck_assert (!has_soon (&writer));
  finish (&wide);
  wait_has (&writer);
  finish (&writer);
  finish (&far);
  rangelock_destroy (&ranges);
}
END_TEST

/* More threads than places: some share one, and go to the list. */
START_TEST (more_readers_than_places)
{
  struct taker readers[RANGE_PLACES + 8], writer;
  unsigned i;

  rangelock_init (&ranges);
  for (i = 0; i < RANGE_PLACES + 8; ++i) {
    start (&readers[i], i, i + 1, false);
    wait_has (&readers[i]);
  }
  ck_assert_uint_eq (in_places (), RANGE_PLACES);
  start (&writer, 0, RANGE_PLACES + 8, true);
  for (i = 0; i < RANGE_PLACES + 8; ++i) {
    ck_assert (!atomic_load (&writer.has));
    finish (&readers[i]);
  }
  wait_has (&writer);
  finish (&writer);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (trying_does_not_wait_for_a_place)
{
  struct range_hold hold;
  struct taker reader;

  rangelock_init (&ranges);
  start (&reader, 0, 10, false);
  wait_has (&reader);
  ck_assert (!rangelock_try (&ranges, &hold, 9, 10, true));
  ck_assert (rangelock_try (&ranges, &hold, 9, 10, false));
  rangelock_unlock (&ranges, &hold);
  ck_assert (rangelock_try (&ranges, &hold, 10, 11, true));
  rangelock_unlock (&ranges, &hold);
  finish (&reader);
  ck_assert (rangelock_try (&ranges, &hold, 9, 10, true));
  rangelock_unlock (&ranges, &hold);
  ck_assert_uint_eq (atomic_load (&ranges.exclusives), 0);
  rangelock_destroy (&ranges);
}
END_TEST

/* Threads add to numbers that only the range protects. */
#define CELLS 64
static uint64_t cells[CELLS];

static void *
adder (void *opaque)
{
  unsigned seed = (unsigned) (uintptr_t) opaque, i, j;
  struct range_hold hold;

  for (i = 0; i < 20000; ++i) {
    unsigned begin = (unsigned) rand_r (&seed) % CELLS;
    unsigned end = begin + 1
      + (unsigned) rand_r (&seed) % (CELLS - begin) % 8;

    rangelock_lock (&ranges, &hold, begin, end, true);
    for (j = begin; j < end; ++j)
      cells[j]++;
    rangelock_unlock (&ranges, &hold);
  }
  return NULL;
}

/* Writers make a range's numbers odd for a while; who reads shall never
 * see that.
 */
static void *
reader_or_writer (void *opaque)
{
  unsigned seed = (unsigned) (uintptr_t) opaque, i, j;
  struct range_hold hold;
  uint64_t odd = 0;

  for (i = 0; i < 20000; ++i) {
    unsigned begin = (unsigned) rand_r (&seed) % CELLS;
    unsigned end = begin + 1
      + (unsigned) rand_r (&seed) % (CELLS - begin) % 8;
    bool exclusive = rand_r (&seed) % 4 == 0;

    rangelock_lock (&ranges, &hold, begin, end, exclusive);
    for (j = begin; j < end && exclusive; ++j)
      cells[j]++;
    if (i % 16 == 0)
      sched_yield ();
    for (j = begin; j < end && exclusive; ++j)
      cells[j]++;
    for (j = begin; j < end; ++j)
      odd += cells[j] & 1;
    rangelock_unlock (&ranges, &hold);
  }
  return (void *) (uintptr_t) odd;
}

START_TEST (readers_never_see_a_writer_at_work)
{
  pthread_t threads[4];
  void *odd;
  unsigned t;

  rangelock_init (&ranges);
  for (t = 0; t < 4; ++t)
    ck_assert_int_eq (pthread_create (&threads[t], NULL, reader_or_writer,
                                      (void *) (uintptr_t) (t + 1)), 0);
  for (t = 0; t < 4; ++t) {
    pthread_join (threads[t], &odd);
    ck_assert_uint_eq ((uintptr_t) odd, 0);
  }
  ck_assert_uint_eq (arrivals (), 0);
  ck_assert_uint_eq (atomic_load (&ranges.exclusives), 0);
  rangelock_destroy (&ranges);
}
END_TEST

START_TEST (exclusive_excludes)
{
  uint64_t expected = 0, sum = 0;
  pthread_t threads[4];
  unsigned i, t;

  rangelock_init (&ranges);
  for (t = 0; t < 4; ++t) {
    unsigned seed = t;

    for (i = 0; i < 20000; ++i) {
      unsigned begin = (unsigned) rand_r (&seed) % CELLS;

      expected += 1 + (unsigned) rand_r (&seed) % (CELLS - begin) % 8;
    }
    ck_assert_int_eq (pthread_create (&threads[t], NULL, adder,
                                      (void *) (uintptr_t) t), 0);
  }
  for (t = 0; t < 4; ++t)
    pthread_join (threads[t], NULL);
  for (i = 0; i < CELLS; ++i)
    sum += cells[i];
  ck_assert_uint_eq (sum, expected);
  ck_assert_ptr_null (ranges.first);
  rangelock_destroy (&ranges);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("rangelock");
  TCase *tc = tcase_create ("rangelock");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, shared_ranges_overlap);
  tcase_add_test (tc, neighbours_do_not_wait);
  tcase_add_test (tc, an_exclusive_range_waits_and_is_waited_for);
  tcase_add_test (tc, shared_ranges_need_no_list);
  tcase_add_test (tc, what_is_no_range_for_a_place_goes_to_the_list);
  tcase_add_test (tc, more_readers_than_places);
  tcase_add_test (tc, trying_does_not_wait_for_a_place);
  tcase_add_test (tc, readers_never_see_a_writer_at_work);
  tcase_add_test (tc, exclusive_excludes);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
