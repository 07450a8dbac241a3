#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The man page of qcow2-overlap, its --help, its source and its completion
# name the same subcommands and options; and what is wrong on its command
# line is said in one line.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"

pod=$top_srcdir/docs/qcow2-overlap.pod

# section NAME: that part of the man page.
section ()
{
  awk -v "name=$1" '/^=head1 / { on = ($0 == "=head1 " name) } on' "$pod"
}

# same WHAT FILE1 FILE2: two sorted lists are equal and not empty.
same ()
{
  if ! [ -s "$2" ] || ! [ -s "$3" ]; then fail "$1: nothing found"; fi
  diff -u "$2" "$3" || fail "$1: they differ"
}

qcow2-overlap --help >help
test "$(qcow2-overlap check --help)" = "$(<help)"
qcow2-overlap --version | grep -qx 'qcow2-overlap [0-9.]*'

# Options.
section OPTIONS | sed -nE 's/^=item B<(-[-a-zA-Z]+).*/\1/p' | sort -u >words.man
sed -nE '/^--/s/^(--[a-z-]+)(, (-[a-zA-Z]))?.*/\1 \3/p' help | tr -s " " "\n" |
  sort -u >words.help
same "options of man page and --help" words.man words.help
{
  sed -nE 's/^  \{ "([a-z-]+)", (no|required)_argument,.*/--\1/p' \
      "$top_srcdir/tools/qcow2-overlap.c"
  sed -nE 's/.*getopt_long \(argc, argv, "([a-zA-Z]+)".*/\1/p' \
      "$top_srcdir/tools/qcow2-overlap.c" | grep -o . | sed 's/^/-/'
} | sort >words.source
same "options of man page and source" words.man words.source

# The synopses, in the same words.
section SYNOPSIS | grep '^ ' | tr -s ' \n' ' ' | sed 's/ qcow2-o/\nqcow2-o/g' |
  sed 's/ *$//; /^$/d' | sort >words.man
grep -E '^(qcow2-overlap|  *(\[|IMAGE))' help | tr -s ' \n' ' ' |
  sed 's/ qcow2-o/\nqcow2-o/g' | sed 's/ *$//' | sort >words.help
same "synopses of man page and --help" words.man words.help

# Exit statuses, and what the source calls them.
section "EXIT STATUS" | sed -nE 's/^=item C<([0-9])>/\1/p' | sort >words.man
sed -nE 's/^  STATUS_[A-Z]+ = ([0-9]),.*/\1/p' "$top_srcdir/tools/tool.h" |
  sort >words.source
same "exit statuses of man page and source" words.man words.source

# JSON: every field is explained.
section JSON | grep -o 'I<[a-z-]*>' | sed 's/I<//; s/>//' | sort -u >words.man
qemu-img create -q -f qcow2 fields.qcow2 1M
qemu-img snapshot -c one fields.qcow2
{
  sed -nE 's/^  set \(all, "([a-z-]+)".*/\1/p' "$top_srcdir/tools/check.c"
  qcow2-overlap check --json fields.qcow2 | tr -d '\n'
  echo
  qcow2-overlap plan --json --limit 1 fields.qcow2 | tr -d '\n'
  echo
  qcow2-overlap map --json --limit 1 fields.qcow2 | tr -d '\n'
} | sed -E 's/"metadata": \{[^}]*\}/"metadata": 0/' |
  sed -E '/^\{/{ s/"([a-z-]+)":/\n\1\n/g }' | grep -xE '[a-z-]+' |
  sort -u >words.source
same "JSON fields of man page and source" words.man words.source

if type podchecker >/dev/null 2>&1; then
  podchecker -warnings -warnings "$pod"
fi

# Completion: the same options for each subcommand.
# shellcheck source=../../tools/qcow2-overlap.bash
source "$top_srcdir/tools/qcow2-overlap.bash"
# complete_words WORD...: what the last one may become.
complete_words ()
{
  COMP_WORDS=(qcow2-overlap "$@")
  # shellcheck disable=SC2034   # the function reads it
  COMP_CWORD=$#
  _qcow2_overlap
  printf '%s\n' "${COMPREPLY[@]}"
}
section SUBCOMMANDS | sed -n 's/^=head2 //p' | sort >words.man
complete_words '' | grep -v ^- | sort >offered
same "subcommands of man page and completion" words.man offered
while read -r command; do
  {
    section SYNOPSIS | grep '^ ' | tr -s ' \n' ' ' |
      sed 's/ qcow2-o/\nqcow2-o/g' | grep "overlap $command" |
      grep -oE -- '--[a-z-]+|-[qU]' |
      sed 's/^-q$/--quiet/; s/^-U$/--force-share/'
    printf '%s\n' --help --version
  } | sort >synopsis
  complete_words "$command" -- | sort >offered
  same "options of $command in man page and completion" synopsis offered
done <words.man
test "$(complete_words check --repair l)" = leaks

# Mistakes on the command line.
qemu-img create -q -f qcow2 disk.qcow2 1M
# refuses TEXT ARGUMENT...: exit 1 with one line that has TEXT.
refuses ()
{
  local text=$1 status=0

  shift
  qcow2-overlap "$@" >out 2>err || status=$?
  [ "$status" = 1 ] || fail "$*: exit $status"
  [ ! -s out ] || fail "$*: output $(<out)"
  [ "$(wc -l <err)" = 1 ] || fail "$*: it says $(<err)"
  grep -qF -- "$text" err || fail "$*: it says $(<err), not $text"
}
refuses 'a subcommand is missing'
refuses 'no such subcommand: draw' draw disk.qcow2
refuses 'the image is missing' check
refuses 'more than one image: other.qcow2' check disk.qcow2 other.qcow2
refuses "give 'leaks' or 'all'" check --repair some disk.qcow2
refuses 'not a size' plan --limit 64q disk.qcow2
refuses 'not a size' plan --limit -1 disk.qcow2
refuses 'not a size' plan --bitmap-size 99999999999999999999 disk.qcow2
refuses 'not a size' plan --bitmap-size 16777216T disk.qcow2
refuses 'no option --repair' plan --repair=all disk.qcow2
refuses 'no option --svg' check --svg out.svg disk.qcow2
refuses 'exclude each other' check -U --repair all disk.qcow2
refuses 'given once' map --limit 1 --limit 2 disk.qcow2
refuses 'unrecognized option' plan --colour disk.qcow2
refuses 'nowhere.qcow2: No such file' plan nowhere.qcow2
refuses '/nowhere/map.svg: No such file' map --svg /nowhere/map.svg disk.qcow2
refuses 'neither a regular file nor a block device' check .
if ! test -w /dev/full; then exit 0; fi
for command in plan check map; do
  if qcow2-overlap $command disk.qcow2 >/dev/full 2>err; then
    fail "$command does not notice a full disk"
  fi
  grep -q 'standard output: No space' err
done
refuses '/dev/full: writing it: No space' map -q --svg /dev/full disk.qcow2

# On a terminal there is a bar, elsewhere not.
if type script >/dev/null 2>&1; then
  script -qec "qcow2-overlap check disk.qcow2" /dev/null </dev/null >terminal
  grep -q '#.* %' terminal || fail "there is no bar"
  script -qec "qcow2-overlap check -q disk.qcow2" /dev/null </dev/null >terminal
  if grep -q '#' terminal; then fail "-q shows a bar"; fi
fi
qcow2-overlap check disk.qcow2 2>&1 | cat >piped
if grep -q '#' piped; then fail "there is a bar without a terminal"; fi
