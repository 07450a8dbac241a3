/* SPDX-License-Identifier: BSD-3-Clause */

/* The spellings of backing file names: what each means, and that all else
 * is refused with a line that says what is wrong and what to do.
 */

#include <config.h>

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backing-name.h"
#include "checked.h"
#include "run-suite.h"

static struct backing_name parsed;
static struct format_error error;

static void
parse (const char *name)
{
  int r = backing_name_parse (name, &parsed, &error);

  ck_assert_msg (r == 0, "%s: %d, %s", name, r, error.text);
}

/* NAME is the file PLACE, and says nothing else. */
static void
is_file (const char *name, const char *place)
{
  parse (name);
  ck_assert_msg (!parsed.is_uri, "%s is %s", name, parsed.place);
  ck_assert_str_eq (parsed.place, place);
  ck_assert (!parsed.windowed);
  ck_assert (!parsed.no_backing);
}

static void
is_uri (const char *name, const char *uri)
{
  parse (name);
  ck_assert_msg (parsed.is_uri, "%s is %s", name, parsed.place);
  ck_assert_str_eq (parsed.place, uri);
}

/* NAME is refused with CODE and a line that has WORDS and what to do. */
static void
is_bad (const char *name, int code, const char *words)
{
  const char *p;
  int r;

  memset (&error, 'x', sizeof error);
  r = backing_name_parse (name, &parsed, &error);
  ck_assert_msg (r == code, "%s: %d, not %d: %s", name, r, code,
                 r ? error.text : parsed.place);
  ck_assert_msg (strstr (error.text, words) != NULL, "%s: %s lacks %s", name,
                 error.text, words);
  ck_assert_msg (strstr (error.text, "backing-file=") != NULL, "%s: %s",
                 name, error.text);
  for (p = error.text; *p; p++)
    ck_assert ((unsigned char) *p >= 0x20 && *p != 0x7f);
}

START_TEST (files)
{
  is_file ("base", "base");
  is_file ("/srv/base", "/srv/base");
  is_file ("./a:b", "./a:b");
  is_file ("file:base", "base");
  is_file ("file:a:b", "a:b");
  is_file ("file:json:{}", "json:{}");
  is_file ("file:file:base", "file:base");
  is_file ("file:///srv/base", "///srv/base");
  is_file ("host_device:/dev/vg/lv", "/dev/vg/lv");
  ck_assert_ptr_null (parsed.format);
  is_bad ("file:", -EINVAL, "empty");
  is_bad ("host_device:", -EINVAL, "empty");
}
END_TEST

START_TEST (protocols)
{
  static const char *const bad[] = {
    "ssh://host/x", "http://host/x", "fat:rw:/etc", "blkdebug::base",
    "qcow2:base", "driver:base", ":base", "we:ird", "JSON:{}", "NBD:a:1",
    "nbdx:base", "fd:3", "a b:base", "raw:base", "nbd+ssh://x",
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (bad); i++)
    is_bad (bad[i], -ENOTSUP, "a file or an NBD export");
}
END_TEST

START_TEST (old_nbd)
{
  is_uri ("nbd:localhost:10809", "nbd://localhost/");
  is_uri ("nbd:localhost:1", "nbd://localhost:1/");
  is_uri ("nbd:10.0.0.1:65535:exportname=a", "nbd://10.0.0.1:65535/a");
  is_uri ("nbd:[::1]:10809:exportname=a b/c?d#e%@:f",
          "nbd://[::1]/a%20b/c%3Fd%23e%25%40%3Af");
  is_uri ("nbd:h:10809:exportname=\xff\xc3", "nbd://h/%FF%C3");
  is_uri ("nbd:h:10809:exportname=", "nbd://h/");
  is_uri ("nbd:unix:/run/s", "nbd+unix:///?socket=/run/s");
  is_uri ("nbd:unix:/run/a b&c=d:exportname=x",
          "nbd+unix:///x?socket=/run/a%20b%26c%3Dd");
  is_uri ("nbd+tcp://h/x", "nbd://h/x");

  is_bad ("nbd:", -EINVAL, "no port");
  is_bad ("nbd:localhost", -EINVAL, "no port");
  is_bad ("nbd::10809", -EINVAL, "its host ''");
  is_bad ("nbd:a@b:10809", -EINVAL, "its host 'a@b'");
  is_bad ("nbd:a/b:10809", -EINVAL, "its host 'a/b'");
  is_bad ("nbd:a%2fb:10809", -EINVAL, "its host");
  is_bad ("nbd:-a:10809", -EINVAL, "its host '-a'");
  is_bad ("nbd:::1:10809", -EINVAL, "brackets");
  is_bad ("nbd:[::1%eth0]:10809", -EINVAL, "its host");
  is_bad ("nbd:h:0", -EINVAL, "its port '0'");
  is_bad ("nbd:h:65536", -EINVAL, "its port");
  is_bad ("nbd:h:+1", -EINVAL, "its port");
  is_bad ("nbd:h:01", -EINVAL, "its port");
  is_bad ("nbd:h:10809,to=10810", -EINVAL, "its port");
  is_bad ("nbd:h:99999999999999999999", -EINVAL, "its port");
  is_bad ("nbd:unix:", -EINVAL, "absolute");
  is_bad ("nbd:unix:s", -EINVAL, "absolute");
}
END_TEST

