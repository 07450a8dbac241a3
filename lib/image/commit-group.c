/* SPDX-License-Identifier: BSD-3-Clause */

/* Group commit: whose turn it is, and who shares it.
 *
 * A commit runs in the thread of whoever asks first.  Who asks while it
 * runs waits for the next one, since the cut of the running one may lie
 * before his writes; all who wait then share that.
 *
 * By itself this makes two groups of clients that flush after each
 * write: while the commit of one group runs, the other waits for its
 * turn, and is gone when the first group has sent its next flushes.  Each
 * commit then answers half of them.  So whoever is to run the next commit
 * for a guest, the leader, first waits a little if more flushes are to be
 * expected: as many as the last commit answered and found waiting at its
 * end.  A single client never waits for anybody:
 *
 *     IDLE --commit_flush--> asking >= expected? --yes--> RUNNING
 *       ^                        | no                        |
 *       |                        v                           |
 *       |                    GATHERING --the last arrives,---^
 *       |                             or half of what a      |
 *       |                             commit takes is over   |
 *       +---------- take_turn: expected is set anew ---------+
 *
 * and from anywhere but RUNNING a flush that needs no commit goes on its own
 * (leave; see below).
 *
 * The last to arrive runs the commit itself, while the leader sleeps on
 * until it is answered: to wake the leader first would only take time.
 * Who waits for the last has the storage begin to write before, so that
 * the sync finds less to do.
 *
 * A wait in vain costs the leader half a commit's time, so after one the
 * next commit goes ahead at once, after two in a row the next two, then
 * four, up to MAX_SKIP.  What is expected shrinks meanwhile to those that
 * do come.
 *
 * Where data was written in place only, there is nothing to commit but
 * the data, and no need for turns: the threads sync side by side if the
 * storage lets them (guard_sync_apart).  Each then writes its own pages
 * while others' clients are still on their way, and the flushes of the disk
 * are put together by the kernel.  Who waits for a commit looks again whenever
 * one has ended: a single one that was needed would else have all of them
 * take turns for as long as some flush while others' commits run.
 *
 * Invariants
 *
 * G1. One commit runs at a time, and one leader at most gathers.
 * G2. Who asks is answered by a commit that began after he asked: whose
 *     number is above "started" at that time; or see G5.
 * G3. Who waits for a commit that does not run waits for a leader that
 *     gathers, and will run it if nobody else does.  "gathering" ends when
 *     any commit begins, for then that one answers the leader.
 * G4. The end of a commit wakes all that it answered, and of those that
 *     wait for the next one only one, which sees to it: runs it, or finds
 *     that flushes need none and wakes the others (leave).  Commits are waited
 *     for by the parity of their numbers, since there are no more than two
 *     at a time that anybody waits for.
 * G5. A flush goes without a commit only if, at one time after it was
 *     asked for, none ran and no metadata waited: then all pointers to what
 *     was acknowledged are durable.
 *
 * Locks: commit.lock guards all of it, and is not held while a commit runs
 * or a leader waits, or a thread syncs apart.  Callers hold no lock but
 * range locks and a table_lock.
 */

#include <config.h>

#include <errno.h>

#include "checked.h"
#include "cleanup.h"
#include "image-internal.h"
#include "monotonic.h"

/* After many waits in vain so many commits wait for nobody. */
#define MAX_SKIP 64u

/* Run one commit; called and returns with commit.lock held. */
static void
take_turn (struct image *img)
{
  struct commit *c = &img->commit;
  struct commit_group *g = &c->group;
  const unsigned answered = g->asking;
  const uint64_t number = ++c->started;
  uint64_t began;
  int r;

  c->running = true;
  g->gathering = false;
  g->asking = 0;
  pthread_mutex_unlock (&c->lock);

  began = monotonic_now ();
  r = commit_run (img);
  began = monotonic_now () - began;

  pthread_mutex_lock (&c->lock);
  g->usual = g->usual / 4 * 3 + began / 4;
  g->expected = answered + g->asking;
  c->running = false;
  c->ended = number;
  if (r == 0)
    c->good = number;
  pthread_cond_broadcast (&c->over[number & 1]);
  pthread_cond_signal (&c->over[(number + 1) & 1]);
}

static bool
complete (const struct commit_group *g)
{
  return g->asking >= g->expected;
}

/* Is it worth waiting for others? */
static bool
worth_a_wait (struct commit_group *g)
{
  if (complete (g))
    return false;
  if (g->skip == 0)
    return true;
  g->skip--;
  return false;
}

/* Wait, as leader, for the others to arrive; commit.lock is held but for
 * that.  The caller looks again at what is to be done: the last of them, or
 * another, may have run a commit meanwhile.
 */
static void
gather (struct commit *c)
{
  struct commit_group *g = &c->group;
  const uint64_t started = c->started;
  const struct timespec until
    = monotonic_timespec (monotonic_now () + MIN (g->usual / 2, g->longest));
  int r = 0;

  g->gathering = true;
  while (r != ETIMEDOUT && c->started == started)
    r = pthread_cond_timedwait (&c->over[(started + 1) & 1], &c->lock,
                                &until);
  if (c->started != started) {
    g->missed = 0;
    return;
  }
  g->gathering = false;
  g->skip = g->missed = MIN (g->missed * 2 + (g->missed == 0), MAX_SKIP);
}

/* Who is about to wait for others uses the time; commit.lock is held but
 * for that.  The caller looks again at what is to be done.
 */
static void
start_sync (struct image *img)
{
  pthread_mutex_unlock (&img->commit.lock);
  guard_start_sync (img);
  pthread_mutex_lock (&img->commit.lock);
}

/* Is it the data alone that a flush must make durable, and may it do so
 * beside others?  While something is outside the tracker each flush has a
 * commit, which tries to bring it back.  commit.lock is held.
 */
static bool
may_sync_apart (struct image *img)
{
  return !img->commit.running && guard_syncs_apart (img)
    && commit_metadata_is_clean (img)
    && !overlap_has_outside (img->guard.overlap);
}

/* A guest's flush finds that it needs no commit; and so do those that wait
 * for the same one, who look again.
 */
static int
leave (struct commit *c, uint64_t mine)
{
  c->group.asking--;
  pthread_cond_broadcast (&c->over[mine & 1]);
  return -EAGAIN;
}

/* Wait for a commit that begins from now on, or run it.  With FLUSH, that of
 * a guest, -EAGAIN: there is none, and it may sync apart.
 */
static int
commit_after (struct image *img, bool flush)
{
  struct commit *c = &img->commit;
  const uint64_t mine = c->started + 1;
  bool may_gather = flush, used_time = false;

  while (c->ended < mine) {
    if (flush && may_sync_apart (img))
      return leave (c, mine);
    if (!c->running && may_gather && !used_time && !complete (&c->group)) {
      start_sync (img);
      used_time = true;
    }
    else if (c->running
             || (may_gather && c->group.gathering && !complete (&c->group)))
      pthread_cond_wait (&c->over[mine & 1], &c->lock);
    else if (may_gather && worth_a_wait (&c->group)) {
      gather (c);
      may_gather = false;       /* once */
    }
    else
      take_turn (img);
  }
  /* A later success includes what an earlier failure left undone. */
  return c->good >= mine ? 0 : -EIO;
}

int
commit_now (struct image *img)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&img->commit.lock);

  return commit_after (img, false);
}

int
commit_flush (struct image *img)
{
  struct commit *c = &img->commit;
  int r;

  habit_flushed (&c->habit);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

    c->group.asking++;
    r = commit_after (img, true);
  }
  return r == -EAGAIN ? guard_sync_apart (img) : r;
}
