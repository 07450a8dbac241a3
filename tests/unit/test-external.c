/* SPDX-License-Identifier: BSD-3-Clause */

/* Which files an image may name: all rules, against a small tree of
 * directories and links.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/stat.h>

#include "backing-name.h"
#include "external.h"
#include "report.h"
#include "run-suite.h"

static char top[PATH_MAX];      /* real path of the tree */

static void
make_dir (const char *name)
{
  if (mkdir (name, 0700) == -1)
    abort ();
}

static void
make_link (const char *to, const char *name)
{
  if (symlink (to, name) == -1)
    abort ();
}

static void
make_file (const char *name)
{
  FILE *fp = fopen (name, "w");

  if (fp == NULL || fclose (fp) == EOF)
    abort ();
}

static void
make_tree (void)
{
  char name[] = "tmp-external.XXXXXX";

  if (mkdtemp (name) == NULL || chdir (name) == -1 ||
      getcwd (top, sizeof top) == NULL)
    abort ();
  make_dir ("img");
  make_dir ("img/sub");
  make_dir ("img/sub/deep");
  make_dir ("imgother");
  make_file ("img/a");
  make_file ("img/base");
  make_file ("img/we:ird");
  make_file ("img/sub/base");
  make_file ("img/sub/deep/base");
  make_file ("imgother/base");
  make_file ("secret");
  make_link ("base", "img/link-in");
  make_link ("../secret", "img/link-out");
  make_link ("../imgother/base", "img/link-other");
  make_link ("nowhere", "img/link-dangling");
  make_link ("loop", "img/loop");
  make_link ("../img/base", "imgother/link-back");
  make_link ("img", "img-link");
  make_link ("..", "img/up");
  make_link ("img/a", "a-link");
}

static void
remove_tree (void)
{
  char command[PATH_MAX + 20];

  if (chdir ("..") == -1)
    abort ();
  snprintf (command, sizeof command, "rm -rf '%s'", top);
  if (system (command) != 0)
    abort ();
}

static char said[2000];         /* the last report */
static int reports;

static void
sink (enum report_level level, const char *text)
{
  ck_assert_int_eq (level, REPORT_ERROR);
  snprintf (said, sizeof said, "%s", text);
  reports++;
}

/* NAME in NAMING_FILE under RULES (with %s for TOP, separated by
 * commas) is allowed and means EXPECT below TOP, or fails with ERR.
 */
static void
try (const char *naming_file, const char *name, const char *rules, int err,
     const char *expect)
{
  const char *list[10];
  char expanded[3 * PATH_MAX], full[2 * PATH_MAX], *p, *path = NULL;
  size_t n = 0;
  int r;

  snprintf (expanded, sizeof expanded, "%s", rules);
  p = strstr (expanded, "TOP");
  if (p) {
    snprintf (full, sizeof full, "%s%s", top, p + 3);
    snprintf (p, sizeof expanded - (size_t) (p - expanded), "%s", full);
  }
  for (p = strtok (expanded, ","); p; p = strtok (NULL, ","))
    list[n++] = p;
  list[n] = NULL;

  report_set_sink (sink);
  reports = 0;
  r = external_resolve (naming_file, name, list, &path);
  ck_assert_msg (r == err, "%s in %s under %s: %d, not %d: %s",
                 name, naming_file, rules, r, err, said);
  if (r == 0) {
    snprintf (full, sizeof full, "%s/%s", top, expect);
    ck_assert_str_eq (path, full);
    ck_assert_int_eq (reports, 0);
    free (path);
    return;
  }
  ck_assert_ptr_null (path);
  ck_assert_int_eq (reports, 1);
  ck_assert_ptr_nonnull (strstr (said, naming_file));
  ck_assert_ptr_null (strchr (said, '\n'));
}

