/* SPDX-License-Identifier: BSD-3-Clause */

/* What the tests of the decoders share: headers made by hand, and the
 * rule that a refusal is one line which names what it is about.
 */

#ifndef QCOW2_FORMAT_TEST_H
#define QCOW2_FORMAT_TEST_H

#include <check.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "error.h"
#include "header.h"
#include "run-suite.h"

/* The beginning of an image file.  BUF is exactly as long as the bytes
 * given to the decoder, so that valgrind and ASan see what it reads
 * beyond them.
 */
struct made {
  uint8_t *buf;
  size_t len;
  uint64_t file_size;
  size_t ext;                   /* where the next extension goes */
};

/* Store VALUE in WIDTH bytes at OFFSET. */
static inline void
poke (uint8_t *buf, size_t offset, unsigned width, uint64_t value)
{
  switch (width) {
  case 1: buf[offset] = (uint8_t) value; break;
  case 2: store_be16 (buf + offset, (uint16_t) value); break;
  case 4: store_be32 (buf + offset, (uint32_t) value); break;
  case 8: store_be64 (buf + offset, value); break;
  default: abort ();
  }
}

/* A valid image of 1 MiB without data: header, refcount table, refcount
 * block, L1 table, one cluster each, the last cut short.
 */
static inline struct made
make_header (uint32_t version, uint32_t cluster_bits)
{
  const uint64_t cluster_size = UINT64_C (1) << cluster_bits;
  const uint64_t l1_size = header_l1_entries (cluster_bits, false, 1 << 20);
  struct made m = { .len = cluster_size };

  m.buf = calloc (1, m.len);
  ck_assert_ptr_nonnull (m.buf);
  m.file_size = cluster_size * 3 + l1_size * 8;
  m.ext = version == 2 ? 72 : 112;

  poke (m.buf, 0, 4, QCOW2_MAGIC);
  poke (m.buf, 4, 4, version);
  poke (m.buf, 20, 4, cluster_bits);
  poke (m.buf, 24, 8, 1 << 20);
  poke (m.buf, 36, 4, l1_size);
  poke (m.buf, 40, 8, cluster_size * 3);
  poke (m.buf, 48, 8, cluster_size);
  poke (m.buf, 56, 4, 1);
  if (version >= 3) {
    poke (m.buf, 96, 4, 4);
    poke (m.buf, 100, 4, 112);
  }
  return m;
}

/* Append an extension whose length field says LEN. */
static inline void
add_extension (struct made *m, uint32_t type, const void *data, size_t len)
{
  ck_assert_uint_le (m->ext + 8 + len, m->len);
  poke (m->buf, m->ext, 4, type);
  poke (m->buf, m->ext + 4, 4, len);
  if (len)
    memcpy (m->buf + m->ext + 8, data, len);
  m->ext = (size_t) round_up (m->ext + 8 + len, 8);
}

/* Put a backing file name behind the extensions. */
static inline void
set_backing (struct made *m, const char *name, size_t len)
{
  poke (m->buf, 8, 8, m->ext + 8);
  poke (m->buf, 16, 4, len);
  ck_assert_uint_le (m->ext + 8 + len, m->len);
  memcpy (m->buf + m->ext + 8, name, len);
}

static inline int
decode (const struct made *m, struct header *h, struct format_error *e)
{
  memset (e, 0, sizeof *e);
  return header_decode (m->buf, m->len, m->file_size, h, e);
}

/* The refusal is CODE, on one printable line that contains all of WORDS,
 * which are separated by '|'.
 */
static inline void
ck_refusal (const char *what, int r, int code, const struct format_error *e,
            const char *words)
{
  char *copy = strdup (words), *save = NULL, *word;
  const char *p;

  ck_assert_msg (r == code, "%s: returned %d, not %d (%s)", what, r, code,
                 r < 0 ? e->text : "accepted");
  ck_assert_msg (e->text[0] != '\0', "%s: no text", what);
  for (p = e->text; *p; p++)
    ck_assert_msg ((unsigned char) *p >= 0x20, "%s: byte 0x%02x in '%s'",
                   what, (unsigned char) *p, e->text);
  for (word = strtok_r (copy, "|", &save); word;
       word = strtok_r (NULL, "|", &save))
    ck_assert_msg (strstr (e->text, word) != NULL,
                   "%s: '%s' does not mention '%s'", what, e->text, word);
  free (copy);
}

static inline void
ck_accepted (const char *what, int r, const struct format_error *e)
{
  ck_assert_msg (r == 0, "%s: returned %d: %s", what, r, e->text);
}

#endif /* QCOW2_FORMAT_TEST_H */
