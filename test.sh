#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# From nothing to all tests run: install what is missing, build out of
# tree, run every test, then again the ones with which other tools see
# more.  The last line says how it went.
#
#   ./test.sh [FOLDER]          build in FOLDER (default: build)
#
# Each run is for what the others cannot find, and leaves out the rest:
#
#   all tests            everything that is promised
#   ASan and UBSan       bytes out of bounds, freed or leaked, overflows:
#                        the quick tests, every damaged image among them
#   TSan                 data races, locks in the wrong order: the tests in
#                        which threads meet
#   valgrind             bytes that nobody wrote: the unit tests, but for
#                        the long ones
#   clang                what another compiler warns of: only built
#   distcheck            files that the tarball lacks, a source tree that
#                        is read-only, install and uninstall: a few tests,
#                        to see that this build works

set -uo pipefail
cd "$(dirname "$0")" || exit 1
source=$PWD
build=${1:-$source/build}
case "$build" in /*) ;; *) build=$OLDPWD/$build ;; esac

passed=0 failed=0 skipped=0

finish ()
{
  echo
  echo "$passed passed, $failed failed, $skipped skipped"
  [ "$failed" -eq 0 ]
  exit
}

# What is not one of the tests but can fail all the same counts as one.
step ()
{
  local name=$1 start=$SECONDS

  shift
  if "$@" >"$build/step.log" 2>&1; then
    passed=$((passed + 1))
    echo "PASS: $name ($((SECONDS - start)) s)"
    return 0
  fi
  failed=$((failed + 1))
  echo "FAIL: $name ($((SECONDS - start)) s); its last lines:"
  tail -n 60 "$build/step.log"
  return 1
}

# The results that the harness left behind in a build tree, with the
# logs of what failed.
count_results ()
{
  local tree=$1 trs log result

  while read -r trs; do
    result=$(sed -n 's/^:global-test-result: //p' "$trs")
    log=${trs%.trs}.log
    case "$result" in
      PASS) passed=$((passed + 1)) ;;
      SKIP) skipped=$((skipped + 1)); tail -n 1 "$log" ;;
      *)
        failed=$((failed + 1))
        echo "---- $result: ${log#"$build/"}"
        tail -n 100 "$log"
        echo "----"
        ;;
    esac
  done < <(find "$tree" -name '*.trs' | LC_ALL=C sort)
}

# run_tests NAME DIRECTORY TARGET...: make -k TARGET... there, and count.
run_tests ()
{
  local name=$1 dir=$2 before=$failed start=$SECONDS status

  shift 2

  echo
  echo "== $name"
  find "$dir" -name '*.trs' -delete
  # More of them than processors: most wait for a disk or for a client.
  make -C "$dir" -k -j4 "$@" 2>&1 | grep --line-buffered -E '^(PASS|FAIL|SKIP|ERROR)'
  status=${PIPESTATUS[0]}
  count_results "$dir"
  # A test that could not even be built leaves no result.
  if [ "$status" -ne 0 ] && [ "$failed" -eq "$before" ]; then
    failed=$((failed + 1))
    make -C "$dir" "$@" 2>&1 | tail -n 40
    echo "FAIL: make $*"
  fi
  echo "($((SECONDS - start)) s)"
}

# configure_and_make DIRECTORY OPTION...: in a shell of its own, for cd.
# shellcheck disable=SC2317
configure_and_make ()
(
  dir=$1
  shift
  mkdir -p "$dir" && cd "$dir" && "$source/configure" -q "$@" && make -j3
)

# The same with the programs of all tests.
# shellcheck disable=SC2317
configure_and_make_tests ()
{
  configure_and_make "$@" && make -C "$1" -j3 check TESTS=
}

# In a tree of git, the tarball has every file of it: so only a few of the
# programs have to be built from it.
# shellcheck disable=SC2016,SC2317
check_tarball ()
{
  # By itself, for TESTS also says what a folder adds to the tarball.
  if [ -e .git ]; then
    make -C "$build/plain" maintainer-check-extra-dist || return
  fi
  make -C "$build/plain" -j3 distcheck TESTS='$(SMOKE_TESTS)' \
       check_PROGRAMS='$(BUILT_FOR_SMOKE)' check_LTLIBRARIES= \
       DISTCHECK_CONFIGURE_FLAGS=CFLAGS=-O1
}

mkdir -p "$build" || exit 1

echo "== Set-up"
step "install what is missing" ./install-deps -y test || finish
step "autogen.sh" ./autogen.sh || finish
step "build" configure_and_make_tests "$build/plain" || finish

run_tests "All tests" "$build/plain" check-at-once

if step "build with ASan and UBSan" configure_and_make_tests "$build/asan" \
        --enable-asan CFLAGS='-g -O1'; then
  run_tests "Quick tests with ASan and UBSan" "$build/asan" check-quick
fi

if step "build with TSan" configure_and_make "$build/tsan" \
        --enable-tsan CFLAGS='-g -O1'; then
  run_tests "Tests of threads with TSan" "$build/tsan" check-threads
fi

# shellcheck disable=SC2016
run_tests "Unit tests under valgrind" "$build/plain/tests/unit" \
          check-valgrind TESTS='$(VALGRIND_TESTS)'

step "build with clang" configure_and_make_tests "$build/clang" \
     CC=clang CFLAGS=-O0
step "make distcheck" check_tarball

finish
