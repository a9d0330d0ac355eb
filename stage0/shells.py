"""The completion scripts of shells. All they do is ask `rkpy __complete` (`stage0.completing`) and say the answer in
the shell's words, so a script fits every version of rkpy."""

from __future__ import annotations

_BASH = r"""# bash completion for rkpy

_rkpy() {
    local paths='' word='' about='' current=$2
    # Of "--flag=" bash says that its last word is "=".
    [[ $current == [=:] ]] && current=''
    COMPREPLY=()
    {
        IFS= read -r paths
        while IFS=$'\t' read -r word about; do
            COMPREPLY+=("$word")
        done
    } < <("${1/#\~\//$HOME/}" __complete bash "${COMP_WORDBREAKS-}" "${COMP_LINE:0:COMP_POINT}" 2> /dev/null)
    case $paths in
        files)
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$current")
            compopt -o filenames
            ;;
        directories)
            while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -d -- "$current")
            compopt -o filenames
            ;;
        *)
            for word in "${COMPREPLY[@]}"; do
                [[ $word == *= ]] && compopt -o nospace && break
            done
            ;;
    esac
}

complete -F _rkpy rkpy
"""

_ZSH = r"""#compdef rkpy

_rkpy() {
    local paths line word entry
    local -a lines closed open
    lines=("${(@f)$("${(Q)words[1]}" __complete words "${(@Q)words[2,CURRENT-1]}" "$PREFIX" 2> /dev/null)}")
    paths=$lines[1]
    for line in "${(@)lines[2,-1]}"; do
        word=${line%%$'\t'*}
        entry="${word//:/\\:}:${line#*$'\t'}"
        if [[ $word == *= ]]; then open+=("$entry"); else closed+=("$entry"); fi
    done
    (( $#closed )) && _describe -t words 'rkpy' closed
    (( $#open )) && _describe -t options 'flag' open -S ''
    [[ $PREFIX == --*=* ]] && compset -P 1 '*='
    case $paths in
        files) _files ;;
        directories) _files -/ ;;
    esac
}

if [ "$funcstack[1]" = _rkpy ]; then _rkpy "$@"; else compdef _rkpy rkpy; fi
"""

_FISH = r"""# fish completion for rkpy

function __rkpy_complete
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    set -l program $before[1]
    set -e before[1]
    set -l lines ($program __complete words $before "$current" 2> /dev/null)
    for line in $lines[2..]
        echo $line
    end
    set -l prefix (string match -r -- '^--[^=]*=' $current)
    set -l path (string replace -r -- '^--[^=]*=' '' $current)
    switch "$lines[1]"
        case files
            string replace -r -- '^' "$prefix" (__fish_complete_path "$path")
        case directories
            string replace -r -- '^' "$prefix" (__fish_complete_directories "$path" '')
    end
end

complete -c rkpy -f -a '(__rkpy_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
"""By the name of the shell."""
