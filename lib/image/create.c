/* SPDX-License-Identifier: BSD-3-Clause */

/* Making a new image.
 *
 * All of its metadata lies at the beginning, table after table:
 *
 *   cluster 0 | refcount table | refcount blocks | LUKS | L1 | L2 tables
 *    header                                         header       | data
 *
 * L2 tables and data only if they are preallocated; data may be in a file
 * of its own (create-data-file.c).  Where everything
 * lies follows from the number of clusters, so any piece of the file can
 * be computed by itself, from no more than the layout: fill_cluster is
 * asked for one cluster after the other.  Nothing grows with the disk.
 *
 * How many refcount blocks there must be depends on the number of
 * clusters, to which they belong: lay_out adds until it is enough.
 *
 * Locks: none; nobody else knows the file yet.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "cleanup.h"
#include "create.h"
#include "create-data-file.h"
#include "l2.h"
#include "refcount.h"
#include "report.h"
#include "storage.h"

/* Subclusters that extended L2 entries have bits for. */
#define MIN_EXTENDED_L2_CLUSTER (UINT64_C (16) << 10)
#define ALL_SUBCLUSTERS UINT64_C (0xffffffff)

/* First cluster and number of clusters of each part. */
struct part {
  uint64_t first, count;
};

struct layout {
  const char *filename;
  struct header header;
  bool extended_l2, backing;
  bool data_file;               /* DATA is not in this file */
  struct new_data_file new_data_file;
  struct part table, blocks, crypt, l1, l2, data;
  uint8_t *luks;                /* the LUKS header, crypto_length bytes */
  uint64_t total;               /* clusters of the file */
};

void
create_options_init (struct create_options *o)
{
  *o = (struct create_options) {
    .cluster_size = 65536, .refcount_bits = 16, .version = 3,
  };
  luks_options_init (&o->luks);
}

/*----------------------------------------------------------------------
 * What is allowed.
 */

static int
bad (const char *filename, const char *what)
{
  report_error ("%s: cannot create the image: %s", filename, what);
  return -EINVAL;
}

static bool
is_power_of_2 (uint64_t n)
{
  return n != 0 && is_aligned (n, n);
}

/* What version 2 does not have. */
static int
check_v2 (const char *filename, const struct create_options *o)
{
  if (o->refcount_bits != 16)
    return bad (filename, "version 2 has refcounts of 16 bits only");
  if (o->lazy_refcounts)
    return bad (filename, "version 2 has no lazy refcounts");
  if (o->extended_l2)
    return bad (filename, "version 2 has no extended L2 entries");
  if (o->compression_type != COMPRESSION_DEFLATE)
    return bad (filename, "version 2 has no compression type but deflate");
  if (o->data_file)
    return bad (filename, "version 2 has no external data files");
  if (o->encrypt && o->preallocation != PREALLOCATE_OFF)
    return bad (filename, "without zero clusters, which version 2 has not, "
                "what is preallocated and encrypted would read as garbage");
  return 0;
}

static int
check_data_file (const char *filename, const struct create_options *o)
{
  if (o->data_file_raw && !o->data_file)
    return bad (filename, "only a data file can be raw, and none is given");
  if (o->data_file_raw && o->backing_file)
    return bad (filename, "a raw data file is all of the disk, so that there "
                "can be no backing file");
  if (o->data_file_raw && o->encrypt)
    return bad (filename, "what is encrypted is not raw");
  if (o->data_file && o->size > MAX_HOST_OFFSET)
    return bad (filename, "a disk with a data file is smaller than 2^56 bytes");
  return 0;
}

static int
check_options (const char *filename, const struct create_options *o)
{
  if (!is_power_of_2 (o->cluster_size)
      || o->cluster_size < UINT64_C (1) << MIN_CLUSTER_BITS
      || o->cluster_size > MAX_CLUSTER_SIZE)
    return bad (filename, "the cluster size must be a power of 2 from 512 "
                "bytes to 2 MiB");
  if (!is_power_of_2 (o->refcount_bits) || o->refcount_bits > 64)
    return bad (filename, "the width of refcounts must be a power of 2 from "
                "1 to 64 bits");
  if (o->extended_l2 && o->cluster_size < MIN_EXTENDED_L2_CLUSTER)
    return bad (filename, "extended L2 entries need clusters of at least "
                "16 KiB");
  if (o->size > INT64_MAX - 511)
    return bad (filename, "the size of the disk is above 2^63 - 512");
  if (!o->backing_file != !o->backing_format)
    return bad (filename, "a backing file and its format can only be given "
                "together");
  if (o->backing_file && o->preallocation != PREALLOCATE_OFF
      && !o->extended_l2)
    return bad (filename, "without extended L2 entries what is preallocated "
                "would hide the backing file");
  if (o->version == 2 && check_v2 (filename, o) < 0)
    return -EINVAL;
  return check_data_file (filename, o);
}

