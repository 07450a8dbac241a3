/* SPDX-License-Identifier: BSD-3-Clause */

/* The cache of unpacked clusters by itself: what is found, what makes
 * room, what is forgotten, and who waits for whom.
 */

#include <config.h>

#include <check.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run-suite.h"
#include "unpacked.h"

#define SIZE 4096u

static struct unpacked *u;

/* Is the cluster of KEY, in host cluster KEY, there?  If not, load it. */
static bool
had (uint64_t key)
{
  bool load;
  struct unpacked_cluster *c = unpacked_get (u, key, key, key, &load);

  ck_assert_ptr_nonnull (c);
  if (load) {
    memset (c->data, (int) key, SIZE);
    unpacked_loaded (u, c, true);
  }
  ck_assert_int_eq (c->data[17], (uint8_t) key);
  unpacked_put (u, c);
  return !load;
}

START_TEST (least_recently_used)
{
  uint64_t key;

  u = unpacked_create (SIZE, 4 * SIZE + 100); /* one set of four */
  for (key = 1; key <= 4; ++key)
    ck_assert (!had (key));
  for (key = 1; key <= 4; ++key)
    ck_assert (had (key));
  ck_assert (!had (5));         /* in the place of 1 */
  ck_assert (had (2));
  ck_assert (!had (1));         /* of 3 */
  ck_assert (had (2));
  ck_assert (had (5));
  ck_assert (!had (3));
  unpacked_free (u);
}
END_TEST

START_TEST (memory_limits)
{
  const uint64_t sizes[] = { 0, SIZE - 1, SIZE, 9 * SIZE, 100 * SIZE,
                              10000 * SIZE };
  struct unpacked_cluster *c;
  uint64_t key, n, hits, misses;
  bool load;

  u = unpacked_create (SIZE, sizes[_i]);
  for (key = 1; key < 20000; ++key) {
    c = unpacked_get (u, key, key, key, &load);
    ck_assert_int_eq (c != NULL, sizes[_i] >= SIZE);
    if (!c)
      continue;
    ck_assert (load);
    unpacked_loaded (u, c, true);
    unpacked_put (u, c);
  }
  for (n = 0, key = 1; key < 20000; ++key) {
    c = unpacked_peek (u, key);
    n += c != NULL;
    if (c)
      unpacked_put (u, c);
  }
  ck_assert_uint_le (n, sizes[_i] / SIZE);
  ck_assert_uint_le (n, 2048);
  ck_assert_uint_ge (n, sizes[_i] / SIZE < 8 ? sizes[_i] / SIZE : 8);
  unpacked_counters (u, &hits, &misses);
  ck_assert_uint_eq (hits, 0);
  ck_assert_uint_eq (misses, sizes[_i] < SIZE ? 0 : 19999);
  unpacked_free (u);
}
END_TEST

/* By the host clusters of the stream, which may be two. */
START_TEST (forgotten)
{
  struct unpacked_cluster *c;
  bool load;

  u = unpacked_create (SIZE, 100 * SIZE);
  unpacked_forget (u, 0, 1000);
  c = unpacked_get (u, 77, 10, 11, &load);
  unpacked_loaded (u, c, true);
  unpacked_put (u, c);
  had (20);
  unpacked_forget (u, 9, 1);
  unpacked_forget (u, 12, 8);
  c = unpacked_peek (u, 77);
  ck_assert_ptr_nonnull (c);
  unpacked_put (u, c);
  unpacked_forget (u, 11, 1);
  ck_assert_ptr_null (unpacked_peek (u, 77));
  ck_assert (had (20));
  unpacked_forget (u, 0, UINT64_MAX);
  ck_assert (!had (20));
  unpacked_free (u);
}
END_TEST

/* What is held makes no room, and is not found once it is forgotten. */
START_TEST (held)
{
  struct unpacked_cluster *a, *b;
  bool load;

  u = unpacked_create (SIZE, SIZE);
  a = unpacked_get (u, 1, 1, 1, &load);
  ck_assert (load);
  ck_assert_ptr_null (unpacked_get (u, 2, 2, 2, &load));
  memset (a->data, 1, SIZE);
  unpacked_loaded (u, a, true);
  ck_assert_ptr_null (unpacked_get (u, 2, 2, 2, &load));
  unpacked_forget (u, 1, 1);
  ck_assert_ptr_null (unpacked_peek (u, 1));
  ck_assert_ptr_null (unpacked_get (u, 1, 1, 1, &load));
  ck_assert_int_eq (a->data[0], 1);
  unpacked_put (u, a);
  b = unpacked_get (u, 2, 2, 2, &load);
  ck_assert (load);
  unpacked_forget (u, 2, 1);    /* while it is being loaded */
  unpacked_loaded (u, b, true);
  unpacked_put (u, b);
  ck_assert (!had (2));
  unpacked_free (u);
}
END_TEST

static atomic_uint loads, waiting;

static void *
read_one (void *opaque)
{
  bool *good = opaque, load;
  struct unpacked_cluster *c;

  atomic_fetch_add (&waiting, 1);
  c = unpacked_get (u, 1, 1, 1, &load);
  if (load) {
    /* The first to try fails, when the others are waiting. */
    const bool first = atomic_fetch_add (&loads, 1) == 0;

    while (atomic_load (&waiting) < 8)
      usleep (1000);
    usleep (20000);
    memset (c->data, 1, SIZE);
    unpacked_loaded (u, c, !first);
    if (first)
      return NULL;
  }
  *good = c->data[SIZE - 1] == 1;
  unpacked_put (u, c);
  return NULL;
}

/* Of eight who want it one loads it; that fails for one of them only. */
START_TEST (loaded_once)
{
  pthread_t threads[8];
  bool good[8] = { false };
  unsigned i, n = 0;

  u = unpacked_create (SIZE, SIZE);
  for (i = 0; i < 8; ++i)
    ck_assert_int_eq (pthread_create (&threads[i], NULL, read_one,
                                      &good[i]), 0);
  for (i = 0; i < 8; ++i) {
    pthread_join (threads[i], NULL);
    n += good[i];
  }
  ck_assert_uint_eq (n, 7);
  ck_assert_uint_eq (atomic_load (&loads), 2);
  unpacked_free (u);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("unpacked");
  TCase *tc = tcase_create ("unpacked");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, least_recently_used);
  tcase_add_loop_test (tc, memory_limits, 0, 6);
  tcase_add_test (tc, forgotten);
  tcase_add_test (tc, held);
  tcase_add_test (tc, loaded_once);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