START_TEST (same_dir)
{
  static const char *const naming[] = { "img/a", "./img/../img/a",
                                        "img-link/a" };
  const char *a = naming[_i];

  try (a, "base", "same-dir", 0, "img/base");
  try (a, "./base", "same-dir", 0, "img/base");
  try (a, "sub/../base", "same-dir", 0, "img/base");
  try (a, "../img/base", "same-dir", 0, "img/base");
  try (a, "link-in", "same-dir", 0, "img/base");
  try (a, "a", "same-dir", 0, "img/a");
  try (a, "sub/base", "same-dir", -EPERM, NULL);
  try (a, "../secret", "same-dir", -EPERM, NULL);
  try (a, "../imgother/base", "same-dir", -EPERM, NULL);
  try (a, "up/secret", "same-dir", -EPERM, NULL);
  try (a, "up/img/base", "same-dir", 0, "img/base");
  try (a, "/etc/passwd", "same-dir", -EPERM, NULL);
  ck_assert_ptr_nonnull (strstr (said, "/etc/passwd"));
  ck_assert_ptr_nonnull (strstr (said, "external-files="));
}
END_TEST

/* What a link leads to counts, and where the link is. */
START_TEST (links)
{
  try ("img/a", "link-out", "same-dir", -EPERM, NULL);
  try ("img/a", "link-other", "same-dir", -EPERM, NULL);
  try ("img/a", "link-other", "TOP/imgother", -EPERM, NULL);
  try ("img/a", "link-other", "same-dir,TOP/imgother", 0, "imgother/base");
  try ("img/a", "../imgother/link-back", "same-dir", -EPERM, NULL);
  try ("img/a", "link-out", "any", 0, "secret");
  try ("img/a", "link-dangling", "any", -ENOENT, NULL);
  try ("img/a", "loop", "any", -ELOOP, NULL);
}
END_TEST

/* A name starts where the naming file was said to be, as in QEMU. */
START_TEST (naming_file_is_link)
{
  try ("a-link", "secret", "same-dir", 0, "secret");
  try ("a-link", "img/base", "same-dir", -EPERM, NULL);
  try ("nowhere/a", "base", "any", -ENOENT, NULL);
}
END_TEST

/* The naming file without any directory, and in the root directory. */
START_TEST (bare_names)
{
  ck_assert_int_eq (chdir ("img"), 0);
  try ("a", "base", "same-dir", 0, "img/base");
  try ("a", "sub/base", "same-dir", -EPERM, NULL);
  try ("/a", "etc/passwd", "same-dir", -EPERM, NULL);
  try ("/a", "base-that-is-not-there", "same-dir", -ENOENT, NULL);
  ck_assert_int_eq (chdir (".."), 0);
}
END_TEST

START_TEST (none_and_any)
{
  try ("img/a", "base", "none", -EPERM, NULL);
  ck_assert_ptr_nonnull (strstr (said, "external-files="));
  try ("img/a", "base", "", -EPERM, NULL);
  try ("img/a", "base", "none,same-dir", 0, "img/base");
  try ("img/a", "../secret", "any", 0, "secret");
  try ("img/a", "../secret", "none,any", 0, "secret");
  try ("img/a", "sub/deep/base", "any", 0, "img/sub/deep/base");
}
END_TEST

START_TEST (directories)
{
  try ("img/a", "sub/base", "TOP/img", 0, "img/sub/base");
  try ("img/a", "base", "TOP/img", 0, "img/base");
  try ("img/a", "sub/deep/base", "TOP/img", 0, "img/sub/deep/base");
  try ("img/a", "sub/deep/base", "TOP/img/sub/", 0, "img/sub/deep/base");
  try ("img/a", "base", "TOP/img/sub", -EPERM, NULL);
  try ("img/a", "base", "same-dir,TOP/img/sub", 0, "img/base");

  /* By component: img is not the beginning of imgother. */
  try ("img/a", "../imgother/base", "TOP/img", -EPERM, NULL);
  try ("img/a", "../imgother/base", "TOP", 0, "imgother/base");
  try ("img/a", "../imgother/base", "/", 0, "imgother/base");

  /* Rules are resolved too; those that lead nowhere allow nothing. */
  try ("img/a", "base", "TOP/img-link", 0, "img/base");
  try ("img/a", "base", "TOP/img/up/img", 0, "img/base");
  try ("img/a", "base", "TOP/nowhere", -EPERM, NULL);
  try ("img/a", "base", "TOP/img/base", -EPERM, NULL);
  try ("img/a", "base", "img", -EPERM, NULL);
  try ("img/a", "base", "any-dir", -EPERM, NULL);
}
END_TEST

