/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads that help with one request.
 *
 * The server has threads of its own, which work on different requests at
 * the same time.  They are of no use to a client that sends one large
 * request after another.  So a request with many independent parts offers
 * them here: its own thread takes one part after the other, and so does
 * each of these threads that has nothing else to do.  Where all
 * processors are busy with other requests, nothing is lost: the request
 * never waits for a thread to come, only for parts that have begun.
 *
 * Most servers never have such a request.  So the threads are started
 * with the first one.
 *
 * Locks: that of the struct, for taking a part, for saying that it is
 * done, and for starting the threads.
 */

#include <config.h>

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

#include "cleanup.h"
#include "workers.h"

#define MAX_THREADS 7

struct job {
  worker_fn *fn;
  void *opaque;
  unsigned next, n;             /* parts that nobody has taken yet */
  unsigned busy;                /* parts that somebody is at */
  pthread_cond_t done;
  struct job *next_job;
};

struct workers {
  pthread_mutex_t lock;
  pthread_cond_t offered;
  struct job *jobs;             /* those with parts to take */
  bool started, stop;
  unsigned threads;
  pthread_t thread[MAX_THREADS];
};

/* Do the next part of a job; called and returns with the lock held. */
static void
do_part (struct workers *w, struct job *job)
{
  const unsigned i = job->next++;
  struct job **p;

  if (job->next == job->n) {
    for (p = &w->jobs; *p != job; p = &(*p)->next_job)
      ;
    *p = job->next_job;
  }
  job->busy++;
  pthread_mutex_unlock (&w->lock);

  job->fn (job->opaque, i);

  pthread_mutex_lock (&w->lock);
  job->busy--;
  if (job->busy == 0 && job->next == job->n)
    pthread_cond_signal (&job->done);
}

static void *
work (void *opaque)
{
  struct workers *w = opaque;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);

  while (!w->stop) {
    if (w->jobs)
      do_part (w, w->jobs);
    else
      pthread_cond_wait (&w->offered, &w->lock);
  }
  return NULL;
}

struct workers *
workers_create (void)
{
  struct workers *w = calloc (1, sizeof *w);

  if (!w)
    return NULL;
  pthread_mutex_init (&w->lock, NULL);
  pthread_cond_init (&w->offered, NULL);
  return w;
}

/* With the lock held.  Without a thread all goes on, only slower. */
static void
start_threads (struct workers *w)
{
  const long processors = sysconf (_SC_NPROCESSORS_ONLN);

  while (w->threads < MAX_THREADS && (long) w->threads + 1 < processors
         && pthread_create (&w->thread[w->threads], NULL, work, w) == 0)
    w->threads++;
  w->started = true;
}

void
workers_free (struct workers *w)
{
  unsigned i;

  if (!w)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
    w->stop = true;
    pthread_cond_broadcast (&w->offered);
  }
  for (i = 0; i < w->threads; ++i)
    pthread_join (w->thread[i], NULL);
  pthread_cond_destroy (&w->offered);
  pthread_mutex_destroy (&w->lock);
  free (w);
}

/* Until all parts have ended, and nobody knows the job any more. */
static void
do_job (struct workers *w, struct job *job)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);

  if (!w->started)
    start_threads (w);
  job->next_job = w->jobs;
  w->jobs = job;
  pthread_cond_broadcast (&w->offered);
  while (job->next < job->n)
    do_part (w, job);
  while (job->busy > 0)
    pthread_cond_wait (&job->done, &w->lock);
}

void
workers_run (struct workers *w, unsigned n, worker_fn *fn, void *opaque)
{
  struct job job = { .fn = fn, .opaque = opaque, .n = n };
  unsigned i;

  if (!w || n <= 1) {
    for (i = 0; i < n; ++i)
      fn (opaque, i);
    return;
  }
  pthread_cond_init (&job.done, NULL);
  do_job (w, &job);
  pthread_cond_destroy (&job.done);
}
