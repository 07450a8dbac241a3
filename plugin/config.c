/* SPDX-License-Identifier: BSD-3-Clause */

/* The parameters of the command line.
 *
 * Every parameter is one row of a table: its name, the function that
 * understands the value, and what that function needs to know.  A bad
 * value is one line of error that names the parameter, the value and
 * what is allowed, written with report_error so that a newline in a
 * value cannot make two lines of it.  nbdkit's own parsing functions
 * are not used: they would print a line that does not name the
 * parameter.
 *
 * overlap-check is a template plus single switches.  They are collected
 * apart and joined in config_complete, so that their order does not
 * matter.
 *
 * Strings that nbdkit passes live as long as the plugin; only what is
 * allocated here is freed in config_free.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "checked.h"
#include "config-internal.h"

struct plugin_config config;

const char config_help[] =
  "[file=]<IMAGE>                  (required) qcow2 file, block device or\n"
  "                                NBD URI\n"
  "backing-file=<FILE>|<URI>|json:{<OPTIONS>}\n"
  "                                use this, not the name in the image\n"
  "backing-format=qcow2|raw        use this, not the format in the image\n"
  "backing-passphrase=<...>        of encrypted backing files, as passphrase=\n"
  "                                (default that one)\n"
  "check=off|report|leaks|all      check consistency, repair (default off)\n"
  "commit-interval=<SECONDS>       commit unflushed metadata\n"
  "                                (default 5, 0 is never)\n"
  "compress=off|deflate|zstd|image write whole clusters compressed\n"
  "                                (default off)\n"
  "compressed-cache-size=<SIZE>    unpacked clusters (default 16M, 0 is none)\n"
  "create=<SIZE>                   make the image, a disk of this size, first\n"
  "create.backing-file=<FILE>      stored in the new image\n"
  "create.backing-fmt=qcow2|raw    the format of that file\n"
  "create.cluster-size=<SIZE>      (default 64k)\n"
  "create.compat=v2|v3             version of the format (default v3)\n"
  "create.compression-type=zlib|zstd\n"
  "                                (default zlib)\n"
  "create.data-file=<FILE>         put the data there, and make it, too\n"
  "create.data-file-raw=on|off     it is the disk, read alone (default off)\n"
  "create.encrypt.cipher-alg=<NAME>\n"
  "                                (default aes-256)\n"
  "create.encrypt.cipher-mode=<NAME>\n"
  "                                (default xts)\n"
  "create.encrypt.format=luks      encrypt the image, with passphrase=\n"
  "create.encrypt.hash-alg=<NAME>  (default sha256)\n"
  "create.encrypt.iter-time=<MS>   time to derive the key (default 2000)\n"
  "create.encrypt.ivgen-alg=<NAME> (default plain64)\n"
  "create.encrypt.ivgen-hash-alg=<NAME>\n"
  "                                of essiv (default sha256)\n"
  "create.extended-l2=on|off       (default off)\n"
  "create.lazy-refcounts=on|off    (default off)\n"
  "create.preallocation=off|metadata|falloc|full\n"
  "                                (default off)\n"
  "create.refcount-bits=<N>        (default 16)\n"
  "data-file=<FILE>|<URI>          use this, not the name in the image\n"
  "detect-zeroes=off|on|unmap      write zeroes as zeroes (default off)\n"
  "discard=unmap|ignore            what trim does (default unmap)\n"
  "event-log=<PATH>|fd:<N>         append events there as JSON lines\n"
  "event-socket=<PATH>             send events to all who connect there\n"
  "external-files=none|same-dir|any|<DIR>|<URI>\n"
  "                                files an image may name (default same-dir)\n"
  "l2-cache-size=<SIZE>            (default whole disk, at most 128M)\n"
  "lazy-refcounts=on|off|image     (default image)\n"
  "locking=auto|on|off             QEMU's image locks (default auto)\n"
  "overlap-check=none|constant|cached|all\n"
  "                                metadata that writes must not touch\n"
  "                                (default all)\n"
  "overlap-check.template=...      the same\n"
  "overlap-check.<TYPE>=on|off     one type: main-header, active-l1,\n"
  "                                active-l2, refcount-block,\n"
  "                                refcount-table, snapshot-table,\n"
  "                                inactive-l1, inactive-l2,\n"
  "                                bitmap-directory, crypto-header,\n"
  "                                bitmap-table, bitmap-data\n"
  "overlap-limit=unprotected|verify|refuse\n"
  "                                checks beyond the memory limit\n"
  "                                (default unprotected)\n"
  "overlap-structures.bitmap-size=<SIZE>\n"
  "                                cache of the tracker (default 64k)\n"
  "overlap-structures.total-size-limit=<SIZE>|unlimited\n"
  "                                memory of the tracker (default unlimited)\n"
  "passphrase=<SECRET>|+<FILE>|-<FD>|-\n"
  "                                of an encrypted image; - asks for it\n"
  "reconnect=<SECONDS>             wait so long for a lost NBD server\n"
  "                                (default 0, no second connection)\n"
  "refcount-cache-size=<SIZE>      (default 4M)\n"
  "resize=<SIZE>                   give the disk this size first\n"
  "resize-shrink=true|false        it may become smaller (default false)\n"
  "stats=<PATH>                    keep counters there, as Prometheus reads them\n"
  "stats-interval=<SECONDS>        write them so often\n"
  "                                (default 5, 0 is only at the end)\n"
  "timeout=<SECONDS>               an NBD server silent for so long is lost\n"
  "                                (default 600, 0 waits for ever)";

const struct choice config_on_off[] = {
  { "on", true }, { "off", false }, { "true", true }, { "false", false },
  { NULL, 0 }
};
static const struct choice templates[] = {
  { "none", OVERLAP_NONE }, { "constant", OVERLAP_CONSTANT },
  { "cached", OVERLAP_CACHED }, { "all", OVERLAP_ALL }, { NULL, 0 }
};
static const struct choice policies[] = {
  { "unprotected", OVERLAP_LIMIT_UNPROTECTED },
  { "verify", OVERLAP_LIMIT_VERIFY },
  { "refuse", OVERLAP_LIMIT_REFUSE }, { NULL, 0 }
};
static const struct choice detections[] = {
  { "off", DETECT_ZEROES_OFF }, { "on", DETECT_ZEROES_ON },
  { "unmap", DETECT_ZEROES_UNMAP }, { NULL, 0 }
};
static const struct choice compressions[] = {
  { "off", COMPRESS_OFF }, { "deflate", COMPRESS_DEFLATE },
  { "zstd", COMPRESS_ZSTD }, { "image", COMPRESS_IMAGE }, { NULL, 0 }
};
static const struct choice discards[] = {
  { "unmap", true }, { "ignore", false }, { NULL, 0 }
};
static const struct choice lazies[] = {
  { "on", LAZY_ON }, { "off", LAZY_OFF }, { "image", LAZY_IMAGE },
  { NULL, 0 }
};
static const struct choice lockings[] = {
  { "auto", LOCKING_AUTO }, { "on", LOCKING_ON }, { "off", LOCKING_OFF },
  { NULL, 0 }
};

static const struct choice checks[] = {
  { "off", CHECK_OFF }, { "report", CHECK_REPORT },
  { "leaks", CHECK_LEAKS }, { "all", CHECK_ALL }, { NULL, 0 }
};

/* overlap-check as far as it was given. */
static overlap_set check_template;
static overlap_set check_given, check_on; /* single switches */

