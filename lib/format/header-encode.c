/* SPDX-License-Identifier: BSD-3-Clause */

/* The first cluster of a new image: the fields, the header extensions
 * that name the backing format, the data file and the encryption header,
 * and the backing file's name (qcow2 specification, "Header").  What is
 * decoded by header.c is encoded here, but only for images that are being
 * made: an existing header is never written as a whole.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "header.h"

#define V2_LENGTH 72
#define V3_LENGTH 112           /* with compression_type, to 8 bytes */

#define EXTENSION_BACKING_FORMAT UINT32_C (0xe2792aca)
#define EXTENSION_DATA_FILE      UINT32_C (0x44415441)
#define EXTENSION_CRYPTO         UINT32_C (0x0537be77)
#define CRYPTO_LENGTH            24      /* of the extension, bytes */
#define EXTENSION_END            UINT32_C (0)

static void
encode_v3_fields (const struct header *h, uint8_t *buf)
{
  store_be64 (buf + HEADER_OFFSET_INCOMPATIBLE, h->incompatible);
  store_be64 (buf + 80, h->compatible);
  store_be64 (buf + HEADER_OFFSET_AUTOCLEAR, h->autoclear);
  store_be32 (buf + 96, h->refcount_order);
  store_be32 (buf + 100, V3_LENGTH);
  buf[104] = h->compression_type;
}

static size_t
length_of_string (const char *s)
{
  return *s ? 8 + round_up (strlen (s), 8) : 0;
}

/* A string, unless it is empty.  Returns where it ends. */
static size_t
encode_string (uint32_t type, const char *s, uint8_t *buf, size_t at)
{
  const size_t len = strlen (s);

  if (len == 0)
    return at;
  store_be32 (buf + at, type);
  store_be32 (buf + at + 4, (uint32_t) len);
  /* Its length is stored; there is no terminator in the file. */
  memcpy (buf + at + 8, s, len);  /* NOLINT(bugprone-not-null-*) */
  return at + length_of_string (s);
}

static size_t
encode_crypto (const struct header *h, uint8_t *buf, size_t at)
{
  store_be32 (buf + at, EXTENSION_CRYPTO);
  store_be32 (buf + at + 4, CRYPTO_LENGTH - 8);
  store_be64 (buf + at + 8, h->crypto_offset);
  store_be64 (buf + at + 16, h->crypto_length);
  return at + CRYPTO_LENGTH;
}

/* *AT is where they begin, and then where they end. */
static int
encode_extensions (const struct header *h, uint8_t *buf, size_t *at,
                   struct format_error *e)
{
  const size_t length = length_of_string (h->backing_format)
    + length_of_string (h->data_file)
    + (h->has_crypto ? CRYPTO_LENGTH : 0) + 8;

  if (length > h->cluster_size - *at)
    return format_fail (e, -ENAMETOOLONG,
                        "the data file's name has %zu bytes, more than a"
                        " first cluster of %" PRIu64 " bytes has room for",
                        strlen (h->data_file), h->cluster_size);
  *at = encode_string (EXTENSION_BACKING_FORMAT, h->backing_format, buf,
                       *at);
  *at = encode_string (EXTENSION_DATA_FILE, h->data_file, buf, *at);
  if (h->has_crypto)
    *at = encode_crypto (h, buf, *at);
  store_be64 (buf + *at, EXTENSION_END);
  *at += 8;
  return 0;
}

int
header_encode (const struct header *h, uint8_t *buf, struct format_error *e)
{
  const size_t name = strlen (h->backing_file);
  size_t at = h->version == 2 ? V2_LENGTH : V3_LENGTH;
  int r;

  /* The smallest cluster has room for all but long names. */
  memset (buf, 0, h->cluster_size);
  store_be32 (buf, QCOW2_MAGIC);
  store_be32 (buf + 4, h->version);
  store_be32 (buf + 20, h->cluster_bits);
  store_be64 (buf + 24, h->size);
  store_be32 (buf + 32, h->crypt_method);
  store_be32 (buf + HEADER_OFFSET_L1_SIZE, h->l1_size);
  store_be64 (buf + 40, h->l1_table_offset);
  store_be64 (buf + HEADER_OFFSET_REFCOUNT_TABLE, h->refcount_table_offset);
  store_be32 (buf + 56, h->refcount_table_clusters);
  store_be32 (buf + 60, h->nb_snapshots);
  store_be64 (buf + 64, h->snapshots_offset);
  if (h->version > 2)
    encode_v3_fields (h, buf);
  r = encode_extensions (h, buf, &at, e);
  if (r < 0)
    return r;
  if (name > 0) {
    if (name > h->cluster_size - at)
      return format_fail (e, -ENAMETOOLONG,
                          "the backing file's name has %zu bytes, and a first"
                          " cluster of %" PRIu64 " bytes has room for %"
                          PRIu64, name, h->cluster_size,
                          h->cluster_size - at);
    store_be64 (buf + 8, at);
    store_be32 (buf + 16, (uint32_t) name);
    memcpy (buf + at, h->backing_file, name);
  }
  return 0;
}
