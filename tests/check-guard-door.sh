#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The guard is the only door through which an image file changes: no
# other part of the library, the plugin or the tools can reach what
# changes the bytes of a storage.  Shown twice, from the includes of the
# sources and from what the compiled files ask the linker for.  Then
# small offenders are planted, each of which must be found.

# shellcheck source=functions.sh
source "$top_srcdir/tests/functions.sh"

requires nm --version
cc=${CC:-cc}

rooms="lib/base lib/format lib/crypt lib/overlap lib/storage lib/image plugin tools"

# includers SOURCES HEADER ALLOWED: the files below SOURCES that include
# HEADER although they do not match ALLOWED.
includers ()
{
  local directive='^[[:space:]]*#[[:space:]]*include[[:space:]]*'

  ( cd "$1"
    grep -rlE "${directive}[\"<]([^\">]*/)?$2[\">]" --include='*.[ch]' \
         lib plugin tools || true ) |
    sed 's,^\./,,' | grep -vxE "$3" || true
}

# needs OBJECTS: what every object below OBJECTS needs from elsewhere,
# as lines "SYMBOL FILE", where FILE is such as "lib/image/guard".  (A
# program with flags of its own has objects called PROGRAM-FILE.o.)
needs ()
{
  local room object file

  for room in $rooms; do
    for object in "$1/$room"/.libs/*.o "$1/$room"/*.o; do
      [ -e "$object" ] || continue
      file=$(basename "$object" .o)
      nm -u "$object" | awk -v o="$room/${file#*_la-}" \
                            'NF == 2 { sub (/@.*/, "", $1); print $2, o }'
    done
  done
}

# The functions of storage-write.h: for the guard.  The storages use them
# to fill a file that they made themselves (storage-create.c).
door='storage_(write|zero|punch|reserve|truncate)'

# What changes a file by its descriptor, or may: for storage-file.c.
syscalls='p?write(64|v|v2|v64|v64v2)?|writev|fallocate(64)?'
syscalls+='|posix_fallocate(64)?|f?truncate(64)?|copy_file_range|sendfile(64)?'
syscalls+='|splice|vmsplice|tee|mmap(64)?|ioctl|open(64|at|at64|at2)?'
syscalls+='|creat(64)?|f(re)?open(64)?|fdopen|syscall|io_(submit|uring_.*)'
syscalls+='|aio_.*|lio_listio(64)?|dprintf|vdprintf'

# What changes an export, or sends anything at all: for its storage.
wire='nbd_(aio_)?(pwrite|zero|trim)|nbdconn_(write|zero)'
wire+='|send|sendto|sendm?msg|socket|connect'

# libnbd is reached through a table, and anything through dlsym.
table='libnbd|libnbd_load|dlopen|dlsym|dlvsym|dlmopen'
changers='libnbd[[:space:]]*(\.|->)[[:space:]]*(aio_)?(pwrite|zero|trim)'

# offenders SOURCES OBJECTS: everything that goes round the guard.
# The event log and the statistics write files of their own, and the event
# socket is no store; the tools print; the tracker's syscall is membarrier;
# who holds a lock is read in /proc; what is opened anew to sync a file is
# for storage-file.c; where a file's blocks are is asked of an ioctl.
offenders ()
{
  includers "$1" 'storage-write\.h' 'lib/image/guard\.c|lib/storage/.*'
  includers "$1" 'storage-impl\.h' 'lib/storage/.*'
  needs "$2" >"$workdir/needs"
  grep -E "^$door " "$workdir/needs" |
    grep -vE ' lib/(image/guard|storage/storage-create)$' || true
  grep -E "^_*($syscalls)(_chk|_2)? " "$workdir/needs" |
    grep -vE ' (lib/storage/storage-file|plugin/(events|stats)|tools/.*)$' |
    grep -vx 'syscall lib/overlap/overlap-window' |
    grep -vxE 'fopen(64)? lib/storage/storage-holders' |
    grep -vxE '_*open(64)?(_2)? lib/storage/storage-syncers' |
    grep -vx 'ioctl lib/storage/storage-places' || true
  grep -E "^($wire) " "$workdir/needs" |
    grep -vE ' (lib/storage/storage-nbd(-requests)?|plugin/event-socket)$' ||
    true
  grep -E "^($table) " "$workdir/needs" |
    grep -vE '^libnbd(_load)? lib/storage/storage-nbd-(connect|connection)$' |
    grep -vx 'libnbd lib/storage/storage-nbd-requests' |
    grep -vxE 'dl(open|sym) lib/storage/storage-nbd-library' || true
  ( cd "$1"
    grep -rlE "$changers" --include='*.[ch]' lib plugin tools || true ) |
    sed 's,^\./,,' | grep -vx 'lib/storage/storage-nbd-requests\.c' || true
}

# The real thing.  First of all, does this test see anything?
found=$(offenders "$top_srcdir" "$top_builddir")
grep -Eq "^$door lib/image/guard\$" "$workdir/needs" ||
  fail "the guard does not write: this test looks wrongly"