START_TEST (json_files)
{
  is_file ("json:{\"driver\":\"qcow2\",\"file\":"
           "{\"driver\":\"file\",\"filename\":\"base\"}}", "base");
  ck_assert_str_eq (parsed.format, "qcow2");
  is_file ("json:{\"driver\":\"raw\",\"file.filename\":\"/a/b\"}", "/a/b");
  ck_assert_str_eq (parsed.format, "raw");
  is_file ("json: {\"file.driver\":\"host_device\","
           "\"file\":{\"filename\":\"/dev/x\"}} ", "/dev/x");
  ck_assert_ptr_null (parsed.format);
  is_file ("json:{\"driver\":\"file\",\"filename\":\"base\"}", "base");
  ck_assert_str_eq (parsed.format, "raw");
  is_file ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\","
           "\"file\":{\"driver\":\"raw\",\"file.filename\":\"b\"}}}", "b");
  ck_assert_str_eq (parsed.format, "qcow2");

  /* Of the name of a file nothing is a language. */
  is_file ("json:{\"file.filename\":\"json:{}\"}", "json:{}");
  is_file ("json:{\"file.filename\":\"nbd://h/x\"}", "nbd://h/x");
  is_file ("json:{\"file.filename\":\"file:b\"}", "file:b");
  is_file ("json:{\"file.filename\":\"a\\u0041\\\"\"}", "aA\"");

  /* What only tells QEMU how to go about it. */
  is_file ("json:{\"driver\":\"qcow2\",\"read-only\":true,\"node-name\":\"n\","
           "\"cache\":{\"direct\":true,\"no-flush\":false},\"discard\":"
           "\"unmap\",\"detect-zeroes\":\"on\",\"auto-read-only\":\"on\","
           "\"overlap-check\":{\"template\":\"all\"},\"l2-cache-size\":1,"
           "\"encrypt\":{\"format\":\"luks\",\"key-secret\":\"s\"},\"file\":"
           "{\"driver\":\"file\",\"aio\":\"io_uring\",\"locking\":\"off\","
           "\"cache.direct\":true,\"node-name\":\"m\",\"filename\":\"b\"}}",
           "b");

  parse ("json:{\"driver\":\"qcow2\",\"backing\":null,\"file.filename\":"
         "\"b\"}");
  ck_assert (parsed.no_backing);
}
END_TEST

/* QEMU's JSON has strings in single quotes. */
START_TEST (single_quotes)
{
  is_file ("json:{'driver':'raw','file.filename':'b'}", "b");
  is_file ("json:{'file.filename':'a\"b\\'c\\\"d'}", "a\"b'c\"d");
  is_file ("json:{\"file.filename\":\"a'b\\\\\"}", "a'b\\");
  is_bad ("json:{'file.filename':'b}", -EINVAL, "JSON");
  is_bad ("json:{'file.filename':'b\\", -EINVAL, "JSON");
}
END_TEST