/*----------------------------------------------------------------------
 * The layout.
 */

static uint64_t
entries_of_l2 (const struct layout *l)
{
  return l->header.cluster_size / (l->extended_l2 ? 16 : 8);
}

/* Place one part behind the other, with as many refcount blocks and as
 * long a table as are known to be needed by now.
 */
static void
place_parts (struct layout *l)
{
  struct part *const parts[] = {
    &l->table, &l->blocks, &l->crypt, &l->l1, &l->l2, &l->data
  };
  size_t i;

  l->total = 1;                 /* the header */
  for (i = 0; i < ARRAY_SIZE (parts); ++i) {
    parts[i]->first = l->total;
    l->total += parts[i]->count;
  }
  if (l->data_file)
    l->total = l->data.first;
}

static int
lay_out (struct layout *l, const struct create_options *o)
{
  struct header *h = &l->header;
  const uint64_t per_block =
    refcount_block_entries (h->cluster_size, h->refcount_order);
  uint64_t l1_entries =
    header_l1_entries (h->cluster_bits, o->extended_l2, h->size);

  if (l1_entries > MAX_L1_BYTES / 8) {
    report_error ("%s: cannot create the image: a disk of %" PRIu64
                  " bytes needs %" PRIu64 " L1 entries, more than %" PRIu64
                  "; choose larger clusters", l->filename, h->size,
                  l1_entries, MAX_L1_BYTES / 8);
    return -EFBIG;
  }
  h->l1_size = (uint32_t) MAX (l1_entries, UINT64_C (1));
  l->l1.count = div_up (h->l1_size * UINT64_C (8), h->cluster_size);
  /* Nothing may hide what is in a raw data file. */
  if (o->preallocation != PREALLOCATE_OFF || o->data_file_raw) {
    l->data.count = div_up (h->size, h->cluster_size);
    l->l2.count = l1_entries;
  }
  do {
    place_parts (l);
    l->blocks.count = div_up (l->total, per_block);
    l->table.count = div_up (l->blocks.count * 8, h->cluster_size);
  } while (1 + l->table.count + l->blocks.count != l->crypt.first);

  if (l->table.count * h->cluster_size > MAX_REFCOUNT_TABLE_BYTES
      || l->total > MAX_HOST_OFFSET >> h->cluster_bits)
    return bad (l->filename, "as much as this can only be preallocated with "
                "larger clusters or narrower refcounts");
  h->refcount_table_offset = l->table.first * h->cluster_size;
  h->refcount_table_clusters = (uint32_t) l->table.count;
  h->l1_table_offset = l->l1.first * h->cluster_size;
  h->crypto_offset = l->crypt.first * h->cluster_size;
  return 0;
}

static int
set_header (struct header *h, const struct create_options *o,
            const char *filename)
{
  if (o->backing_file
      && (strlen (o->backing_file) >= sizeof h->backing_file
          || strlen (o->backing_format) >= sizeof h->backing_format))
    return bad (filename, "the name of the backing file is longer than 1023 "
                "bytes, or that of its format longer than 15");
  if (o->data_file && strlen (o->data_file) >= sizeof h->data_file)
    return bad (filename, "the name of the data file is longer than 1023 "
                "bytes");
  h->version = o->version;
  h->cluster_size = o->cluster_size;
  h->cluster_bits = (uint32_t) __builtin_ctzll (o->cluster_size);
  h->size = round_up (o->size, 512);
  h->refcount_order = (uint32_t) __builtin_ctzll (o->refcount_bits);
  h->compression_type = (uint8_t) o->compression_type;
  if (o->lazy_refcounts)
    h->compatible |= COMPAT_LAZY_REFCOUNTS;
  if (o->extended_l2)
    h->incompatible |= INCOMPAT_EXTL2;
  if (o->compression_type != COMPRESSION_DEFLATE)
    h->incompatible |= INCOMPAT_COMPRESSION;
  if (o->data_file) {
    h->incompatible |= INCOMPAT_DATA_FILE;
    memcpy (h->data_file, o->data_file, strlen (o->data_file));
  }
  if (o->data_file_raw)
    h->autoclear |= AUTOCLEAR_DATA_FILE_RAW;
  if (o->backing_file) {
    memcpy (h->backing_file, o->backing_file, strlen (o->backing_file));
    memcpy (h->backing_format, o->backing_format,
            strlen (o->backing_format));
  }
  return 0;
}

