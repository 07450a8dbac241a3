/* SPDX-License-Identifier: BSD-3-Clause */

/* Fuzz target: the header of a LUKS volume.  The input is its length, in
 * four bytes, and its begin; the rest, key material, is zero.
 *
 * What is accepted keeps the limits that luks.h names, with all key
 * material in the header, on sectors; laid out and written anew it is
 * accepted again, and says the same.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "luks.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* A property that must hold. */
#define MUST(expr) do { if (!(expr)) abort (); } while (0)

#define SECTOR 512u
#define MAX_HEADER (UINT32_C (4) << 20)

static void
check_text (const char *text)
{
  for (; *text; text++)
    MUST ((unsigned char) *text >= 0x20 && *text != 0x7f);
}

/* Whoever knows the names knows what may be in them. */
static void
check_name (const char *name, size_t room)
{
  MUST (memchr (name, '\0', room) != NULL);
  MUST (name[0] != '\0');
}

static void
check_limits (const struct luks_header *h, size_t len)
{
  const size_t material = luks_material_size (h);
  uint64_t iterations = 0;
  unsigned i, active = 0;

  check_name (h->cipher, sizeof h->cipher);
  check_name (h->mode, sizeof h->mode);
  check_name (h->hash, sizeof h->hash);
  MUST (h->key_bytes >= 1 && h->key_bytes <= LUKS_MAX_KEY);
  MUST (h->digest_iterations > 0);
  MUST (material % SECTOR == 0
        && material >= (size_t) h->key_bytes * LUKS_STRIPES);
  for (i = 0; i < LUKS_SLOTS; i++) {
    const struct luks_slot *s = &h->slots[i];

    if (!s->active)
      continue;
    active++;
    iterations += s->iterations;
    MUST (s->iterations > 0);
    MUST (s->material % SECTOR == 0);
    MUST (s->material <= len && material <= len - s->material);
  }
  MUST (active > 0);
  MUST (h->iterations >= iterations && h->iterations <= LUKS_MAX_ITERATIONS);
}

static void
check_again (const struct luks_header *h)
{
  struct luks_header laid = *h, again;
  const size_t len = luks_header_lay_out (&laid);
  uint8_t *buf = calloc (1, len);
  struct format_error e;

  if (buf == NULL)
    abort ();
  luks_header_encode (&laid, "00000000-0000-0000-0000-000000000000", buf);
  MUST (luks_header_decode (buf, len, &again, &e) == 0);
  check_limits (&again, len);
  MUST (strcmp (again.cipher, h->cipher) == 0);
  MUST (strcmp (again.mode, h->mode) == 0);
  MUST (strcmp (again.hash, h->hash) == 0);
  MUST (again.key_bytes == h->key_bytes);
  MUST (again.digest_iterations == h->digest_iterations);
  MUST (memcmp (again.digest, h->digest, sizeof h->digest) == 0);
  MUST (memcmp (again.digest_salt, h->digest_salt, sizeof h->digest_salt)
        == 0);
  free (buf);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  static uint8_t large[MAX_HEADER];
  struct luks_header h;
  struct format_error e;
  uint8_t *exact = NULL, *buf = large;
  uint32_t len;
  int r;

  if (size < 4)
    return 0;
  len = load_be32 (data) % MAX_HEADER;
  data += 4;
  size = MIN (size - 4, (size_t) len);
  /* A short one in memory of its own: who reads beyond it is seen. */
  if (len < 4096) {
    exact = buf = calloc (1, len + !len);
    if (buf == NULL)
      abort ();
  }
  memcpy (buf, data, size);
  r = luks_header_decode (buf, len, &h, &e);
  memset (buf, 0, size);
  free (exact);
  if (r < 0) {
    MUST (r == -EINVAL || r == -ENOTSUP);
    MUST (e.text[0] != '\0');
    check_text (e.text);
    return 0;
  }
  check_limits (&h, len);
  check_again (&h);
  return 0;
}
