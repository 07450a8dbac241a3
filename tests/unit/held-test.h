/* SPDX-License-Identifier: BSD-3-Clause */

/* For tests that hold a request in the middle of a call of the storage,
 * while others come.
 *
 * One call is held: the first of its kind at its place.  It waits until
 * the test lets it go; whoever should wait for it is seen not to have
 * ended meanwhile.
 */

#ifndef QCOW2_HELD_TEST_H
#define QCOW2_HELD_TEST_H

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine-test.h"

static struct {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool wanted, held, go;
  enum storage_memory_op kind;
  uint64_t offset, len;         /* calls that touch this; LEN 0: all */
} hold = { .lock = PTHREAD_MUTEX_INITIALIZER,
           .changed = PTHREAD_COND_INITIALIZER };

static inline int
hold_hook (void *opaque, enum storage_memory_op kind, uint64_t offset,
           uint64_t len)
{
  (void) opaque;
  pthread_mutex_lock (&hold.lock);
  if (hold.wanted && kind == hold.kind
      && (hold.len == 0 || (offset < hold.offset + hold.len
                            && hold.offset < offset + len))) {
    hold.wanted = false;
    hold.held = true;
    pthread_cond_broadcast (&hold.changed);
    while (!hold.go)
      pthread_cond_wait (&hold.changed, &hold.lock);
    hold.held = false;
  }
  pthread_mutex_unlock (&hold.lock);
  return 0;
}

static inline void
hold_next (enum storage_memory_op kind, uint64_t offset, uint64_t len)
{
  pthread_mutex_lock (&hold.lock);
  hold.wanted = true;
  hold.go = false;
  hold.kind = kind;
  hold.offset = offset;
  hold.len = len;
  pthread_mutex_unlock (&hold.lock);
  storage_memory_set_hook (storage, hold_hook, NULL);
}

static inline void
wait_until_held (void)
{
  pthread_mutex_lock (&hold.lock);
  while (!hold.held)
    pthread_cond_wait (&hold.changed, &hold.lock);
  pthread_mutex_unlock (&hold.lock);
}

static inline void
let_go (void)
{
  pthread_mutex_lock (&hold.lock);
  hold.go = true;
  pthread_cond_broadcast (&hold.changed);
  pthread_mutex_unlock (&hold.lock);
}

/* A request in a thread of its own. */
struct request {
  enum { READ, WRITE, WRITE_DURABLY, TRIM, ZERO, FLUSH, BAD_WRITE } kind;
  uint64_t offset, len;
  int byte;
  uint8_t *buf;
  pthread_t thread;
  atomic_int tid;               /* 0 before it begins */
  atomic_bool ended;
  int r;
};

static inline void *
run_request (void *opaque)
{
  struct request *q = opaque;
  struct iovec iov = { .iov_base = q->buf, .iov_len = 8 };

  atomic_store (&q->tid, (int) syscall (SYS_gettid));
  switch (q->kind) {
  case READ: q->r = image_read (img, q->buf, q->len, q->offset); break;
  case WRITE:
  case WRITE_DURABLY:
    q->r = image_write (img, q->buf, q->len, q->offset,
                        q->kind == WRITE_DURABLY);
    break;
  case TRIM: q->r = image_trim (img, q->offset, q->len, false); break;
  case ZERO: q->r = image_zero (img, q->offset, q->len, 0, false); break;
  case FLUSH: q->r = image_flush (img); break;
  case BAD_WRITE: default:
    q->r = guard_write (img, GUARD_DATA, &iov, 1, q->offset, false);
    break;
  }
  atomic_store (&q->ended, true);
  return NULL;
}

static inline void
start (struct request *q)
{
  q->buf = malloc (q->len + 8);
  ck_assert_ptr_nonnull (q->buf);
  memset (q->buf, q->byte, q->len);
  atomic_init (&q->tid, 0);
  atomic_init (&q->ended, false);
  ck_assert_int_eq (pthread_create (&q->thread, NULL, run_request, q), 0);
}

/* Does the request's thread sleep, as one that waits does, and not one for
 * which there is no processor?
 */
static inline bool
sleeps (struct request *q)
{
  char path[50], line[300] = "";
  const char *name_end;
  FILE *f;

  snprintf (path, sizeof path, "/proc/self/task/%d/stat",
            atomic_load (&q->tid));
  f = fopen (path, "r");
  if (!f)
    return false;
  if (!fgets (line, sizeof line, f))
    line[0] = '\0';
  fclose (f);
  name_end = strrchr (line, ')');
  return name_end && strncmp (name_end, ") S", 3) == 0;
}

/* It has come to where it waits, and is there to stay. */
static inline void
expect_waiting (struct request *q)
{
  unsigned n = 0;

  while (n < 5) {
    n = sleeps (q) ? n + 1 : 0;
    usleep (10000);
    ck_assert (!atomic_load (&q->ended));
  }
}

static inline void
expect_end (struct request *q, int r)
{
  pthread_join (q->thread, NULL);
  ck_assert_int_eq (q->r, r);
}

static inline void
expect_read (struct request *q, int c)
{
  uint64_t i;

  expect_end (q, 0);
  for (i = 0; i < q->len && q->buf[i] == c; ++i)
    ;
  ck_assert_msg (i == q->len, "byte %ju is not 0x%02x", (uintmax_t) i, c);
  free (q->buf);
}

static inline void
done (struct request *q, int r)
{
  expect_end (q, r);
  free (q->buf);
}

#endif /* QCOW2_HELD_TEST_H */
