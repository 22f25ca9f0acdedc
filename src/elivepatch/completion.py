# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion of our command lines in bash, zsh and fish: scripts made from the commands themselves.

A script knows all flags, so that a shell need not start Python for each press of the key. Only names that the host
knows are asked for when they are needed, by a command of the shell's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Flag:
    """An option. ``takes`` is nothing, file, word, or one of ``choices``; ``names`` are its spellings."""

    names: tuple[str, ...]
    takes: str
    help: str
    choices: tuple[str, ...] = ()

    @property
    def offered(self) -> tuple[str, ...]:
        """The spellings to offer: not those of the first version with ``_`` in them."""
        return tuple(name for name in self.names if "_" not in name)


@dataclass(frozen=True)
class Level:
    """A command: its words after the program, its flags, the commands below it, and what its argument can be.

    ``names`` is a command of the shell that lists them; ``files`` says that they are files.
    """

    words: str
    flags: tuple[Flag, ...]
    commands: Mapping[str, str]
    choices: tuple[str, ...] = ()
    names: str | None = None
    files: bool = False


def levels(command: click.Command, names: Mapping[str, str], words: str = "") -> list[Level]:
    """A command and all below it. ``names`` are the shell's commands that list arguments, by the argument's name."""
    context = click.Context(command, info_name=words or None, **command.context_settings)
    flags = [_flag(one) for one in command.get_params(context) if isinstance(one, click.Option) and not one.hidden]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    below: dict[str, click.Command] = {}
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                below[name] = found
    level = Level(
        words,
        tuple(flags),
        {name: one.get_short_help_str(80) for name, one in below.items()},
        choices=next((_choices(one) for one in arguments if _choices(one)), ()),
        names=next((names[one.name] for one in arguments if one.name in names), None),
        files=any(isinstance(one.type, click.Path | click.File) for one in arguments),
    )
    found_below = [one for name, child in below.items() for one in levels(child, names, f"{words} {name}".strip())]
    return [level, *found_below]


def _flag(option: click.Option) -> Flag:
    takes = "word"
    if option.is_flag or option.count:
        takes = "nothing"
    elif isinstance(option.type, click.Path | click.File):
        takes = "file"
    elif _choices(option):
        takes = "choice"
    names = (*option.opts, *option.secondary_opts)
    return Flag(names, takes, " ".join((option.help or "").split()), _choices(option))


def _choices(parameter: click.Parameter) -> tuple[str, ...]:
    if not isinstance(parameter.type, click.Choice):
        return ()
    return tuple(str(one) for one in parameter.type.choices)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # of any kind


def script(command: click.Command, program: str, shell: str, names: Mapping[str, str]) -> str:
    """The script that completes ``program`` in a shell, one of SHELLS."""
    found = levels(command, names)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](program, found)


def _with_value(found: Sequence[Level], mark: str) -> list[str]:
    """All flags that take a value, each behind the words of its command."""
    return [
        f"{level.words}{mark}{name}"
        for level in found
        for flag in level.flags
        if flag.takes != "nothing"
        for name in flag.names
    ]


# -- bash


def _bash(program: str, found: Sequence[Level]) -> str:
    function = f"_{program.replace('-', '_')}"
    skipping = "|".join(f'"{one}"' for one in _with_value(found, ":"))
    entering = "".join(
        f'            "{level.words}:{name}") path="{f"{level.words} {name}".strip()}" ;;\n'
        for level in found
        for name in level.commands
    )
    values = ""
    offers = ""
    for level in found:
        for flag in level.flags:
            patterns = "|".join(f'"{level.words}:{name}"' for name in flag.names)
            if flag.takes == "file":
                values += f"        {patterns}) compopt -o filenames; kind=file ;;\n"
            elif flag.takes == "choice":
                values += f'        {patterns}) offer="{" ".join(flag.choices)}"; kind=words ;;\n'
            elif flag.takes == "word":
                values += f"        {patterns}) return ;;\n"
        flags = " ".join(name for flag in level.flags for name in flag.offered)
        arguments = f"$({level.names})" if level.names else " ".join((*level.commands, *level.choices))
        files = " compopt -o filenames; kind=file;" if level.files else ""
        offers += f'            "{level.words}") flags="{flags}"; offer="{arguments}";{files} ;;\n'
    return f"""\
# bash completion for {program}; made by '{program} completion bash'
{function}() {{
    local cur="${{COMP_WORDS[COMP_CWORD]}}" prev="${{COMP_WORDS[COMP_CWORD - 1]}}"
    local path="" skip=0 word kind="" offer="" flags="" i
    COMPREPLY=()
    if [[ $cur == = ]]; then
        cur=""
    elif [[ $prev == = ]]; then
        prev="${{COMP_WORDS[COMP_CWORD - 2]}}"
    fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word="${{COMP_WORDS[i]}}"
        [[ $word == = ]] && continue
        if ((skip)); then
            skip=0
            continue
        fi
        case "$path:$word" in
            {skipping}) skip=1 ;;
{entering}        esac
    done
    case "$path:$prev" in
{values}    esac
    if [[ -z $kind ]]; then
        case "$path" in
{offers}        esac
        [[ $cur == -* ]] && offer="$flags" kind=""
    fi
    if [[ $kind == file ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$offer" -- "$cur")
    fi
}}
complete -F {function} {program}
"""