START_TEST (missing)
{
  try ("img/a", "no-such-file", "same-dir", -ENOENT, NULL);
  ck_assert_ptr_nonnull (strstr (said, "no-such-file"));
  ck_assert_ptr_nonnull (strstr (said, "No such file"));
  try ("img/a", "no-such-dir/x", "any", -ENOENT, NULL);
  try ("img/a", "base/x", "any", -ENOTDIR, NULL);
}
END_TEST

START_TEST (protocols)
{
  static const char *const bad[] = {
    "json:{\"driver\":\"raw\",\"file\":{\"filename\":\"/etc/passwd\"}}",
    "ssh://host/x", "http://host/x", "fat:rw:/etc", "host_device:/dev/sda",
    "blkdebug::base", "qcow2:base", "driver:base", ":base", "we:ird",
    "nbdx:base", "JSON:{}", "fd:3", "a b:base",
  };
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    try ("img/a", bad[i], "any", -ENOTSUP, NULL);
    ck_assert_ptr_nonnull (strstr (said, "external-files="));
    ck_assert_ptr_nonnull (strstr (said, bad[i]));
  }

  /* A colon after a slash makes no protocol; neither does "file:". */
  try ("img/a", "./we:ird", "same-dir", 0, "img/we:ird");
  try ("img/a", "file:base", "same-dir", 0, "img/base");
  try ("img/a", "file:we:ird", "same-dir", 0, "img/we:ird");
  try ("img/a", "file:../secret", "same-dir", -EPERM, NULL);
  try ("img/a", "file:json:{}", "any", -ENOENT, NULL);
  try ("img/a", "file:///etc/passwd", "same-dir", -EPERM, NULL);
  try ("img/a", "file:", "any", -EINVAL, NULL);
}
END_TEST

/* URI under RULE: an entry of its own, since try would make a path of it.
 */
static void
try_uri (const char *naming_file, const char *uri, const char *rule, int err)
{
  const char *const rules[] = { "same-dir", rule, NULL };
  char *path = NULL;
  int r;

  report_set_sink (sink);
  reports = 0;
  r = external_resolve (naming_file, uri, rules, &path);
  ck_assert_msg (r == err, "%s under %s: %d, not %d", uri, rule, r, err);
  if (err == 0)
    ck_assert_str_eq (path, uri);
  ck_assert_int_eq (reports, (err != 0));
  free (path);
}

