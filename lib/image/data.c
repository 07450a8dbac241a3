/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest data.
 *
 * The map says at which host offset a guest cluster is; this file knows
 * what that means: which file the offset belongs to, and what the bytes
 * there look like.  Reading, writing and copying of clusters go through
 * here, so that nothing above needs to know.
 *
 * What changes the file goes on to the guard; there is no other way.
 *
 * Locks: none; the caller's range lock keeps the clusters in place.
 */

#include <config.h>

#include "data.h"
#include "image-internal.h"

/* The file that guest data is in. */
static struct storage *
file_of_data (const struct image *img)
{
  return img->data_file ? img->data_file : img->storage;
}

int
data_read (struct image *img, void *buf, size_t len, uint64_t host,
           uint64_t guest)
{
  (void) guest;
  return storage_read (file_of_data (img), buf, len, host);
}

int
data_write (struct image *img, const struct iovec *iov, int cnt,
            uint64_t host, uint64_t guest, bool durable)
{
  (void) guest;
  return guard_write (img, img->data_file ? GUARD_EXTERNAL : GUARD_DATA, iov,
                      cnt, host, durable);
}

int
data_map (struct image *img, uint64_t host, uint64_t *len, bool *hole)
{
  return storage_map (file_of_data (img), host, len, hole);
}

void
data_will_need (struct image *img, uint64_t host, uint64_t len)
{
  storage_will_need (file_of_data (img), host, len);
}
