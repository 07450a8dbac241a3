/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that help: each part is done once, the caller comes back when
 * all are done and not before, and several callers do not get into each
 * other's way.
 */

#include <config.h>

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "run-suite.h"
#include "workers.h"

#define PARTS 500

static struct workers *workers;

struct task {
  atomic_uint done[PARTS];
  unsigned n;
  pthread_t thread;
};

static void
do_part (void *opaque, unsigned i)
{
  struct task *t = opaque;

  ck_assert_uint_lt (i, t->n);
  if (i % 50 == 7)
    usleep (500);
  atomic_fetch_add (&t->done[i], 1);
}

static void
run_task (struct task *t, unsigned n)
{
  unsigned i;

  for (i = 0; i < PARTS; ++i)
    atomic_store (&t->done[i], 0);
  t->n = n;
  workers_run (workers, n, do_part, t);
  for (i = 0; i < PARTS; ++i)
    if (atomic_load (&t->done[i]) != (i < n))
      ck_abort_msg ("part %u of %u was done %u times", i, n,
                    atomic_load (&t->done[i]));
}

static void *
be_client (void *opaque)
{
  struct task *t = opaque;
  unsigned i;

  for (i = 0; i < 60; ++i)
    run_task (t, i % 5 == 0 ? PARTS : i % 4);
  return NULL;
}

START_TEST (each_part_once)
{
  static struct task tasks[6];
  unsigned i;

  workers = _i ? workers_create () : NULL;
  for (i = 0; i < 6; ++i)
    ck_assert_int_eq (pthread_create (&tasks[i].thread, NULL, be_client,
                                      &tasks[i]), 0);
  for (i = 0; i < 6; ++i)
    pthread_join (tasks[i].thread, NULL);
  workers_free (workers);
}
END_TEST

struct meeting {
  atomic_uint here;
};

/* Wait for the other one, for ever if it comes only afterwards. */
static void
meet (void *opaque, unsigned i)
{
  struct meeting *m = opaque;

  (void) i;
  atomic_fetch_add (&m->here, 1);
  while (atomic_load (&m->here) < 2)
    usleep (1000);
}

/* With two processors two parts are done at the same time. */
START_TEST (at_the_same_time)
{
  struct meeting m = { 0 };

  workers = workers_create ();
  workers_run (workers, 2, meet, &m);
  workers_free (workers);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("workers");
  TCase *tc = tcase_create ("workers");

  tcase_set_timeout (tc, 120);
  tcase_add_loop_test (tc, each_part_once, 0, 2);
  if (sysconf (_SC_NPROCESSORS_ONLN) > 1)
    tcase_add_test (tc, at_the_same_time);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
