/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2-overlap: look at an image that nobody serves.  The subcommands are
 * in files of their own; this one has the command line, the opening of
 * the image, and standard error: messages, and on a terminal a bar.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "checked.h"
#include "report.h"
#include "tool.h"

static const char usage_text[] =
  "qcow2-overlap plan [-U] [--json] [--bitmap-size SIZE] [--limit SIZE]...\n"
  "              IMAGE\n"
  "    How much memory a server's map of metadata takes, now and when the\n"
  "    disk is full, and what a limit would leave unprotected.\n"
  "\n"
  "qcow2-overlap check [-q] [-U] [--json] [--repair leaks|all] IMAGE\n"
  "    Check the consistency of the image, and repair it.  Exits with 0 if\n"
  "    it is consistent, 1 if that could not be found out, 2 if there are\n"
  "    errors, 3 if there are leaked clusters only.\n"
  "\n"
  "qcow2-overlap map [-q] [-U] [--json] [--svg FILE] [--png FILE]\n"
  "              [--bitmap-size SIZE] [--limit SIZE] IMAGE\n"
  "    Count and draw what the clusters of the file are there for.\n"
  "\n"
  "--bitmap-size SIZE  as overlap-structures.bitmap-size (default: 64k)\n"
  "--help              this text\n"
  "--json              write the result as JSON\n"
  "--limit SIZE        as overlap-structures.total-size-limit\n"
  "--png FILE          draw the map to FILE\n"
  "--quiet, -q         say nothing but what is wrong\n"
  "--repair leaks      correct reference counts that are too high\n"
  "--repair all        correct all that can be corrected\n"
  "--svg FILE          draw the map to FILE\n"
  "--force-share, -U   look at an image that is in use, too\n"
  "--version           the version of this program\n"
  "\n"
  "IMAGE is a file, a block device, or an NBD URI.  A SIZE may end in b, k,\n"
  "M, G, T, P or E.  See qcow2-overlap(1).\n";

/*----------------------------------------------------------------------
 * Standard error.
 */

#define BAR_WIDTH 40

static bool bar_allowed, bar_drawn;

static void
bar_clear (void)
{
  if (bar_drawn)
    fprintf (stderr, "\r%*s\r", BAR_WIDTH + 8, "");
  bar_drawn = false;
}

/* As image_config.check_progress. */
static void
bar_draw (void *opaque, uint64_t done, uint64_t total)
{
  static const char full[BAR_WIDTH + 1] =
    "########################################";
  static unsigned shown;
  const unsigned percent = total == 0 ? 100
    : (unsigned) ((double) done / (double) total * 100);
  const int n = (int) (percent * BAR_WIDTH / 100);

  (void) opaque;
  if (!bar_allowed || (bar_drawn && percent == shown))
    return;
  fprintf (stderr, "\r[%.*s%*s] %3u %%", n, full, BAR_WIDTH - n, "",
           percent);
  fflush (stderr);
  bar_drawn = true;
  shown = percent;
}

static void
say (enum report_level level, const char *text)
{
  if (level == REPORT_DEBUG)
    return;
  bar_clear ();
  fprintf (stderr, "qcow2-overlap: %s\n", text);
}

static int
usage_error (const char *what, const char *value)
{
  fprintf (stderr, "qcow2-overlap: %s%s; 'qcow2-overlap --help' shows what "
           "can be given\n", what, value);
  return STATUS_FAILED;
}

/*----------------------------------------------------------------------
 * The image.
 */

static int
open_image (const struct options *options, enum image_check check,
            struct image_check_result *res, struct image **img)
{
  struct image_config config;
  int r;

  image_config_init (&config);
  config.filename = options->image;
  config.offline = true;
  config.readonly = check != CHECK_LEAKS && check != CHECK_ALL;
  config.overlap_bitmap_size = options->bitmap_size;
  config.locking = options->force_share ? LOCKING_OFF : LOCKING_AUTO;
  config.check = check;
  config.check_result = res;
  config.check_progress = bar_draw;
  r = image_open (&config, img);
  bar_clear ();
  return r;
}

