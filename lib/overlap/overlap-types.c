/* SPDX-License-Identifier: BSD-3-Clause */

/* The types of metadata: how the parameters spell them, what a message
 * calls them, and which of them may own a cluster together.
 *
 * Three tables indexed by the type, nothing else: no state, no locks.
 */

#include <config.h>

#include <string.h>

#include "overlap.h"
#include "overlap-internal.h"

static const struct {
  const char *name;             /* overlap-check.NAME */
  const char *text;             /* BLOCK_IMAGE_CORRUPTED */
} types[OVERLAP_TYPES] = {
  [OVERLAP_MAIN_HEADER] = { "main-header", "qcow2 header" },
  [OVERLAP_ACTIVE_L1] = { "active-l1", "active L1 table" },
  [OVERLAP_ACTIVE_L2] = { "active-l2", "active L2 table" },
  [OVERLAP_REFCOUNT_BLOCK] = { "refcount-block", "refcount block" },
  [OVERLAP_REFCOUNT_TABLE] = { "refcount-table", "refcount table" },
  [OVERLAP_SNAPSHOT_TABLE] = { "snapshot-table", "snapshot table" },
  [OVERLAP_INACTIVE_L1] = { "inactive-l1", "inactive L1 table" },
  [OVERLAP_INACTIVE_L2] = { "inactive-l2", "inactive L2 table" },
  [OVERLAP_BITMAP_DIRECTORY] = { "bitmap-directory", "bitmap directory" },
  [OVERLAP_CRYPTO_HEADER] = { "crypto-header", "encryption header" },
  [OVERLAP_BITMAP_TABLE] = { "bitmap-table", "bitmap table" },
  [OVERLAP_BITMAP_DATA] = { "bitmap-data", "bitmap data" },
};

const char *
overlap_type_name (enum overlap_type type)
{
  return type < OVERLAP_TYPES ? types[type].name : "unknown";
}

const char *
overlap_type_text (enum overlap_type type)
{
  return type < OVERLAP_TYPES ? types[type].text : "unknown metadata";
}

bool
overlap_type_parse (const char *name, enum overlap_type *type)
{
  unsigned i;

  for (i = 0; i < OVERLAP_TYPES; ++i) {
    if (strcmp (name, types[i].name) == 0) {
      *type = (enum overlap_type) i;
      return true;
    }
  }
  return false;
}

/* A snapshot shares its tables with the active disk until one of them
 * is written, and with other snapshots.  Nothing else is ever shared.
 */
overlap_set
ov_allowed (enum overlap_type type)
{
  switch (type) {
  case OVERLAP_ACTIVE_L2:
    return OVERLAP_BIT (OVERLAP_INACTIVE_L2);
  case OVERLAP_INACTIVE_L2:
    return OVERLAP_BIT (OVERLAP_ACTIVE_L2) | OVERLAP_BIT (OVERLAP_INACTIVE_L2);
  default:
    return OVERLAP_NONE;
  }
}
