#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The man page, --help and the table of parameters in the source name
# the same parameters; likewise events, exports, debug flags and the keys
# of --dump-plugin.  test-plugin-man-details.py compares values, defaults and
# examples.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"

pod=$top_srcdir/docs/nbdkit-qcow2-plugin.pod
source=$top_srcdir/plugin

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

# The parameters, overlap-check.TYPE spelled out.
section PARAMETERS |
  sed -nE 's/^=item \[?B<([a-z0-9.-]+)=.*/\1/p' | sort -u >keys.man

{
  sed -nE 's/^  \{ "([a-z0-9.-]+)", (config_)?set_.*/\1/p' "$source"/config*.c
  nbdkit qcow2 --dump-plugin | sed -n 's/^qcow2_overlap_types=//p' |
    tr ',' '\n' | sed 's/^/overlap-check./'
} | sort >keys.source
same "parameters of man page and source" keys.man keys.source

nbdkit qcow2 --help | sed -n '/\[file=\]/,$p' >help
{
  sed -nE 's/^\[?([a-z0-9.-]+)=.*/\1/p' help
  sed -n '/^overlap-check.<TYPE>/,/bitmap-data/p' help |
    sed 's/.*one type://' | tr ',' '\n' | tr -d ' ' |
    sed -n 's/^[a-z0-9-]\+$/overlap-check.&/p'
} | sort >keys.help
same "parameters of man page and --help" keys.man keys.help

# What happens without a parameter is said of each.
section PARAMETERS | awk '
  /^=item / { if (!group) { tell(); name = $2; said = 0 }; group = 1; next }
  /^=/ { tell(); name = ""; next }
  NF { group = 0 }
  /efault|is required/ { said = 1 }
  END { tell() }
  function tell() { if (name && !said) print name; name = "" }' >no-default
! [ -s no-default ] || fail "without a default: $(<no-default)"

# The words that a parameter takes: in --help and as items.
for key in check compress discard external-files lazy-refcounts locking overlap-check \
           overlap-limit; do
  sed -nE "s/^$key=([a-z|-]+).*/\\1/p" help | sed 's/|$//' | tr '|' '\n' |
    sort >words.help
  section PARAMETERS | sed -nE "s/^=item B<$key=([a-z-]+)>\$/\\1/p" |
    sort >words.man
  same "$key: words of man page and --help" words.man words.help
done

# The templates, against the source's: the man page builds each upon the
# one before it.
awk '/^#define OVERLAP_(CONSTANT|CACHED) /, /)$/' \
    "$top_srcdir/lib/overlap/overlap.h" |
  grep -o 'BIT (OVERLAP_[A-Z0-9_]*)' |
  sed 's/.*OVERLAP_//; s/)//' | tr 'A-Z_' 'a-z-' | sort >templates.source
section PARAMETERS |
  awk '/^C<(constant|cached)>:/ { on = 1 } !NF { on = 0 } on' |
  grep -o 'C<[a-z0-9-]*>' | tr -d 'C<>' |
  grep -vx 'constant\|cached' | sort >templates.man
same "types of the templates" templates.man templates.source

# Events.
section EVENTS | sed -nE 's/^=item C<([A-Z0-9_]+)>$/\1/p' | sort >events.man
nbdkit qcow2 --dump-plugin | sed -n 's/^qcow2_events=//p' | tr ',' '\n' |
  sort >events.dump
same "events of man page and --dump-plugin" events.man events.dump
cat "$top_srcdir/lib/base/event.c" "$source"/event*.c |
  grep -oE '"(QCOW2|BLOCK)_[A-Z_]+"' | tr -d '"' | sort -u >events.source
same "events of man page and source" events.man events.source

# Exports.
section EXPORTS | sed -nE 's/^=item C<([a-z-]+:)>[A-Z]+$/\1/p' | sort \
  >exports.man
sed -nE 's/^#define (BY_NAME|BY_ID|BITMAP) +"([a-z-]+:)"$/\2/p' \
    "$source/exports.c" | sort >exports.source
same "exports of man page and source" exports.man exports.source

# Debug flags.
section "DEBUG FLAGS" | grep -oE '^=item B<.*-D qcow2\.[a-z0-9]+' |
  sed 's/.*qcow2\.//' | sort >flags.man
sed -nE 's/.*int qcow2_debug_([a-z0-9]+).*/\1/p' "$source"/*.c |
  sort >flags.source
same "debug flags of man page and source" flags.man flags.source

# --dump-plugin.
section "DUMP PLUGIN OUTPUT" | sed -nE 's/^=item C<(qcow2_.*)>$/\1/p' |
  sed 's/=\.\.\.$//' | sort >dump.man
nbdkit qcow2 --dump-plugin | grep ^qcow2_ |
  sed -E '/^qcow2_(overlap_types|events)=/s/=.*//' | sort >dump.plugin
same "keys of --dump-plugin" dump.man dump.plugin

# The figures of stats=, and the alarms' names.
section STATISTICS | sed -nE 's/^=item C<([a-z0-9_]+)>$/\1/p' |
  sort >stats.man
qemu-img create -q -f qcow2 disk.qcow2 1M
nbdkit -U - qcow2 disk.qcow2 stats=stats.prom --run true
sed -nE 's/^# TYPE nbdkit_qcow2_([a-z0-9_]+) .*/\1/p' stats.prom |
  sort >stats.file
same "figures of man page and stats=" stats.man stats.file
section STATISTICS | sed -nE '/^ +expr:/s/nbdkit_qcow2_/\n&/gp' |
  sed -nE 's/^nbdkit_qcow2_([a-z0-9_]+).*/\1/p' | sort >stats.alarms
[ -s stats.alarms ] || fail "no alarms in the man page"
comm -23 stats.alarms stats.file | grep . && fail "alarms on what is not there"

# What the page says of the event log's limits.
bytes=$(sed -nE 's/^#define MAX_QUEUED_BYTES .*\(([0-9]+)\) << 10\)/\1/p' \
            "$source/events.c")
section PARAMETERS | tr '\n' ' ' | grep -q "Up to $bytes KiB of events"
seconds=$(sed -nE 's/^#define DRAIN_SECONDS ([0-9]+)/\1/p' \
              "$source/events.c")
section PARAMETERS | tr '\n' ' ' | grep -q "up to $seconds seconds"

if type podchecker >/dev/null 2>&1; then
  podchecker -warnings -warnings "$pod"
fi