START_TEST (windows)
{
  parse ("json:{\"driver\":\"raw\",\"offset\":512,\"file.filename\":\"b\"}");
  ck_assert (parsed.windowed);
  ck_assert_uint_eq (parsed.offset, 512);
  ck_assert_uint_eq (parsed.size, UINT64_MAX);
  parse ("json:{\"size\":\"1024\",\"file.filename\":\"b\"}");
  ck_assert (parsed.windowed);
  ck_assert_str_eq (parsed.format, "raw");
  ck_assert_uint_eq (parsed.offset, 0);
  ck_assert_uint_eq (parsed.size, 1024);
  parse ("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"raw\",\"offset\":"
         "3,\"size\":0,\"file\":{\"filename\":\"b\"}}}");
  ck_assert_str_eq (parsed.format, "qcow2");
  ck_assert_uint_eq (parsed.offset, 3);
  ck_assert_uint_eq (parsed.size, 0);

  is_bad ("json:{\"size\":1000,\"file.filename\":\"b\"}", -EINVAL,
          "'size' is 1000");
  is_bad ("json:{\"offset\":-1,\"file.filename\":\"b\"}", -EINVAL,
          "'offset' is '-1'");
  is_bad ("json:{\"offset\":\"9223372036854775808\",\"file.filename\":\"b\"}",
          -EINVAL, "'offset'");
  is_bad ("json:{\"offset\":\"99999999999999999999\",\"file.filename\":\"b\"}",
          -EINVAL, "'offset'");
  is_bad ("json:{\"offset\":\"1k\",\"file.filename\":\"b\"}", -EINVAL,
          "'offset' is '1k'");
  is_bad ("json:{\"offset\":1.5,\"file.filename\":\"b\"}", -EINVAL,
          "'offset' is not a string");
  is_bad ("json:{\"offset\":\"\",\"file.filename\":\"b\"}", -EINVAL,
          "'offset'");
  is_bad ("json:{\"driver\":\"raw\",\"offset\":1,\"file\":{\"driver\":\"raw\","
          "\"size\":512,\"file.filename\":\"b\"}}", -ENOTSUP, "part of a");
  is_bad ("json:{\"driver\":\"qcow2\",\"offset\":1,\"file.filename\":\"b\"}",
          -ENOTSUP, "'offset' is not a key");
}
END_TEST

#define NBD(rest) "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\"," \
    rest "}}"

START_TEST (json_nbd)
{
  is_uri (NBD ("\"host\":\"h\""), "nbd://h/");
  is_uri (NBD ("\"host\":\"h\",\"port\":\"1\",\"export\":\"a?b\""),
          "nbd://h:1/a%3Fb");
  is_uri (NBD ("\"path\":\"/run/s\",\"export\":\"x\""),
          "nbd+unix:///x?socket=/run/s");
  is_uri (NBD ("\"server\":{\"type\":\"inet\",\"host\":\"::1\",\"port\":"
               "10809}"), "nbd://[::1]/");
  is_uri (NBD ("\"server.type\":\"inet\",\"server.host\":\"h\","
               "\"server.port\":\"7\",\"server.keep-alive\":true,"
               "\"reconnect-delay\":10,\"open-timeout\":5"), "nbd://h:7/");
  is_uri (NBD ("\"server\":{\"type\":\"unix\",\"path\":\"/s\"},"
               "\"export\":\"\""), "nbd+unix:///?socket=/s");
  is_uri (NBD ("\"server\":{\"type\":\"vsock\",\"cid\":\"2\",\"port\":\"3\"}"),
          "nbd+vsock://2:3/");
  is_uri ("json:{\"driver\":\"nbd\",\"host\":\"h\"}", "nbd://h/");
  ck_assert_str_eq (parsed.format, "raw");

  is_bad (NBD ("\"export\":\"x\""), -EINVAL, "'file.host' is missing");
  is_bad (NBD ("\"server\":{\"type\":\"unix\"}"), -EINVAL,
          "'file.server.path' is missing");
  is_bad (NBD ("\"server\":{\"type\":\"vsock\",\"cid\":\"2\"}"), -EINVAL,
          "'file.server.port' is missing");
  is_bad (NBD ("\"server\":{\"type\":\"fd\",\"str\":\"3\"}"), -ENOTSUP,
          "'file.server.type' is 'fd'");
  is_bad (NBD ("\"server\":{\"type\":\"inet\",\"host\":\"h/x\",\"port\":"
               "\"1\"}"), -EINVAL, "its host 'h/x'");
  is_bad (NBD ("\"server\":{\"type\":\"inet\",\"host\":\"h\",\"port\":"
               "\"1/\"}"), -EINVAL, "its port '1/'");
  is_bad (NBD ("\"server\":{\"type\":\"inet\",\"host\":\"h\",\"port\":"
               "\"1\",\"to\":2}"), -ENOTSUP, "'file.server.to'");
  is_bad (NBD ("\"host\":\"h\",\"path\":\"/s\""), -ENOTSUP, "'file.host'");
  is_bad (NBD ("\"host\":\"h\",\"server\":{\"type\":\"unix\",\"path\":\"/s\"}"),
          -ENOTSUP, "'file.host'");
  is_bad (NBD ("\"host\":\"h\",\"tls-creds\":\"t\""), -ENOTSUP, "nbds://");
  is_bad (NBD ("\"host\":\"h\",\"x-dirty-bitmap\":\"b\""), -ENOTSUP,
          "'file.x-dirty-bitmap'");
  is_bad (NBD ("\"host\":\"h\",\"filename\":\"/etc/passwd\""), -ENOTSUP,
          "'file.filename'");
  is_bad (NBD ("\"host\":7"), -EINVAL, "'file.host' is not a string");
}
END_TEST

