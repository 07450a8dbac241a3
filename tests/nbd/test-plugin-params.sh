#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Every parameter takes the values of the man page, and answers a bad one
# with one line that names the parameter, the value and what is allowed,
# before anything is served.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"

qemu-img create -q -f qcow2 disk.qcow2 1M
before=$(sha256sum <disk.qcow2)
mkdir dir

# serve PARAMETER...: nbdkit starts and ends.  It is told to serve a
# client on its standard input, which has nothing to say.
serve ()
{
  nbdkit -f -s qcow2 "$@" </dev/null >out 2>err
}

# good PARAMETER...: accepted, without a word.
good ()
{
  serve disk.qcow2 "$@" || { cat err; fail "refused: $*"; }
  # That the client left in the middle of its greeting is no news.
  if grep -v 'client closed input socket\|nbd_internal\|negotiation' err; then
    fail "messages with $*"
  fi
}

# refused WORDS PARAMETER...: one line of error, with all of the words.
refused ()
{
  local words=$1 word

  shift
  if serve "$@"; then fail "accepted: $*"; fi
  if [ "$(wc -l <err)" -ne 1 ]; then
    cat err
    fail "not one line: $*"
  fi
  for word in $words; do
    grep -qF -- "$word" err || { cat err; fail "$*: the error lacks $word"; }
  done
}

# bad KEY VALUE WORDS
bad ()
{
  refused "$1=$2 expected $3" disk.qcow2 "$1=$2"
}

# Servers take time to start under valgrind, so that values of different
# parameters share one.
good
good overlap-check=none overlap-limit=unprotected discard=unmap \
     lazy-refcounts=off locking=auto commit-interval=0 \
     l2-cache-size=65536 refcount-cache-size=64K \
     compress=off compressed-cache-size=0 \
     overlap-structures.bitmap-size=128s external-files=none
good overlap-check=constant overlap-limit=verify discard=ignore \
     lazy-refcounts=on locking=on commit-interval=1 check=all \
     l2-cache-size=64k refcount-cache-size=1M external-files=same-dir \
     compress=image compressed-cache-size=1G \
     overlap-structures.total-size-limit=unlimited
good overlap-check=cached overlap-limit=refuse locking=off compress=deflate \
     commit-interval=2147483647 l2-cache-size=0 refcount-cache-size=100000b \
     overlap-structures.bitmap-size=0 external-files=any \
     overlap-structures.total-size-limit=64k
good overlap-check=all overlap-check.template=none external-files=dir
good overlap-check.template=constant external-files=same-dir \
     "external-files=$PWD/dir" overlap-structures.bitmap-size=1g \
     overlap-structures.total-size-limit=1E
good overlap-check.template=cached event-log=events.json
good overlap-check.template=all

types="main-header active-l1 active-l2 refcount-block refcount-table"
types+=" snapshot-table inactive-l1 inactive-l2 bitmap-directory"
types+=" crypto-header bitmap-table bitmap-data"
# shellcheck disable=SC2046,SC2086
good $(printf 'overlap-check.%s=on ' $types)
# shellcheck disable=SC2046,SC2086
good $(printf 'overlap-check.%s=off ' $types)
bad overlap-check.active-l2 maybe "on or off"
nbdkit qcow2 --dump-plugin | sed -n 's/^qcow2_overlap_types=//p' |
  tr ',' ' ' >dumped
test "$types" = "$(cat dumped)"
bad overlap-check some "none constant cached all"
bad overlap-check.template "" "none constant cached all"
bad overlap-check.l2 on "template $types"
bad overlap-check. on "template main-header"

bad overlap-limit drop "unprotected verify refuse"
bad discard on "unmap ignore"
bad lazy-refcounts yes "on off image"
bad compress zlib "off deflate zstd image"
refused "compress=zstd one compression type deflate compress=image" \
        disk.qcow2 compress=zstd
qemu-img create -q -f qcow2 -o data_file=data.raw with-data.qcow2 1M
refused "compress external data file compress=off" \
        with-data.qcow2 compress=image
bad check yes "off report leaks all"
bad locking maybe "auto on off"

for v in "" -1 +1 " 1" 1x 1kk 0x10 1.5M 8E 18446744073709551616 \
         99999999999999999999 unlimited; do
  bad l2-cache-size "$v" size
done
bad refcount-cache-size 1x size
bad compressed-cache-size unlimited size
bad overlap-structures.bitmap-size unlimited size
key=overlap-structures.total-size-limit
for v in 1x Unlimited; do bad $key "$v" "size unlimited"; done
for v in "" -1 5s 2147483648; do
  bad commit-interval "$v" "seconds 2147483647"
  bad reconnect "$v" "seconds 2147483647"
  bad timeout "$v" "seconds 2147483647"
done

bad external-files nosuchdir "none same-dir any directory"
bad external-files disk.qcow2 "none same-dir any directory"
bad external-files "" "none same-dir any directory"
bad external-files nbd:localhost:10809 "file URI"
good external-files=nbd://localhost/ external-files=nbds://localhost/a
refused "external-files none" disk.qcow2 external-files=none \
        external-files=any

bad event-log "" "file fd:N"
bad event-log fd: "descriptor"
bad event-log fd:x "descriptor"
bad event-log fd:-1 "descriptor"
bad event-log fd:1 "client another"       # -s: it is the NBD stream
bad event-log fd:987 "open for writing"
bad event-log disk.qcow2 "image another file"
refused "event-log=nosuchdir/x open" disk.qcow2 event-log=nosuchdir/x
mkfifo fifo
bad event-log fifo "reader"

refused "data-file= has no external data file" disk.qcow2 data-file=x
bad data-file "" "file block device URI"
bad data-file nbd:unix:x "file block device URI"
refused "create.data-file-raw expected create=SIZE" new.qcow2 \
        create.data-file-raw=on
bad backing-file "" file
bad backing-file nbd:unix:x "file block device URI"

refused "file missing expected"
refused "file= expected" file=
refused "file=nbd:localhost:10809 expected file block device URI" \
        file=nbd:localhost:10809
refused "nbd+unix:///?socket=nosuch connecting" \
        'file=nbd+unix:///?socket=nosuch'
refused "file=other.qcow2 disk.qcow2 already" disk.qcow2 file=other.qcow2
serve file=disk.qcow2 || fail "file= is not understood"
refused "nosuch.qcow2 No such file" nosuch.qcow2
refused "dir" dir

bad speed fast "unknown parameter --help"
refused "over=1 unknown" disk.qcow2 over=1

# A newline or an escape sequence in a value makes neither a second line
# nor reaches the terminal.
refused "discard=a?b?" disk.qcow2 $'discard=a\nb\e[1m'
# A long value does not push out what is allowed.
refused "unmap ignore" disk.qcow2 "discard=$(printf '%2000s' x)"

test "$before" = "$(sha256sum <disk.qcow2)"
