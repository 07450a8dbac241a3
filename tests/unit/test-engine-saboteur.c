/* SPDX-License-Identifier: BSD-3-Clause */

/* A saboteur in the engine's memory: the counts of clusters that hold
 * metadata become 0, so that the allocator hands them out, and L2 entries
 * lead to them, so that writes in place, trims, zeroes and copying go
 * there.  Every attempt must be refused before the storage is asked to
 * change anything but the corrupt bit, and the metadata must be what it
 * was.
 *
 * All types, with and without a limit on the tracker; without a limit, or
 * with overlap-limit=verify, nothing may get through, with 'refuse'
 * neither.
 */

#include <config.h>

#include "byteorder.h"
#include "engine-test.h"
#include "overlap-internal.h"
#include "refcount.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)
#define CLUSTER 512u
#define TARGETS 8192

/* A LUKS header has thousands of clusters; these are enough. */
#define CRYPTO_STEP 128u

static struct {
  uint64_t offset;
  enum overlap_type type;
} targets[TARGETS];
static unsigned n_targets;

static uint64_t limit;
static enum overlap_policy policy;

static void
with_limit (struct image_config *config)
{
  config->overlap_total_limit = limit;
  config->overlap_limit = policy;
  config->passphrase = "secret";
}

#define SECRET "--object secret,id=s,data=secret"
#define OPTS "--image-opts driver=qcow2,encrypt.key-secret=s,file.filename="

static void
qemu_io (const char *commands, const char *name)
{
  char line[400];

  snprintf (line, sizeof line, "qemu-io " SECRET " %s " OPTS "%s >/dev/null",
            commands, name);
  ck_assert_int_eq (system (line), 0);
}

/* Where the kernel counts a thread's time in ticks qemu-img may see none go
 * by, and gives up before it has written anything; then once more.
 */
static void
create_luks (const char *name)
{
  char line[700];

  snprintf (line, sizeof line,
            "for i in $(seq 200); do"
            " said=$(qemu-img create -q -f qcow2 " SECRET
            " -o cluster_size=512,refcount_bits=64,encrypt.format=luks,"
            "encrypt.key-secret=s,encrypt.iter-time=1 %s 2M 2>&1) && exit;"
            " case $said in *'accurate CPU usage'*) ;; *) break;; esac;"
            "done; echo \"$said\" >&2; exit 1", name);
  ck_assert_int_eq (system (line), 0);
}

/* With tables of each type; bitmaps in use have data. */
static struct temporary file;

static void
make_file (void)
{
  const struct temporary *t = &file;

  temporary_name (&file, "qcow2");
  create_luks (t->name);
  qemu_img ("bitmap --add -g 512 " SECRET " " OPTS "%s b0", t->name);
  qemu_io ("-c 'write 0 1M'", t->name);
  qemu_img ("snapshot " SECRET " -c s0 " OPTS "%s", t->name);
  qemu_io ("-c 'write 100k 1200k' -c 'write -z 1500k 64k'", t->name);
}

static void
remove_file (void)
{
  temporary_remove (&file);
}

static int
add_target (void *opaque, struct image *i, enum overlap_type type,
            uint64_t offset, uint64_t len)
{
  (void) opaque;
  (void) i;
  for (; len > 0 && n_targets < TARGETS;
       offset += CLUSTER, len -= MIN (len, CLUSTER)) {
    targets[n_targets].offset = offset;
    targets[n_targets++].type = type;
  }
  return 0;
}

static void
find_targets (void)
{
  overlap_set seen = 0;
  unsigned i;

  n_targets = 0;
  ck_assert_int_eq (walk_metadata (img, OVERLAP_ALL, add_target, NULL), 0);
  ck_assert_uint_lt (n_targets, TARGETS);
  for (i = 0; i < n_targets; ++i)
    seen |= OVERLAP_BIT (targets[i].type);
  ck_assert_uint_eq (seen, OVERLAP_ALL);
}

/* The file as it is. */
static uint8_t *
contents (uint64_t *size)
{
  uint8_t *buf;

  ck_assert_int_eq (storage_size (storage, size), 0);
  buf = malloc (*size);
  ck_assert_ptr_nonnull (buf);
  ck_assert_int_eq (storage_read (storage, buf, *size, 0), 0);
  return buf;
}

/* After a hit the engine refuses all guest writes, without asking the
 * guard.  Here each attempt must get as far as the guard.
 */
static void
forgive (void)
{
  atomic_store (&img->guard.corrupt, false);
  atomic_store (&img->guard.told, false);
}

/* Entry of a guest cluster, in the cache: to HOST, with flags. */
static uint64_t
set_entry (uint64_t cluster, uint64_t entry)
{
  const unsigned mask = (1u << img->map.slice_bits) - 1;
  struct slice *s;
  uint64_t old;

  ck_assert_int_eq (l2cache_get (img, cluster >> img->map.slice_bits, &s), 0);
  old = be64toh (s->entries[cluster & mask]);
  s->entries[cluster & mask] = htobe64 (entry);
  /* "Its count is one": so that the map returns it for writing. */
  s->one[(cluster & mask) / 64] |= UINT64_C (1) << ((cluster & mask) % 64);
  tlb_forget (&img->map.tlb, cluster);
  l2cache_put (img, s);
  return old;
}

