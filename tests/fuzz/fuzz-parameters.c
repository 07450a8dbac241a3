/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: the parameters of the command line.  Every line of the
 * input is one, KEY=VALUE or, without a '=', the name of the image.
 *
 * What is refused is explained by one line, which names the parameter;
 * what is accepted says nothing, and leaves a configuration that the
 * engine can bear.
 */

#include <config.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "plugin.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

static unsigned lines;
static char line[2048];
static bool explained;          /* by nbdkit itself, in words of its own */

static void
sink (enum report_level level, const char *text)
{
  const char *p;

  (void) level;
  for (p = text; *p; ++p)
    MUST ((unsigned char) *p >= 0x20 && *p != 0x7f);
  snprintf (line, sizeof line, "%s", text);
  lines++;
}

/* nbdkit is played here: this is all of it that config*.c use. */
char *
nbdkit_absolute_path (const char *path)
{
  char *r;

  MUST (*path != '\0');
  if (*path == '/')
    return strdup (path);
  return asprintf (&r, "/somewhere/%s", path) == -1 ? NULL : r;
}

int
nbdkit_read_password (const char *value, char **password)
{
  *password = NULL;
  if (*value == '+' || *value == '-') {
    explained = true;
    return -1;
  }
  *password = strdup (value);
  return *password ? 0 : -1;
}

/* As it is shown: what could harm a terminal is a question mark. */
static void
defuse (char *s)
{
  for (; *s; s++)
    if ((unsigned char) *s < 0x20 || *s == 0x7f)
      *s = '?';
}

static void
check_error (const char *key)
{
  char *copy = strdup (key);

  MUST (copy != NULL);
  if (explained) {
    MUST (lines == 0);
    free (copy);
    return;
  }
  MUST (lines == 1);
  if (strlen (copy) > 200)
    copy[200] = '\0';
  defuse (copy);
  MUST (strncmp (line, copy, strlen (copy)) == 0);
  MUST (strstr (line, "expected"));
  free (copy);
}

/* Returns false if nbdkit would have ended. */
static bool
one_line (char *text)
{
  char *equals = strchr (text, '=');
  const char *key = "file", *value = text;

  if (equals && equals > text) {
    *equals = '\0';
    key = text;
    value = equals + 1;
  }
  lines = 0;
  explained = false;
  if (config_set (key, value) == -1) {
    check_error (key);
    return false;
  }
  MUST (lines == 0);
  return true;
}

static void
check_config (void)
{
  const struct image_config *c = &config.image;
  const char *const *p;

  MUST (c->filename && *c->filename);
  MUST ((c->overlap_check & ~OVERLAP_ALL) == 0);
  MUST (c->overlap_bitmap_size <= INT64_MAX);
  MUST (c->overlap_total_limit <= INT64_MAX
        || c->overlap_total_limit == UINT64_MAX);
  MUST (c->overlap_limit <= OVERLAP_LIMIT_REFUSE);
  MUST (c->l2_cache_size <= INT64_MAX);
  MUST (c->refcount_cache_size <= INT64_MAX);
  MUST (c->compressed_cache_size <= INT64_MAX);
  MUST (c->compress <= COMPRESS_IMAGE);
  MUST (c->commit_interval <= INT32_MAX);
  MUST (c->lazy_refcounts <= LAZY_IMAGE);
  MUST (c->locking <= LOCKING_OFF);
  MUST (c->external_files && c->external_files[0]);
  for (p = c->external_files; *p; ++p)
    MUST (**p == '/' || strcmp (*p, "none") == 0
          || strcmp (*p, "same-dir") == 0 || strcmp (*p, "any") == 0
          || storage_is_nbd_uri (*p));
  MUST (!c->backing_file || *c->backing_file == '/'
        || storage_is_nbd_uri (c->backing_file)
        || strncmp (c->backing_file, "json:", 5) == 0);
  MUST (!config.create || !storage_is_nbd_uri (c->filename));
  MUST (!config.event_log || *config.event_log);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  char *text = malloc (size + 1), *next, *this;
  bool good = true;

  MUST (text != NULL);
  memcpy (text, data, size);
  text[size] = '\0';
  report_set_sink (sink);
  config_init ();
  for (next = text; good && (this = strsep (&next, "\n")) != NULL;)
    good = one_line (this);
  if (good) {
    lines = 0;
    if (config_complete () == -1)
      MUST (lines == 1 && strstr (line, "expected"));
    else
      check_config ();
  }
  config_free ();
  free (text);
  return 0;
}
