/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of test-faults have in common: faults-configs.c says
 * which images there are, faults-judge.c opens them and knows what they
 * may hold, test-faults.c lets guests work and calls fail.
 */

#ifndef QCOW2_FAULTS_H
#define QCOW2_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"
#include "image.h"
#include "recorder.h"

#define SECTOR 512u

/* ---- faults-configs.c ---- */

#define LONG_ONLY       1       /* not in a run of limited time */
#define WRITE_COMPRESSED 2
#define ENCRYPTED       4       /* with FAULTS_PASSPHRASE */
#define RESIZED         8       /* before requests, see faults_resize */
#define DIRTY          16       /* has to be repaired */
#define EACH_EIO       32       /* each call fails with EIO once, always */
#define FAULTS_PASSPHRASE "abc"

struct fault_config {
  const char *name;
  unsigned size;                /* guest bytes */
  unsigned max_request;
  unsigned flags;               /* these: */
  uint64_t l2_cache, overlap_limit;
  const char *make;             /* makes disk.qcow2 */
};
extern const struct fault_config fault_configs[];
extern const unsigned nr_fault_configs;

/* Any two features that can go together do so in one of them, or it is
 * printed which do not.
 */
bool all_pairs_are_there (void);

/* ---- test-faults.c ---- */

/* What is tried at the moment. */
extern const struct fault_config *config;
extern uint64_t seed;

/* Say what went wrong, and how to have it again; end the program. */
void fail (const char *fs, ...)
  __attribute__ ((noreturn, format (printf, 1, 2)));

/* Never NULL. */
void *memory (uint64_t size);

/* ---- faults-judge.c ---- */

typedef uint64_t tag;           /* of a sector's contents: a hash */
tag tag_of (const uint8_t *sector);

/* The values that a sector may have, one of them. */
#define MAX_VALUES 40
struct values {
  unsigned n;
  tag v[MAX_VALUES];
};
bool may_be (const struct values *s, tag t);
void set_only (struct values *s, tag t);
void add_value (struct values *s, tag t);

/* What the engine opens as NAME_RECORDER, below what fails. */
#define NAME_RECORDER "recorder"
extern struct recorder *recorder;
bool has_data_file (void);      /* in NAME_DATA, beside disk.qcow2 */
void set_config (struct image_config *c, const char *name);
int open_image (const char *name, struct image **img);

/* The arguments that name FILE to QEMU's tools; until the next call. */
const char *qemu_name (const char *file);

/* With RESIZED the disk is cut in the middle of a cluster, and then grows
 * until its L1 table must, too.
 */
static inline uint64_t
small_size (void)
{
  return config->size / 8 * 3 + SECTOR;
}

static inline uint64_t
large_size (void)
{
  return config->size * UINT64_C (2) + SECTOR;
}
extern unsigned lost_protection; /* events of that since it was set to 0 */

/* The image is not corrupt, can be opened, and each sector holds one of
 * the values that are ALLOWED.  Else the program ends.
 */
void judge (const char *what, struct disk *d, const struct values *allowed);

/* The same after a crash at that moment of the recorder, with all, with
 * nothing and with a part of what was not synced.
 */
void judge_crash (const char *what, size_t moment,
                  const struct values *allowed);

/* The same of a file. */
void judge_file (const char *what, const char *path,
                 const struct values *allowed);

extern uint64_t judged, asked_qemu; /* how many images */

#endif /* QCOW2_FAULTS_H */
