#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The commands of nbdkit-qcow2-guide(1) do what it says.  A paragraph
# "=for test NAME" in its source marks the verbatim paragraph behind it;
# all of one name are run as one script, each name in a folder of its
# own, that the function setup_NAME furnishes and check_NAME inspects.
#
#   test-guide.sh [NAME...]

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
# shellcheck source=ops-functions.sh
source "$top_srcdir/tests/ops/ops-functions.sh"
requires nbdinfo --version
requires nbdcopy --version
requires qemu-nbd --version
requires qemu-io --version
requires certtool --version
requires psktool --version
requires virt-xml-validate --version
requires qemu-system-x86_64 --version
requires_python

guide=$top_srcdir/docs/nbdkit-qcow2-guide.pod
examples=$top_srcdir/examples

# commands NAME: the script.
commands ()
{
  awk -v name="$1" '
    /^=for test / { on = ($3 == name); next }
    on && /^ / { sub (/^ /, ""); print; begun = 1; next }
    on && begun { on = 0; begun = 0; print "" }' "$guide"
}

fake_qemu bin
# tail --pid looks once a second.
tail=$(command -v tail)
cat >bin/tail <<END
#!/bin/sh
exec $tail -s 0.05 "\$@"
END
chmod +x bin/*
PATH=$workdir/bin:$examples:$PATH

# The servers that a script left behind.
stop_servers ()
{
  local pid

  for pid in "$workdir"/*/*.pid; do
    if [ -s "$pid" ]; then
      kill "$(<"$pid")" 2>/dev/null &&
        wait_for "$QCOW2_TEST_PATIENCE" is_gone "$(<"$pid")"
    fi
  done
  return 0
}
cleanup_fn stop_servers

new_disk () { qemu-img create -q -f qcow2 disk.qcow2 64M; }
serve_disk () { nbdkit -U disk.sock -P disk.pid qcow2 disk.qcow2; }
disk_uri='nbd+unix:///?socket=disk.sock'

check_first ()
{
  grep -q "b'hello'" output || fail "the text was not read back"
  grep -q 'export-size: 21474836480' output || fail "nbdinfo"
  cmp -n $((1 << 30)) old-disk.raw copy.raw || fail "the copies differ"
}

# The one with reconnect-delay sees the server die and come back.
setup_qemu ()
{
  new_disk
  serve_disk
  cat >meanwhile <<'END'
#!/bin/sh -ex
nbdinfo --size 'nbd+unix:///?socket=disk.sock'
kill -KILL $(cat disk.pid)
while kill -0 $(cat disk.pid); do sleep 0.1; done
rm disk.sock
nbdkit -U disk.sock -P disk.pid qcow2 disk.qcow2
END
  chmod +x meanwhile
}
setup_qemu_drive () { new_disk; serve_disk; }
check_qemu ()
{
  grep -q 'rm disk.sock' meanwhile.log || fail "the server was not restarted"
  used_disk 67108864
}
check_qemu_drive () { used_disk 67108864; }

setup_psk () { new_disk; }
setup_certificates () { new_disk; }
check_certificates ()
{
  grep -q 'protocol: newstyle-fixed with TLS' output ||
    fail "the connection is not encrypted"
}
check_psk () { check_certificates; }

setup_golden ()
{
  qemu-img create -q -f qcow2 golden.qcow2 1G
  qemu-io -f qcow2 -c 'write -P 7 0 1M' golden.qcow2 >/dev/null
  sha256sum golden.qcow2 >golden.sum
}
check_golden ()
{
  nbdsh -u 'nbd+unix:///?socket=web.sock' -c '
h.pwrite(b"web" * 1000, 4096)
h.flush()
assert h.pread(4096, 0) == b"\7" * 4096
assert h.get_size() == 20 << 30'
  nbdsh -u 'nbd+unix:///?socket=mail.sock' -c '
assert h.pread(1 << 20, 0) == b"\7" * (1 << 20)'
  sha256sum --status -c golden.sum || fail "the golden image changed"
}

setup_backup ()
{
  new_disk
  qemu-io -f qcow2 -c 'write -P 5 0 4M' disk.qcow2 >/dev/null
}
check_backup ()
{
  [ "$(grep -c data output)" -ge 1 ] || fail "the bitmap is not shown"
  qemu-io -f raw -r -c 'read -P 5 0 4M' before.raw >/dev/null
  stop_servers
  qemu-img compare -q -f qcow2 -F raw disk.qcow2 disk.raw ||
    fail "what was restored differs"
  [ "$(du -k backup/0001.qcow2 | cut -f 1)" -lt 1000 ] ||
    fail "the second backup has more than what changed"
}

setup_watching () { new_disk; }
check_watching ()
{
  [ -S events.sock ] || fail "there is no event socket"
  grep -q 'duration_seconds_count{.*request="write"} 1' output ||
    fail "the write was not counted"
  grep -q 'tracker_memory_limit_bytes{.*} 1048576' output ||
    fail "the limit is not shown"
}

