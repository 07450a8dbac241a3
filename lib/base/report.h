/* SPDX-License-Identifier: BSD-3-Clause */

/* How the library speaks: one line of text at a time, to a sink that
 * the program installs (the plugin hands them to nbdkit_error and
 * nbdkit_debug, the tools print them, tests collect them).
 *
 * An error is reported once, where it happens, with the name of the
 * file, the field and its value; callers only pass on the negative
 * errno.  All functions keep errno and may be called from any thread,
 * with any lock held: a sink must not call back into the library.
 */

#ifndef QCOW2_REPORT_H
#define QCOW2_REPORT_H

enum report_level {
  REPORT_ERROR,                 /* a request or the opening failed */
  REPORT_WARNING,               /* worth an operator's attention */
  REPORT_DEBUG,                 /* shown when debugging is on */
};

/* TEXT is one line without a newline, valid during the call only. */
typedef void report_sink (enum report_level level, const char *text);

/* Install SINK (NULL: standard error, debug lines dropped).  Call it
 * before other threads exist.
 */
void report_set_sink (report_sink *sink);

void report_error (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));
void report_warning (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));
void report_debug (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

#endif /* QCOW2_REPORT_H */
