/* SPDX-License-Identifier: BSD-3-Clause */

/* The header extensions: a list of type, length and data behind the
 * header's fixed fields, each padded to a multiple of 8, up to a type of
 * 0, the backing file name or the end of the first cluster.
 *
 * Unknown extensions are skipped: since no header is ever rewritten as a
 * whole, they stay where they are.  A known extension may appear only
 * once.  An unknown one may be of a kind that is allowed to repeat, so
 * it is not refused.  Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "header-extensions.h"

#define EXT_END             UINT32_C (0x00000000)
#define EXT_BACKING_FORMAT  UINT32_C (0xe2792aca)
#define EXT_FEATURE_NAMES   UINT32_C (0x6803f857)
#define EXT_BITMAPS         UINT32_C (0x23852875)
#define EXT_CRYPTO          UINT32_C (0x0537be77)
#define EXT_DATA_FILE       UINT32_C (0x44415441)

#define FEATURE_ENTRY 48
#define FEATURE_NAME  46
#define FEATURE_INCOMPATIBLE 0

#define MIN_BITMAP_ENTRY 32

/* One extension. */
struct extension {
  uint32_t type;
  const uint8_t *data;
  size_t at;                    /* byte of the header where DATA is */
  size_t len;
};

/* The list being walked. */
struct walk {
  const uint8_t *buf;
  size_t at, end;
};

/* 1 and the next extension, 0 at the end of the list, or -EINVAL if an
 * extension is longer than the room for it.  Where even the type and
 * length do not fit any more, the list has ended without a mark.
 */
static int
next_extension (struct walk *w, struct extension *x, struct format_error *e)
{
  const size_t start = w->at;
  uint32_t len;

  if (w->end - start < 8)
    return 0;
  x->type = load_be32 (w->buf + start);
  if (x->type == EXT_END)
    return 0;
  len = load_be32 (w->buf + start + 4);
  if (len > w->end - start - 8)
    return format_fail (e, -EINVAL,
                        "header extension 0x%08" PRIx32 " (header byte %zu)"
                        " is %" PRIu32 " bytes long, but only %zu bytes"
                        " are left before the %s", x->type, start, len,
                        w->end - start - 8,
                        "backing file name or the end of the cluster");
  x->at = start + 8;
  x->data = w->buf + x->at;
  x->len = len;
  /* The padding of the last one may lie past the end of the room. */
  w->at = MIN ((size_t) round_up (start + 8 + len, 8), w->end);
  return 1;
}

/* What all the decoders have in common. */
struct decoding {
  uint64_t file_size;
  struct header *h;
  struct header_damage *damage; /* or NULL */
  struct format_error *e;
};

/* A string extension: not terminated in the file. */
static int
decode_string (const struct extension *x, const char *what,
               char *to, size_t size, struct format_error *e)
{
  if (x->len >= size)
    return format_fail (e, -EINVAL,
                        "the %s (header extension 0x%08" PRIx32 ") is %zu"
                        " bytes long, more than %zu", what, x->type,
                        x->len, size - 1);
  memcpy (to, x->data, x->len);
  to[x->len] = '\0';
  if (memchr (x->data, 0, x->len) != NULL)
    return format_fail (e, -EINVAL,
                        "the %s (header extension 0x%08" PRIx32
                        ") contains a NUL byte", what, x->type);
  return 0;
}

/* To a check it does not matter what files are called. */
static int
decode_format (const struct extension *x, const struct decoding *d)
{
  struct header *h = d->h;
  int r = decode_string (x, "backing file format", h->backing_format,
                         sizeof h->backing_format, d->e);

  /* (Of a format that is too long QEMU wants to know nothing.) */
  return x->len < sizeof h->backing_format
    ? header_bear (d->damage, d->e, r) : r;
}

static int
decode_data_file (const struct extension *x, const struct decoding *d)
{
  return header_bear (d->damage, d->e,
                      decode_string (x, "external data file name",
                                     d->h->data_file, sizeof d->h->data_file,
                                     d->e));
}

