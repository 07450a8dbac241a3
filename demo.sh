#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# From nothing to the main job: install what is missing, build, serve a
# qcow2 image over NBD, write to it, and show what happens when a write
# would land on the image's own metadata.
#
#   ./demo.sh             with an image made for the occasion
#   ./demo.sh IMAGE       with yours, which is only read

set -Eeuo pipefail

case "${1-}" in
  -h | --help) sed -n '4,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
image=
[ $# -eq 0 ] || image=$(realpath -- "$1")
cd "$(dirname "$0")"
source=$PWD
build=$source/build/demo

bold='' dim='' green='' red='' plain=''
if [ -t 1 ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

heading () { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
say () { fold -s -w 76 <<<"$*" | sed 's/ *$//'; }
good () { printf '%s%s%s\n' "$green" "$(say "$@")" "$plain"; }
die ()
{
  trap - ERR
  printf '%s%s%s\n' "$red" "demo.sh: $*" "$plain" >&2
  exit 1
}

# The script "run" of the build tree lets nbdkit find the plugin just
# built under its name, qcow2.
run () { "$build/run" "$@"; }
run_python () { run sh -c 'exec "$PYTHON_NBD" "$@"' python "$@"; }

# Show a command as one would type it, then run it.
show_only ()
{
  local word line=

  for word; do
    case "$word" in
      *[[:space:]\"\(\?\;]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s$%s%s\n' "$dim" "$line" "$plain"
}
show () { show_only "$@"; run "$@"; }

# Do something whose output matters only if it fails.
quietly ()
{
  "$@" >"$work/log" 2>&1 || { cat "$work/log"; die "this failed: $*"; }
}

work=$(mktemp -d /tmp/qcow2-demo.XXXXXX)
server=
cleanup ()
{
  set +e
  trap - ERR
  [ -z "$server" ] || kill "$server" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM
trap 'die "line $LINENO failed: $BASH_COMMAND"' ERR

# Start nbdkit with these arguments.  The socket is in a folder that only
# this user can enter; when this returns, it takes connections.
uri='nbd+unix:///?socket=sock'
serve ()
{
  local tries=0

  rm -f pid sock
  show_only nbdkit -U sock "$@"
  "$build/run" nbdkit -f -U "$work/sock" -P "$work/pid" "$@" &
  server=$!
  until [ -s pid ]; do
    kill -0 "$server" 2>/dev/null || { server=; die "nbdkit did not start"; }
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || die "nbdkit does not come up"
    sleep 0.05
  done
}
stop_server ()
{
  kill "$server"
  wait "$server" || die "nbdkit ended with an error"
  server=
}

# The contents of the snapshots, read by QEMU.
snapshot_sums ()
{
  local name

  for name in fresh before-demo; do
    qemu-img convert -O raw -l "snapshot.name=$name" disk.qcow2 snapshot.raw
    sha256sum snapshot.raw
  done
  rm snapshot.raw
}

build_here ()
(
  cd "$source"
  [ -x configure ] || ./autogen.sh
  mkdir -p "$build"
  cd "$build"
  [ -e config.status ] || "$source/configure" --disable-werror
  make -j2
)

heading "Setting up"
say "Installing what is missing and building in ${build#"$source/"}."
./install-deps demo >/dev/null || quietly ./install-deps -y demo
quietly build_here
cd "$work"

heading "The image"
if [ -z "$image" ]; then
  say "A disk of 256 MiB: in a GPT partition ext4 with two files, and free" \
      "space behind it.  Two internal snapshots are taken."
  mkdir files
  cp "$source/README.md" files/
  echo "Hello from a file inside the image." >files/hello.txt
  truncate -s 256M disk.raw
  quietly sfdisk disk.raw <<<$'label: gpt\nstart=1MiB, size=200MiB, type=linux'
  quietly mke2fs -q -t ext4 -d files -E offset=1048576 disk.raw 200M
  show qemu-img convert -O qcow2 disk.raw disk.qcow2
  show qemu-img snapshot -c fresh disk.qcow2
  quietly qemu-io -f qcow2 -c 'write -P 0x11 220M 64k' disk.qcow2
  show qemu-img snapshot -c before-demo disk.qcow2
  rm disk.raw
  snapshot_sums >sums.before
  offset=$((220 << 20))
else
  [ -r "$image" ] || die "$image cannot be read"
  format=$(qemu-img info -U --output=json "$image" | run_python -c \
             'import json, sys; print(json.load(sys.stdin)["format"])')
  [ "$format" = qcow2 ] || die "$image is of format $format, not qcow2"
  say "First your image as it is, read-only:"
  serve -r qcow2 "$image" external-files=any
  show nbdinfo --list "$uri"
  stop_server
  say "What is written from here on goes to a temporary overlay on top of" \
      "it: $image itself is not modified."
  show qemu-img create -q -f qcow2 -F qcow2 -b "$image" disk.qcow2
  size=$(qemu-img info --output=json disk.qcow2 | run_python -c \
           'import json, sys; print(json.load(sys.stdin)["virtual-size"])')
  [ "$size" -ge 1048576 ] || die "its disk is smaller than 1 MiB"
  offset=$((size / 2 / 65536 * 65536))
fi

heading "Serving it"
options=()
[ -z "$image" ] || options=(external-files=any)
serve qcow2 disk.qcow2 event-log=events.jsonl "${options[@]}"
show nbdinfo --list "$uri"

heading "Writing and reading back"
text="Written through NBD."
show nbdsh -u "$uri" \
     -c "h.pwrite(b\"$text\", $offset)" \
     -c "h.flush()" \
     -c "print(h.pread(${#text}, $offset))"
if [ -z "$image" ]; then
  echo
  say "The file system in the partition is whole:"
  show nbdcopy "$uri" copy.raw
  show e2fsck -fn 'copy.raw?offset=1048576' 2>&1 | grep -v '^e2fsck '
  show debugfs -R 'cat hello.txt' 'copy.raw?offset=1048576' 2>&1 |
    grep -v '^debugfs '
  rm copy.raw
fi

heading "What QEMU thinks of the image now"
stop_server
show qemu-img check disk.qcow2
good "Clean: no corruption, no leaked cluster."
if [ -z "$image" ]; then
  snapshot_sums >sums.after
  cmp sums.before sums.after || die "a snapshot changed"
  good "Both snapshots are as they were, to the byte."
fi

heading "Now damage"
say "In a copy, the L2 entry of one guest cluster is made to point at the" \
    "L2 table itself, as a bug or a bad disk might do it.  A guest that" \
    "writes to this cluster would overwrite the map of its own disk."
cp --sparse=always disk.qcow2 damaged.qcow2

cat >damage.py <<'END'
import sys
from qcow2parse import COPIED, Qcow2

image, offset = sys.argv[1], int(sys.argv[2])
with Qcow2(image) as q:
    table = q.l2_slot(offset) // q.cluster_size * q.cluster_size
    q.set_l2_entry(offset + q.cluster_size, table | COPIED)
    print("Guest offset %d now leads to host offset %d: an L2 table."
          % (offset + q.cluster_size, table))
END
cat >sums.py <<'END'
import hashlib
import sys
from qcow2parse import INCOMPAT_CORRUPT, Qcow2

with Qcow2(sys.argv[1]) as q:
    for kind, clusters in q.metadata().items():
        digest = hashlib.sha256()
        for n in clusters:
            data = bytearray(q.pread(q.cluster_size, n * q.cluster_size))
            if n == 0:
                data[79] &= ~INCOMPAT_CORRUPT
            digest.update(data)
        if clusters:
            print("%-15s %s" % (kind, digest.hexdigest()[:40]))
    print("%-15s %d" % ("corrupt bit", q.incompatible >> 1 & 1))
END
export PYTHONPATH=$source/tests/nbd
run_python damage.py damaged.qcow2 "$offset"
cluster=65536
victim=$((offset + cluster))
cp --sparse=always damaged.qcow2 unguarded.qcow2
say "The metadata before (sha256 of all clusters of each kind):"
run_python sums.py damaged.qcow2 | tee before

heading "The guest writes there"
serve qcow2 damaged.qcow2 event-log=events.jsonl "${options[@]}"
cat >write.py <<END
try:
    h.pwrite(b"\\xff" * 4096, $victim)
    print("The write succeeded.")
except nbd.Error as error:
    print("The write failed: %s (%s)" % (error.errno, error.string))
END
show_only nbdsh -u "$uri" -c "h.pwrite(b\"\\xff\" * 4096, $victim)"
run nbdsh -u "$uri" -c "$(<write.py)" | tee answer
grep -q EIO answer || die "the write was not refused"
good "Refused.  The event in the log:"
show cat events.jsonl
grep -q BLOCK_IMAGE_CORRUPTED events.jsonl || die "there is no event"
say "Reading goes on:"
show nbdsh -u "$uri" -c "print(h.pread(${#text}, $offset))"
stop_server

echo
say "The metadata after:"
run_python sums.py damaged.qcow2 | tee after
[ "$(grep -v corrupt before)" = "$(grep -v corrupt after)" ] ||
  die "metadata changed"
good "Every byte of metadata is as it was; only the header now says that" \
     "the image is corrupt, so that nobody writes to it before it is mended."

heading "For comparison: the same write with the guard switched off"
serve qcow2 unguarded.qcow2 overlap-check=none "${options[@]}"
run nbdsh -u "$uri" -c "$(<write.py)"
stop_server
run_python sums.py unguarded.qcow2 >unguarded 2>&1 || true
if cmp -s before unguarded; then
  say "Nothing happened?"
else
  say "The L2 table is gone, and with it the map of this disk:"
  show_only qemu-img check unguarded.qcow2
  { qemu-img check unguarded.qcow2 2>&1 || true; } |
    grep -E 'found on the image|errors' | head -n 3
fi

heading "That was it"
say "To serve an image of yours:"
show_only nbdkit "$build/plugin/.libs/nbdkit-qcow2-plugin.so" disk.qcow2
say "The parameters are in README.md; ./test.sh runs the tests."