# -- zsh


def _zsh(program: str, found: Sequence[Level]) -> str:
    function = f"_{program.replace('-', '_')}"
    functions = "".join(_zsh_level(function, level) for level in found)
    return f"""\
#compdef {program}
# zsh completion for {program}; made by '{program} completion zsh'
{functions}
if [[ $funcstack[1] == {function} ]]; then
    {function} "$@"
else
    compdef {function} {program}
fi
"""


def _zsh_level(function: str, level: Level) -> str:
    name = "_".join([function, *level.words.replace("-", "_").split()])
    lines = [f"    {_zsh_flag(flag)} \\" for flag in level.flags]
    if level.commands:
        described = " ".join(_quoted(f"{one}:{text}") for one, text in level.commands.items())
        arms = "".join(f"            {one}) {'_'.join([name, one.replace('-', '_')])} ;;\n" for one in level.commands)
        body = "\n".join([*lines, "    '1: :->command' \\", "    '*:: :->rest'"])
        return f"""\
{name}() {{
    local curcontext="$curcontext" state line
    local -a commands
    _arguments -C -s \\
{body}
    case $state in
        command)
            commands=({described})
            _describe command commands
            ;;
        rest)
            case $line[1] in
{arms}            esac
            ;;
    esac
}}
"""
    if level.names:
        lines.append(f"    '*:name:($({level.names}))' \\")
    elif level.choices:
        lines.append(f"    '1:value:({' '.join(level.choices)})' \\")
    elif level.files:
        lines.append("    '*:file:_files' \\")
    body = "\n".join(lines)
    return f"{name}() {{\n    _arguments -s \\\n{body}\n        && return\n}}\n"


def _zsh_flag(flag: Flag) -> str:
    action = {"nothing": "", "file": ":file:_files", "word": ":value: "}.get(flag.takes)
    if action is None:
        action = f":value:({' '.join(flag.choices)})"
    text = "".join(f"\\{char}" if char in "[]:\\" else char for char in flag.help)
    return " ".join(_quoted(f"*{name}[{text}]{action}") for name in flag.offered)


def _quoted(text: str) -> str:
    """As one word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


# -- fish


def _fish(program: str, found: Sequence[Level]) -> str:
    function = f"__{program.replace('-', '_')}_at"
    skipping = " ".join(_quoted(one) for one in _with_value(found, ":"))
    entering = "".join(
        f"            case {_quoted(f'{level.words}:{name}')}\n"
        f"                set path {_quoted(f'{level.words} {name}'.strip())}\n"
        for level in found
        for name in level.commands
    )
    lines: list[str] = []
    for level in found:
        begin = f"complete -c {program} -n {_quoted(f'{function} {_fish_word(level.words)}')}"
        lines += [f"{begin} {_fish_flag(flag)}" for flag in level.flags]
        lines += [f"{begin} -f -a {one} -d {_fish_word(text)}" for one, text in level.commands.items()]
        if level.names:
            lines.append(f"{begin} -f -a {_quoted(f'({level.names})')}")
        elif level.choices:
            lines.append(f"{begin} -f -a {_quoted(' '.join(level.choices))}")
        elif level.files:
            lines.append(f"{begin} -F")
    rules = "\n".join(lines)
    return f"""\
# fish completion for {program}; made by '{program} completion fish'
function {function}
    set -l path ''
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch "$path:$word"
            case {skipping}
                set skip 1
{entering}        end
    end
    test "$path" = "$argv[1]"
end
complete -c {program} -f
{rules}
"""


def _fish_word(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_flag(flag: Flag) -> str:
    words: list[str] = []
    for name in flag.offered:
        bare = name.lstrip("-")
        words.append(f"-l {bare}" if name.startswith("--") else f"-s {bare}")
    words += {"nothing": [], "file": ["-r", "-F"], "word": ["-x"]}.get(flag.takes, ["-x"])
    if flag.choices:
        words.append(f"-a {_fish_word(' '.join(flag.choices))}")
    return " ".join([*words, "-d", _fish_word(flag.help)])
