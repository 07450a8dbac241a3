/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing the size of the disk, before it is served. */

#ifndef QCOW2_RESIZE_H
#define QCOW2_RESIZE_H

#include <stdbool.h>
#include <stdint.h>

#include "image.h"

/* Give the disk of the image SIZE guest bytes, rounded up to 512: what is
 * new reads as zeroes, what is beyond the end is dropped.  Opens the
 * image, changes it, and closes it again; a crash leaves it with the old
 * size or the new one.  0, also if the size is that already, or a negative
 * errno that has been reported: -EINVAL for a smaller size without SHRINK,
 * -ENOTSUP for an image with bitmaps that cannot be used or would be too
 * large or, in version 2, with snapshots, -EFBIG for a size that needs larger clusters.
 */
int image_resize (const struct image_config *config, uint64_t size,
                  bool shrink);

#endif /* QCOW2_RESIZE_H */