/* The lookaside buffer says so, too: the map then does not look at the
 * entry any more.
 */
static void
remember (uint64_t cluster, uint64_t host)
{
  ck_assert_ptr_nonnull (img->map.tlb.word);
  tlb_note (&img->map.tlb, cluster, host >> img->cluster_bits, true);
}

static void
set_count (uint64_t cluster, uint64_t value)
{
  struct refcounts *rc = &img->refcounts;
  struct refblock *b;

  pthread_mutex_lock (&rc->lock);
  ck_assert_int_eq (refcounts_block (img, cluster >> rc->block_bits, &b), 0);
  ck_assert_ptr_nonnull (b);
  refcount_set (b->data, rc->order,
                cluster & ((UINT64_C (1) << rc->block_bits) - 1), value);
  rc->hint = value == 0 ? cluster : 0;
  pthread_mutex_unlock (&rc->lock);
}

static uint64_t
count_of (uint64_t cluster)
{
  uint64_t value;

  ck_assert_int_eq (refcounts_get (img, cluster, &value), 0);
  return value;
}

/* Does a request touch a cluster with metadata? */
static bool
is_metadata (const struct op *op)
{
  unsigned i;

  for (i = 0; i < n_targets; ++i)
    if (op->offset < targets[i].offset + CLUSTER
        && targets[i].offset < op->offset + op->len)
      return true;
  return false;
}

/* What the storage was asked to do: nothing but setting the corrupt bit
 * and syncs; with ELSEWHERE, it may have written where no metadata is,
 * and reserved the space of refcount blocks, which changes no contents.
 */
static bool
only_the_corrupt_bit (bool elsewhere)
{
  unsigned i;

  for (i = 0; i < watch.n; ++i) {
    const struct op *op = &watch.ops[i];

    if (op->kind == STORAGE_MEMORY_SYNC || op->kind == STORAGE_MEMORY_MAP
        || op->kind == STORAGE_MEMORY_LOCK
        || op->kind == STORAGE_MEMORY_START_SYNC
        || (op->kind == STORAGE_MEMORY_WRITE && op->len == 8
            && op->offset == HEADER_OFFSET_INCOMPATIBLE)
        || (elsewhere && (op->kind == STORAGE_MEMORY_RESERVE
                          || !is_metadata (op))))
      continue;
    return false;
  }
  return true;
}

enum {
  IN_PLACE, IN_PLACE_PART, IN_PLACE_FUA, TRIM, TRIM_MANY, ZERO, ZERO_TRIM,
  ZERO_PART, FILL, OVER_COMPRESSED, NR_MAPPED,
};

/* One request to the guest cluster, whose entry leads to the target. */
static int
request (unsigned what, uint64_t guest)
{
  uint8_t buf[CLUSTER] = { 0xee };
  const uint64_t offset = guest * CLUSTER;

  switch (what) {
  case IN_PLACE:
  case FILL:
  case OVER_COMPRESSED:
    return image_write (img, buf, CLUSTER, offset, false);
  case IN_PLACE_PART:
    return image_write (img, buf, 1, offset + 511, false);
  case IN_PLACE_FUA:
    return image_write (img, buf, CLUSTER, offset, true);
  case TRIM:
    return image_trim (img, offset, CLUSTER, false);
  case TRIM_MANY:
    return image_trim (img, offset - 2 * CLUSTER, 5 * CLUSTER, false);
  case ZERO:
    return image_zero (img, offset, CLUSTER, 0, false);
  case ZERO_TRIM:
    return image_zero (img, offset, CLUSTER, IMAGE_ZERO_MAY_TRIM, false);
  default:
    return image_zero (img, offset + 5, 100, 0, false);
  }
}

static uint64_t
entry_for (unsigned what, uint64_t host)
{
  if (what == FILL)
    return host | ENTRY_COPIED | ENTRY_ZERO;
  if (what == OVER_COMPRESSED)
    return host | ENTRY_COMPRESSED;
  return host | ENTRY_COPIED;
}

static unsigned attempts, by_type[OVERLAP_TYPES];

static void
attempt_mapped (unsigned what, uint64_t guest, unsigned target)
{
  uint64_t old;
  int r;

  forgive ();
  watch.n = 0;
  old = set_entry (guest, entry_for (what, targets[target].offset));
  if (what <= IN_PLACE_FUA && attempts / NR_MAPPED % 2)
    remember (guest, targets[target].offset);
  r = request (what, guest);
  set_entry (guest, old);
  /* New clusters are written before the old ones are looked at. */
  if (r != -EIO || !only_the_corrupt_bit (what == OVER_COMPRESSED))
    ck_abort_msg ("request %u to %s at %ju: %d", what,
                  overlap_type_name (targets[target].type),
                  (uintmax_t) targets[target].offset, r);
  attempts++;
  by_type[targets[target].type]++;
}

