# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# For the tests that type what documents show.

# fake_qemu DIR: a program there by the name of QEMU's, that makes no more
# than the first second of a machine: it connects, says in machine.json what
# its disk is, and ends.
fake_qemu ()
{
  local qemu

  qemu=$(command -v qemu-system-x86_64)
  mkdir -p "$1"
  cat >"$1/qemu-system-x86_64" <<END
#!/usr/bin/env bash
printf '%s\n' '{"execute": "qmp_capabilities"}' '{"execute": "query-block"}' \
       '{"execute": "quit"}' |
  exec "$qemu" -S -display none -accel tcg -qmp stdio "\$@" >machine.json
END
  chmod +x "$1/qemu-system-x86_64"
}
