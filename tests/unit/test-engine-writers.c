/* SPDX-License-Identifier: BSD-3-Clause */

/* Every writer of metadata asks the guard whether it writes to what is
 * tracked as its own type, and is refused if not.
 *
 * Images are written to, resized, repaired and closed, and each place in
 * the engine that writes metadata is remembered by the address that it
 * calls the guard from, together with the type that it claims to write.
 * Then all is done again, once for each of these: just when it asks, its
 * marks are taken away.  It must get EIO, and the file stays as it is
 * there.
 *
 * The guard's and the storage's functions are replaced by the linker
 * (--wrap) for this: nothing reaches the file, of anybody, that the same
 * thread has not asked for immediately before.
 */

#include <config.h>

#include "byteorder.h"
#include "corrupt.h"
#include "engine-test.h"
#include "resize.h"
#include "run-suite.h"

#define K 1024u
#define M (1024u * 1024)
#define CLUSTER 512u

/*----------------------------------------------------------------------
 * Who asks.
 */

#define SITES 128

struct site {
  const void *caller;           /* of a function of the guard */
  enum overlap_type type;
  unsigned asked;               /* in this run */
};

static struct site sites[SITES];
static unsigned n_sites;

/* The site that shall find no marks, and the how manieth time. */
static unsigned broken_site, broken_turn;
static bool broken, learning;

static __thread const void *caller;
static __thread struct { uint64_t offset, end; } allowed;

/* Is this the moment? */
static bool
is_to_be_broken (enum overlap_type type)
{
  unsigned i;

  for (i = 0; i < n_sites; ++i)
    if (sites[i].caller == caller && sites[i].type == type)
      break;
  if (i == n_sites) {
    if (!learning)              /* something went wrong before */
      return false;
    ck_assert_uint_lt (n_sites, SITES);
    sites[n_sites++] = (struct site) { caller, type, 0 };
  }
  return ++sites[i].asked == broken_turn && i == broken_site;
}

int __real_guard_check (struct image *i, int owner, uint64_t offset,
                        uint64_t len);
int __real_guard_check_types (struct image *i, int owner, overlap_set may,
                              uint64_t offset, uint64_t len);

/* The question, of those who ask with guard_check and of the others. */
static int
question (struct image *i, int owner, overlap_set may, uint64_t offset,
          uint64_t len)
{
  return may == OVERLAP_NONE ? __real_guard_check (i, owner, offset, len)
    : __real_guard_check_types (i, owner, may, offset, len);
}

static int
ask (struct image *i, int owner, overlap_set may, uint64_t offset,
     uint64_t len)
{
  struct overlap *o = i->guard.overlap;
  const enum overlap_type type = (enum overlap_type) owner;
  uint64_t first = offset >> i->cluster_bits, count;
  int r;

  allowed.offset = allowed.end = 0;
  if (owner < 0 || len == 0 || !is_to_be_broken (type)) {
    r = question (i, owner, may, offset, len);
    if (learning && r != 0)
      ck_abort_msg ("%ju bytes at %ju are refused to %d", (uintmax_t) len,
                    (uintmax_t) offset, owner);
  }
  else {
    count = ((offset + len - 1) >> i->cluster_bits) - first + 1;
    if (overlap_leave (o, type, first, count) != 0)
      ck_abort_msg ("%s at %ju was not tracked", overlap_type_name (type),
                    (uintmax_t) offset);
    r = question (i, owner, may, offset, len);
    overlap_enter (o, type, first, count, NULL);
    if (r != -EIO)
      ck_abort_msg ("a write of %s at %ju that is not tracked as such: %d",
                    overlap_type_name (type), (uintmax_t) offset, r);
    broken = true;
  }
  if (r == 0) {
    allowed.offset = offset;
    allowed.end = offset + len;
  }
  return r;
}

bool __real_guard_data_may_hit (struct image *i, uint64_t offset,
                                uint64_t len);
bool __wrap_guard_data_may_hit (struct image *i, uint64_t offset,
                                uint64_t len);

bool
__wrap_guard_data_may_hit (struct image *i, uint64_t offset, uint64_t len)
{
  bool may = __real_guard_data_may_hit (i, offset, len);

  allowed.offset = may ? 0 : offset;
  allowed.end = may ? 0 : offset + len;
  return may;
}

int __wrap_guard_check (struct image *i, int owner, uint64_t offset,
                        uint64_t len);
int __wrap_guard_check_types (struct image *i, int owner, overlap_set may,
                              uint64_t offset, uint64_t len);

int
__wrap_guard_check (struct image *i, int owner, uint64_t offset,
                    uint64_t len)
{
  return ask (i, owner, OVERLAP_NONE, offset, len);
}

int
__wrap_guard_check_types (struct image *i, int owner, overlap_set may,
                          uint64_t offset, uint64_t len)
{
  return ask (i, owner, may, offset, len);
}

