/* SPDX-License-Identifier: BSD-3-Clause */

/* An nbdkit that notes what the plugin tells it. */

#include <config.h>

#include <stdarg.h>

#include "plugin-test.h"

struct told told;

void
nbdkit_error (const char *msg, ...)
{
  va_list args;

  va_start (args, msg);
  vsnprintf (told.message, sizeof told.message, msg, args);
  va_end (args);
}

void
nbdkit_debug (const char *msg, ...)
{
  (void) msg;
}

void
nbdkit_set_error (int err)
{
  ck_assert_int_gt (err, 0);
  told.error = err;
}

const char *
nbdkit_export_name (void)
{
  return told.export_name;
}

int
nbdkit_read_password (const char *value, char **password)
{
  *password = strdup (value);
  return *password ? 0 : -1;
}

int
nbdkit_stdio_safe (void)
{
  return 1;
}

char *
nbdkit_absolute_path (const char *path)
{
  return strdup (path);
}

int
nbdkit_add_extent (struct nbdkit_extents *extents, uint64_t offset,
                   uint64_t len, uint32_t type)
{
  (void) extents;
  if (told.nr_extents == ARRAY_SIZE (told.extents)) {
    errno = ENOMEM;
    return -1;
  }
  told.extents[told.nr_extents++] =
    (struct extent) { .offset = offset, .len = len, .status = type };
  return 0;
}

int
nbdkit_add_export (struct nbdkit_exports *exports, const char *name,
                   const char *description)
{
  (void) exports;
  if (!*name)
    ck_assert_str_eq (description, "an image");
  else
    ck_assert_ptr_nonnull (strstr (description, name[0] == 'b'
                                   ? "dirty bitmap"
                                   : "internal snapshot, id "));
  strncat (told.exports, name,
           sizeof told.exports - strlen (told.exports) - 2);
  strcat (told.exports, " ");
  return 0;
}
