/* SPDX-License-Identifier: BSD-3-Clause */

/* Range locks: who waits for whom, and that nobody starves. */

#include <config.h>

#include <check.h>
#include <pthread.h>
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

/* Is the thread in the list, granted or waiting? */
static unsigned
arrivals (void)
{
  struct range_hold *h;
  unsigned n = 0;

  pthread_mutex_lock (&ranges.lock);
  for (h = ranges.first; h; h = h->next)
    ++n;
  pthread_mutex_unlock (&ranges.lock);
  return n;
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
  tcase_add_test (tc, exclusive_excludes);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
