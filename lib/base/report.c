/* SPDX-License-Identifier: BSD-3-Clause */

/* One line at a time to one sink; see report.h. */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

#include "report.h"

static void
stderr_sink (enum report_level level, const char *text)
{
  if (level != REPORT_DEBUG)
    fprintf (stderr, "%s\n", text);
}

static report_sink *the_sink = stderr_sink;

void
report_set_sink (report_sink *sink)
{
  the_sink = sink ? sink : stderr_sink;
}

/* Text from an image (a name, say) must not break the line in two or
 * reach a terminal as an escape sequence.
 */
static void
defuse (char *text)
{
  for (; *text; text++) {
    unsigned char c = (unsigned char) *text;
    if (c < 0x20 || c == 0x7f)
      *text = '?';
  }
}

static void __attribute__ ((format (printf, 2, 0)))
report (enum report_level level, const char *fs, va_list args)
{
  int saved_errno = errno;
  char text[1024];

  vsnprintf (text, sizeof text, fs, args);
  defuse (text);
  the_sink (level, text);
  errno = saved_errno;
}

void
report_error (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  report (REPORT_ERROR, fs, args);
  va_end (args);
}

void
report_warning (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  report (REPORT_WARNING, fs, args);
  va_end (args);
}

void
report_debug (const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  report (REPORT_DEBUG, fs, args);
  va_end (args);
}