int
tool_open (const struct options *options, struct image **img)
{
  return open_image (options, CHECK_OFF, NULL, img);
}

int
tool_open_and_check (const struct options *options, struct image **img,
                     struct image_check_result *res)
{
  return open_image (options, options->repair, res, img);
}

json_t *
tool_json_string (const char *text)
{
  json_t *s = json_string (text);
  char *copy, *p;

  if (s)
    return s;
  copy = strdup (text);
  for (p = copy; p && *p; ++p)
    if ((unsigned char) *p >= 0x80)
      *p = '?';
  s = copy ? json_string (copy) : NULL;
  free (copy);
  return s ? s : json_null ();
}

void
tool_print_image (const struct options *options,
                  const struct offline_facts *facts)
{
  char disk[UNITS_MAX], cluster[UNITS_MAX], file[UNITS_MAX];

  printf ("%s: a disk of %s in clusters of %s, %" PRIu32 " snapshot%s, "
          "a file of %s\n\n", options->image,
          units_bytes (facts->size, disk),
          units_bytes (UINT64_C (1) << facts->cluster_bits, cluster),
          facts->snapshots, facts->snapshots == 1 ? "" : "s",
          units_bytes (facts->file_size, file));
}

json_t *
tool_image_to_json (const struct options *options,
                    const struct offline_facts *facts)
{
  return json_pack ("{s:o, s:I, s:I, s:I}",
                    "filename", tool_json_string (options->image),
                    "virtual-size", (json_int_t) facts->size,
                    "cluster-size", (json_int_t) 1 << facts->cluster_bits,
                    "file-size", (json_int_t) facts->file_size);
}

void
tool_print_json (json_t *all)
{
  json_dumpf (all, stdout, JSON_INDENT (4));
  putchar ('\n');
  json_decref (all);
}

int
tool_finish (int status)
{
  if (fflush (stdout) == 0 && !ferror (stdout))
    return status;
  fprintf (stderr, "qcow2-overlap: standard output: %s\n", strerror (errno));
  return STATUS_FAILED;
}

/*----------------------------------------------------------------------
 * The command line.
 */

enum { OPT_HELP = 256, OPT_VERSION, OPT_JSON, OPT_LIMIT, OPT_BITMAP,
       OPT_REPAIR, OPT_SVG, OPT_PNG };

static const struct option long_options[] = {
  { "bitmap-size", required_argument, NULL, OPT_BITMAP },
  { "force-share", no_argument, NULL, 'U' },
  { "help", no_argument, NULL, OPT_HELP },
  { "json", no_argument, NULL, OPT_JSON },
  { "limit", required_argument, NULL, OPT_LIMIT },
  { "png", required_argument, NULL, OPT_PNG },
  { "quiet", no_argument, NULL, 'q' },
  { "repair", required_argument, NULL, OPT_REPAIR },
  { "svg", required_argument, NULL, OPT_SVG },
  { "version", no_argument, NULL, OPT_VERSION },
  { NULL, 0, NULL, 0 },
};

/* What each subcommand takes, beside --json and -U. */
static const struct command {
  const char *name;
  int (*main) (const struct options *);
  const char *options;          /* letters: see option_letter */
} commands[] = {
  { "check", check_main, "qR" },
  { "map", map_main, "qLBP" },
  { "plan", plan_main, "LB" },
};

static char
option_letter (int opt)
{
  switch (opt) {
  case 'q': return 'q';
  case OPT_REPAIR: return 'R';
  case OPT_LIMIT: return 'L';
  case OPT_BITMAP: return 'B';
  case OPT_SVG:
  case OPT_PNG: return 'P';
  default: return '\0';
  }
}