/* The length of an extension with fixed fields. */
static int
check_length (const struct extension *x, const char *what, size_t len,
              struct format_error *e)
{
  if (x->len != len)
    return format_fail (e, -EINVAL,
                        "the %s (header extension 0x%08" PRIx32 ") is %zu"
                        " bytes long, not %zu", what, x->type, x->len, len);
  return 0;
}

/* Where the bitmap directory is.  With the autoclear bit unset somebody
 * who does not know bitmaps wrote to the image: the directory may be out
 * of date and its clusters have new owners, so the fields stay 0.
 */
static int
decode_bitmaps (const struct extension *x, uint64_t file_size,
                struct header *h, struct format_error *e)
{
  const uint8_t *p = x->data;
  uint64_t size;
  uint32_t nb;
  int r;

  r = check_length (x, "bitmaps extension", 24, e);
  if (r < 0)
    return r;
  h->has_bitmaps = true;
  if (!(h->autoclear & AUTOCLEAR_BITMAPS))
    return 0;

  nb = load_be32 (p);
  if (nb == 0 || nb > MAX_BITMAPS)
    return format_fail (e, nb ? -EFBIG : -EINVAL,
                        "nb_bitmaps (bitmaps extension) is %" PRIu32
                        ", not from 1 to %d", nb, MAX_BITMAPS);
  if (load_be32 (p + 4) != 0)
    return format_fail (e, -EINVAL, "the reserved field of the bitmaps"
                        " extension is 0x%" PRIx32 ", not 0",
                        load_be32 (p + 4));
  size = load_be64 (p + 8);
  if (size > MAX_BITMAP_DIRECTORY_BYTES)
    return format_fail (e, -EFBIG,
                        "bitmap_directory_size (bitmaps extension) is %"
                        PRIu64 ", more than the %" PRIu64
                        " bytes that are supported", size,
                        MAX_BITMAP_DIRECTORY_BYTES);
  if (size / MIN_BITMAP_ENTRY < nb)
    return format_fail (e, -EINVAL,
                        "bitmap_directory_size (bitmaps extension) is %"
                        PRIu64 ", too small for nb_bitmaps, which is %"
                        PRIu32, size, nb);
  h->bitmaps_at = x->at;
  h->nb_bitmaps = nb;
  h->bitmap_directory_size = size;
  h->bitmap_directory_offset = load_be64 (p + 16);
  return header_check_table (h, "bitmap_directory_offset"
                             " (bitmaps extension)",
                             h->bitmap_directory_offset, size, file_size, e);
}

/* Where the LUKS header is. */
static int
decode_crypto (const struct extension *x, const struct decoding *d)
{
  static const char offset[] = "the offset in the crypto header extension";
  struct header *h = d->h;
  struct format_error *e = d->e;
  int r;

  if (h->crypt_method != CRYPT_LUKS)
    return format_fail (e, -EINVAL,
                        "crypt_method (header byte 32) is %" PRIu32
                        ", but a crypto header extension is allowed only"
                        " with 2 (LUKS)", h->crypt_method);
  r = check_length (x, "crypto header extension", 16, e);
  if (r < 0)
    return r;
  h->has_crypto = true;
  h->crypto_offset = load_be64 (x->data);
  h->crypto_length = load_be64 (x->data + 8);
  if (h->crypto_length == 0)
    return format_fail (e, -EINVAL, "the length in the crypto header"
                        " extension is 0");
  r = header_check_table (h, offset, h->crypto_offset, 0, d->file_size, e);
  if (r < 0)
    return r;
  r = h->crypto_length <= MAX_CRYPTO_LENGTH
    ? header_check_table (h, offset, h->crypto_offset, h->crypto_length,
                          d->file_size, e)
    : format_fail (e, -EFBIG, "the length in the crypto header extension is %"
                   PRIu64 ", more than %" PRIu64, h->crypto_length,
                   MAX_CRYPTO_LENGTH);
  /* To QEMU it is negative, and there is nothing. */
  if (h->crypto_length > INT64_MAX)
    h->crypto_length = 0;
  return header_bear (d->damage, e, r);
}

