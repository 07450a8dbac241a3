/* SPDX-License-Identifier: BSD-3-Clause */

/* A lookaside buffer for the map: where guest clusters that were looked up
 * before lie in the file.  See tlb.c.  (depths.c keeps in another one the
 * numbers of layers, which never change: it holds none of the locks below.)
 */

#ifndef QCOW2_TLB_H
#define QCOW2_TLB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tlb {
  _Atomic uint64_t *word;       /* NULL: there is none */
  unsigned bits;                /* log2 of their number */
};

/* A buffer that has room for CLUSTERS guest clusters, or for the most that
 * one has room for.  0 or -ENOMEM.
 */
int tlb_open (struct tlb *t, uint64_t clusters);
void tlb_close (struct tlb *t);

/* The host cluster of guest cluster GUEST is HOST; with WRITABLE it may be
 * written to in place.  What was said of it before is forgotten.  Hold the
 * lock of the slice that says so.
 */
void tlb_note (struct tlb *t, uint64_t guest, uint64_t host, bool writable);

/* The entry of GUEST changes.  Hold the slice's lock, as above. */
void tlb_forget (struct tlb *t, uint64_t guest);

/* Any may have changed, and no request is under way. */
void tlb_forget_all (struct tlb *t);

/* The answer, if it is known; true as long as the entry does not change,
 * which the caller sees to by a range lock.  With WRITABLE only if it may be
 * written to in place.
 */
bool tlb_find (const struct tlb *t, uint64_t guest, bool writable,
               uint64_t *host);

#endif /* QCOW2_TLB_H */