static int
make_luks (struct layout *l, const struct create_options *o)
{
  struct header *h = &l->header;
  struct format_error e;
  size_t len;
  int r = crypt_create_luks (&o->luks, o->passphrase, &l->luks, &len, &e);

  if (r < 0) {
    report_error ("%s: cannot create the image: %s", l->filename, e.text);
    return r;
  }
  h->crypt_method = CRYPT_LUKS;
  h->has_crypto = true;
  h->crypto_length = len;
  l->crypt.count = div_up (len, h->cluster_size);
  return 0;
}

/*----------------------------------------------------------------------
 * The contents, cluster by cluster.
 */

/* Data that is preallocated and encrypted was never written, so it would
 * decrypt to garbage: it has the flag of zeroes.
 */
static bool
data_is_zero (const struct layout *l)
{
  return l->header.has_crypto;
}

/* Host offset of the Nth cluster of a part, 0 if it has fewer. */
static uint64_t
place_in (const struct layout *l, const struct part *part, uint64_t n)
{
  return n < part->count ? (part->first + n) * l->header.cluster_size : 0;
}

/* Entries that point to the clusters of a part, from its Nth on. */
static void
fill_pointers (const struct layout *l, const struct part *part, uint64_t n,
               uint64_t flags, uint8_t *buf)
{
  uint64_t i;

  for (i = 0; i < l->header.cluster_size / 8; ++i) {
    uint64_t place = place_in (l, part, n + i);

    store_be64 (buf + i * 8, place ? place | flags : 0);
  }
}

/* Where the guest's Nth cluster is.  In a data file that may be at 0. */
static uint64_t
data_entry (const struct layout *l, uint64_t n)
{
  if (n >= l->data.count)
    return 0;
  return ENTRY_COPIED
    | (data_is_zero (l) && !l->extended_l2 ? ENTRY_ZERO : 0)
    | (l->data_file ? n * l->header.cluster_size
       : place_in (l, &l->data, n));
}

static void
fill_l2 (const struct layout *l, uint64_t n, uint8_t *buf)
{
  const unsigned size = l->extended_l2 ? 16 : 8;
  /* A cluster that has its place, and shows the backing file. */
  const uint64_t subclusters = l->backing ? 0
    : data_is_zero (l) ? ALL_SUBCLUSTERS << 32 : ALL_SUBCLUSTERS;
  uint64_t i, entry;

  for (i = 0; i < entries_of_l2 (l); ++i) {
    entry = data_entry (l, n + i);
    store_be64 (buf + i * size, entry);
    if (l->extended_l2)
      store_be64 (buf + i * size + 8, entry ? subclusters : 0);
  }
}

static void
fill_refcounts (const struct layout *l, uint64_t block, uint8_t *buf)
{
  const uint32_t order = l->header.refcount_order;
  const uint64_t n = refcount_block_entries (l->header.cluster_size, order);
  uint64_t i;

  memset (buf, 0, l->header.cluster_size);
  for (i = 0; i < n && block * n + i < l->total; ++i)
    refcount_set (buf, order, i, 1);
}

/* The Nth cluster of the LUKS header. */
static void
fill_luks (const struct layout *l, uint64_t n, uint8_t *buf)
{
  const uint64_t size = l->header.cluster_size;
  const uint64_t len = MIN (l->header.crypto_length - n * size, size);

  memcpy (buf, l->luks + n * size, len);
  memset (buf + len, 0, size - len);
}

/* True if CLUSTER belongs to PART; *N is then which of its clusters. */
static bool
is_in (const struct part *part, uint64_t cluster, uint64_t *n)
{
  *n = cluster - part->first;
  return cluster >= part->first && *n < part->count;
}