START_TEST (json_refused)
{
  static const struct {
    const char *name;
    int code;
    const char *words;
  } bad[] = {
    { "json:", -EINVAL, "JSON" },
    { "json:{", -EINVAL, "JSON" },
    { "json:[]", -EINVAL, "JSON" },
    { "json:\"base\"", -EINVAL, "JSON" },
    { "json:{} x", -EINVAL, "JSON" },
    { "json:{}", -EINVAL, "'file.filename' is missing" },
    { "json:{\"file.filename\":\"\"}", -EINVAL, "empty" },
    { "json:{\"file.filename\":\"b\\u0000\"}", -EINVAL, "JSON" },
    { "json:{\"file.filename\":\"\xff\"}", -EINVAL, "JSON" },
    { "json:{\"file\":\"node\"}", -EINVAL, "'file.filename' is missing" },
    { "json:{\"file\":[{\"filename\":\"b\"}]}", -EINVAL, "missing" },
    { "json:{\"file.filename\":[\"b\"]}", -EINVAL, "not a string" },
    { "json:{\"file.filename\":{\"x\":\"b\"}}", -EINVAL, "missing" },
    { "json:{\"file.filename\":null}", -EINVAL, "not a string" },
    { "json:{\"driver\":1,\"file.filename\":\"b\"}", -EINVAL,
      "'driver' is not a string" },
    { "json:{\"driver\":\"raw\",\"driver\":\"raw\",\"file.filename\":\"b\"}",
      -EINVAL, "duplicate" },
    { "json:{\"file.filename\":\"a\",\"file\":{\"filename\":\"b\"}}",
      -EINVAL, "'file.filename' is there twice" },
    { "json:{\"driver\":\"blkverify\",\"test.filename\":\"a\"}", -ENOTSUP,
      "'driver' is 'blkverify'" },
    { "json:{\"driver\":\"vmdk\",\"file.filename\":\"a\"}", -ENOTSUP,
      "'vmdk'" },
    { "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"https\",\"url\":\"u\"}}",
      -ENOTSUP, "'file.driver' is 'https'" },
    { "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"qcow2\","
      "\"file.filename\":\"a\"}}", -ENOTSUP, "'file.driver' is 'qcow2'" },
    { "json:{\"driver\":\"qcow2\",\"filename\":\"a\"}", -EINVAL,
      "'file.filename' is missing" },
    { "json:{\"file.filename\":\"a\",\"filename\":\"b\"}", -ENOTSUP,
      "'filename' is not a key" },
    { "json:{\"file.filename\":\"a\",\"bogus\":1}", -ENOTSUP, "'bogus'" },
    { "json:{\"file.filename\":\"a\",\"backing\":\"n\"}", -ENOTSUP,
      "'backing' is the name of a node" },
    { "json:{\"file.filename\":\"a\",\"backing\":null,\"backing.driver\":"
      "\"raw\"}", -ENOTSUP, "'backing.driver' is not a key" },
    { "json:{\"driver\":\"raw\",\"file.filename\":\"a\",\"backing\":{"
      "\"driver\":\"raw\",\"file.filename\":\"b\"}}", -EINVAL,
      "below a raw file" },
    { "json:{\"driver\":\"raw\",\"file.filename\":\"a\",\"data-file\":{"
      "\"filename\":\"b\"}}", -ENOTSUP, "'data-file.filename' is not a key" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"data-file\":"
      "\"n\"}", -ENOTSUP, "'data-file' is not a key" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"data-file\":{"
      "\"driver\":\"qcow2\",\"file.filename\":\"b\"}}", -ENOTSUP,
      "'data-file.driver' is 'qcow2'" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"data-file\":{"
      "\"driver\":\"file\"}}", -EINVAL, "'data-file.filename' is missing" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{"
      "\"driver\":\"qcow2\",\"file.filename\":\"b\",\"bogus\":1}}",
      -ENOTSUP, "'backing.bogus' is not a key" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{"
      "\"driver\":\"vmdk\",\"file.filename\":\"b\"}}", -ENOTSUP,
      "'backing.driver' is 'vmdk'" },
    { "json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{"
      "\"driver\":\"nbd\",\"host\":\"h\",\"tls-creds\":\"t\"}}", -ENOTSUP,
      "'backing.tls-creds'" },
    { "json:{\"file.file.file.file.file.file.file.file.file.file.filename\":"
      "\"a\"}", -EINVAL, "missing" },
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (bad); i++)
    is_bad (bad[i].name, bad[i].code, bad[i].words);
}
END_TEST

/* What is below the backing file. */
START_TEST (json_backing)
{
  parse ("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{"
         "\"driver\":\"qcow2\",\"read-only\":true,\"file\":{\"driver\":\"file\","
         "\"locking\":\"off\",\"filename\":\"b\"},\"backing\":{\"driver\":"
         "\"raw\",\"offset\":3,\"file\":{\"driver\":\"nbd\",\"host\":\"h\"}}}}");
  ck_assert_str_eq (parsed.place, "a");
  ck_assert_str_eq (parsed.backing->place, "b");
  ck_assert_str_eq (parsed.backing->format, "qcow2");
  ck_assert (!parsed.backing->windowed && !parsed.backing->is_uri);
  ck_assert_str_eq (parsed.backing->backing->place, "nbd://h/");
  ck_assert_str_eq (parsed.backing->backing->format, "raw");
  ck_assert_uint_eq (parsed.backing->backing->offset, 3);
  ck_assert_ptr_null (parsed.backing->backing->backing);
  backing_name_clear (&parsed);
  ck_assert_ptr_null (parsed.backing);

  /* With dots, and with the end of the chain. */
  parse ("json:{\"file.filename\":\"a\",\"backing.driver\":\"qcow2\","
         "\"backing.file.filename\":\"b\",\"backing.backing\":null}");
  ck_assert_ptr_null (parsed.format);
  ck_assert_str_eq (parsed.backing->place, "b");
  ck_assert (parsed.backing->no_backing && !parsed.no_backing);
  backing_name_clear (&parsed);
  parse ("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":"
         "\"\"}");
  ck_assert (parsed.no_backing);

  /* What the header says is left to it. */
  parse ("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{}}");
  ck_assert (!parsed.backing && !parsed.no_backing);
  parse ("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"backing\":{"
         "\"driver\":\"raw\",\"size\":512,\"file.locking\":\"off\"}}");
  ck_assert_str_eq (parsed.backing->place, "");
  ck_assert_str_eq (parsed.backing->format, "raw");
  ck_assert_uint_eq (parsed.backing->size, 512);
  backing_name_clear (&parsed);
}
END_TEST

START_TEST (json_data_file)
{
  parse ("json:{\"driver\":\"qcow2\",\"file.filename\":\"a\",\"data-file\":{"
         "\"driver\":\"file\",\"filename\":\"d\"},\"backing\":{\"driver\":"
         "\"qcow2\",\"file.filename\":\"b\",\"data-file\":{\"driver\":\"raw\","
         "\"file\":{\"driver\":\"nbd\",\"host\":\"h\"}}}}");
  ck_assert_str_eq (parsed.data_file->place, "d");
  ck_assert_ptr_null (parsed.data_file->format);
  ck_assert_str_eq (parsed.backing->data_file->place, "nbd://h/");
  backing_name_clear (&parsed);
}
END_TEST

/* As many keys, nodes and layers as fit. */
START_TEST (much)
{
  const struct backing_name *below;
  char name[MAX_BACKING_NAME + 2];
  size_t n, i;

  memset (name, 'x', sizeof name - 1);
  name[sizeof name - 1] = '\0';
  ck_assert_int_eq (backing_name_parse (name, &parsed, &error),
                    -ENAMETOOLONG);
  is_file (name + 1, name + 1);

  n = (size_t) sprintf (name, "json:{");
  for (i = 0; n + 20 < MAX_BACKING_NAME; i++)
    n += (size_t) sprintf (name + n, "\"%c%c\":1,", (int) ('a' + i / 26),
                           (int) ('a' + i % 26));
  sprintf (name + n, "\"x\":1}");
  is_bad (name, -EINVAL, "missing");

  /* Every byte of an export's name escaped. */
  n = (size_t) sprintf (name, "nbd:h:1:exportname=");
  memset (name + n, '%', MAX_BACKING_NAME - n);
  name[MAX_BACKING_NAME] = '\0';
  parse (name);
  ck_assert_uint_eq (strlen (parsed.place),
                     strlen ("nbd://h:1/") + 3 * (MAX_BACKING_NAME - n));

  n = (size_t) sprintf (name, "json:{'file.filename':'a'");
  for (i = 0; n + 40 < MAX_BACKING_NAME; i++)
    n += (size_t) sprintf (name + n, ",'backing':{'file.filename':'b'");
  memset (name + n, '}', i + 1);
  name[n + i + 1] = '\0';
  parse (name);
  for (below = parsed.backing; below; below = below->backing, i--)
    ck_assert_str_eq (below->place, "b");
  ck_assert_uint_eq (i, 0);
  backing_name_clear (&parsed);

  memset (name, 'x', MAX_BACKING_NAME);
  name[MAX_BACKING_NAME] = '\0';
  memcpy (name, "json:{\"", 7);
  strcpy (name + 400, "\":1}");
  is_bad (name, -EINVAL, "not a key");
  name[400] = name[404] = 'x';

  n = (size_t) sprintf (name, "json:");
  memset (name + n, '[', MAX_BACKING_NAME - n);
  is_bad (name, -EINVAL, "JSON");
  memset (name + n, '\'', MAX_BACKING_NAME - n);
  is_bad (name, -EINVAL, "JSON");

  /* Raw nodes upon each other: the limit is that of nested objects. */
  is_bad ("json:{\"file.driver\":\"raw\",\"file.file.driver\":\"raw\","
          "\"file.file.file.driver\":\"raw\",\"file.file.file.file.driver\":"
          "\"raw\",\"file.file.file.file.file.driver\":\"raw\","
          "\"file.file.file.file.file.file.driver\":\"raw\","
          "\"file.file.file.file.file.file.file.driver\":\"raw\","
          "\"file.file.file.file.file.file.file.file.driver\":\"raw\"}",
          -EINVAL, "stacked");
}
END_TEST

int
main (void)
{
  Suite *suite = suite_create ("backing-name");
  TCase *tc = tcase_create ("backing-name");

  tcase_set_timeout (tc, 60);
  tcase_add_test (tc, files);
  tcase_add_test (tc, protocols);
  tcase_add_test (tc, old_nbd);
  tcase_add_test (tc, json_files);
  tcase_add_test (tc, single_quotes);
  tcase_add_test (tc, windows);
  tcase_add_test (tc, json_nbd);
  tcase_add_test (tc, json_backing);
  tcase_add_test (tc, json_data_file);
  tcase_add_test (tc, json_refused);
  tcase_add_test (tc, much);
  suite_add_tcase (suite, tc);
  return run_suite (suite);
}
