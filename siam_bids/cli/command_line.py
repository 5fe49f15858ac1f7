"""The common command line: one style of help, one-line errors, option files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from siam_bids import __version__
from siam_bids.errors import UsageError, did_you_mean

MANY = ("+", "*")
_TYPED_ONLY = ("--help", "--version", "--config-file", "--print-completion")
"""Options that mean nothing in a file of options."""


class CommandLine(argparse.ArgumentParser):
    """A parser whose help shows defaults and whose errors are one line with a suggestion.

    Every command has `--version`, `--config-file` (its options in a TOML file; the command line
    goes before) and `--print-completion`.
    """

    def __init__(self, prog: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=_Help,
            allow_abbrev=False,
            **more,
        )

    def add_common_options(self) -> None:
        """Add the options that every command has, at the end of its help."""
        more = self.add_argument_group("more")
        more.add_argument("--version", action="version", version=f"siam-bids {__version__}")
        more.add_argument(
            "--config-file",
            type=Path,
            metavar="FILE",
            help="options in TOML, for example: verbose = 1; the command line wins",
        )
        more.add_argument(
            "--print-completion",
            action=_PrintCompletion,
            choices=("bash", "zsh", "tcsh"),
            help="print a completion script for this shell and exit",
        )

    def parse(self, args: Sequence[str]) -> argparse.Namespace:
        """Read the words of a command line, and the options of its `--config-file` before them.

        Raises
        ------
        UsageError
            An option is unknown or has a wrong value, here or in the file.
        """
        path = _config_file(args)
        if path is not None:
            self.set_defaults(**self._options_of(path, args))
        return self.parse_args(args)

    def _options_of(self, path: Path, args: Sequence[str]) -> dict[str, Any]:
        """Return the options of a TOML file by the name that the namespace gives them."""
        options: dict[str, Any] = {}
        for name, value in _read_toml(path).items():
            option = "--" + name.replace("_", "-")
            action = self._option_string_actions.get(option)
            if action is None:
                self._refuse(f"{path} holds the unknown option {name!r}", option)
            if option in _TYPED_ONLY:
                raise UsageError(
                    f"{option} in {path} has no effect.", "Give it on the command line."
                )
            if isinstance(action, Elsewhere):
                action(self, None, None, option)
            options[action.dest] = self._value_of(action, option, value, path)
        self._settle(options, path, args)
        return options

    def _settle(self, options: dict[str, Any], path: Path, args: Sequence[str]) -> None:
        """Drop options of a file that exclude one that was typed; refuse two of one file."""
        typed = {word.partition("=")[0] for word in args}
        for group in self._mutually_exclusive_groups:
            members = group._group_actions  # noqa: SLF001
            given = [each for each in members if options.get(each.dest)]
            if len(given) > 1:
                names = " and ".join(each.option_strings[0] for each in given)
                raise UsageError(f"{names} in {path} are mutually exclusive.", "Give one of them.")
            if given and typed & _spellings(members):
                del options[given[0].dest]

    def _value_of(self, action: argparse.Action, option: str, value: Any, path: Path) -> Any:
        if isinstance(action, argparse._CountAction):  # noqa: SLF001
            if type(value) not in (int, bool) or not 0 <= value <= 9:
                raise UsageError(f"{option} in {path} is {value!r}.", "Give 0, 1 or 2.")
            return int(value)
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):  # a switch
            return _switched(action, option, value, path)
        several = action.nargs in MANY or isinstance(action, argparse._AppendAction)  # noqa: SLF001
        if isinstance(value, list) and not several:
            raise UsageError(f"{option} in {path} takes one value, not {value!r}.")
        try:
            found = [
                self._checked(action, str(each))
                for each in (value if isinstance(value, list) else [value])
            ]
        except argparse.ArgumentError as error:
            raise UsageError(f"{path}: {error}.") from error
        return found if several else found[0]

    def _checked(self, action: argparse.Action, text: str) -> Any:
        """Return the value of an option from its text, of its type and among its choices."""
        value = self._get_value(action, text)
        self._check_value(action, value)
        return value

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`, naming what was probably meant."""
        if found := re.match(r"unrecognized arguments: (--\S+)", message):
            self._refuse(f"There is no option {found[1]}", found[1].partition("=")[0])
        if found := re.match(
            r"argument (.+?): invalid choice: '(.*?)' \(choose from (.*)\)", message
        ):
            known = re.findall(r"[\w.-]+", found[3])
            raise UsageError(
                f"{found[1]} is {found[2]!r}, which is not one of {', '.join(known)}.",
                did_you_mean(found[2], known),
            )
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", f"See {self.prog} --help.")

    def _refuse(self, message: str, option: str) -> NoReturn:
        known = [name for name in self._option_string_actions if name.startswith("--")]
        hint = did_you_mean(option, known) or f"See {self.prog} --help."
        raise UsageError(f"{message}.", hint)


def _spellings(actions: Sequence[argparse.Action]) -> set[str]:
    return {name for action in actions for name in action.option_strings}


def _switched(action: argparse.Action, option: str, value: Any, path: Path) -> bool:
    """Return the value of a switch that a file turns on or off."""
    if not isinstance(value, bool):
        raise UsageError(f"{option} in {path} is a switch, not {value!r}.", "Write true or false.")
    return value != (action.const is False or option.startswith("--no-"))


def _config_file(words: Sequence[str]) -> Path | None:
    """Return the last `--config-file` among the words."""
    found = None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--":
            break
        name, equals, value = word.partition("=")
        if name == "--config-file":
            found = Path(value if equals else following)
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    from siam_bids.support.input_files import read_text

    try:
        return tomllib.loads(read_text(path))
    except ValueError as error:
        raise UsageError(f"The options {path} cannot be read as TOML: {error}.") from error


class _Help(argparse.HelpFormatter):
    """Help that shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help
        plain = action.default in (None, "", 0, False, argparse.SUPPRESS) or action.default == []
        if text is None or plain or action.nargs == 0 or "default" in text:
            return text
        default = action.default
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        return f"{text} (default: {shown})" if shown != "" else text


class Elsewhere(argparse.Action):
    """An option of other programs: refused with a word on what does the same here."""

    def __init__(self, option_strings: Sequence[str], dest: str, instead: str) -> None:
        super().__init__(option_strings, dest, nargs="*", help=argparse.SUPPRESS)
        self.instead = instead

    def __call__(self, *given: Any) -> None:
        """Refuse the option."""
        raise UsageError(f"There is no option {given[3]} here.", f"Use {self.instead}.")


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *given: Any) -> None:
        import shtab

        print(shtab.complete(parser, given[1]))
        parser.exit()
