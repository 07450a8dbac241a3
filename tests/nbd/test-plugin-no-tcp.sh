#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# No script of this project opens a TCP port: two that run at once would
# be in each other's way, and the image would be open to the machine's
# users.  nbdkit does that by default, before 1.36 even for --run.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires_python

# Every command line that starts nbdkit to serve says where: -U, or -s
# for standard input.  Lines are joined first.
find "$top_srcdir" \( -name .git -o -name 'tmp.*' \) -prune -o -type f \
     \( -name '*.sh' -o -path '*/.ci/*' -o -path '*/bench/*' \
        -o -name README.md \) -print >files
grep -q functions.sh files || fail "no scripts found"
"$PYTHON_NBD" - <<'PY'
import re, sys
bad = seen = 0
serves = re.compile(r"(^|[\s;&|(`\"'])nbdkit\s+(?!-)?[^#]*\bqcow2\b")
harmless = re.compile(r"--dump-plugin|--help|--version|--dump-config")
for name in open("files").read().split("\n"):
    if not name:
        continue
    text = open(name, errors="replace").read().replace("\\\n", " ")
    for line in text.split("\n"):
        if line.lstrip().startswith("#") or not serves.search(line):
            continue
        if "start_nbdkit" in line or harmless.search(line):
            continue
        if name.endswith(".md") and not line.startswith((" ", "\t", "nbdkit")):
            continue            # prose
        seen += 1
        if not re.search(r"\s(-U|--unix|-s|--single|--vsock)\b", line) \
           and "--run" in line:
            bad += 1
            print("%s: opens a TCP port: %s" % (name, line.strip()))
print("%d command lines" % seen)
sys.exit(1 if bad or not seen else 0)
PY

# And the servers of the tests indeed have no such socket.
tcp_sockets ()
{
  local fd link

  for fd in "/proc/$1/fd/"*; do
    link=$(readlink "$fd") || continue
    case $link in
      socket:*)
        link=${link#socket:[}
        awk -v "inode=${link%]}" '$10 == inode' /proc/net/tcp /proc/net/tcp6 ;;
    esac
  done
}

qemu-img create -q -f qcow2 disk.qcow2 1M
start_nbdkit a qcow2 disk.qcow2
if [ "$(tcp_sockets "${nbdkit_pids[a]}")" ]; then
  fail "start_nbdkit opens a TCP port"
fi
stop_nbdkit a

# The test above sees a TCP socket where there is one.
"$PYTHON_NBD" -c '
import socket, time
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
open("listening", "w").close()
time.sleep(600)' &
listener=$!
cleanup_fn kill "$listener"
wait_for "$QCOW2_TEST_PATIENCE" test -e listening
if ! [ "$(tcp_sockets "$listener")" ]; then
  fail "this test does not see TCP sockets"
fi