/* The guard's doors: who calls? */
#define DOOR(name, parameters, arguments)                               \
  int __real_##name parameters;                                         \
  int __wrap_##name parameters;                                         \
  int                                                                   \
  __wrap_##name parameters                                              \
  {                                                                     \
    caller = __builtin_return_address (0);                              \
    return __real_##name arguments;                                     \
  }

DOOR (guard_write, (struct image *i, int owner, const struct iovec *iov,
                    int cnt, uint64_t offset, bool durable),
      (i, owner, iov, cnt, offset, durable))
DOOR (guard_write_buf, (struct image *i, int owner, const void *buf,
                        size_t len, uint64_t offset),
      (i, owner, buf, len, offset))
DOOR (guard_write_flag, (struct image *i, const void *entry,
                         uint64_t offset), (i, entry, offset))
DOOR (guard_zero, (struct image *i, int owner, uint64_t offset,
                   uint64_t len), (i, owner, offset, len))
DOOR (guard_punch, (struct image *i, int owner, uint64_t offset,
                    uint64_t len), (i, owner, offset, len))
DOOR (guard_reserve, (struct image *i, int owner, uint64_t offset,
                      uint64_t len, bool new), (i, owner, offset, len, new))

/* The storage: was this asked for? */
static void
expect_allowed (uint64_t offset, uint64_t len)
{
  if (offset < allowed.offset || offset + len > allowed.end)
    ck_abort_msg ("%ju bytes at %ju were not asked for", (uintmax_t) len,
                  (uintmax_t) offset);
}

#define CHANGE(name)                                                    \
  int __real_##name (struct storage *s, uint64_t offset, uint64_t len); \
  int __wrap_##name (struct storage *s, uint64_t offset, uint64_t len); \
  int                                                                   \
  __wrap_##name (struct storage *s, uint64_t offset, uint64_t len)      \
  {                                                                     \
    expect_allowed (offset, len);                                       \
    return __real_##name (s, offset, len);                              \
  }

CHANGE (storage_zero)
CHANGE (storage_punch)
CHANGE (storage_reserve)

int __real_storage_write (struct storage *s, const struct iovec *iov,
                          int cnt, uint64_t offset, bool durable);
int __wrap_storage_write (struct storage *s, const struct iovec *iov,
                          int cnt, uint64_t offset, bool durable);
int __wrap_storage_sync_alone (struct storage *s);

int
__wrap_storage_write (struct storage *s, const struct iovec *iov, int cnt,
                      uint64_t offset, bool durable)
{
  uint64_t len = 0;
  int i;

  for (i = 0; i < cnt; ++i)
    len += iov[i].iov_len;
  expect_allowed (offset, len);
  return __real_storage_write (s, iov, cnt, offset, durable);
}

/* Nothing crashes here. */
int
__wrap_storage_sync_alone (struct storage *s)
{
  (void) s;
  return 0;
}

/*----------------------------------------------------------------------
 * Images.
 */

static uint8_t *base;           /* the bytes that each run begins with */
static size_t base_len;

static uint64_t
load (uint64_t offset)
{
  return load_be64 (base + offset);
}

static void
store (uint64_t offset, uint64_t value)
{
  store_be64 (base + offset, value);
}

/* The refcount table is nearly full, so that it will have to grow; there
 * is a bitmap that notes writes, and an autoclear bit that nobody knows.
 */
static void
make_base (void)
{
  struct temporary t;
  char command[300];

  report_set_sink (quiet_sink);
  temporary_name (&t, "qcow2");
  qemu_img ("create -f qcow2 -o cluster_size=512,refcount_bits=64 %s 4M",
            t.name);
  qemu_img ("bitmap --add -g 512 %s b0", t.name);
  snprintf (command, sizeof command, "qemu-io -c 'write 0 300k' %s "
            ">/dev/null", t.name);
  ck_assert_int_eq (system (command), 0);
  qemu_img ("snapshot -c s0 %s", t.name);
  snprintf (command, sizeof command, "qemu-io -c 'write 200k 1460k' %s "
            ">/dev/null", t.name);
  ck_assert_int_eq (system (command), 0);
  base = read_file (t.name, &base_len);
  temporary_remove (&t);
  store (HEADER_OFFSET_AUTOCLEAR, load (HEADER_OFFSET_AUTOCLEAR)
         | UINT64_C (1) << 40);
}

static void
drop_base (void)
{
  free (base);
}

/* The L1 table, and the refcount table. */
static uint64_t
l1_at (void)
{
  return load (HEADER_OFFSET_L1_SIZE + 4);
}

static uint64_t
refcount_table_at (void)
{
  return load (HEADER_OFFSET_REFCOUNT_TABLE);
}

static void
damage_nothing (void)
{
}

