#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The guard is the only door through which an image file changes: no
# other part of the library, the plugin or the tools can reach what
# changes the bytes of a storage.  Shown twice, from the includes of the
# sources and from what the compiled files ask the linker for.

# shellcheck source=functions.sh
source "$top_srcdir/tests/functions.sh"

requires nm --version

cd "$top_srcdir"
bad=0

# only_in HEADER PATTERN: HEADER is included by files that match PATTERN
# alone, and by one of them at least.
only_in ()
{
  local file found=0

  while read -r file; do
    if [[ $file =~ ^($2)$ ]]; then
      found=1
    else
      echo "$file includes $1"
      bad=1
    fi
  done < <(grep -rlE "^[[:space:]]*#[[:space:]]*include[[:space:]]*[\"<]$1" \
                --include='*.[ch]' lib plugin tools)
  [ "$found" = 1 ] || fail "nobody includes $1: this test looks wrongly"
}

only_in 'storage-write\.h' 'lib/image/guard\.c|lib/storage/.*'
only_in 'storage-impl\.h' 'lib/storage/.*'

# What the objects of a room need from elsewhere, as "SYMBOL FILE".
needs ()
{
  local object

  for object in "$top_builddir/$1"/.libs/*.o "$top_builddir/$1"/*.o; do
    [ -e "$object" ] || continue
    nm -u "$object" | awk -v o="$1/$(basename "$object" .o)" \
                          'NF == 2 { print $2, o }'
  done
}

rooms="lib/base lib/format lib/overlap lib/image plugin tools"
for room in $rooms; do needs "$room"; done >"$workdir/needs"

door='storage_(write|zero|punch|reserve|truncate)'
grep -Eq "^$door lib/image/guard\$" "$workdir/needs" ||
  fail "the guard does not write: this test looks wrongly"
if grep -E "^$door " "$workdir/needs" | grep -v ' lib/image/guard$'; then
  bad=1
fi

# Nor is there a way round the storage: whoever would change a file in
# another way needs one of these.  The event log writes to its own file.
syscalls='p?write(64|v|v2|v64|v64v2)?|writev|fallocate(64)?'
syscalls+='|posix_fallocate(64)?|f?truncate(64)?|copy_file_range|sendfile'
syscalls+='|splice|tee|mmap(64)?|ioctl|open(64|at|at64)?|creat(64)?'
syscalls+='|f(re)?open(64)?|fdopen|syscall|io_(submit|uring_.*)|aio_.*'
if grep -E "^_*($syscalls)(_chk|_2)? " "$workdir/needs" |
     grep -vE ' plugin/(libqcow2plugin_la-)?events$| tools/'; then
  bad=1
fi

[ "$bad" = 0 ] || fail "the image file can be changed past the guard"
