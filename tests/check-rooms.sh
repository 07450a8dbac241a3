#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The rooms of the library build on each other in one direction, and
# none of them knows nbdkit; libnbd is known to the files of the
# connection, which load it (storage-nbd-library.h).  format and overlap link with nothing
# but base, touch no file and take no lock that is not their own.

# shellcheck source=functions.sh
source "$top_srcdir/tests/functions.sh"

requires nm --version

cd "$top_srcdir"

if grep -rnE '#[[:space:]]*include.*(nbdkit|libnbd)' --include='*.[ch]' \
        lib | grep -v '^lib/storage/storage-nbd-library\.h:.*<libnbd.h>'
then
  fail "a file of the library includes nbdkit's or libnbd's header"
fi
if [ -e "$top_builddir/lib/image/.libs/libqcow2image.a" ] &&
     nm -Au "$top_builddir"/lib/*/.libs/*.o | grep -E ' U (nbd_|nbdkit)'; then
  fail "the library calls nbdkit, or libnbd without loading it"
fi

# symbols ROOM nm-option: sorted symbols of its archive.
symbols ()
{
  nm "$2" "$top_builddir/lib/$1/.libs/libqcow2$1.a" |
    awk 'NF >= 2 { print $NF }' | sort -u
}

declare -A sees=(
  [base]="base"
  [format]="base format"
  [crypt]="base format crypt"
  [storage]="base storage"
  [overlap]="base overlap"
  [image]="base format crypt storage overlap image"
)
for room in base format crypt storage overlap image; do
  symbols "$room" --defined-only >"$workdir/$room.has"
  [ -s "$workdir/$room.has" ] || fail "lib/$room defines nothing"
done
for room in "${!sees[@]}"; do
  symbols "$room" --undefined-only >"$workdir/$room.needs"
  for other in base format crypt storage overlap image; do
    case " ${sees[$room]} " in *" $other "*) continue ;; esac
    common=$(comm -12 "$workdir/$room.needs" "$workdir/$other.has")
    [ -z "$common" ] || fail "lib/$room needs $common of lib/$other"
  done
done

io='open|openat|read|pread|preadv|write|pwrite|pwritev|fsync|fdatasync'
io+='|lseek|close|stat|fstat|fopen|fcntl|ioctl|mmap|socket|fallocate'
for room in format crypt overlap; do
  if grep -xE "_*($io)(64|v2)?(_chk)?" "$workdir/$room.needs"; then
    fail "lib/$room does input or output"
  fi
done
for room in format crypt; do
  if grep -x 'pthread_.*' "$workdir/$room.needs"; then
    fail "lib/$room takes locks"
  fi
done