/* The number of a known type for the set of those already seen, or -1. */
static int
known_type (uint32_t type)
{
  static const uint32_t types[] = {
    EXT_BACKING_FORMAT, EXT_FEATURE_NAMES, EXT_BITMAPS, EXT_CRYPTO,
    EXT_DATA_FILE,
  };
  size_t i;

  for (i = 0; i < ARRAY_SIZE (types); i++) {
    if (types[i] == type)
      return (int) i;
  }
  return -1;
}

static int
decode_extension (const struct extension *x, const struct decoding *d)
{
  switch (x->type) {
  case EXT_BACKING_FORMAT:
    return decode_format (x, d);
  case EXT_DATA_FILE:
    return decode_data_file (x, d);
  case EXT_BITMAPS:
    return decode_bitmaps (x, d->file_size, d->h, d->e);
  case EXT_CRYPTO:
    return decode_crypto (x, d);
  default:
    /* The feature name table is used for messages only. */
    return 0;
  }
}

int
header_decode_extensions (const uint8_t *buf, size_t start, size_t end,
                          uint64_t file_size, struct header *h,
                          struct header_damage *damage,
                          struct format_error *e)
{
  const struct decoding d = {
    .file_size = file_size, .h = h, .damage = damage, .e = e,
  };
  struct walk w = { .buf = buf, .at = start, .end = end };
  struct extension x;
  unsigned seen = 0;
  int known, r;

  for (;;) {
    r = next_extension (&w, &x, e);
    if (r <= 0)
      return r;
    known = known_type (x.type);
    /* To QEMU the last one counts. */
    if (known >= 0 && (seen & 1u << known))
      r = header_bear (damage, e, format_fail (
                         e, -EINVAL, "header extension 0x%08" PRIx32
                         " appears more than once", x.type));
    if (r < 0)
      return r;
    if (known >= 0)
      seen |= 1u << known;
    r = decode_extension (&x, &d);
    if (r < 0)
      return r;
  }
}

/* The name of an incompatible feature in the table X, or NULL; not
 * terminated if it has its full length.
 */
static const char *
feature_name (const struct extension *x, unsigned bit)
{
  size_t i;

  for (i = 0; i + FEATURE_ENTRY <= x->len; i += FEATURE_ENTRY) {
    const uint8_t *p = x->data + i;

    if (p[0] == FEATURE_INCOMPATIBLE && p[1] == bit && p[2] != 0)
      return (const char *) p + 2;
  }
  return NULL;
}

int
header_refuse_features (const uint8_t *buf, size_t start, size_t end,
                        uint64_t unknown, struct format_error *e)
{
  struct walk w = { .buf = buf, .at = start, .end = end };
  struct extension x = { .len = 0 };
  struct format_error ignored;
  char list[200] = "";
  size_t used = 0;
  unsigned bit;
  bool found = false;

  /* A list that is broken further on still names the feature. */
  while (!found && next_extension (&w, &x, &ignored) > 0)
    found = x.type == EXT_FEATURE_NAMES;
  if (!found)
    x.len = 0;

  for (bit = 0; bit < 64 && used < sizeof list; bit++) {
    const char *name;

    if (!(unknown >> bit & 1))
      continue;
    name = feature_name (&x, bit);
    used += (size_t) snprintf (list + used, sizeof list - used,
                               name ? "%sbit %u (%.*s)" : "%sbit %u",
                               used ? ", " : "", bit, FEATURE_NAME, name);
  }
  return format_fail (e, -ENOTSUP,
                      "incompatible_features (header byte 72) asks for"
                      " features that are not supported: %s", list);
}