START_TEST (nbd)
{
  static const char *const uris[] = {
    "nbd://localhost/x", "nbds://localhost",
    "nbd+unix:///x?socket=/run/s", "nbds+unix:///?socket=s",
  };
  static const char *const other[] = {
    "nbd://localhost", "nbd://localhost.evil.org/", "nbd://localhost:1/x",
    "nbds://localhost/x", "nbd://localhost/b", "nbd://localhost/ab",
    "nbd://localhost/a/x?socket=/run/s", "nbd://localhost/a/%2e%2e/x",
    "nbd://localhost/a/../x", "nbd://localhost/a/./x",
    "nbd://localhost/a/..", "nbd://localhost/a/.", "nbd://localhost/a/x/..",
    "nbd://localhost/a/x#y", "nbd://localhost/a/@evil.org/",
  };
  size_t i;

  for (i = 0; i < sizeof uris / sizeof uris[0]; i++) {
    try_uri ("img/a", uris[i], "any", 0);
    try_uri ("img/a", uris[i], uris[i], 0);
    try_uri ("img/a", uris[i], "same-dir", -EPERM);
    ck_assert_ptr_nonnull (strstr (said, "external-files="));
    try_uri ("img/a", uris[i], "/", -EPERM);
    try_uri ("img/a", uris[i], "none", -EPERM);
  }

  for (i = 0; i < sizeof other / sizeof other[0]; i++)
    try_uri ("img/a", other[i], "nbd://localhost/a/", -EPERM);
  try_uri ("img/a", "nbd://localhost/a/x", "nbd://localhost/a/", 0);
  try_uri ("img/a", "nbd://localhost/a/x/y", "nbd://localhost/a/", 0);
  try_uri ("img/a", "nbd://localhost/a/", "nbd://localhost/a/", 0);
  /* Without a slash at its end a rule allows itself alone. */
  try_uri ("img/a", "nbd://localhost/ax", "nbd://localhost/a", -EPERM);
  try_uri ("img/a", "nbd://localhost/a/x", "nbd://localhost/a", -EPERM);

  /* QEMU's older way to write them. */
  try ("img/a", "nbd:localhost:10809", "any", -ENOTSUP, NULL);
  try ("img/a", "NBD://localhost/", "any", -ENOTSUP, NULL);

  /* An image over NBD is in no directory. */
  try_uri (uris[0], "base", "any", -EINVAL);
  ck_assert_ptr_nonnull (strstr (said, "backing-file="));
  try_uri (uris[0], uris[1], uris[1], 0);
  try_uri (uris[0], "/etc/passwd", "none", -EPERM);
}
END_TEST

/* The place that NAME, the name of a backing file, leads to under RULE:
 * EXPECT below TOP, or a URI as it is; NULL: it fails with ERR, and says
 * WORDS.
 */
static void
try_backing (const char *name, const char *rule, int err, const char *expect,
             const char *words)
{
  const char *const rules[] = { rule, NULL };
  struct backing_name parsed;
  char full[2 * PATH_MAX], *path = NULL;
  int r;

  report_set_sink (sink);
  reports = 0;
  r = external_parse_backing ("img/a", name, &parsed);
  if (r == 0)
    r = external_resolve_backing ("img/a", name, &parsed, rules, &path);
  ck_assert_msg (r == err, "%s under %s: %d, not %d: %s", name, rule, r, err,
                 said);
  ck_assert_int_eq (reports, (err != 0));
  if (err == 0) {
    snprintf (full, sizeof full, "%s/%s", top, expect);
    ck_assert_str_eq (path, strstr (expect, "//") ? expect : full);
  }
  else {
    ck_assert_ptr_null (path);
    ck_assert_ptr_nonnull (strstr (said, "img/a: the image names "));
    ck_assert_msg (strstr (said, words) != NULL, "%s lacks %s", said, words);
  }
  free (path);
}

/* FORM with FILE in the place of %s. */
static const char *
spell (const char *form, const char *file)
{
  static char name[1024];
  const char *at = strstr (form, "%s");

  snprintf (name, sizeof name, "%.*s%s%s", (int) (at - form), form, file,
            at + 2);
  return name;
}

