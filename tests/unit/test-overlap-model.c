/* SPDX-License-Identifier: BSD-3-Clause */

/* The tracker against a model that is too simple to be wrong: for each
 * cluster of a few zones, how many owners it has of each type.  Random
 * operations go to both, and every answer is compared.
 *
 * The program is built twice: test-overlap-model with windows as they
 * are, test-overlap-tiny with windows of 64 clusters and pages of 8, so
 * that all borders are met all the time.
 *
 * OVERLAP_MODEL_OPS is the number of operations (by default the two make
 * 10^7), OVERLAP_MODEL_SEED the seed (default 1).  For long runs:
 * OVERLAP_MODEL_VERIFY is after how many operations the tracker verifies
 * itself (default 16 or 64, and each time at first; its bytes are counted
 * after each), and with OVERLAP_MODEL_PROGRESS each so many operations are
 * told of.
 */

#include <config.h>

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <check.h>

#include "checked.h"
#include "overlap-fast.h"
#include "run-suite.h"

/* Check writes to a file at each of its assertions, so these call it
 * only when one fails.
 */
#define MUST(expr)                                                      \
  do {                                                                  \
    if (!(expr))                                                        \
      ck_abort_msg ("operation %" PRIu64 ": %s", m.operation, #expr);   \
  } while (0)
#define SAME(a, b)                                                      \
  do {                                                                  \
    const uint64_t a_ = (uint64_t) (a), b_ = (uint64_t) (b);            \
    if (a_ != b_)                                                       \
      ck_abort_msg ("operation %" PRIu64 ": %s is %" PRIu64             \
                    ", %s is %" PRIu64, m.operation, #a, a_, #b, b_);   \
  } while (0)

#define ZONES 4
#define ZONE 256u               /* clusters */
#define HOT 8u                  /* places asked about again and again */

struct cluster {
  uint8_t owners[OVERLAP_TYPES];
};

/* Windows that left, as the notices told. */
#define LEFT_MAX 65536
struct model {
  struct overlap *o;
  uint64_t state;               /* of the generator */
  uint64_t operation;           /* counted in each run */
  uint64_t base[ZONES];
  struct cluster zone[ZONES][ZONE];
  unsigned n_left;
  uint64_t notices;
  bool held;                    /* notices, and marks wait */
  bool conflict;                /* one met what is not allowed meanwhile */
  overlap_set late[ZONES][ZONE][OVERLAP_TYPES]; /* by each type, there */
  struct { uint8_t zone; uint16_t at; } hot[HOT];
  struct { uint64_t first, count; } left[LEFT_MAX]; /* n_left of them */
};

static struct model m;

static uint64_t
env (const char *name, uint64_t otherwise)
{
  const char *s = getenv (name);

  return s ? strtoull (s, NULL, 10) : otherwise;
}

/* What has been done in this test, each of which is a process. */
static uint64_t n_done, tell_each, verify_each;
static const char *part;
static int part_number;

static void
part_begin (const char *name, int number)
{
  part = name;
  part_number = number;
  n_done = 0;
  tell_each = env ("OVERLAP_MODEL_PROGRESS", 0);
  verify_each = env ("OVERLAP_MODEL_VERIFY", OV_WINDOW > 1024 ? 64 : 16);
  if (verify_each == 0)
    verify_each = 1;
}

static void
part_tell (const char *what)
{
  if (tell_each > 0)
    fprintf (stderr, "%s %d: %" PRIu64 " operations%s\n", part, part_number,
             n_done, what);
}

static uint64_t
rnd (uint64_t below)
{
  /* xorshift64*, a fixed sequence for a seed on every machine. */
  m.state ^= m.state >> 12;
  m.state ^= m.state << 25;
  m.state ^= m.state >> 27;
  return (m.state * UINT64_C (2685821657736338717) >> 16) % below;
}

static overlap_set
set_of (const struct cluster *c)
{
  overlap_set set = 0;
  unsigned t;

  for (t = 0; t < OVERLAP_TYPES; ++t)
    if (c->owners[t])
      set |= OVERLAP_BIT (t);
  return set;
}

/* Of marks that could not be taken back yet for want of memory. */
static overlap_set
owed (uint64_t cluster)
{
  overlap_set set = 0;
  unsigned i;

  for (i = 1; i <= m.o->n_owed; ++i) {
    const struct ov_kept *k = &m.o->kept[OV_KEPT_MAX - i];

    if (cluster - k->first < k->count)
      set |= OVERLAP_BIT (k->type);
  }
  return set;
}

/* What the tracker must say of a cluster. */
static overlap_set
seen (unsigned z, uint32_t i)
{
  return set_of (&m.zone[z][i])
    | (m.o->n_owed ? owed (m.base[z] + i) : 0);
}

static bool
left_already (uint64_t cluster)
{
  unsigned i;

  for (i = 0; i < m.n_left; ++i)
    if (cluster - m.left[i].first < m.left[i].count)
      return true;
  return false;
}

/* Prior art, faults 11, 12, 16 and 18: a range that leaves is told of
 * exactly once, with its exact borders, and is never forgotten.
 */
static void
notice (void *opaque, const struct overlap_notice *n)
{
  unsigned z, i, t;

  MUST (opaque == &m);
  MUST (!n->restored);
  MUST (n->count > 0);
  SAME (n->first % ov_window_size (m.o), 0);
  /* The last window lacks one cluster, whose end has no number. */
  MUST ((n->first + n->count + (n->first + n->count == UINT64_MAX))
             % ov_window_size (m.o) == 0);
  for (i = 0; i < m.n_left; ++i)
    MUST (n->first + n->count <= m.left[i].first
          || m.left[i].first + m.left[i].count <= n->first);
  MUST (m.n_left < LEFT_MAX);
  m.left[m.n_left].first = n->first;
  m.left[m.n_left++].count = n->count;
  m.notices++;
  for (z = 0; z < ZONES; ++z)
    for (i = 0; i < ZONE; ++i)
      if (m.base[z] + i - n->first < n->count
          && !(set_of (&m.zone[z][i]) & OV_PINNED))
        for (t = 0; t < OVERLAP_TYPES; ++t)
          m.zone[z][i].owners[t] = 0;
}

static void
check_account (void)
{
  const char *why;

  if (!overlap_verify (m.o, &why))
    ck_abort_msg ("operation %" PRIu64 ": %s", m.operation, why);
}

/* The bytes behind a slot, as malloc gave them; those of pages and what leads
 * to them are added to PAGED, too.
 */
static uint64_t
window_bytes (uintptr_t v, uint64_t *paged)
{
  const struct ov_paged *p = (const struct ov_paged *) (v & ~OV_FLAGS);
  uint64_t sum, n = 0;
  uint32_t i;

  if (!(v & OV_PAGED))
    return v == 0 ? 0 : ov_size (p);
  sum = ov_size (p);
  for (i = 0; n < p->n && i < ov_pages (m.o); ++i)
    if (p->page[i]) {
      sum += ov_size (p->page[i]);
      n++;
    }
  *paged += sum;
  return sum + (p->runs ? ov_size (p->runs) : 0);
}

/* The bytes of a part of the directory and of all windows in it. */
static uint64_t
directory_bytes (const struct ov_node *n, uint64_t *paged)
{
  uint64_t sum = ov_size (n);
  unsigned i;

  for (i = 0; i < OV_WAYS; ++i)
    if ((n->prefix & 0xff) == 0)
      sum += window_bytes (atomic_load_explicit (&n->way[i].slot,
                                                 memory_order_relaxed),
                           paged);
    else if (atomic_load_explicit (&n->way[i].node, memory_order_relaxed))
      sum += directory_bytes (atomic_load_explicit (&n->way[i].node,
                                                    memory_order_relaxed),
                              paged);
  return sum;
}

/* The account is exact after every operation.  (What the blocks hold is
 * verified less often.)
 */
static void
recount (void)
{
  const struct ov_node *root = atomic_load (&m.o->root);
  const uintptr_t sieve = atomic_load (&m.o->sieve);
  const struct ov_leaves *l;
  uint64_t paged = 0, sum = root ? directory_bytes (root, &paged) : 0;

  for (l = atomic_load (&m.o->leaves); l; l = l->shorter)
    sum += ov_size (l);
  sum += sieve ? ov_size ((const void *) sieve) : 0;
  SAME (sum + ov_fixed_bytes (m.o), m.o->used);
  SAME (paged, m.o->bytemap_bytes);
}

/* Compare all answers for a range with the model's. */
static void
compare (unsigned z, uint32_t i, uint32_t n)
{
  overlap_set mask = (overlap_set) rnd (OVERLAP_ALL + 1);
  overlap_set any = 0, all = OVERLAP_ALL;
  struct overlap_answer a;
  uint64_t first = m.base[z] + i, where = UINT64_MAX;
  bool outside = false;
  uint32_t j;

  for (j = i; j < i + n; ++j) {
    overlap_set set = seen (z, j);

    any |= set;
    if ((set & mask) && where == UINT64_MAX)
      where = m.base[z] + j;
    if (left_already (m.base[z] + j))
      outside = true;
    else
      all &= set;
  }
  overlap_query (m.o, first, n, mask, &a);
  SAME (a.any, any);
  SAME (a.all, all);
  SAME (a.outside, outside);
  if (any & mask)
    SAME (a.where, where);
  SAME (overlap_hit (m.o, first, n, mask),
                    (any & mask) || outside);
}

/* Ask the same places again and again, as a guest does: most answers come
 * from the sieve.
 */
static void
compare_again (void)
{
  unsigned i = (unsigned) rnd (HOT), z;
  uint32_t at, n;

  if (rnd (64) == 0) {
    m.hot[i].zone = (uint8_t) rnd (ZONES);
    m.hot[i].at = (uint16_t) rnd (ZONE - 2);
  }
  z = m.hot[i].zone;
  at = m.hot[i].at;
  n = 1 + (uint32_t) rnd (2);
  SAME (overlap_hit (m.o, m.base[z] + at, n, OVERLAP_ALL),
        seen (z, at) != 0 || left_already (m.base[z] + at)
        || (n == 2 && (seen (z, at + 1) != 0
                       || left_already (m.base[z] + at + 1))));
}

/* May TYPE be entered here?  Where windows may leave, pinned and other
 * marks are kept apart, so that it is clear what must be left.
 */
static bool
mixes (unsigned z, uint32_t i, uint32_t n, enum overlap_type type)
{
  bool pinned = OV_PINNED & OVERLAP_BIT (type);
  uint32_t j;

  for (j = i; j < i + n; ++j) {
    overlap_set set = seen (z, j);
    if (set && ((set & OV_PINNED) != 0) != pinned)
      return true;
  }
  return false;
}

/* More owners than this would be more different combinations of them
 * than the dictionary holds; test-overlap.c fills that.
 */
static bool
full (unsigned z, uint32_t i, uint32_t n, enum overlap_type type)
{
  unsigned t, others;
  uint32_t j;

  for (j = i; j < i + n; ++j) {
    const struct cluster *c = &m.zone[z][j];

    for (t = others = 0; t < OVERLAP_TYPES; ++t)
      others += t == OVERLAP_INACTIVE_L2 ? 0 : c->owners[t];
    if (type == OVERLAP_INACTIVE_L2 ? c->owners[type] >= 20 : others >= 2)
      return true;
  }
  return false;
}

/* While notices are held what a mark meets is known later: the first
 * conflict must be one that the model has seen.
 */
static void
compare_conflict (overlap_set got, uint64_t where)
{
  struct overlap_conflict c;
  bool known = overlap_conflict (m.o, &c);
  unsigned z;

  if (!known) {
    SAME (got, 0);
    return;
  }
  SAME (got, c.there);
  SAME (where, c.cluster);
  for (z = 0; z < ZONES; ++z)
    if (c.cluster - m.base[z] < ZONE)
      SAME (c.there & ~m.late[z][c.cluster - m.base[z]][c.type], 0);
}

static void
enter (unsigned z, uint32_t i, uint32_t n, enum overlap_type type,
       bool claim)
{
  bool pinned = OV_PINNED & OVERLAP_BIT (type);
  overlap_set bad = claim ? OVERLAP_ALL : OVERLAP_ALL & ~ov_allowed (type);
  overlap_set before[ZONE], met = 0, got;
  uint64_t where = UINT64_MAX, at = UINT64_MAX;
  uint32_t j;

  for (j = i; j < i + n; ++j)
    before[j] = set_of (&m.zone[z][j]);
  got = (claim ? overlap_claim : overlap_enter)
    (m.o, type, m.base[z] + i, n, &at);
  recount ();
  for (j = i; j < i + n; ++j) {
    /* It may have taken back at last what was owed. */
    overlap_set set = (before[j] | owed (m.base[z] + j)) & bad;
    met |= set;
    if (set && where == UINT64_MAX)
      where = m.base[z] + j;
  }
  if (m.held && !claim) {
    for (j = i; j < i + n; ++j)
      m.late[z][j][type] |= before[j] & bad;
    m.conflict |= met != 0;
    compare_conflict (got, at);
  }
  else {
    SAME (got, met);
    SAME (at, where);
  }
  if (claim && met)
    return;
  for (j = i; j < i + n; ++j)
    if (pinned || !left_already (m.base[z] + j))
      m.zone[z][j].owners[type]++;
}

static void
leave (unsigned z, uint32_t i, uint32_t n, enum overlap_type type)
{
  uint64_t missing = 0, got;
  uint32_t j;

  got = overlap_leave (m.o, type, m.base[z] + i, n);
  recount ();
  for (j = i; j < i + n; ++j) {
    if (m.zone[z][j].owners[type])
      m.zone[z][j].owners[type]--;
    else if (!left_already (m.base[z] + j))
      missing++;
  }
  /* What left on the way counts as marked. */
  if (m.n_left == 0)
    SAME (got, missing);
  else
    MUST (missing <= got);
}

static enum overlap_type
some_type (void)
{
  /* Mostly what images are full of. */
  static const enum overlap_type often[] = {
    OVERLAP_ACTIVE_L2, OVERLAP_ACTIVE_L2, OVERLAP_INACTIVE_L2,
    OVERLAP_REFCOUNT_BLOCK,
  };

  return rnd (4) ? often[rnd (4)] : (enum overlap_type) rnd (OVERLAP_TYPES);
}

static void
step (bool apart)
{
  unsigned z = (unsigned) rnd (ZONES);
  uint32_t n = (uint32_t) (rnd (4) ? rnd (3) : rnd (100)) + 1;
  uint32_t i = (uint32_t) rnd (ZONE - n + 1);
  enum overlap_type type = some_type ();
  unsigned what = (unsigned) rnd (16);

  m.operation++;
  if (++n_done, tell_each > 0 && n_done % tell_each == 0)
    part_tell ("");
  if (what < 6) {
    if (!full (z, i, n, type) && !(apart && mixes (z, i, n, type)))
      enter (z, i, n, type, false);
  }
  else if (what < 8)
    enter (z, i, n, type, true);
  else if (what < 14)
    leave (z, i, n, type);
  compare (z, (uint32_t) rnd (ZONE - n + 1), n);
  compare_again ();
}

/* Bits of a cluster, for windows of different sizes. */
static unsigned
some_bits (unsigned i)
{
  static const unsigned bits[] = { 0, 9, 12, 16 };

  return bits[i % 4];
}

/* One zone at the start, one over a border of windows, one far away,
 * one at the end of what can be addressed.
 */
static void
begin (uint64_t seed, unsigned cluster_bits, uint64_t bitmap_size,
       uint64_t limit)
{
  struct overlap_config config = {
    .cluster_bits = cluster_bits,
    .bitmap_size = bitmap_size, .total_limit = limit,
    .notice = notice, .opaque = &m,
  };

  memset (&m, 0, offsetof (struct model, left));
  m.state = seed * UINT64_C (0x9e3779b97f4a7c15) + 1;
  m.base[2] = (UINT64_C (1) << 40) - ZONE / 3;
  m.base[3] = UINT64_MAX - ZONE;
  ov_sieve_forbid (seed % 2 == 0); /* whose answers hide the windows' */
  m.o = overlap_new (&config);
  MUST (m.o != NULL);
  m.base[1] = ov_window_size (m.o) * 32 - ZONE / 2;
}

/* Each costs four times as much among tiny windows. */
static uint64_t
ops (void)
{
  return env ("OVERLAP_MODEL_OPS", OV_WINDOW_BITS < 10 ? 2000000 : 8000000);
}

static uint64_t
seed (void)
{
  return env ("OVERLAP_MODEL_SEED", 1);
}

/* How often all is verified after N operations of a run.  Tiny windows
 * are verified after each, at first; a walk over large ones takes longer.
 */
static bool
time_to_verify (uint64_t n)
{
  return (OV_WINDOW <= 1024 && n < 100000) || n % verify_each == 0;
}

/* Everything leaves again: the account must be back where it began, but
 * for the directory and the dictionary (faults 13 and 14).
 */
static void
empty_all (void)
{
  struct overlap_stats s;
  unsigned z, t;
  uint32_t i;

  for (z = 0; z < ZONES; ++z)
    for (i = 0; i < ZONE; ++i)
      for (t = 0; t < OVERLAP_TYPES; ++t)
        while (m.zone[z][i].owners[t])
          leave (z, i, 1, (enum overlap_type) t);
  overlap_get_stats (m.o, &s);
  SAME (s.windows, 0);
  SAME (s.runs, 0);
  SAME (s.bytemap_bytes, 0);
  check_account ();
}

/* A few of the rounds are verified closely, not more of them in a long
 * run.
 */
static bool
round_is_close (uint64_t round)
{
  return round < 128 && round % 8 == 0;
}

static void
run (uint64_t n, bool closely, bool apart)
{
  uint64_t i;
  unsigned z;

  for (i = 0; i < n; ++i) {
    step (apart);
    if (time_to_verify (closely ? i : i + 100000))
      check_account ();
  }
  for (z = 0; z < ZONES; ++z)
    compare (z, 0, ZONE);
  check_account ();
}

START_TEST (unlimited)
{
  /* The last has room for all pages of the zones. */
  static const uint64_t bitmap_size[] = { 0, 4200, 65536, 1 << 17 };

  part_begin ("unlimited", _i);
  begin (seed () + (uint64_t) _i, some_bits ((unsigned) _i), bitmap_size[_i],
         UINT64_MAX);
  run (ops () / 8, true, false);
  SAME (m.notices, 0);
  empty_all ();
  overlap_free (m.o);
  part_tell (", all right");
}
END_TEST

/* Fault 17 is a limit of 0.  With any limit, what is used beyond it is
 * the fixed part and pinned marks at most.
 */
START_TEST (limited)
{
  uint64_t rounds = ops () / 40000 + 1, round;

  part_begin ("limited", _i);
  for (round = 0; round < rounds; ++round) {
    struct overlap_stats s;
    uint64_t limit;

    begin (seed () + round * 16 + (uint64_t) _i, 0, rnd (2) ? 65536 : 0, 0);
    overlap_get_stats (m.o, &s);
    overlap_free (m.o);
    limit = rnd (8) ? s.used + rnd (_i ? 20000 : 1500) : rnd (2);
    begin (seed () + round * 16 + (uint64_t) _i, some_bits ((unsigned) round),
           rnd (2) ? 65536 : 0, limit);
    run (5000, round_is_close (round), true);
    empty_all ();
    overlap_free (m.o);
  }
  part_tell (", all right");
}
END_TEST

static void
enter_range (unsigned z, uint32_t at, enum overlap_type type)
{
  const uint32_t n = (uint32_t) rnd (MIN (ZONE - at, 80u)) + 1;

  if (!full (z, at, n, type))
    enter (z, at, n, type, false);
}

/* An image is opened: many marks in a row, mostly one behind the other,
 * while notices are held, and no query meanwhile.  Then all is asked, and
 * goes on as ever.  Some find little memory.
 */
START_TEST (opening)
{
  uint64_t rounds = ops () / 40000 + 1, round;
  struct overlap_conflict c;
  unsigned i, k;
  bool alone;

  part_begin ("opening", _i);
  for (round = 0; round < rounds; ++round) {
    uint64_t limit = _i ? 2000 + rnd (9000) : UINT64_MAX;

    begin (seed () + round * 16 + (uint64_t) _i, some_bits ((unsigned) round),
           rnd (2) ? 65536 : 0, limit);
    if (!_i && rnd (2))
      enter ((unsigned) rnd (ZONES), (uint32_t) rnd (ZONE), 1,
             OVERLAP_ACTIVE_L2, false);
    /* Where nothing else is asked more and more waits. */
    alone = rnd (4) == 0;
    overlap_hold_notices (m.o, true);
    m.held = true;
    for (i = 0; i < 60; ++i) {
      unsigned z = (unsigned) rnd (ZONES), step = (unsigned) rnd (3) + 1;
      enum overlap_type type = some_type ();
      uint32_t at = (uint32_t) rnd (ZONE);

      if (!_i && !alone && rnd (4) == 0) /* waits, too, if it is short */
        enter_range (z, at, type);
      if (_i && rnd (10) == 0)
        ov_fail_alloc (rnd (4) + 1, false);
      for (k = 0; k < 30 && at < ZONE; ++k, at += step)
        if (_i ? set_of (&m.zone[z][at]) == OVERLAP_NONE
            && !(OV_PINNED & OVERLAP_BIT (type)) : !full (z, at, 1, type))
          enter (z, at, 1, type, false);
      /* What was just entered still waits. */
      if (!_i && !alone && rnd (2))
        enter (z, at - step, 1, some_type (), true);
      if (!_i && !alone && rnd (4) == 0)
        leave (z, (uint32_t) rnd (ZONE - 9), 9, type);
      if (!alone && rnd (8) == 0)
        check_account ();
    }
    ov_fail_alloc (0, false);
    overlap_hold_notices (m.o, false);
    m.held = false;
    SAME (overlap_conflict (m.o, &c), m.conflict);
    run (500, round_is_close (round), true);
    empty_all ();
    overlap_free (m.o);
  }
  part_tell (", all right");
}
END_TEST

/* Every allocation may fail at any time.  Only so many pinned marks can be
 * kept without memory: a round ends before there are too many.
 */
START_TEST (failing)
{
  uint64_t rounds = ops () / 40000 + 1, round, i;

  part_begin ("failing", _i);
  for (round = 0; round < rounds; ++round) {
    begin (seed () + round, some_bits ((unsigned) round), _i ? 65536 : 0,
           UINT64_MAX);
    for (i = 0; i < 5000 && m.o->n_kept + m.o->n_owed <= OV_KEPT_MAX / 2;
         ++i) {
      if (rnd (20) == 0)
        ov_fail_alloc (rnd (4) + 1, rnd (8) == 0);
      step (true);
      ov_fail_alloc (0, false);
      if (time_to_verify (round_is_close (round) ? i : i + 100000))
        check_account ();
    }
    overlap_free (m.o);
  }
  part_tell (", all right");
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("overlap-model");
  TCase *tc = tcase_create ("model");

  tcase_set_timeout (tc, 0);
  tcase_add_loop_test (tc, unlimited, 0, 4);
  tcase_add_loop_test (tc, limited, 0, 2);
  tcase_add_loop_test (tc, opening, 0, 2);
  tcase_add_loop_test (tc, failing, 0, 2);
  suite_add_tcase (s, tc);
  return run_suite (s);
}
