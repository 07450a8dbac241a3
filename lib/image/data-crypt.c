/* SPDX-License-Identifier: BSD-3-Clause */

/* Guest data of encrypted images.
 *
 * What is read is decrypted where it arrives.  What is written is
 * encrypted in a buffer of bounded size, a piece after the other: the
 * client's own is not ours to change.
 *
 * Sectors are encrypted as a whole.  A request may begin or end within
 * one: the rest of it is read, and written again as it was.  In between
 * nobody else may write to it: such a write in place needs the exclusive
 * range lock (data_is_partial), while one of whole sectors does with the
 * shared lock like any other.
 *
 * The number of a sector, from which its IV is made, is that of its place
 * in the file (LUKS) or on the disk (AES).  So LUKS data cannot be moved
 * without being written anew, which nobody here does.
 *
 * A hole in the file decrypts to garbage.  So nothing new may be left
 * unwritten in the belief that it reads as zeroes, and no hole is told of
 * (data_holes_are_zero).
 *
 * Locks: none; the caller's range lock, as said above.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "cleanup.h"
#include "crypt.h"
#include "data-internal.h"
#include "image-internal.h"

/* Bytes that are encrypted and written at a time. */
#define PIECE (UINT64_C (256) << 10)

static uint64_t
sector_number (const struct image *img, uint64_t host, uint64_t guest)
{
  return (crypt_counts_host_sectors (img->crypt) ? host : guest)
    / CRYPT_SECTOR;
}

/* LEN bytes within one sector. */
static int
read_part (struct image *img, uint8_t *buf, size_t len, uint64_t host,
           uint64_t guest)
{
  const uint64_t skip = host % CRYPT_SECTOR;
  uint8_t sector[CRYPT_SECTOR];
  int r;

  r = data_read_stored (img, sector, sizeof sector, host - skip);
  if (r < 0)
    return r;
  crypt_decrypt (img->crypt, sector_number (img, host, guest), sector,
                 sizeof sector);
  memcpy (buf, sector + skip, len);
  return 0;
}

/* Whole sectors. */
static int
read_sectors (struct image *img, uint8_t *buf, size_t len, uint64_t host,
              uint64_t guest)
{
  int r = data_read_stored (img, buf, len, host);

  if (r == 0)
    crypt_decrypt (img->crypt, sector_number (img, host, guest), buf, len);
  return r;
}

int
data_crypt_read (struct image *img, void *buf, size_t len, uint64_t host,
                 uint64_t guest)
{
  uint8_t *p = buf;
  uint64_t n, skip;
  int r = 0;

  if (!img->crypt)
    return -EACCES;             /* opened for its metadata only */
  for (; len > 0 && r == 0; p += n, host += n, guest += n, len -= n) {
    skip = host % CRYPT_SECTOR;
    n = round_down (len, CRYPT_SECTOR);
    if (skip == 0 && n > 0)
      r = read_sectors (img, p, n, host, guest);
    else {
      n = MIN ((uint64_t) len, CRYPT_SECTOR - skip);
      r = read_part (img, p, n, host, guest);
    }
  }
  return r;
}

/* What is left of a request, of which NOW bytes are in *IOV. */
struct source {
  const struct iovec *iov;
  size_t used;                  /* of *iov */
};

static void
take (struct source *s, uint8_t *buf, size_t len)
{
  size_t n;

  for (; len > 0; buf += n, len -= n) {
    while (s->used == s->iov->iov_len) {
      s->iov++;
      s->used = 0;
    }
    n = MIN (len, s->iov->iov_len - s->used);
    memcpy (buf, (const uint8_t *) s->iov->iov_base + s->used, n);
    s->used += n;
  }
}

/* Write whole sectors, N bytes at HOST, where the request reaches from
 * FROM to TO; what it does not reach stays as it is.
 */
static int
write_sectors (struct image *img, struct source *s, uint8_t *buf, size_t n,
               uint64_t host, uint64_t guest, uint64_t from, uint64_t to,
               bool durable)
{
  const struct iovec iov = { .iov_base = buf, .iov_len = n };
  const size_t head = from - host, end = to - host;
  int r;

  r = data_crypt_read (img, buf, head, host, guest);
  if (r == 0)
    r = data_crypt_read (img, buf + end, n - end, to, guest + end);
  if (r < 0)
    return r;
  take (s, buf + head, end - head);
  crypt_encrypt (img->crypt, sector_number (img, host, guest), buf, n);
  return data_write_stored (img, &iov, 1, host, durable);
}

int
data_crypt_write (struct image *img, const struct iovec *iov, int cnt,
                  uint64_t host, uint64_t guest, bool durable)
{
  CLEANUP_FREE uint8_t *buf = NULL;
  struct source s = { .iov = iov };
  uint64_t at = round_down (host, CRYPT_SECTOR), to = host, end, n;
  int i, r = 0;

  if (!img->crypt)
    return -EACCES;
  for (i = 0; i < cnt; ++i)
    to += iov[i].iov_len;
  end = round_up (to, CRYPT_SECTOR);
  guest -= host - at;
  buf = malloc (MIN (end - at, PIECE));
  if (!buf)
    return -ENOMEM;
  for (; at < end && r == 0; at += n, guest += n) {
    n = MIN (end - at, PIECE);
    r = write_sectors (img, &s, buf, n, at, guest, MAX (at, host),
                       MIN (at + n, to), durable);
  }
  return r;
}
