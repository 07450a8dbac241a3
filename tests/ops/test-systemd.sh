#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The systemd units: systemd finds nothing wrong with them and calls their
# sandbox safe; a server that was started by its socket serves, and ends
# cleanly; and it makes no system call that the sandbox forbids.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires systemd-analyze --version
requires nbdinfo --version

units=$top_builddir/systemd
cp "$units/nbdkit-qcow2@.service" "$units/nbdkit-qcow2@.socket" .
systemd-analyze verify --man=no ./nbdkit-qcow2@disk.service \
                ./nbdkit-qcow2@disk.socket 2>verify.log ||
  fail "systemd-analyze verify: $(<verify.log)"
# Tenths of systemd's points, of which 10.0 is no sandbox at all.
systemd-analyze security --offline=true --threshold=10 \
                ./nbdkit-qcow2@.service >sandbox ||
  fail "the sandbox got worse: $(tail -n 1 sandbox)"
tail -n 1 sandbox

skip_if_valgrind "strace and valgrind do not mix"
if [ "$QCOW2_SANITIZER" ]; then
  skip "what remains counts the system calls of a plain build"
fi
requires systemd-socket-activate --version
requires strace -V
requires strace -f true

# The command line of the unit, with the plugin of this tree.
qemu-img create -q -f qcow2 disk.qcow2 64M
sed -n 's/^ExecStart=[^ ]*//p' nbdkit-qcow2@.service |
  sed "s,\${IMAGE},disk.qcow2,; s,[$][A-Z0-9_]*_OPTIONS,,g" >line
read -ra arguments <line
echo "nbdkit ${arguments[*]}"
systemd-socket-activate -l "$sockdir/sock" strace -D -f -qq -o calls \
    "$top_builddir/tests/bin/nbdkit" "${arguments[@]}" >server.log 2>&1 &
pid=$!
cleanup_fn eval "kill $pid 2>/dev/null"
wait_for "$QCOW2_TEST_PATIENCE" test -S "$sockdir/sock"
nbdsh -u "nbd+unix:///?socket=$sockdir/sock" -c '
h.pwrite(b"x" * 100000, 12345)
h.zero(1 << 20, 1 << 20)
h.trim(1 << 20, 4 << 20)
h.flush()
assert h.pread(100000, 12345) == b"x" * 100000
'
kill "$pid"
wait "$pid" || fail "the server ended with status $?"
# strace is not the parent (-D), and may end a little later.
wait_for "$QCOW2_TEST_PATIENCE" grep -q "^$pid *exit_group(" calls
check_image disk.qcow2

# What the filter lets pass.  Names that are not the kernel's own are
# taken out by systemd, too.
expand ()
{
  local set

  for set; do
    case "$set" in
      @*)
        # shellcheck disable=SC2046
        expand $(systemd-analyze syscall-filter "$set" |
                   sed -n 's/^ *\([@a-z0-9_-]*\)$/\1/p' | grep -vxF "$set") ;;
      *) echo "$set" ;;
    esac
  done
}
filters=$(sed -n 's/^SystemCallFilter=//p' nbdkit-qcow2@.service)
# shellcheck disable=SC2046
expand $(sed '/^~/d' <<<"$filters") | sort -u >allowed
# shellcheck disable=SC2046
expand $(sed -n 's/^~//p' <<<"$filters") | sort -u >denied
# The server's own calls begin with the last execve: before it are the
# shells of the tests.
awk '/ execve\(/ { n = NR } { line[NR] = $0 }
     END { for (i = n + 1; i <= NR; ++i) print line[i] }' calls |
  sed -nE 's/^[0-9]+ +([a-z0-9_]+)\(.*/\1/p' | sort -u >used
[ -s used ] || fail "strace saw nothing"
grep -Eq "^pwrite(64|v)" used || fail "strace saw no write"
comm -23 used <(comm -23 allowed denied) >forbidden
if [ -s forbidden ]; then
  fail "the sandbox forbids: $(tr '\n' ' ' <forbidden)"
fi
