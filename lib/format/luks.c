/* SPDX-License-Identifier: BSD-3-Clause */

/* The LUKS header.
 *
 *     0  magic, version
 *     8  cipher, mode, hash: strings of 32 bytes
 *   104  where encrypted data begins, which means nothing in qcow2
 *   108  length, digest, salt and rounds of the volume key
 *   168  UUID, a string of 40 bytes, which nobody here looks at
 *   208  eight key slots of 48 bytes
 *   ...  the slots' key material, at sectors that they name
 *
 * What a slot says counts only if it is active.  Takes no locks.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "byteorder.h"
#include "checked.h"
#include "luks.h"

#define HEADER_LENGTH 592
#define SLOTS_OFFSET  208
#define SLOT_LENGTH   48
#define SECTOR        512

#define SLOT_ACTIVE   UINT32_C (0x00ac71f3)
#define SLOT_INACTIVE UINT32_C (0x0000dead)

static const uint8_t magic[6] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };

size_t
luks_material_size (const struct luks_header *h)
{
  return round_up ((uint64_t) h->key_bytes * LUKS_STRIPES, SECTOR);
}

static int
check_magic (const uint8_t *buf, size_t len, struct format_error *e)
{
  uint16_t version;

  if (len < HEADER_LENGTH)
    return format_fail (e, -EINVAL, "the LUKS header is %zu bytes long, "
                        "shorter than %d", len, HEADER_LENGTH);
  if (memcmp (buf, magic, sizeof magic) != 0)
    return format_fail (e, -EINVAL, "the LUKS header has the magic 0x%08"
                        PRIx32 "%04x, not 0x4c554b53babe", load_be32 (buf),
                        load_be16 (buf + 4));
  version = load_be16 (buf + 6);
  if (version != 1)
    return format_fail (e, -ENOTSUP, "version in the LUKS header is %u, only "
                        "1 is supported, which QEMU makes", version);
  return 0;
}

/* A string of up to 32 bytes with a NUL at its end. */
static int
load_string (const uint8_t *p, const char *field, char *s,
             struct format_error *e)
{
  memcpy (s, p, 32);
  s[32] = '\0';
  if (s[0] == '\0' || s[31] != '\0')
    return format_fail (e, -EINVAL, "%s in the LUKS header is %s", field,
                        s[0] ? "longer than 31 bytes" : "empty");
  return 0;
}

static int
load_key (const uint8_t *buf, struct luks_header *h, struct format_error *e)
{
  h->key_bytes = load_be32 (buf + 108);
  memcpy (h->digest, buf + 112, sizeof h->digest);
  memcpy (h->digest_salt, buf + 132, sizeof h->digest_salt);
  h->digest_iterations = load_be32 (buf + 164);
  if (h->key_bytes == 0 || h->key_bytes > LUKS_MAX_KEY)
    return format_fail (e, -EINVAL, "key-bytes in the LUKS header is %"
                        PRIu32 ", not from 1 to %d", h->key_bytes,
                        LUKS_MAX_KEY);
  if (h->digest_iterations == 0)
    return format_fail (e, -EINVAL, "mk-digest-iter in the LUKS header is 0");
  return 0;
}

/* Slot I is active: its key material must be in the header. */
static int
check_slot (const struct luks_header *h, unsigned i, uint32_t stripes,
            size_t len, struct format_error *e)
{
  const struct luks_slot *slot = &h->slots[i];

  if (slot->iterations == 0)
    return format_fail (e, -EINVAL, "iterations of key slot %u in the LUKS "
                        "header is 0", i);
  if (stripes != LUKS_STRIPES)
    return format_fail (e, -EINVAL, "stripes of key slot %u in the LUKS "
                        "header is %" PRIu32 ", not %d", i, stripes,
                        LUKS_STRIPES);
  if (slot->material < round_up (HEADER_LENGTH, SECTOR)
      || slot->material > len
      || len - slot->material < luks_material_size (h))
    return format_fail (e, -EINVAL, "key-material-offset of key slot %u in "
                        "the LUKS header is sector %" PRIu64 ": %zu bytes "
                        "there are not between the slots and the header's "
                        "end at %zu bytes", i, slot->material / SECTOR,
                        luks_material_size (h), len);
  return 0;
}

static int
load_slot (const uint8_t *buf, size_t len, unsigned i,
           struct luks_header *h, struct format_error *e)
{
  const uint8_t *p = buf + SLOTS_OFFSET + (size_t) i * SLOT_LENGTH;
  struct luks_slot *slot = &h->slots[i];
  const uint32_t state = load_be32 (p);

