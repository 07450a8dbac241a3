/* SPDX-License-Identifier: BSD-3-Clause */

/* The end of every test with Check, and how long it waits at most. */

#ifndef QCOW2_RUN_SUITE_H
#define QCOW2_RUN_SUITE_H

#include <check.h>
#include <stdlib.h>

/* So many seconds are given to what does not come: see "run". */
static inline double
patience (void)
{
  const char *seconds = getenv ("QCOW2_TEST_PATIENCE");

  return seconds ? atof (seconds) : 120;
}

/* Run all tests of SUITE; what main returns. */
static inline int
run_suite (Suite *suite)
{
  SRunner *runner = srunner_create (suite);
  int failed;

  srunner_run_all (runner, CK_ENV);
  failed = srunner_ntests_failed (runner);
  srunner_free (runner);
  return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif /* QCOW2_RUN_SUITE_H */
