/* SPDX-License-Identifier: BSD-3-Clause */

/* Was there a legal order?  A history of reads and writes by many
 * threads, and the question whether each of them can have taken effect
 * at one moment between its begin and its end.
 */

#ifndef QCOW2_ORDER_H
#define QCOW2_ORDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An operation on one register.  Moments are all different, and a begin
 * comes before its end.
 */
struct order_op {
  bool write;
  uint64_t value;               /* zero may be written often, others once */
  uint64_t begin, end;
};

/* NULL if there may be a legal order of the N operations on a register
 * that is zero at first; else what is wrong, and which two operations
 * show it (*B may be the same as *A).
 */
const char *order_check (const struct order_op *ops, size_t n, size_t *a,
                         size_t *b);

#endif /* QCOW2_ORDER_H */