/* In whichever spelling, the rules are those for a plain name. */
START_TEST (spellings)
{
  static const char *const forms[] = {
    "%s", "file:%s", "host_device:%s", "json:{\"file.filename\":\"%s\"}",
    "json:{\"driver\":\"file\",\"filename\":\"%s\"}",
    "json:{'driver':'qcow2','file':{'driver':'raw','file.filename':'%s'}}",
  };
  size_t i;

  for (i = 0; i < sizeof forms / sizeof forms[0]; i++) {
#define TRY(file, rule, err, expect, words)                             \
    try_backing (spell (forms[i], file), rule, err, expect, words)
    TRY ("base", "same-dir", 0, "img/base", NULL);
    TRY ("./base", "same-dir", 0, "img/base", NULL);
    TRY ("base", "none", -EPERM, NULL, "external-files=");
    TRY ("../secret", "same-dir", -EPERM, NULL, "external-files=");
    TRY ("../secret", "any", 0, "secret", NULL);
    TRY ("sub/base", "same-dir", -EPERM, NULL, "external-files=");
    TRY ("link-out", "same-dir", -EPERM, NULL, "external-files=");
    TRY ("up/secret", "same-dir", -EPERM, NULL, "external-files=");
    TRY ("/etc/passwd", "same-dir", -EPERM, NULL, "/etc/passwd");
    TRY ("sub/..", "any", -EINVAL, NULL, "not the name of a file");
    TRY ("nowhere", "any", -ENOENT, NULL, "No such file");
#undef TRY
  }

  try_backing ("nbd://h/x", "any", 0, "nbd://h/x", NULL);
  try_backing ("nbd:h:10809:exportname=x", "nbd://h/x", 0, "nbd://h/x", NULL);
  try_backing ("nbd:h:10809:exportname=a/x", "nbd://h/a/", 0, "nbd://h/a/x",
               NULL);
  try_backing ("nbd:h:10809:exportname=a/../x", "nbd://h/a/", -EPERM, NULL,
               "which is 'nbd://h/a/../x'");
  try_backing ("nbd:h:10809:exportname=a/..", "nbd://h/a/", -EPERM, NULL,
               "which is 'nbd://h/a/..'");
  try_backing ("nbd:h:1:exportname=x", "nbd://h/", -EPERM, NULL,
               "external-files=URI");
  try_backing ("nbd:h:10809", "same-dir", -EPERM, NULL, "'nbd://h/'");
  try_backing ("nbd:unix:/s:exportname=x", "nbd+unix:///x?socket=/s", 0,
               "nbd+unix:///x?socket=/s", NULL);
  try_backing ("ssh://h/x", "any", -ENOTSUP, NULL, "backing-file=");
  try_backing ("json:{\"driver\":\"fat\"}", "any", -ENOTSUP, NULL,
               "backing-file=");
}
END_TEST

START_TEST (no_names)
{
  static const char *const bad[] = {
    "", ".", "..", "/", "sub/", "sub/.", "sub/..", "/etc/",
  };
  size_t i;

  for (i = 0; i < sizeof bad / sizeof bad[0]; i++)
    try ("img/a", bad[i], "any", -EINVAL, NULL);
}
END_TEST

/* The longest name a header can hold; the report still says it all. */
START_TEST (long_names)
{
  char name[1024];

  memset (name, 'x', sizeof name);
  name[1023] = '\0';
  try ("img/a", name, "any", -ENAMETOOLONG, NULL);
  memcpy (name, "ssh:", 4);
  try ("img/a", name, "any", -ENOTSUP, NULL);
  ck_assert_ptr_nonnull (strstr (said, "external-files="));
  memcpy (name, "..//", 4);
  memset (name + 4, '/', 1000);
  try ("img/a", name, "none", -EPERM, NULL);
  ck_assert_ptr_nonnull (strstr (said, "external-files="));
}
END_TEST

/* Through the report's own filter: no line breaks, no escapes. */
START_TEST (control_characters)
{
  try ("img/a", "no\nsuch\033[31mfile", "same-dir", -ENOENT, NULL);
  ck_assert_ptr_null (strchr (said, '\033'));
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("external");
  TCase *tc = tcase_create ("names");

  tcase_set_timeout (tc, 60);
  tcase_add_unchecked_fixture (tc, make_tree, remove_tree);
  tcase_add_loop_test (tc, same_dir, 0, 3);
  tcase_add_test (tc, links);
  tcase_add_test (tc, naming_file_is_link);
  tcase_add_test (tc, bare_names);
  tcase_add_test (tc, none_and_any);
  tcase_add_test (tc, directories);
  tcase_add_test (tc, missing);
  tcase_add_test (tc, protocols);
  tcase_add_test (tc, nbd);
  tcase_add_test (tc, spellings);
  tcase_add_test (tc, no_names);
  tcase_add_test (tc, long_names);
  tcase_add_test (tc, control_characters);
  suite_add_tcase (suite, tc);

  return run_suite (suite);
}