# Two addresses of the guest lead to the same cluster, and one to an L2
# table.
setup_recovery ()
{
  new_disk
  qemu-io -f qcow2 -c 'write -P 1 0 64k' -c 'write -P 2 64k 64k' \
          -c 'write -P 3 128k 64k' disk.qcow2 >/dev/null
  PYTHONPATH=$top_srcdir/tests/nbd "$PYTHON_NBD" -c '
from qcow2parse import COPIED, Qcow2
with Qcow2("disk.qcow2") as q:
    table = q.l2_slot(0) // q.cluster_size * q.cluster_size
    q.set_l2_entry(128 << 10, table | COPIED)'
  serve_disk
  nbdsh -u "$disk_uri" -c '
try:
    h.pwrite(b"x" * 512, 128 << 10)
except nbd.Error as e:
    assert e.errno == "EIO"
else:
    raise Exception("the write was not refused")'
}
check_recovery ()
{
  qemu-io -f raw -r -c 'read -P 1 0 64k' -c 'read -P 2 64k 64k' \
          rescued.raw >/dev/null
  grep -q 'guest data .* is also active L2 table' output ||
    fail "check=report did not tell what is wrong"
  # Not once more "give check=all".
  grep -q 'errors are left that cannot be repaired in place' output ||
    fail "check=all did not tell what to do"
  nbdsh -u 'nbd+unix:///?socket=new.sock' -c '
assert h.pread(65536, 0) == b"\1" * 65536
h.pwrite(b"x" * 512, 128 << 10)
h.flush()'
}

setup_limit ()
{
  qemu-img create -q -f qcow2 disk.qcow2 20G
  qemu-io -f qcow2 -c 'write -q 0 1M' -c 'write -q 9G 2M' disk.qcow2
  qemu-img snapshot -c one disk.qcow2
  qemu-io -f qcow2 -c 'write -q 9G 64k' disk.qcow2
}
check_limit ()
{
  local parameter

  # The server is given what is recommended.
  sed -n '/^Recommended/,/limit=/p' output | grep -m 2 '^  ' >recommended
  [ "$(wc -l <recommended)" = 2 ] || fail "plan recommends nothing"
  while read -r parameter; do
    grep -qF " $parameter " script ||
      fail "the guide does not give $parameter, which is recommended"
  done <recommended
  # One event, of the second server, whose range is the plan's.
  "$PYTHON_NBD" - "$guide" <<'PY'
import json, re, subprocess, sys
events = [json.loads(line) for line in open("events.json")]
assert len(events) == 1, events
event, data = events[0], events[0]["data"]
assert event["event"] == "QCOW2_OVERLAP_CHECK_MEMORY_LIMIT_REACHED", event
plan = json.loads(subprocess.check_output(
    ["qcow2-overlap", "plan", "--json", "--limit", "1k", "disk.qcow2"]))
outside, = plan["limits"][0]["now"]["outside"]
assert outside == {k: data[k] for k in ("start", "length")}, (outside, data)
# The guide shows this very event, but for the time and the bytes used.
guide = " ".join(open(sys.argv[1]).read().split())
shown = json.loads(re.search(r'\{"timestamp": [^}]*\}, "event": '
                             r'"QCOW2_OVERLAP.*?\}\}', guide).group())
for e in (shown, event):
    del e["timestamp"], e["data"]["used"]
assert shown == event, (shown, event)
PY
  grep -q 'url(#hatch)' disk.svg || fail "nothing is hatched"
}

setup_migration ()
{
  new_disk
  qemu-io -f qcow2 -c 'write -P 9 1M 1M' disk.qcow2 >/dev/null
}
check_migration ()
{
  nbdsh -u "$disk_uri" -c 'assert h.pread(4096, 1 << 20) == b"\t" * 4096'
}

virt-xml-validate "$examples/libvirt-domain.xml" domain ||
  fail "libvirt would not take the example"

if [ $# -eq 0 ]; then
  # shellcheck disable=SC2046
  set -- $(sed -n 's/^=for test //p' "$guide" | uniq)
fi
for name; do
  echo "== $name"
  function=${name//-/_}
  mkdir "$workdir/$name"
  cd "$workdir/$name"
  commands "$name" >script
  [ -s script ] || fail "the guide has no commands called $name"
  if declare -F "setup_$function" >/dev/null; then "setup_$function"; fi
  timeout "$QCOW2_TEST_PATIENCE" bash -e script >output 2>&1 ||
    { cat output; fail "$name: the guide's commands failed"; }
  if declare -F "check_$function" >/dev/null; then "check_$function"; fi
  stop_servers
  cd "$workdir"
  for image in "$name"/*.qcow2; do
    case "$image" in
      recovery/disk.qcow2 | recovery/evidence.qcow2) ;;
      *) check_image "$image" ;;
    esac
  done
done
