/* SPDX-License-Identifier: BSD-3-Clause */

/* Numbers for people: sizes, counts and shares to text, and sizes from
 * text, in the spelling of nbdkit's parameters.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "tool.h"

static const char suffixes[] = "kMGTPE";

const char *
units_bytes (uint64_t bytes, char buf[UNITS_MAX])
{
  static const char *const names[] = { "KiB", "MiB", "GiB", "TiB", "PiB",
                                       "EiB" };
  unsigned i = 0;
  uint64_t unit = 1024;

  if (bytes < 1024) {
    snprintf (buf, UNITS_MAX, "%" PRIu64 " bytes", bytes);
    return buf;
  }
  while (i + 1 < ARRAY_SIZE (names) && bytes / 1024 >= unit) {
    unit *= 1024;
    i++;
  }
  if (bytes % unit == 0)
    snprintf (buf, UNITS_MAX, "%" PRIu64 " %s", bytes / unit, names[i]);
  else
    snprintf (buf, UNITS_MAX, "%.1f %s", (double) bytes / (double) unit,
              names[i]);
  return buf;
}

const char *
units_parameter (uint64_t bytes, char buf[UNITS_MAX])
{
  unsigned i = 0;

  while (bytes > 0 && bytes % 1024 == 0 && suffixes[i]) {
    bytes /= 1024;
    i++;
  }
  if (i == 0)
    snprintf (buf, UNITS_MAX, "%" PRIu64, bytes);
  else
    snprintf (buf, UNITS_MAX, "%" PRIu64 "%c", bytes, suffixes[i - 1]);
  return buf;
}

const char *
units_number (uint64_t n, char buf[UNITS_MAX])
{
  char digits[UNITS_MAX];
  int len = snprintf (digits, sizeof digits, "%" PRIu64, n), i;
  char *to = buf;

  for (i = 0; i < len; ++i) {
    if (i > 0 && (len - i) % 3 == 0)
      *to++ = ',';
    *to++ = digits[i];
  }
  *to = '\0';
  return buf;
}

const char *
units_share (uint64_t part, uint64_t whole, char buf[UNITS_MAX])
{
  double percent = whole == 0 ? 100
    : 100 * (double) part / (double) whole;

  if (part == whole)
    snprintf (buf, UNITS_MAX, "100 %%");
  else if (part == 0)
    snprintf (buf, UNITS_MAX, "0 %%");
  else if (percent > 99.9)
    snprintf (buf, UNITS_MAX, "> 99.9 %%");
  else if (percent < 0.1)
    snprintf (buf, UNITS_MAX, "< 0.1 %%");
  else
    snprintf (buf, UNITS_MAX, "%.1f %%", percent);
  return buf;
}

bool
units_parse (const char *text, uint64_t *bytes)
{
  const char *suffix;
  char *end;
  unsigned long long n;
  uint64_t unit = 1;

  if (!isdigit ((unsigned char) *text))
    return false;
  errno = 0;
  n = strtoull (text, &end, 10);
  if (errno != 0)
    return false;
  if (*end != '\0' && *end != 'b' && *end != 'B') {
    suffix = strchr (suffixes, *end == 'K' ? 'k' : *end);
    if (!suffix)
      return false;
    unit <<= 10 * (suffix - suffixes + 1);
  }
  if (*end != '\0')
    end++;
  return *end == '\0' && !MUL_OVERFLOW ((uint64_t) n, unit, bytes);
}