/* external-files: allocated strings and a NULL at the end; empty if not
 * given.
 */
static char **external_files;
static size_t nr_external_files;

static char *backing_file, *data_file; /* absolute paths, allocated */
static char *filename;          /* the same, after config_make_absolute */

int
config_bad_value (const char *key, const char *value, const char *allowed)
{
  report_error ("%s=%.200s: expected %s", key, value, allowed);
  return -1;
}

/* KEY's value must be one of the words of CHOICES. */
int
config_choice (const char *key, const char *value,
              const struct choice *choices, uint32_t *r)
{
  char allowed[128] = "";
  const struct choice *c;

  for (c = choices; c->word; c++) {
    if (strcmp (value, c->word) == 0) {
      *r = c->value;
      return 0;
    }
    if (c != choices)
      strncat (allowed, c[1].word ? ", " : " or ",
               sizeof allowed - strlen (allowed) - 1);
    strncat (allowed, c->word, sizeof allowed - strlen (allowed) - 1);
  }
  return config_bad_value (key, value, allowed);
}

/* The digits at *P as a number of at most MAX, and *P moved behind
 * them.  False if there are none or the number is larger.
 */
static bool
parse_digits (const char **p, uint64_t max, uint64_t *r)
{
  uint64_t n = 0;

  if (**p < '0' || **p > '9')
    return false;
  for (; **p >= '0' && **p <= '9'; ++*p) {
    if (MUL_OVERFLOW (n, (uint64_t) 10, &n)
        || ADD_OVERFLOW (n, (uint64_t) (**p - '0'), &n) || n > max)
      return false;
  }
  *r = n;
  return true;
}