/* As in --help. */
static const char *
option_name (int opt)
{
  const struct option *o;

  for (o = long_options; o->name; ++o)
    if (o->val == opt)
      return o->name;
  return "";
}

static int
set_size (const char *name, uint64_t *size)
{
  if (units_parse (optarg, size))
    return 0;
  fprintf (stderr, "qcow2-overlap: %s %s: not a size; give a number of "
           "bytes, or one that ends in k, M, G, T, P or E\n", name, optarg);
  return -1;
}

static int
set_repair (struct options *options)
{
  if (strcmp (optarg, "leaks") == 0)
    options->repair = CHECK_LEAKS;
  else if (strcmp (optarg, "all") == 0)
    options->repair = CHECK_ALL;
  else {
    fprintf (stderr, "qcow2-overlap: --repair %s: give 'leaks' or 'all'\n",
             optarg);
    return -1;
  }
  return 0;
}

static int
set_option (struct options *options, int opt)
{
  switch (opt) {
  case 'U':
    options->force_share = true;
    return 0;
  case 'q':
    options->quiet = true;
    return 0;
  case OPT_JSON:
    options->json = true;
    return 0;
  case OPT_SVG:
    options->svg = optarg;
    return 0;
  case OPT_PNG:
    options->png = optarg;
    return 0;
  case OPT_REPAIR:
    return set_repair (options);
  case OPT_BITMAP:
    return set_size ("--bitmap-size", &options->bitmap_size);
  case OPT_LIMIT:
    if (options->n_limits == MAX_LIMITS) {
      fprintf (stderr, "qcow2-overlap: --limit was given more than %d "
               "times\n", MAX_LIMITS);
      return -1;
    }
    return set_size ("--limit", &options->limits[options->n_limits++]);
  default:
    return -1;
  }
}

/* 0, or the exit status plus one. */
static int
read_options (int argc, char *argv[], const char *letters,
              struct options *options)
{
  char letter;
  int opt;

  while ((opt = getopt_long (argc, argv, "qU", long_options, NULL)) != -1) {
    switch (opt) {
    case '?':
      return STATUS_FAILED + 1;
    case OPT_HELP:
      fputs (usage_text, stdout);
      return tool_finish (STATUS_OK) + 1;
    case OPT_VERSION:
      puts ("qcow2-overlap " PACKAGE_VERSION);
      return tool_finish (STATUS_OK) + 1;
    default:
      letter = option_letter (opt);
      if (letter && letters && !strchr (letters, letter))
        return usage_error ("this subcommand has no option --",
                            option_name (opt)) + 1;
      if (set_option (options, opt) < 0)
        return STATUS_FAILED + 1;
    }
  }
  return 0;
}

static const struct command *
find_command (const char *name)
{
  size_t i;

  for (i = 0; i < ARRAY_SIZE (commands); ++i)
    if (strcmp (name, commands[i].name) == 0)
      return &commands[i];
  return NULL;
}

int
main (int argc, char *argv[])
{
  struct options options = {
    .bitmap_size = UINT64_C (64) << 10,
    .repair = CHECK_REPORT,
  };
  const struct command *command =
    argc > 1 ? find_command (argv[1]) : NULL;
  int r = read_options (argc, argv, command ? command->options : NULL,
                        &options);

  if (r != 0)
    return r - 1;
  if (argc < 2)
    return usage_error ("a subcommand is missing", "");
  if (!command)
    return usage_error ("no such subcommand: ", argv[1]);
  if (argc - optind != 2)       /* getopt moved the subcommand here */
    return usage_error (argc - optind < 2 ? "the image is missing"
                        : "more than one image: ",
                        argc - optind < 2 ? "" : argv[optind + 2]);
  options.image = argv[optind + 1];
  if (options.force_share && options.repair != CHECK_REPORT)
    return usage_error ("--repair and -U exclude each other", "");
  report_set_sink (say);
  bar_allowed = isatty (STDERR_FILENO) && !options.quiet;
  return command->main (&options);
}
