/* SPDX-License-Identifier: BSD-3-Clause */

/* Who holds locks on a file, for the message to the operator.
 *
 * Open file description locks belong to no process: the kernel answers
 * -1 when asked for the holder, and lslocks(8) can say no more.  But
 * /proc/PID/fdinfo shows the locks of each descriptor of a process with
 * the inode they are on (proc(5)), so the processes are asked one by
 * one.  Those of other users do not answer, unless we are root.
 *
 * Nothing here blocks on the files themselves, and what happens in the
 * meantime can only make the answer wrong, not dangerous.  No locks are
 * taken.
 */

#include <config.h>

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage-impl.h"

/* So many are named. */
#define MAX_NAMED 3

/* Is a lock on inode INO in the text of this file of fdinfo?  A line is
 * "lock: 1: OFDLCK ADVISORY READ -1 fe:00:11005083 100 101".
 */
static bool
has_lock (const char *path, ino_t ino)
{
  FILE *f = fopen (path, "re");
  char line[256], needle[32];
  bool found = false;

  if (f == NULL)
    return false;
  snprintf (needle, sizeof needle, ":%ju ", (uintmax_t) ino);
  while (!found && fgets (line, sizeof line, f))
    found = strncmp (line, "lock:", 5) == 0 && strstr (line, needle);
  fclose (f);
  return found;
}

static bool
process_has_lock (const char *pid, ino_t ino)
{
  char path[600];
  struct dirent *entry;
  bool found = false;
  DIR *dir;

  snprintf (path, sizeof path, "/proc/%.16s/fdinfo", pid);
  dir = opendir (path);
  if (dir == NULL)
    return false;
  /* A stream of its own: readdir(3) is safe. */
  /* cppcheck-suppress readdirCalled */
  while (!found && (entry = readdir (dir)) != NULL) {
    if (!isdigit ((unsigned char) entry->d_name[0]))
      continue;
    snprintf (path, sizeof path, "/proc/%.16s/fdinfo/%.16s", pid,
              entry->d_name);
    found = has_lock (path, ino);
  }
  closedir (dir);
  return found;
}

/* Append "qemu-nbd (pid 123)". */
static void
append_process (const char *pid, unsigned n, char *buf, size_t len)
{
  char path[600], name[64] = "?";
  const size_t used = strlen (buf);
  FILE *f;

  snprintf (path, sizeof path, "/proc/%.16s/comm", pid);
  f = fopen (path, "re");
  if (f) {
    if (fgets (name, sizeof name, f))
      name[strcspn (name, "\n")] = '\0';
    fclose (f);
  }
  snprintf (buf + used, len - used, "%s%s (pid %.16s)",
            n == 0 ? "it is held by " : ", ", name, pid);
}

void
storage_lock_holders (struct storage *s, char *buf, size_t len)
{
  const long self = (long) getpid ();
  struct dirent *entry;
  unsigned n = 0;
  DIR *dir = NULL;

  buf[0] = '\0';
  if (s->has_identity)
    dir = opendir ("/proc");
  /* A stream of its own: readdir(3) is safe. */
  /* cppcheck-suppress readdirCalled */
  while (dir && n < MAX_NAMED && (entry = readdir (dir)) != NULL) {
    if (!isdigit ((unsigned char) entry->d_name[0])
        || strtol (entry->d_name, NULL, 10) == self
        || !process_has_lock (entry->d_name, s->ino))
      continue;
    append_process (entry->d_name, n++, buf, len);
  }
  if (dir)
    closedir (dir);
  if (n == 0)
    snprintf (buf, len, "'fuser -v' on it, as root, says who uses it");
}
