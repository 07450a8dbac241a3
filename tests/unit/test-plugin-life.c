/* SPDX-License-Identifier: BSD-3-Clause */

/* From the first client to the last, and which of nbdkit's callbacks may be
 * missing.
 */

#include <config.h>

#include "plugin-test.h"

/* The first connection that may write raises the lock, and only such. */
START_TEST (test_open)
{
  void *ro, *rw;

  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  ck_assert_int_eq (p->after_fork (), 0);
  ro = p->open (1);
  ck_assert_int_eq (p->can_write (ro), 0);
  ck_assert_uint_eq (engine.begins, 0);

  /* Another process writes: no connection. */
  engine.begin_result = -EAGAIN;
  ck_assert_ptr_null (p->open (0));
  ck_assert_uint_eq (engine.begins, 1);

  /* It turns out that nobody may write: read-only. */
  engine.begin_result = -EROFS;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 0);
  p->close (rw);

  engine.begin_result = 0;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 1);
  p->close (rw);

  /* It is known that nobody may write: not even tried. */
  engine.begins = 0;
  engine.writable = false;
  rw = p->open (0);
  ck_assert_int_eq (p->can_write (rw), 0);
  ck_assert_uint_eq (engine.begins, 0);
  p->close (rw);
  p->close (ro);
}
END_TEST

/* When the last writer leaves there is a flush, at no other time. */
START_TEST (test_close)
{
  void *w1 = serve (), *w2 = p->open (0), *r = p->open (1);

  p->close (w1);
  ck_assert_uint_eq (engine.flushes, 0);
  engine.result = -EIO;         /* nobody is there to be told */
  p->close (w2);
  ck_assert_uint_eq (engine.flushes, 1);
  p->close (r);
  ck_assert_uint_eq (engine.flushes, 1);
  engine.result = 0;
  w1 = p->open (0);
  p->close (w1);
  ck_assert_uint_eq (engine.flushes, 2);
}
END_TEST

/* An image over NBD is opened after the fork; this is before it. */
static void
get_ready_over_nbd (void)
{
  set_up ();
  configure ();
  engine.open_result = -EINPROGRESS;
  ck_assert_int_eq (p->get_ready (), 0);
}

/* Any of the callbacks that make up the image's life may be missing. */
START_TEST (test_life)
{
  /* nbdkit --dump-plugin, or a bad parameter */
  p->unload ();

  set_up ();
  configure ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  /* no image */
  set_up ();
  configure ();
  engine.open_result = -ENOENT;
  ck_assert_int_eq (p->get_ready (), -1);
  p->cleanup ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  /* no .after_fork */
  set_up ();
  configure ();
  ck_assert_int_eq (p->get_ready (), 0);
  p->cleanup ();
  p->unload ();
  ck_assert (engine.starts == 0 && engine.stops > 0 && engine.closes == 1);

  /* an image over NBD */
  get_ready_over_nbd ();
  engine.open_result = 0;
  ck_assert_int_eq (p->after_fork (), 0);
  p->cleanup ();
  p->unload ();
  ck_assert (engine.starts == 1 && engine.stops > 0 && engine.closes == 1);

  get_ready_over_nbd ();
  p->cleanup ();
  p->unload ();
  ck_assert_uint_eq (engine.stops + engine.closes, 0);

  get_ready_over_nbd ();
  engine.open_result = -EIO;
  ck_assert_int_eq (p->after_fork (), -1);
  p->unload ();
  ck_assert_uint_eq (engine.starts + engine.stops + engine.closes, 0);

  /* no .cleanup and no .close */
  set_up ();
  serve ();
  p->unload ();
  ck_assert (engine.starts == 1 && engine.stops > 0 && engine.closes == 1);

  /* no .close */
  set_up ();
  serve ();
  p->cleanup ();
  ck_assert (engine.stops == 1 && engine.closes == 0);
  p->unload ();
  ck_assert_uint_eq (engine.closes, 1);
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("plugin-life");
  TCase *tc = plugin_case (suite);

  tcase_add_test (tc, test_open);
  tcase_add_test (tc, test_close);
  tcase_add_test (tc, test_life);
  return run_suite (suite);
}
