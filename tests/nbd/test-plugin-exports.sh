#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# The empty name is the active disk; names that lead to nothing are refused,
# with an error that says what there is and cannot break the log's lines.

# shellcheck source=../functions.sh
source "$top_srcdir/tests/functions.sh"
requires nbdinfo --version
requires_python

qemu-img create -q -f qcow2 disk.qcow2 3M
start_nbdkit a qcow2 disk.qcow2
nbdinfo --list --json "$uri" >list
"$PYTHON_NBD" - <<'PY'
import json, nbd, os
exports = json.load(open("list"))["exports"]
assert [e["export-name"] for e in exports] == [""], exports
assert exports[0]["export-size"] == 3 << 20
assert exports[0]["description"], "no description"

sock = os.environ["uri"].split("socket=")[1]
for name in ("disk", "snapshot:nosuch", "a\nb\x1b[1m", "x" * 4000):
    h = nbd.NBD()
    h.set_export_name(name)
    try:
        h.connect_unix(sock)
        raise SystemExit("export %r was served" % name)
    except nbd.Error:
        pass
PY
grep -qF "export 'disk': there is no such export" "$nbdkit_log"
grep -qF "expected ''" "$nbdkit_log"
grep -qF "export 'a?b?[1m':" "$nbdkit_log"
if grep -v 'error: ' "$nbdkit_log" | grep -q .; then
  fail "a line of the log was broken"
fi
nbdinfo --size "$uri"
stop_nbdkit a
