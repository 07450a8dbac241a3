/* SPDX-License-Identifier: BSD-3-Clause */

/* NBD exports that are named by their parts, as NBD URIs.
 *
 * Rules about URIs compare strings, so a server and export have one URI
 * only: the port is left out if it is NBD's own, and all bytes are escaped
 * but those that mean themselves everywhere (RFC 3986, "unreserved"), and
 * slashes.  What cannot be part of a host or port is refused, not escaped:
 * it would be looked up.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backing-name-internal.h"

#define NBD_PORT "10809"

static const char letters_and_digits[] =
  "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/* A growing text, that says in the end if it did not fit. */
struct writer {
  char *at, *end;               /* END: the last byte, for the NUL */
  bool full;
};

static void
put_char (struct writer *w, char c)
{
  if (w->at == w->end)
    w->full = true;
  else
    *w->at++ = c;
}

static void
put (struct writer *w, const char *text)
{
  for (; *text; text++)
    put_char (w, *text);
}

static void
put_escaped (struct writer *w, const char *text)
{
  static const char hex[] = "0123456789ABCDEF";

  for (; *text; text++) {
    const unsigned char c = (unsigned char) *text;

    if (strchr (letters_and_digits, c) || strchr ("-._~/", c))
      put_char (w, *text);
    else {
      put_char (w, '%');
      put_char (w, hex[c >> 4]);
      put_char (w, hex[c & 15]);
    }
  }
}

static struct writer
begin (struct backing_name *n, const char *scheme)
{
  struct writer w = { n->place, n->place + sizeof n->place - 1, false };

  n->is_uri = true;
  put (&w, scheme);
  return w;
}

static int
finish (struct writer *w, struct format_error *e)
{
  *w->at = '\0';
  return w->full ? format_fail (e, -ENAMETOOLONG, "the name is too long")
    : 0;
}

static void
put_export (struct writer *w, const char *export)
{
  put_char (w, '/');
  if (export)
    put_escaped (w, export);
}

/* Is TEXT a decimal number from MIN to MAX, written without ornament? */
static bool
is_number (const char *text, unsigned long min, unsigned long max)
{
  unsigned long v;
  char canonical[24];

  if (*text == '\0' || strlen (text) > 10
      || text[strspn (text, "0123456789")] != '\0')
    return false;
  v = strtoul (text, NULL, 10);
  snprintf (canonical, sizeof canonical, "%lu", v);
  return v >= min && v <= max && strcmp (text, canonical) == 0;
}

/* Are all bytes of TEXT in letters_and_digits or MORE? */
static bool
consists_of (const char *text, const char *more)
{
  while (*text && (strchr (letters_and_digits, *text)
                   || strchr (more, *text)))
    text++;
  return *text == '\0';
}

/* A name or address in HOST; *IPV6: it needs brackets. */
static int
check_host (const char *host, bool *ipv6, struct format_error *e)
{
  *ipv6 = strchr (host, ':') != NULL;
  if (*ipv6 ? host[strspn (host, "0123456789abcdefABCDEF:.")] == '\0'
      : *host && *host != '-' && consists_of (host, "-._"))
    return 0;
  return format_fail (e, -EINVAL, "its host '%.60s' is neither the name nor "
                      "the address of one; " GIVE_ANOTHER, host);
}

int
backing_name_tcp (const char *host, const char *port, const char *export,
                  struct backing_name *n, struct format_error *e)
{
  struct writer w;
  bool ipv6;
  int r = check_host (host, &ipv6, e);

  if (r < 0)
    return r;
  if (!port)
    port = NBD_PORT;
  if (!is_number (port, 1, 65535))
    return format_fail (e, -EINVAL, "its port '%.60s' is not a number from 1 "
                        "to 65535; " GIVE_ANOTHER, port);
  w = begin (n, "nbd://");
  if (ipv6)
    put_char (&w, '[');
  put (&w, host);
  if (ipv6)
    put_char (&w, ']');
  if (strcmp (port, NBD_PORT) != 0) {
    put_char (&w, ':');
    put (&w, port);
  }
  put_export (&w, export);
  return finish (&w, e);
}

int
backing_name_unix (const char *socket, const char *export,
                   struct backing_name *n, struct format_error *e)
{
  struct writer w;

  if (*socket != '/')
    return format_fail (e, -EINVAL, "its socket '%.60s' has no absolute "
                        "path; " GIVE_ANOTHER, socket);
  w = begin (n, "nbd+unix://");
  put_export (&w, export);
  put (&w, "?socket=");
  put_escaped (&w, socket);
  return finish (&w, e);
}

int
backing_name_vsock (const char *cid, const char *port, const char *export,
                    struct backing_name *n, struct format_error *e)
{
  struct writer w;

  if (!is_number (cid, 0, UINT32_MAX) || !is_number (port, 0, UINT32_MAX))
    return format_fail (e, -EINVAL, "its cid '%.30s' and port '%.30s' are "
                        "not two numbers below 2^32; " GIVE_ANOTHER, cid,
                        port);
  w = begin (n, "nbd+vsock://");
  put (&w, cid);
  put_char (&w, ':');
  put (&w, port);
  put_export (&w, export);
  return finish (&w, e);
}

/* HOST:PORT, [ADDRESS]:PORT, in SPEC, which is changed. */
static int
parse_tcp (char *spec, const char *export, struct backing_name *n,
           struct format_error *e)
{
  char *host = spec, *colon = strrchr (spec, ':'), *last;

  if (!colon)
    return format_fail (e, -EINVAL, "it has no port (nbd:HOST:PORT"
                        "[:exportname=NAME]); " GIVE_ANOTHER);
  *colon = '\0';
  last = colon > spec ? colon - 1 : spec;
  if (*host == '[' && *last == ']') {
    *last = '\0';
    host++;
  }
  else if (strchr (host, ':'))
    return format_fail (e, -EINVAL, "its address '%.60s' is not in brackets; "
                        GIVE_ANOTHER, host);
  return backing_name_tcp (host, colon + 1, export, n, e);
}

int
backing_name_nbd (const char *text, struct backing_name *n,
                  struct format_error *e)
{
  static const char exportname[] = ":exportname=", unix_[] = "unix:";
  char spec[MAX_BACKING_NAME + 1];
  const size_t len = strlen (text);
  char *export;

  if (len >= sizeof spec)
    return format_fail (e, -ENAMETOOLONG, "the name is too long");
  memcpy (spec, text, len + 1);
  export = strstr (spec, exportname);
  if (export) {
    *export = '\0';
    export += sizeof exportname - 1;
  }
  if (strncmp (spec, unix_, sizeof unix_ - 1) == 0)
    return backing_name_unix (spec + sizeof unix_ - 1, export, n, e);
  return parse_tcp (spec, export, n, e);
}
