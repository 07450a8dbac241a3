# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# For the tests that type what documents show.

# fake_qemu DIR: a program there by the name of QEMU's, that makes no more
# than the first seconds of a machine: it connects, says in machine.json what
# its disk is, writes, flushes and reads as the machine's own disk does, and
# ends.  A program ./meanwhile is run before it reads.
fake_qemu ()
{
  local qemu

  qemu=$(command -v qemu-system-x86_64)
  mkdir -p "$1"
  cat >"$1/qemu-system-x86_64" <<'END'
#!/usr/bin/env bash
# The only device that the examples give the machine.
disk=/machine/peripheral-anon/device[0]/virtio-backend
io ()
{
  printf '{"execute": "human-monitor-command", "arguments":
{"command-line": "qemu-io -d %s \\"%s\\""}}\n' "$disk" "$1"
}
is_flushed () { [ "$(grep -c '^{"return"' machine.json)" -ge 4 ]; }
{
  printf '%s\n' '{"execute": "qmp_capabilities"}' '{"execute": "query-block"}'
  io 'write -P 7 1M 64k'
  io flush
  if [ -x ./meanwhile ]; then
    until is_flushed; do sleep 0.1; done
    ./meanwhile >meanwhile.log 2>&1
  fi
  io 'read -P 7 1M 64k'
  printf '{"execute": "quit"}\n'
} |
END
  cat >>"$1/qemu-system-x86_64" <<END
  $qemu -S -display none -accel tcg -qmp stdio "\$@" >machine.json
END
  chmod +x "$1/qemu-system-x86_64"
}

# used_disk SIZE: the machine found a disk of SIZE bytes and used it.
used_disk ()
{
  grep -q "\"virtual-size\": $1" machine.json ||
    fail "QEMU did not find the disk: $(<machine.json)"
  grep -q '"driver": "nbd"\|"drv": "nbd"\|nbd+unix' machine.json ||
    fail "not by NBD"
  if ! grep -q '^wrote 65536/65536' machine.json ||
     ! grep -q '^read 65536/65536' machine.json ||
     grep -q 'failed' machine.json; then
    fail "QEMU could not use the disk: $(<machine.json)"
  fi
}
