/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest data.
 *
 * The map says at which host offset a guest cluster is; this file knows
 * what that means: which file the offset belongs to, and what the bytes
 * there look like (data-crypt.c).  Reading, writing and copying of
 * clusters go through here, so that nothing above needs to know.
 *
 * What changes the file goes on to the guard; there is no other way.
 *
 * Locks: none; the caller's range lock keeps the clusters in place.
 */

#include <config.h>

#include "checked.h"
#include "crypt.h"
#include "data-internal.h"
#include "image-internal.h"

/* The file that guest data is in. */
static struct storage *
file_of_data (const struct image *img)
{
  return img->data_file ? img->data_file : img->storage;
}

static bool
is_encrypted (const struct image *img)
{
  return img->header.crypt_method != CRYPT_NONE;
}

int
data_read_stored (struct image *img, void *buf, size_t len, uint64_t host)
{
  return storage_read (file_of_data (img), buf, len, host);
}

static int
owner_of_data (const struct image *img)
{
  return img->data_file ? GUARD_EXTERNAL : GUARD_DATA;
}

int
data_write_stored (struct image *img, const struct iovec *iov, int cnt,
                   uint64_t host, bool durable)
{
  return guard_write (img, owner_of_data (img), iov, cnt, host, durable);
}

int
data_read (struct image *img, void *buf, size_t len, uint64_t host,
           uint64_t guest)
{
  return is_encrypted (img) ? data_crypt_read (img, buf, len, host, guest)
    : data_read_stored (img, buf, len, host);
}

int
data_write (struct image *img, const struct iovec *iov, int cnt,
            uint64_t host, uint64_t guest, bool durable)
{
  return is_encrypted (img)
    ? data_crypt_write (img, iov, cnt, host, guest, durable)
    : data_write_stored (img, iov, cnt, host, durable);
}

bool
data_writes_apart (struct image *img, uint64_t host, uint64_t len)
{
  const uint64_t unit = is_encrypted (img) ? CRYPT_SECTOR : 1;
  const uint64_t begin = round_down (host, unit);

  return storage_writes_apart (file_of_data (img), begin,
                               round_up (host + len, unit) - begin);
}

void
data_start_sync (struct image *img, uint64_t host, uint64_t len)
{
  guard_start_range (img, owner_of_data (img), host, len);
}

bool
data_is_partial (const struct image *img, uint64_t guest, uint64_t len)
{
  return is_encrypted (img) && !is_aligned (guest | len, CRYPT_SECTOR);
}

bool
data_holes_are_zero (const struct image *img)
{
  return !is_encrypted (img);
}

int
data_map (struct image *img, uint64_t host, uint64_t *len, bool *hole)
{
  int r = storage_map (file_of_data (img), host, len, hole);

  *hole = r == 0 && *hole && data_holes_are_zero (img);
  return r;
}

void
data_will_need (struct image *img, uint64_t host, uint64_t len)
{
  storage_will_need (file_of_data (img), host, len);
}
