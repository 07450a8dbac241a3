/* SPDX-License-Identifier: BSD-3-Clause */

/* What the library and the plugin report goes to nbdkit's log.  nbdkit
 * 1.32 knows errors and debug messages only; a warning must be seen
 * without -v, so it goes out as an error that says what it is.
 *
 * Takes no locks.
 */

#include <config.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin.h"

void
log_report (enum report_level level, const char *text)
{
  switch (level) {
  case REPORT_ERROR:
    nbdkit_error ("%s", text);
    break;
  case REPORT_WARNING:
    nbdkit_error ("warning: %s", text);
    break;
  case REPORT_DEBUG:
  default:
    nbdkit_debug ("%s", text);
  }
}