/* A size in bytes, with nbdkit's suffixes: b (bytes), s (512-byte
 * sectors), k, M, G, T, P, E (powers of 1024), in either case.
 */
static bool
parse_size (const char *value, uint64_t *r)
{
  static const char units[] = "bkmgtpe";
  uint64_t n, unit = 1;
  const char *u;

  if (!parse_digits (&value, INT64_MAX, &n))
    return false;
  if (*value) {
    char c = *value++;

    if (c >= 'A' && c <= 'Z')
      c = (char) (c - 'A' + 'a');
    u = strchr (units, c);
    if (c == 's')
      unit = 512;
    else if (u)
      unit = UINT64_C (1) << (10 * (u - units));
    else
      return false;
  }
  return !*value && !MUL_OVERFLOW (n, unit, &n) && n <= INT64_MAX
    && (*r = n, true);
}

/* QEMU's older way to write it is a protocol to libnbd and a file name
 * to us: it must not be taken for either.
 */
static int
refuse_old_uri (const char *key, const char *value)
{
  if (strncmp (value, "nbd:", 4) != 0 || storage_is_nbd_uri (value))
    return 0;
  report_error ("%s=%.200s: expected a file, a block device, or a URI such "
                "as nbd://HOST/EXPORT (a file of that name is ./%.200s)",
                key, value, value);
  return -1;
}

static int
set_file (const char *key, const char *value)
{
  if (config.image.filename) {
    report_error ("%s=%.200s: the image was given already (%.200s), "
                  "expected one image", key, value, config.image.filename);
    return -1;
  }
  if (refuse_old_uri (key, value) == -1)
    return -1;
  if (!*value)
    return config_bad_value (key, value, "the name of a file or block "
                             "device, or an NBD URI");
  config.image.filename = value;
  return 0;
}

/* Another file than the image names.  *PATH is what was allocated. */
static int
set_other_file (const char *key, const char *value, char **path,
                const char **file)
{
  if (refuse_old_uri (key, value) == -1)
    return -1;
  if (!*value)
    return config_bad_value (key, value, "the name of a file or block "
                             "device, or an NBD URI");
  if (storage_is_nbd_uri (value)) {
    *file = value;
    return 0;
  }

  /* As on any command line, a relative name is relative to the current
   * directory, not to the image as a name inside the image would be.
   */
  free (*path);
  *path = nbdkit_absolute_path (value);
  *file = *path;
  return *path ? 0 : -1;
}

/* Options, which say more than a name, are taken as they are. */
static int
set_backing_file (const char *key, const char *value)
{
  if (strncmp (value, "json:", 5) == 0) {
    config.image.backing_file = value;
    return 0;
  }
  return set_other_file (key, value, &backing_file,
                         &config.image.backing_file);
}

static int
set_backing_format (const char *key, const char *value)
{
  static const struct choice formats[] = {
    { "qcow2", 1 }, { "raw", 0 }, { NULL, 0 }
  };
  uint32_t qcow2;
  int r = config_choice (key, value, formats, &qcow2);

  if (r == 0)
    config.image.backing_format = qcow2 ? "qcow2" : "raw";
  return r;
}

static int
set_data_file (const char *key, const char *value)
{
  return set_other_file (key, value, &data_file, &config.image.data_file);
}

static int
set_event_log (const char *key, const char *value)
{
  if (!*value)
    return config_bad_value (key, value, "the name of a file, or fd:N");
  config.event_log = value;
  return 0;
}

static int
set_event_socket (const char *key, const char *value)
{
  if (!*value)
    return config_bad_value (key, value, "the name of a new socket");
  config.event_socket = value;
  return 0;
}

static int
set_stats (const char *key, const char *value)
{
  if (!*value)
    return config_bad_value (key, value, "the name of a file");
  config.stats = value;
  return 0;
}

static bool
is_external_word (const char *value)
{
  return strcmp (value, "none") == 0 || strcmp (value, "same-dir") == 0
    || strcmp (value, "any") == 0;
}

