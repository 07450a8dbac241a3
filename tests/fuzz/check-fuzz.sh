#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
#
# Fuzzing in earnest: build each target with clang's libFuzzer,
# AddressSanitizer and UBSan and let it run for a number of executions.
#
#   make check-fuzz [RUNS=N] [TARGETS="header tables ..."] [SANITIZE=]
#                   [LONGEST=N] [LARGE=1]
#
# Without sanitizers (SANITIZE= on the command line) the targets' own
# judgement is left, and the image's is some three times as fast.
#
# LONGEST is the length of the inputs, for which each target has a
# default; a whole image with LONGEST=64 gets some ten requests.
#
# LARGE=1 has whole images, too, whose refcount table must move, which
# take as long as thirty others; make check always tries some.  Where an
# image leads is in its numbers, not in what they are compared with:
# comparisons are not traced there, and it is twice as fast.
#
# RUNS is for every target but that of the whole image, which is slower
# and does a tenth; the default is short.  What is found goes to
# fuzzing/ in the build tree as a file crash-*, oom-* or timeout-*, and
# make fails.  The corpora grow in fuzzing/corpus-*; those of the
# sources stay as they are.

set -euo pipefail

: "${SOURCE:?}" "${BUILD:?}" "${CC_FUZZ:=clang}" "${RUNS:=200000}"
: "${SANITIZE=address,undefined}" "${LONGEST=}" "${LARGE=}"
targets=("$@")
[ $# -gt 0 ] || targets=(decompress header image luks names overlap parameters tables)

work=$BUILD/tests/fuzz/fuzzing
mkdir -p "$work/objects"
cd "$work"

if ! "$CC_FUZZ" --version >/dev/null 2>&1; then
  echo "check-fuzz: $CC_FUZZ is not installed" >&2
  exit 1
fi

# shellcheck disable=SC2054   # -fsanitize= has commas
cflags=(-std=gnu11 -g -O2 -pthread -D_FILE_OFFSET_BITS=64
        -fno-omit-frame-pointer -I "$BUILD")
if [ "$SANITIZE" ]; then
  cflags+=("-fsanitize=$SANITIZE" -fno-sanitize-recover=undefined)
fi
for room in lib/base lib/format lib/crypt lib/storage lib/overlap \
            lib/image plugin; do
  cflags+=(-iquote "$SOURCE/$room")
done
read -ra more <<<"${MORE_CFLAGS-}"
read -ra libs <<<"${LIBS-}"
cflags+=("${more[@]}")

# compile SOURCE OBJECT OPTION...
compile ()
{
  "$CC_FUZZ" "${cflags[@]}" "${@:3}" -c "$1" -o "$2"
}

# library FOLDER OPTION...: the library, with what libFuzzer learns from.
objects=()
declare -A built=()
library ()
{
  local build=${built[$1]-yes}

  mkdir -p "$1"
  built[$1]=
  objects=()
  for source in "$SOURCE"/lib/*/*.c; do
    object=$1/$(basename "$source" .c).o
    [ -z "$build" ] || compile "$source" "$object" \
        -fsanitize=fuzzer-no-link "${@:2}"
    objects+=("$object")
  done
}

parameters=()
for source in "$SOURCE"/plugin/config*.c; do
  object=objects/plugin-$(basename "$source" .c).o
  compile "$source" "$object" -fsanitize=fuzzer-no-link
  parameters+=("$object")
done

failed=0
for target in "${targets[@]}"; do
  sources=("fuzz-$target.c")
  runs=$RUNS
  longest=1024
  extra=()
  options=()
  case $target in
    image) library objects-image -fno-sanitize-coverage=trace-cmp ;;
    overlap) objects=() ;;
    *) library objects ;;
  esac
  parts=("${objects[@]}")
  case $target in
    header) longest=4224 ;;
    image)
      sources+=(small-image.c small-check.c)
      longest=400
      runs=$((RUNS / 10))
      # Its thousands of features would cost a quarter of the time.
      options=(-entropic=0)
      [ "$LARGE" ] || extra=(-DLARGE_DISK=0) ;;
    overlap)
      longest=400
      # No operation is a word to be found by comparisons, and the fuzzer
      # would take two thirds of the time.
      options=(-entropic=0)
      extra=(-DOV_WINDOW_BITS=6 -DOV_PAGE_BITS=3)
      for source in "$SOURCE"/lib/base/cleanup.c "$SOURCE"/lib/overlap/*.c; do
        object=objects/tiny-$(basename "$source" .c).o
        compile "$source" "$object" -fsanitize=fuzzer-no-link \
            -fno-sanitize-coverage=trace-cmp "${extra[@]}"
        parts+=("$object")
      done ;;
    parameters) parts+=("${parameters[@]}") ;;
  esac
  # What judges is not what is to be explored.
  for source in "${sources[@]}"; do
    compile "$SOURCE/tests/fuzz/$source" "${source%.c}.o" "${extra[@]}"
    parts+=("${source%.c}.o")
  done
  "$CC_FUZZ" "-fsanitize=fuzzer${SANITIZE:+,$SANITIZE}" -pthread \
      "${parts[@]}" \
      "${libs[@]}" -o "fuzz-$target"
  mkdir -p "corpus-$target"
  echo "== $target: $runs executions"
  # A small quarantine, so that the limit of memory is the target's; and
  # what was freed stays with the process, which would get it again.
  ASAN_OPTIONS=quarantine_size_mb=16:allocator_release_to_os_interval_ms=-1:${ASAN_OPTIONS-} \
  UBSAN_OPTIONS=print_stacktrace=1 \
    "./fuzz-$target" -runs="$runs" -timeout=20 -rss_limit_mb=1000 \
    -malloc_limit_mb=256 -max_len="${LONGEST:-$longest}" \
    -print_final_stats=1 "${options[@]}" \
    "corpus-$target" "$SOURCE/tests/fuzz/corpus-$target" \
    >"$target.log" 2>&1 || failed=1
  grep -E '#[0-9]+.*(INITED|DONE)|^stat::|ERROR|Test unit' "$target.log"
done
exit $failed
