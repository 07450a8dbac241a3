/* SPDX-License-Identifier: BSD-3-Clause */

/* The bytes of a file in pages, of which clones share all that they do
 * not change: a crash state costs what it differs from the others.
 *
 * A clone shares the pages of what it was cloned from, which must not
 * change or be freed before the clone is freed.  Nothing here locks.
 * Aborts when memory is short.
 */

#ifndef QCOW2_DISK_H
#define QCOW2_DISK_H

#include <stdbool.h>
#include <stdint.h>

#include "storage.h"

struct disk;

struct disk *disk_create (const char *bytes, uint64_t size);
struct disk *disk_load (const char *path); /* NULL says errno */
struct disk *disk_clone (const struct disk *from);
void disk_free (struct disk *d);

uint64_t disk_size (const struct disk *d);
void disk_set_size (struct disk *d, uint64_t size);

/* DATA, or zeroes if it is NULL; the disk grows if it must. */
void disk_write (struct disk *d, const char *data, uint64_t len,
                 uint64_t offset);

/* What lies past the end reads as zeroes. */
void disk_read (const struct disk *d, void *buf, uint64_t len,
                uint64_t offset);

/* The external data file of the image on this disk: cloned, saved and
 * freed together with it; else NULL.
 */
void disk_set_data (struct disk *d, struct disk *data);
struct disk *disk_data (const struct disk *d);

/* A storage on it, writable; close it before the disk is freed. */
struct storage *disk_open (struct disk *d, const char *name);

/* Write it to a (sparse) file, and its data file to NAME_DATA; false says
 * errno.
 */
#define NAME_DATA "disk.data"
bool disk_save (const struct disk *d, const char *path);

#endif /* QCOW2_DISK_H */