/* COPIED flags in both kinds of tables, a count, and the corrupt bit. */
static void
damage_flags_and_counts (void)
{
  const uint64_t last = l1_at () + 8 * (1600 * K / (32 * K));
  const uint64_t table = load (last) & ENTRY_OFFSET;
  const uint64_t block = load (refcount_table_at ());

  store (table, load (table) & ~ENTRY_COPIED);
  store (last, load (last) & ~ENTRY_COPIED);
  store (block + 8 * 10, load (block + 8 * 10) + 1);
  store (HEADER_OFFSET_INCOMPATIBLE, INCOMPAT_CORRUPT);
}

/* A refcount block has no offset. */
static void
damage_the_refcount_table (void)
{
  store (refcount_table_at () + 8, 0);
}

static void
damage_by_a_crash (void)
{
  store (HEADER_OFFSET_INCOMPATIBLE, INCOMPAT_DIRTY);
}

/*----------------------------------------------------------------------
 * What is done.
 */

static void
base_config (struct image_config *config, const char *name)
{
  image_config_init (config);
  config->filename = name;
  config->commit_interval = 0;
}

static void
open_base (const char *name, enum image_check check)
{
  struct image_config config;

  base_config (&config, name);
  config.check = check;
  if (image_open (&config, &img) < 0)
    img = NULL;
}

static void
stop (void)
{
  if (!img)
    return;
  image_stop (img);
  image_close (img);
}

/* Write where nothing was, where something is, and where a snapshot
 * has it, and end as a server does.
 */
static void
work (const char *name)
{
  uint64_t i;

  open_base (name, CHECK_OFF);
  for (i = 0; img && i < 12; ++i) {
    write_byte (2 * M + i * 50 * K, 33 * K, 1);
    write_byte (i * 10 * K, 3 * K, 2);
    image_trim (img, M + i * 10 * K, 5 * K, false);
    image_zero (img, 1400 * K + i * 10 * K, 5 * K, 0, i == 5);
    if (i % 4 == 3)
      image_flush (img);
  }
  stop ();
}

static void
grow_and_shrink (const char *name)
{
  struct image_config config;

  base_config (&config, name);
  if (image_resize (&config, 50 * M, false) == 0)
    image_resize (&config, 3 * M, true);
}

static void
repair (const char *name)
{
  open_base (name, CHECK_ALL);
  stop ();
}

/* The image was not closed; the first writer repairs it. */
static void
begin (const char *name)
{
  open_base (name, CHECK_OFF);
  if (img)
    image_begin_writing (img);
  stop ();
}

/* A guest meets damage, and the image is marked. */
static void
meet_corruption (const char *name)
{
  open_base (name, CHECK_OFF);
  write_byte (0, K, 1);
  image_corrupt (img, 0, 512, "test");
  write_byte (0, K, 1);
  stop ();
}

static const struct scenario {
  void (*damage) (void);
  void (*run) (const char *name);
  unsigned least;               /* sites */
} scenarios[] = {
  { damage_nothing, work, 23 },
  { damage_nothing, grow_and_shrink, 18 },
  { damage_flags_and_counts, repair, 4 },
  { damage_the_refcount_table, repair, 3 },
  { damage_by_a_crash, begin, 1 },
  { damage_nothing, meet_corruption, 10 },
};

/* While learning, what qemu-img check says in the end. */
static int
run_once (const struct scenario *s)
{
  struct temporary t;
  char command[200];
  unsigned i;
  int r;

  temporary_name (&t, "qcow2");
  write_file (t.name, base, base_len);
  for (i = 0; i < n_sites; ++i)
    sites[i].asked = 0;
  broken = false;
  s->run (t.name);
  snprintf (command, sizeof command, "qemu-img check -q %s >/dev/null 2>&1",
            t.name);
  r = learning ? WEXITSTATUS (system (command)) : 0;
  temporary_remove (&t);
  return r;
}

START_TEST (each_is_refused_where_it_is_not_tracked)
{
  const struct scenario *s = &scenarios[_i];
  unsigned refused = 0;

  s->damage ();
  broken_turn = 0;
  learning = true;
  ck_assert_int_eq (run_once (s), 0);
  learning = false;
  ck_assert_uint_ge (n_sites, s->least);
  for (broken_turn = 1; broken_turn <= 3; broken_turn += 2)
    for (broken_site = 0; broken_site < n_sites; ++broken_site) {
      run_once (s);
      refused += broken;
      ck_assert (broken || broken_turn > 1);
    }
  ck_assert_uint_ge (refused, n_sites);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("engine-writers");
  TCase *tc = tcase_create ("engine-writers");

  if (!have_qemu_img ())
    return 77;
  tcase_add_unchecked_fixture (tc, make_base, drop_base);
  tcase_set_timeout (tc, 300);
  tcase_add_loop_test (tc, each_is_refused_where_it_is_not_tracked, 0,
                       (int) ARRAY_SIZE (scenarios));
  suite_add_tcase (s, tc);
  return run_suite (s);
}
