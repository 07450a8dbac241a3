/* SPDX-License-Identifier: BSD-3-Clause */

/* Why a piece of an image was refused.  The decoders do no I/O and do
 * not know the file's name: they name the field, its value and what
 * would be right; who called them adds the file and reports it.
 */

#ifndef QCOW2_FORMAT_ERROR_H
#define QCOW2_FORMAT_ERROR_H

struct format_error {
  char text[320];               /* one line, no newline */
};

/* Fill *E and return CODE (a negative errno), so that a decoder can say
 * "return format_fail (e, -EINVAL, ...)".
 */
int format_fail (struct format_error *e, int code, const char *fs, ...)
  __attribute__ ((format (printf, 3, 4)));

#endif /* QCOW2_FORMAT_ERROR_H */