/* The allocator hands out the target: for data, and for a new table. */
static void
attempt_allocated (bool table, unsigned target)
{
  const uint64_t cluster = targets[target].offset >> img->cluster_bits;
  const uint64_t count = count_of (cluster);
  uint64_t offset, first, n;
  bool zeroes;
  int r;

  forgive ();
  watch.n = 0;
  set_count (cluster, 0);
  r = table ? alloc_metadata (img, OVERLAP_ACTIVE_L2, &offset)
    : alloc_data (img, 1, &first, &n, &zeroes);
  set_count (cluster, count);
  if (r != -EIO || !only_the_corrupt_bit (false))
    ck_abort_msg ("allocation in %s at %ju: %d",
                  overlap_type_name (targets[target].type),
                  (uintmax_t) targets[target].offset, r);
  attempts++;
  by_type[targets[target].type]++;
}

/* Another writer of metadata than the table's own. */
static void
attempt_metadata (unsigned target)
{
  enum overlap_type t;
  struct iovec iov = { .iov_base = (void *) "sabotage", .iov_len = 8 };

  for (t = 0; t < OVERLAP_TYPES; ++t) {
    if (t == targets[target].type
        || ((t == OVERLAP_ACTIVE_L2 || t == OVERLAP_INACTIVE_L2)
            && (targets[target].type == OVERLAP_ACTIVE_L2
                || targets[target].type == OVERLAP_INACTIVE_L2)))
      continue;
    forgive ();
    watch.n = 0;
    if (guard_write (img, (int) t, &iov, 1, targets[target].offset + 16,
                     false) != -EIO
        || guard_zero (img, (int) t, targets[target].offset, CLUSTER) != -EIO
        || guard_punch (img, (int) t, targets[target].offset, CLUSTER) != -EIO
        || !only_the_corrupt_bit (false))
      ck_abort_msg ("%s writes to %s at %ju", overlap_type_name (t),
                    overlap_type_name (targets[target].type),
                    (uintmax_t) targets[target].offset);
    attempts += 3;
  }
}

START_TEST (no_attempt_gets_through)
{
  static const struct {
    uint64_t limit;
    enum overlap_policy policy;
  } kinds[] = {
    { UINT64_MAX, OVERLAP_LIMIT_UNPROTECTED },
    { 0, OVERLAP_LIMIT_VERIFY }, { 1800, OVERLAP_LIMIT_VERIFY },
    { 0, OVERLAP_LIMIT_REFUSE },
  };
  const unsigned step = slower ();
  /* Of the second half of the first write, so that no other table or
   * snapshot is in the way.
   */
  const uint64_t guest = 200 * K / CLUSTER;
  uint8_t *before, *after;
  uint64_t size, size_after;
  unsigned i, what;

  limit = kinds[_i].limit;
  policy = kinds[_i].policy;
  configure = with_limit;
  open_loaded (file.name);
  /* The first write of all changes the header.  Under 'refuse' it fails. */
  write_byte (guest * CLUSTER, CLUSTER, 1);
  image_flush (img);
  atomic_store (&img->header_ready, true);
  find_targets ();
  before = contents (&size);

  for (i = 0; i < n_targets; ++i) {
    if (i % (targets[i].type == OVERLAP_CRYPTO_HEADER ? CRYPTO_STEP * step
             : step) != 0 && by_type[targets[i].type] > 0)
      continue;
    for (what = 0; what < NR_MAPPED; ++what) {
      /* Offset 0 in an entry means that there is no cluster.  Zeroes that
       * keep the cluster change the entry alone.
       */
      if (targets[i].offset == 0 || what == ZERO)
        continue;
      attempt_mapped (what, guest, i);
    }
    attempt_allocated (false, i);
    attempt_allocated (true, i);
    attempt_metadata (i);
  }
  ck_assert_uint_ge (attempts, 5000 / step);
  after = contents (&size_after);
  ck_assert_uint_le (size, size_after);
  memset (before + HEADER_OFFSET_INCOMPATIBLE, 0, 8);
  memset (after + HEADER_OFFSET_INCOMPATIBLE, 0, 8);
  for (i = 0; i < n_targets; ++i)
    if (memcmp (before + targets[i].offset, after + targets[i].offset,
                MIN ((uint64_t) CLUSTER, size - targets[i].offset)) != 0)
      ck_abort_msg ("%s at %ju has changed",
                    overlap_type_name (targets[i].type),
                    (uintmax_t) targets[i].offset);
  if (policy != OVERLAP_LIMIT_REFUSE)
    ck_assert_uint_gt (atomic_load (&img->guard.refused), attempts / 2);
  for (i = 0; i < OVERLAP_TYPES; ++i)
    ck_assert_uint_gt (by_type[i], 0);
  free (before);
  free (after);
  image_close (img);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine-saboteur");
  TCase *tc = tcase_create ("engine-saboteur");

  if (!have_qemu_img ())
    return 77;
  tcase_add_unchecked_fixture (tc, make_file, remove_file);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, no_attempt_gets_through, 0, 4);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
