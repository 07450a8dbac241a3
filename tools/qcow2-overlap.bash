# SPDX-License-Identifier: BSD-3-Clause
# shellcheck shell=bash
#
# Completion of qcow2-overlap's command line in bash.

_qcow2_overlap ()
{
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
  local command=${COMP_WORDS[1]} words

  COMPREPLY=()
  case "$before" in
    --repair) words='leaks all' ;;
    --limit | --bitmap-size) return ;;
    --svg | --png)
      mapfile -t COMPREPLY < <(compgen -f -- "$word")
      return ;;
    *)
      if [ "$COMP_CWORD" -eq 1 ]; then
        words='plan check map --help --version'
      else
        case "$command" in
          plan) words='--bitmap-size --limit' ;;
          check) words='--quiet --repair' ;;
          map) words='--bitmap-size --limit --png --quiet --svg' ;;
          *) return ;;
        esac
        words+=' --force-share --help --json --version'
        if [[ $word != -* ]]; then
          mapfile -t COMPREPLY < <(compgen -f -- "$word")
          return
        fi
      fi ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}

complete -o filenames -F _qcow2_overlap qcow2-overlap