static int
set_external_files (const char *key, const char *value)
{
  struct stat st;
  char *copy, **list;

  if (refuse_old_uri (key, value) == -1)
    return -1;
  if (is_external_word (value) || storage_is_nbd_uri (value))
    copy = strdup (value);
  else {
    /* Resolved now: the server may change its directory. */
    copy = realpath (value, NULL);
    if (!copy || stat (copy, &st) == -1 || !S_ISDIR (st.st_mode)) {
      free (copy);
      return config_bad_value (key, value, "none, same-dir, any, an existing "
                               "directory, or an NBD URI");
    }
  }
  list = realloc (external_files,
                  (nr_external_files + 2) * sizeof *external_files);
  if (list)
    external_files = list;
  if (!list || !copy) {
    free (copy);
    report_error ("%s: out of memory", key);
    return -1;
  }
  external_files[nr_external_files++] = copy;
  external_files[nr_external_files] = NULL;
  return 0;
}

static int
set_seconds (const char *key, const char *value, unsigned *r)
{
  const char *p = value;
  uint64_t n;

  if (!parse_digits (&p, INT32_MAX, &n) || *p)
    return config_bad_value (key, value, "a number of seconds, "
                      "0 (never) to 2147483647");
  *r = (unsigned) n;
  return 0;
}

static int
set_commit_interval (const char *key, const char *value)
{
  return set_seconds (key, value, &config.image.commit_interval);
}

static int
set_reconnect (const char *key, const char *value)
{
  return set_seconds (key, value, &config.image.patience.reconnect);
}

static int
set_stats_interval (const char *key, const char *value)
{
  return set_seconds (key, value, &config.stats_interval);
}

static int
set_timeout (const char *key, const char *value)
{
  return set_seconds (key, value, &config.image.patience.timeout);
}

static int
set_overlap_check (const char *key, const char *value)
{
  return config_choice (key, value, templates, &check_template);
}

static int
set_overlap_limit (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, policies, &v) == -1)
    return -1;
  config.image.overlap_limit = (enum overlap_policy) v;
  return 0;
}

static int
set_detect_zeroes (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, detections, &v) == -1)
    return -1;
  config.image.detect_zeroes = (enum detect_zeroes) v;
  return 0;
}

static int
set_compress (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, compressions, &v) == -1)
    return -1;
  config.image.compress = (enum image_compress) v;
  return 0;
}

static int
set_discard (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, discards, &v) == -1)
    return -1;
  config.image.discard = v;
  return 0;
}

static int
set_lazy_refcounts (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, lazies, &v) == -1)
    return -1;
  config.image.lazy_refcounts = (enum lazy_refcounts) v;
  return 0;
}

static int
set_locking (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, lockings, &v) == -1)
    return -1;
  config.image.locking = (enum storage_locking) v;
  return 0;
}

static int
set_check (const char *key, const char *value)
{
  uint32_t v;

  if (config_choice (key, value, checks, &v) == -1)
    return -1;
  config.image.check = (enum image_check) v;
  return 0;
}

int
config_size (const char *key, const char *value, uint64_t *r)
{
  if (!parse_size (value, r))
    return config_bad_value (key, value, "a size such as 65536, 64k or 4M");
  return 0;
}

static int
set_bitmap_size (const char *key, const char *value)
{
  return config_size (key, value, &config.image.overlap_bitmap_size);
}

static int
set_total_size_limit (const char *key, const char *value)
{
  if (strcmp (value, "unlimited") == 0) {
    config.image.overlap_total_limit = UINT64_MAX;
    return 0;
  }
  if (!parse_size (value, &config.image.overlap_total_limit))
    return config_bad_value (key, value, "a size such as 65536, 64k or 4M, "
                      "or unlimited");
  return 0;
}

static int
set_l2_cache_size (const char *key, const char *value)
{
  return config_size (key, value, &config.image.l2_cache_size);
}

static int
set_refcount_cache_size (const char *key, const char *value)
{
  return config_size (key, value, &config.image.refcount_cache_size);
}

static int
set_compressed_cache_size (const char *key, const char *value)
{
  return config_size (key, value, &config.image.compressed_cache_size);
}