static int
fill_cluster (const struct layout *l, uint64_t cluster, uint8_t *buf)
{
  const uint64_t pointers = l->header.cluster_size / 8;
  struct format_error e;
  uint64_t n;
  int r;

  if (is_in (&l->table, cluster, &n))
    fill_pointers (l, &l->blocks, n * pointers, 0, buf);
  else if (is_in (&l->blocks, cluster, &n))
    fill_refcounts (l, n, buf);
  else if (is_in (&l->l1, cluster, &n))
    fill_pointers (l, &l->l2, n * pointers, ENTRY_COPIED, buf);
  else if (is_in (&l->l2, cluster, &n))
    fill_l2 (l, n * entries_of_l2 (l), buf);
  else if (is_in (&l->crypt, cluster, &n))
    fill_luks (l, n, buf);
  else {
    r = header_encode (&l->header, buf, &e);
    if (r < 0)
      report_error ("%s: cannot create the image: %s", l->filename, e.text);
    return r;
  }
  return 0;
}

/* storage_contents.fill: whole clusters. */
static int
fill (void *opaque, uint64_t offset, uint8_t *buf, size_t len)
{
  const struct layout *l = opaque;
  const uint64_t size = l->header.cluster_size;
  uint64_t done;
  int r = 0;

  for (done = 0; r == 0 && done < len; done += size)
    r = fill_cluster (l, (offset + done) / size, buf + done);
  return r;
}

/* storage_contents.ready: the image is, so that its data file may be. */
static int
ready (void *opaque)
{
  struct layout *l = opaque;

  return create_data_file_complete (&l->new_data_file);
}

static int
make_file (const char *filename, const struct create_options *o,
           struct layout *l)
{
  const struct storage_contents contents = {
    .rest = create_rest (o->preallocation), .fill = fill, .ready = ready,
    .opaque = l,
    .filled = l->data.first * l->header.cluster_size,
    .size = l->total * l->header.cluster_size,
  };
  int r = storage_create_file (filename, &contents);

  if (r == -EEXIST)
    report_error ("%s: cannot create the image: the file exists, or the "
                  "device does not begin with zeroes; if nothing in it is "
                  "needed remove the file, or clear the device with "
                  "\"blkdiscard -z -l 1M\"; to serve what is there leave "
                  "create= out", filename);
  else if (r == -EAGAIN)
    report_error ("%s: cannot create the image: another process has the file "
                  "open, and may be making one there; see who with lsof",
                  filename);
  else if (r == -ENOSPC)
    report_error ("%s: cannot create the image: there is no space for %"
                  PRIu64 " bytes", filename, contents.size);
  else if (r < 0)
    report_error ("%s: cannot create the image: %s", filename, strerror (-r));
  return r;
}

/* The layout is known: make the files. */
static int
make_files (const char *filename, const struct create_options *o,
            struct layout *l)
{
  CLEANUP_FREE uint8_t *buf = malloc (l->header.cluster_size);
  int r;

  /* All else that can be wrong with the options. */
  if (!buf)
    return -ENOMEM;
  r = fill_cluster (l, 0, buf);
  if (r == 0 && o->data_file)
    r = create_data_file (filename, o, l->header.size, &l->new_data_file);
  if (r == 0)
    r = make_file (filename, o, l);
  create_data_file_end (&l->new_data_file, r < 0);
  return r;
}

int
image_create (const char *filename, const struct create_options *o)
{
  struct layout l = {
    .filename = filename, .extended_l2 = o->extended_l2,
    .backing = o->backing_file != NULL, .data_file = o->data_file != NULL,
  };
  int r = check_options (filename, o);

  if (r == 0)
    r = set_header (&l.header, o, filename);
  if (r == 0 && o->encrypt)
    r = make_luks (&l, o);
  if (r == 0)
    r = lay_out (&l, o);
  if (r == 0)
    r = make_files (filename, o, &l);
  free (l.luks);
  return r;
}

void
image_remove_created (const char *filename, const struct create_options *o)
{
  if (storage_remove_created (filename, NULL) < 0)
    report_warning ("%s: the image was made, and is not removed, because "
                    "another process has it open", filename);
  else if (o->data_file)
    create_data_file_remove (filename, o);
}
