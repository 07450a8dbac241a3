/* SPDX-License-Identifier: BSD-3-Clause */

/* The external data file (qcow2 specification, "External data file bit").
 *
 * The image then has the metadata only.  Guest data lies in another file,
 * each byte at its guest offset: nothing there is allocated, counted,
 * shared or compressed, and what the place of a guest cluster holds never
 * belonged to another.  L2 entries say which clusters have data there.
 *
 * So what is freed needs no quarantine.  The place of a cluster that
 * becomes zero is punched at once, before its entry is changed: whichever
 * of the two a crash leaves behind, the guest reads what was there or
 * zeroes, and has asked for zeroes.  (Encrypted zeroes are not zeroes, so
 * there nothing is punched.)
 *
 * A raw data file promises more: see raw-data.c.
 *
 * A data file may end before the disk does, and anywhere while it is not
 * raw: what is missing reads as zeroes.  It never becomes longer than the
 * disk.
 *
 * Invariants
 *
 * D1. No other file of the chain is the data file: it would be metadata
 *     or somebody's backing file that guest data is written to.
 * D2. What changes the file passes the guard, as GUARD_EXTERNAL.
 * D3. The file is changed at a guest cluster's place under the range lock
 *     of that cluster only.
 *
 * Locks: the range lock.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "checked.h"
#include "data-file.h"
#include "image-internal.h"
#include "layer-name.h"
#include "other-file.h"
#include "report.h"

/* What the header says must go together. */
static int
check_header (struct image *img)
{
  const struct header *h = &img->header;
  struct header_damage *borne = img->config.offline
    && img->config.check == CHECK_REPORT ? &img->damage : NULL;
  struct format_error e;
  int r;

  if (h->size > MAX_HOST_OFFSET) {
    report_error ("%s: the disk has %" PRIu64 " bytes (header byte 24), but "
                  "with an external data file (incompatible feature bit 2) "
                  "it must be smaller than 2^56", img->config.filename, h->size);
    return -EFBIG;
  }
  if (h->nb_snapshots == 0)
    return 0;
  r = header_bear (borne, &e, format_fail (
                     &e, -ENOTSUP, "nb_snapshots (header byte 60) is %" PRIu32
                     ", but an image with an external data file "
                     "(incompatible feature bit 2) cannot have snapshots",
                     h->nb_snapshots));
  if (r < 0)
    report_error ("%s: %s", img->config.filename, e.text);
  return r;
}

static int
open_named (struct image *img)
{
  const bool chosen = img->config.data_file != NULL;
  const struct layer_names *above = img->config.names;
  const char *name = chosen ? img->config.data_file : img->header.data_file;

  if (above && above->data_file)
    return other_file_open_parsed (img, "data file", above, above->data_file,
                                   &img->data_file);
  if (*name == '\0') {
    report_error ("%s: the image has an external data file (incompatible "
                  "feature bit 2) but does not say which; give data-file=",
                  img->config.filename);
    return -EINVAL;
  }
  return other_file_open (img, "data file", name, chosen,
                          storage_is_writable (img->storage),
                          &img->data_file);
}

/* D1 */
static int
join_chain (struct image *img, struct chain *chain)
{
  if (chain_has (chain, img->data_file)) {
    report_error ("%s: its data file %s is the image itself, or another "
                  "file of the chain that it begins; give data-file=",
                  img->config.filename, storage_name (img->data_file));
    return -ELOOP;
  }
  return chain_add (chain, img->data_file);
}

static int
look_at_length (struct image *img)
{
  uint64_t len;
  int r = storage_size (img->data_file, &len);

  if (r < 0)
    report_error ("%s: finding the size of its data file %s: %s",
                  img->config.filename, storage_name (img->data_file),
                  strerror (-r));
  else if (img->raw_data && len < img->size)
    report_warning ("%s: its data file %s has %" PRIu64 " bytes, the disk "
                    "%" PRIu64 "; what is missing reads as zeroes",
                    img->config.filename, storage_name (img->data_file),
                    len, img->size);
  return r;
}

/* The image has none.  Was one given all the same? */
static int
no_data_file (const struct image *img)
{
  const struct layer_names *above = img->config.names;

  if (above && above->data_file) {
    report_error ("%s: the image names '%.256s' with a 'data-file', but %s "
                  "has none (incompatible feature bit 2); correct it with "
                  "'qemu-img rebase -u'", above->by, above->name,
                  img->config.filename);
    return -EINVAL;
  }
  if (!img->config.data_file)
    return 0;
  report_error ("%s: data-file=%s: the image has no external data file "
                "(incompatible feature bit 2)", img->config.filename,
                img->config.data_file);
  return -EINVAL;
}

int
data_file_open (struct image *img, struct chain *chain)
{
  const struct header *h = &img->header;
  int r;

  if (!(h->incompatible & INCOMPAT_DATA_FILE))
    return no_data_file (img);
  r = check_header (img);
  if (r < 0)
    return r;
  img->raw_data = (h->autoclear & AUTOCLEAR_DATA_FILE_RAW)
    && h->crypt_method == CRYPT_NONE;
  if (img->config.offline)
    return 0;
  r = open_named (img);
  if (r == 0)
    r = join_chain (img, chain);
  return r == 0 ? look_at_length (img) : r;
}

void
data_file_discard (struct image *img, uint64_t offset, uint64_t len)
{
  /* Punching less than the file system's block writes zeroes. */
  const uint64_t grain = 4096;
  const uint64_t begin = round_up (offset, grain);
  const uint64_t end = round_down (MIN (offset + len, img->size), grain);

  if (img->data_file && img->header.crypt_method == CRYPT_NONE
      && begin < end)
    guard_punch (img, GUARD_EXTERNAL, begin, end - begin);
}