static const struct parameter parameters[] = {
  { "file", set_file },
  { "backing-file", set_backing_file },
  { "backing-format", set_backing_format },
  { "backing-passphrase", config_set_backing_passphrase },
  { "check", set_check },
  { "commit-interval", set_commit_interval },
  { "compress", set_compress },
  { "compressed-cache-size", set_compressed_cache_size },
  { "data-file", set_data_file },
  { "detect-zeroes", set_detect_zeroes },
  { "discard", set_discard },
  { "event-log", set_event_log },
  { "event-socket", set_event_socket },
  { "external-files", set_external_files },
  { "l2-cache-size", set_l2_cache_size },
  { "lazy-refcounts", set_lazy_refcounts },
  { "locking", set_locking },
  { "overlap-check", set_overlap_check },
  { "overlap-check.template", set_overlap_check },
  { "overlap-limit", set_overlap_limit },
  { "overlap-structures.bitmap-size", set_bitmap_size },
  { "overlap-structures.total-size-limit", set_total_size_limit },
  { "passphrase", config_set_passphrase },
  { "reconnect", set_reconnect },
  { "refcount-cache-size", set_refcount_cache_size },
  { "stats", set_stats },
  { "stats-interval", set_stats_interval },
  { "timeout", set_timeout },
  { NULL, NULL }
};

/* overlap-check.TYPE=on|off */
static int
set_overlap_type (const char *key, const char *name, const char *value)
{
  enum overlap_type type;
  uint32_t on;

  if (!overlap_type_parse (name, &type)) {
    char allowed[512] = "";
    unsigned t;

    for (t = 0; t < OVERLAP_TYPES; t++) {
      strncat (allowed, t ? ", " : "",
               sizeof allowed - strlen (allowed) - 1);
      strncat (allowed, overlap_type_name ((enum overlap_type) t),
               sizeof allowed - strlen (allowed) - 1);
    }
    report_error ("%.200s=%.200s: no such type, expected overlap-check. "
                  "and one of template, %s", key, value, allowed);
    return -1;
  }
  if (config_choice (key, value, config_on_off, &on) == -1)
    return -1;
  check_given |= OVERLAP_BIT (type);
  if (on)
    check_on |= OVERLAP_BIT (type);
  else
    check_on &= ~OVERLAP_BIT (type);
  return 0;
}

const struct parameter *
config_find (const struct parameter *table, const char *key)
{
  for (; table->key; ++table)
    if (strcmp (key, table->key) == 0)
      return table;
  return NULL;
}

void
config_init (void)
{
  config = (struct plugin_config) { .stats_interval = 5 };
  image_config_init (&config.image);
  check_template = config.image.overlap_check;
  check_given = check_on = OVERLAP_NONE;
  config_create_init ();
}

int
config_set (const char *key, const char *value)
{
  static const char prefix[] = "overlap-check.";
  const struct parameter *p = config_find (parameters, key);

  if (!p)
    p = config_create_find (key);
  if (p)
    return p->set (key, value);
  if (strncmp (key, prefix, sizeof prefix - 1) == 0)
    return set_overlap_type (key, key + sizeof prefix - 1, value);

  report_error ("%.200s=%.200s: unknown parameter, expected one of those "
                "that nbdkit qcow2 --help lists", key, value);
  return -1;
}

int
config_complete (void)
{
  size_t i;

  if (!config.image.filename) {
    report_error ("file: the image is missing, expected "
                  "nbdkit qcow2 [file=]IMAGE");
    return -1;
  }
  for (i = 0; nr_external_files > 1 && i < nr_external_files; i++) {
    if (strcmp (external_files[i], "none") == 0)
      return config_bad_value ("external-files", "none",
                        "no other external-files beside none");
  }
  if (config.image.detect_zeroes == DETECT_ZEROES_UNMAP
      && !config.image.discard)
    return config_bad_value ("detect-zeroes", "unmap",
                      "on or off, with discard=ignore");
  if (nr_external_files > 0)
    config.image.external_files = (const char *const *) external_files;
  config.image.overlap_check =
    (check_template & ~check_given) | (check_on & check_given);
  if (config.create && storage_is_nbd_uri (config.image.filename)) {
    report_error ("file=%.200s: create= makes files, expected the name of "
                  "one", config.image.filename);
    return -1;
  }
  return config_create_complete ();
}

int
config_make_absolute (void)
{
  if (storage_is_nbd_uri (config.image.filename))
    return 0;
  free (filename);
  filename = nbdkit_absolute_path (config.image.filename);
  if (!filename)
    return -1;
  config.image.filename = filename;
  return 0;
}

void
config_free (void)
{
  size_t i;

  config_wipe_passphrases ();
  for (i = 0; i < nr_external_files; i++)
    free (external_files[i]);
  free (external_files);
  free (backing_file);
  free (data_file);
  free (filename);
  external_files = NULL;
  nr_external_files = 0;
  backing_file = data_file = NULL;
  filename = NULL;
}
