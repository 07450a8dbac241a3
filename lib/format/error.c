/* SPDX-License-Identifier: BSD-3-Clause */

/* The text of a refusal.  Names that come from the image end up in it,
 * so whatever would break the promise of one printable line is replaced
 * here, once for all decoders.  Takes no locks.
 */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>

#include "error.h"

int
format_fail (struct format_error *e, int code, const char *fs, ...)
{
  va_list args;
  char *p;

  va_start (args, fs);
  if (vsnprintf (e->text, sizeof e->text, fs, args) < 0)
    e->text[0] = '\0';
  va_end (args);

  for (p = e->text; *p; p++) {
    unsigned char c = (unsigned char) *p;

    if (c < 0x20 || c == 0x7f)
      *p = '?';
  }
  return code;
}
