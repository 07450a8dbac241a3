/* SPDX-License-Identifier: BSD-3-Clause */

/* What the files of qcow2-overlap share. */

#ifndef QCOW2_TOOL_H
#define QCOW2_TOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

#include "image.h"
#include "offline.h"

/* Exit statuses: those of 'qemu-img check'. */
enum {
  STATUS_OK = 0,
  STATUS_FAILED = 1,            /* it could not be done */
  STATUS_CORRUPT = 2,           /* check: errors (are left) */
  STATUS_LEAKS = 3,             /* check: leaked clusters only (are left) */
};

#define MAX_LIMITS 32

struct options {
  const char *image;
  bool json;
  bool force_share;             /* ignore the locks of others */
  bool quiet;
  uint64_t bitmap_size;
  uint64_t limits[MAX_LIMITS];
  size_t n_limits;
  enum image_check repair;      /* CHECK_REPORT, _LEAKS, _ALL */
  const char *svg, *png;        /* files; NULL none */
};

/* ---- qcow2-overlap.c ---- */

/* Open options->image offline.  0 or a negative errno (reported). */
int tool_open (const struct options *options, struct image **img);

/* The same, with the check that options->repair asks for. */
int tool_open_and_check (const struct options *options, struct image **img,
                         struct image_check_result *res);

/* TEXT as a JSON string, even if it is not UTF-8. */
json_t *tool_json_string (const char *text);

/* The first line, and the first fields, of what is said of an image. */
void tool_print_image (const struct options *options,
                       const struct offline_facts *facts);
json_t *tool_image_to_json (const struct options *options,
                            const struct offline_facts *facts);

/* ALL, which is released, on standard output. */
void tool_print_json (json_t *all);

/* Standard output was written completely?  The exit status. */
int tool_finish (int status);

/* ---- plan.c, check.c, map.c: a subcommand each; the exit status ---- */

int plan_main (const struct options *options);
int check_main (const struct options *options);
int map_main (const struct options *options);

/* ---- units.c ---- */

/* Bytes as people write them: "64 KiB", "1.5 GiB", "12 bytes". */
#define UNITS_MAX 32
const char *units_bytes (uint64_t bytes, char buf[UNITS_MAX]);

/* As parameters of the plugin want them, exactly: "64k", "1M", "1000". */
const char *units_parameter (uint64_t bytes, char buf[UNITS_MAX]);

/* With separators: "16,777,216". */
const char *units_number (uint64_t n, char buf[UNITS_MAX]);

/* A share in percent that is never rounded to 0 or 100. */
const char *units_share (uint64_t part, uint64_t whole,
                         char buf[UNITS_MAX]);

/* A number with one of the suffixes b, k, M, G, T, P, E (of 1024).  False
 * if TEXT is nothing of the kind.
 */
bool units_parse (const char *text, uint64_t *bytes);

#endif /* QCOW2_TOOL_H */
