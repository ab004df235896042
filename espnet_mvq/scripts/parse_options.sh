#!/usr/bin/env bash
# Set the shell variable $foo_bar to VALUE for "--foo-bar VALUE" on the command line.
#
# Source it without arguments, after the variables have their defaults:
#
#   nj=4
#   help_message="Usage: $0 [--nj 4] <dir>"
#   . utils/parse_options.sh
#
# Unknown variables are refused. A variable with the default true or false accepts only
# true and false. "--config FILE" sources FILE before all other options, which override
# it. "--help" prints $help_message. Positional arguments stay in "$@".

# This code is not in a function, because a function cannot shift the caller's "$@".
_po_i=1
while [ "${_po_i}" -lt "$#" ]; do
    _po_option=${!_po_i}
    _po_i=$((_po_i + 1))
    case "${_po_option}" in
        --config)
            if [ ! -r "${!_po_i}" ]; then
                echo "$0: cannot read the file given to --config: '${!_po_i}'" >&2
                exit 1
            fi
            # The absolute path keeps bash from searching $PATH for the file.
            # shellcheck source=/dev/null
            . "$(realpath "${!_po_i}")"
            ;;
        --*) ;;
        *) break ;;
    esac
    _po_i=$((_po_i + 1))
done

while [ "$#" -gt 0 ]; do
    case "$1" in
        --help | -h)
            printf '%s\n' "${help_message:-$0: no help available}"
            exit 0
            ;;
        --*=*)
            echo "$0: write '--name value' instead of '$1'" >&2
            exit 1
            ;;
        --*) ;;
        *) break ;;
    esac

    _po_name=${1#--}
    _po_name=${_po_name//-/_}
    if [ "$#" -lt 2 ]; then
        echo "$0: option $1 needs a value" >&2
        exit 1
    fi
    if [ "${_po_name}" = config ]; then
        # The first loop sourced the file. The caller may have a variable of this name.
        [ -z "${config+set}" ] || config=$2
        shift 2
        continue
    fi
    # Check the name first: ${!...} of a malformed name is a fatal error of bash.
    if ! [[ "${_po_name}" =~ ^[A-Za-z][A-Za-z0-9_]*$ ]] || [ -z "${!_po_name+set}" ]; then
        echo "$0: invalid option $1" >&2
        exit 1
    fi
    # If the value is missing, the next option must not become the value.
    if [[ "$2" =~ ^--[A-Za-z][A-Za-z0-9_-]*$ ]]; then
        _po_option=${2#--}
        _po_option=${_po_option//-/_}
        if [ -n "${!_po_option+set}" ]; then
            echo "$0: option $1 needs a value, got the option '$2'" >&2
            exit 1
        fi
    fi
    case "${!_po_name}" in
        true | false)
            if [ "$2" != true ] && [ "$2" != false ]; then
                echo "$0: option $1 takes true or false, not '$2'" >&2
                exit 1
            fi
            ;;
    esac
    printf -v "${_po_name}" '%s' "$2"
    shift 2
done
unset _po_i _po_option _po_name