  if (state != SLOT_ACTIVE && state != SLOT_INACTIVE)
    return format_fail (e, -EINVAL, "key slot %u in the LUKS header is "
                        "neither active nor inactive, but 0x%" PRIx32, i,
                        state);
  slot->active = state == SLOT_ACTIVE;
  slot->iterations = load_be32 (p + 4);
  memcpy (slot->salt, p + 8, sizeof slot->salt);
  slot->material = (uint64_t) load_be32 (p + 40) * SECTOR;
  return slot->active ? check_slot (h, i, load_be32 (p + 44), len, e) : 0;
}

/* What the active slots have together. */
static int
check_slots (struct luks_header *h, struct format_error *e)
{
  const size_t size = luks_material_size (h);
  unsigned i, j;

  h->iterations = 0;
  for (i = 0; i < LUKS_SLOTS; ++i) {
    if (!h->slots[i].active)
      continue;
    h->iterations += (uint64_t) h->slots[i].iterations + h->digest_iterations;
    for (j = 0; j < i; ++j)
      if (h->slots[j].active
          && h->slots[i].material < h->slots[j].material + size
          && h->slots[j].material < h->slots[i].material + size)
        return format_fail (e, -EINVAL, "key slots %u and %u in the LUKS "
                            "header overlap", j, i);
  }
  if (h->iterations == 0)
    return format_fail (e, -EINVAL, "no key slot in the LUKS header is "
                        "active: nothing can open it");
  if (h->iterations > LUKS_MAX_ITERATIONS)
    return format_fail (e, -ENOTSUP, "the key slots in the LUKS header ask "
                        "for %" PRIu64 " iterations, more than %" PRIu64
                        ", which would take too long", h->iterations,
                        LUKS_MAX_ITERATIONS);
  return 0;
}

int
luks_header_decode (const uint8_t *buf, size_t len, struct luks_header *h,
                    struct format_error *e)
{
  unsigned i;
  int r = check_magic (buf, len, e);

  if (r == 0)
    r = load_string (buf + 8, "cipher-name", h->cipher, e);
  if (r == 0)
    r = load_string (buf + 40, "cipher-mode", h->mode, e);
  if (r == 0)
    r = load_string (buf + 72, "hash-spec", h->hash, e);
  if (r == 0)
    r = load_key (buf, h, e);
  for (i = 0; i < LUKS_SLOTS && r == 0; ++i)
    r = load_slot (buf, len, i, h, e);
  return r < 0 ? r : check_slots (h, e);
}

/*----------------------------------------------------------------------
 * A new one.
 */

/* Where key material begins, and what its length is rounded up to. */
#define MATERIAL_ALIGN UINT64_C (4096)

size_t
luks_header_lay_out (struct luks_header *h)
{
  const uint64_t size = round_up (luks_material_size (h), MATERIAL_ALIGN);
  unsigned i;

  for (i = 0; i < LUKS_SLOTS; ++i)
    h->slots[i].material = MATERIAL_ALIGN + i * size;
  return MATERIAL_ALIGN + LUKS_SLOTS * size;
}

static void
store_slot (const struct luks_slot *slot, uint8_t *p)
{
  store_be32 (p, slot->active ? SLOT_ACTIVE : SLOT_INACTIVE);
  store_be32 (p + 4, slot->iterations);
  memcpy (p + 8, slot->salt, sizeof slot->salt);
  store_be32 (p + 40, (uint32_t) (slot->material / SECTOR));
  store_be32 (p + 44, LUKS_STRIPES);
}

void
luks_header_encode (const struct luks_header *h, const char *uuid,
                    uint8_t *buf)
{
  struct luks_header copy = *h;
  unsigned i;

  memcpy (buf, magic, sizeof magic);
  store_be16 (buf + 6, 1);
  memcpy (buf + 8, h->cipher, strlen (h->cipher));
  memcpy (buf + 40, h->mode, strlen (h->mode));
  memcpy (buf + 72, h->hash, strlen (h->hash));
  store_be32 (buf + 104, (uint32_t) (luks_header_lay_out (&copy) / SECTOR));
  store_be32 (buf + 108, h->key_bytes);
  memcpy (buf + 112, h->digest, sizeof h->digest);
  memcpy (buf + 132, h->digest_salt, sizeof h->digest_salt);
  store_be32 (buf + 164, h->digest_iterations);
  /* The field was zeroed, and is longer. */
  memcpy (buf + 168, uuid, strlen (uuid));  /* NOLINT(bugprone-not-null-*) */
  for (i = 0; i < LUKS_SLOTS; ++i)
    store_slot (&h->slots[i], buf + SLOTS_OFFSET + (size_t) i * SLOT_LENGTH);
}
