#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Backups of a disk that nbdkit-qcow2-plugin serves: the first is all of
# it, the others are what a dirty bitmap says has changed.
#
#   incremental-backup.sh full URI FOLDER
#   incremental-backup.sh incremental BITMAP-URI FOLDER [URI]
#   incremental-backup.sh restore FOLDER DISK.raw [NUMBER]
#   incremental-backup.sh verify FOLDER URI
#
# FOLDER then holds 0000.qcow2, which is whole, 0001.qcow2 with what has
# changed since, and so on, each on top of the one before.
#
# BITMAP-URI is an export bitmap:NAME of the server; it must have noted
# all writes since the backup before began.  The contents come from the
# same export or from URI: the export snapshot:NAME of a snapshot that was
# made when the bitmap was disabled, if the disk is in use meanwhile.
#
# Nothing is needed but nbdkit with this plugin, and libnbd's nbdinfo,
# nbdcopy and nbdsh.  See "INCREMENTAL BACKUPS" in nbdkit-qcow2-plugin(1)
# for what to do with the bitmaps before and after.

set -euo pipefail

usage ()
{
  sed -n '/^#   incremental-backup/s/^#   /  /p' "$0" >&2
  exit 2
}

fail ()
{
  echo "$0: $*" >&2
  exit 1
}

# The number of the last backup in $folder; fails if there is none.
last_number ()
{
  local file number=

  for file in "$folder"/[0-9][0-9][0-9][0-9].qcow2; do
    [ ! -e "$file" ] || number=$(basename "$file" .qcow2)
  done
  [ "$number" ] || fail "$folder: there is no full backup"
  echo "$number"
}

# Run a command on $uri, a disk of SIZE bytes in the file NAME, with more
# parameters for it.  A backup that is broken off leaves NAME.part only.
make_backup ()
{
  local size=$1 name=$2 command=$3

  shift 3
  rm -f "$folder/$name.part"
  nbdkit -U - qcow2 "$folder/$name.part" "create=$size" "$@" \
         --run "$command"
  sync "$folder/$name.part"
  mv "$folder/$name.part" "$folder/$name"
  sync "$folder"
  echo "$folder/$name"
}

# From $data to $uri, what the lines of the file $map say is dirty.
# shellcheck disable=SC2016
copy_dirty='exec nbdsh -u "$uri" -c "
import os
most = 8 << 20                  # bytes of one request
source = nbd.NBD()
source.connect_uri(os.environ[\"data\"])
size = source.get_size()
for line in open(os.environ[\"map\"]):
    at, length, status = map(int, line.split()[:3])
    end = min(at + length, size)
    while status == 0 and at < end:
        n = min(most, end - at)
        block = source.pread(n, at)
        if block.count(0) == n:
            h.zero(n, at)
        else:
            h.pwrite(block, at)
        at += n
h.flush()
h.shutdown()
source.shutdown()
"'

# Is the disk $uri the same as $data, as far as both have bytes?
# shellcheck disable=SC2016
compare_disks='exec nbdsh -u "$uri" -c "
import os, sys
most = 8 << 20
other = nbd.NBD()
other.connect_uri(os.environ[\"data\"])
size = h.get_size()
if other.get_size() != size:
    sys.exit(\"the sizes differ\")
for at in range(0, size, most):
    n = min(most, size - at)
    if h.pread(n, at) != other.pread(n, at):
        sys.exit(\"they differ in the %d bytes from %d on\" % (n, at))
"'

if [ $# -lt 3 ] || [ $# -gt 4 ]; then
  usage
fi
command=$1
case $command in
  full)
    [ $# -eq 3 ] || usage
    export data=$2
    folder=$3
    mkdir -p "$folder"
    [ ! -e "$folder/0000.qcow2" ] || fail "$folder: is not empty"
    size=$(nbdinfo --size "$data")
    # shellcheck disable=SC2016
    make_backup "$size" 0000.qcow2 'exec nbdcopy --flush "$data" "$uri"'
    ;;

  incremental)
    bitmap=$2
    folder=$3
    export data=${4:-$bitmap}
    last=$(last_number)
    printf -v next %04d $((10#$last + 1))
    map=$(mktemp)
    trap 'rm -f "$map"' EXIT
    export map
    # "0  65536  0  data": where, how many bytes, and 0 if it is dirty.
    nbdinfo --map "$bitmap" >"$map" ||
      fail "$bitmap: no such bitmap can be used; make a full backup"
    size=$(nbdinfo --size "$data")
    make_backup "$size" "$next.qcow2" "$copy_dirty" \
                "create.backing-file=$last.qcow2" \
                create.backing-fmt=qcow2
    ;;

  restore)
    folder=$2
    raw=$3
    number=${4:-$(last_number)}
    printf -v number %04d "$((10#$number))"
    export raw
    # shellcheck disable=SC2016
    nbdkit -r -U - qcow2 "$folder/$number.qcow2" \
           --run 'nbdcopy --flush "$uri" "$raw"'
    ;;

  verify)
    [ $# -eq 3 ] || usage
    folder=$2
    export data=$3
    nbdkit -r -U - qcow2 "$folder/$(last_number).qcow2" \
           --run "$compare_disks" || fail "$folder is not the disk"
    ;;

  *)
    usage
    ;;
esac