grep -Eq "^pwritev(2|64v2) lib/storage/storage-file\$" "$workdir/needs" ||
  fail "storage-file.c does not write: this test looks wrongly"
# The test of faults lets each of its calls fall short, by its name.
while read -r call _; do
  grep -q "(WRAP)$call " "$top_srcdir/tests/crash/Makefile.am" ||
    fail "$call of storage-file.c never falls short in tests/crash/test-faults"
done < <(grep -E '^p(read|write)[a-z0-9]* lib/storage/storage-file$' \
             "$workdir/needs")
grep -qE "$changers" "$top_srcdir/lib/storage/storage-nbd-requests.c" ||
  fail "the NBD storage does not write: this test looks wrongly"
grep -q "^libnbd lib/storage/storage-nbd-requests\$" "$workdir/needs" ||
  fail "the NBD storage does not call libnbd: this test looks wrongly"
for room in $rooms; do
  [ "$room" = tools ] || grep -q " $room/" "$workdir/needs" ||
    fail "no objects of $room: this test looks wrongly"
done
if [ "$found" ]; then
  echo "$found" >&2
  fail "the image file can be changed past the guard"
fi

# Offenders.
plant=$workdir/plant
for room in $rooms; do mkdir -p "$plant/$room/.libs"; done

# planted FILE PATTERN: compile standard input as FILE (lib/image/x.c);
# what the test finds (lines ended by ";") must match PATTERN.
planted ()
{
  local object got

  object=$(dirname "$1")/.libs/$(basename "$1" .c).o
  cat >"$plant/$1"
  $cc -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -O2 -w -I"$top_srcdir/lib/storage" \
      -c "$plant/$1" -o "$plant/$object" ||
    fail "cannot compile $1"
  got=$(offenders "$plant" "$plant" | tr '\n' ';')
  rm "${plant:?}/$1" "$plant/$object"
  [[ $got =~ ^($2)$ ]] || fail "planted $1: found '$got', not '$2'"
}

planted lib/image/guard.c '' <<'END'
#include "storage-write.h"
int f (struct storage *s) { return storage_zero (s, 0, 1); }
END
planted lib/storage/storage-file.c '' <<'END'
#include "storage-impl.h"
#include "storage-write.h"
#include <unistd.h>
int f (int fd) { return (int) pwrite (fd, "", 1, 0) + ftruncate (fd, 0); }
END
planted lib/image/innocent.c '' <<'END'
#include "storage.h"
/* #include "storage-write.h" would be wrong here. */
int f (struct storage *s) { return storage_sync (s); }
END
planted lib/image/evil.c 'lib/image/evil\.c;' <<'END'
#  include  "../storage/storage-write.h"
END
planted plugin/evil.c 'plugin/evil\.c;' <<'END'
#include <storage-impl.h>
END
planted lib/image/evil.c 'storage_punch lib/image/evil;' <<'END'
struct storage;
int storage_punch (struct storage *, unsigned long, unsigned long);
int f (struct storage *s) { return storage_punch (s, 0, 1); }
END
planted lib/storage/libqcow2storage_la-evil.c \
        'storage_truncate lib/storage/evil;' <<'END'
struct storage;
int storage_truncate (struct storage *, unsigned long);
int f (struct storage *s) { return storage_truncate (s, 0); }
END
planted lib/storage/storage-lock.c \
        'pwritev(2|64v2) lib/storage/storage-lock;' <<'END'
#include <sys/uio.h>
int f (int fd) { return (int) pwritev2 (fd, 0, 0, 0, 0); }
END
planted lib/image/evil.c 'nbd_aio_zero lib/image/evil;' <<'END'
long nbd_aio_zero (void *);
long f (void *h) { return nbd_aio_zero (h); }
END
planted lib/image/evil.c 'dlsym lib/image/evil;' <<'END'
#include <dlfcn.h>
void *f (void *library) { return dlsym (library, "nbd_pwrite"); }
END
planted lib/image/evil.c 'libnbd lib/image/evil;' <<'END'
extern struct { long (*aio_flush) (void *); } libnbd;
long f (void *h) { return libnbd.aio_flush (h); }
END
planted lib/storage/storage-nbd-connect.c \
        'lib/storage/storage-nbd-connect\.c;' <<'END'
extern struct { long (*aio_zero) (void *); } libnbd;
long f (void *h) { return libnbd.aio_zero (h); }
END
for call in 'pwrite (0, "", 1, 0)' 'ftruncate (0, 0)' \
            'fallocate (0, 0, 0, 1)' 'open ("x", 2)' 'openat (0, "x", 2)' \
            'syscall (18)' 'write (0, "", 1)' 'fopen ("x", "w")'; do
  name=${call%% *}
  planted lib/overlap/evil.c "$name(64)? lib/overlap/evil;" <<END
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
void f (void) { $call; }
END
done
