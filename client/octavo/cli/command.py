"""The command class that puts vLLM's rules for arguments in front of typer, and groups its help."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from octavo.cli.arguments import Flag, Grammar, Kind
from octavo.cli.config_file import read_settings, take_config
from octavo.cli.environment import defaults_from_vllm
from octavo.cli.options import JSON_METAVAR
from octavo.cli.vllm_flags import VLLM_FLAGS, heirs, notice
from octavo_protocol.errors import ConfigError, OctavoError

_ALL_HELP = ("all", "")


class FlexibleCommand(TyperCommand):
    """A command whose flags may be written as for vLLM.

    An option takes several values where its type is a list; JSON where its metavar is
    `JSON_METAVAR`. `--help=WORD` shows the flags of a group, or those that mention WORD.
    """

    knows_vllm_flags = False
    word_flag: str | None = None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for word in args:
            if word.startswith("--help="):
                self._show_some(ctx, word.partition("=")[2])
        arguments, path = take_config(args)
        grammar = self.grammar()
        settings, keys = _settings(path, grammar) if path is not None else ([], {})
        plain = grammar.plain(arguments, settings)
        for name, values in plain.foreign:
            if message := notice(name, values):
                print(f"octavo: warning: {message}", file=sys.stderr)
            plain.words = heirs(name, values) + plain.words
        defaults = defaults_from_vllm(os.environ)
        ctx.default_map = {
            each.name: [defaults[each.name]] if each.multiple else defaults[each.name]
            for each in self.params
            if isinstance(each, TyperOption) and each.name in defaults
        }
        try:
            return super().parse_args(ctx, plain.words)
        except typer.BadParameter as error:
            key = keys.get(error.param.name if error.param is not None else None)
            if key is None:
                raise
            raise ConfigError(f"{path}: {key}: {error.message}") from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options by groups, in the order in which groups appear."""
        self._format(ctx, formatter, self.get_params(ctx))

    def _format(self, ctx: Any, formatter: Any, params: Iterable[Any]) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in params:
            record = param.get_help_record(ctx)
            if record is not None:
                group = getattr(param, "rich_help_panel", None)
                kind = "Arguments" if isinstance(param, TyperArgument) else "Options"
                groups.setdefault(group or kind, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def _show_some(self, ctx: Any, word: str) -> None:
        """Prints the options of the group `word`, or those that mention it, and ends."""
        wanted = word.lower().replace("_", "-")
        if wanted in _ALL_HELP:
            print(ctx.get_help())
            raise typer.Exit
        params = [each for each in self.get_params(ctx) if isinstance(each, TyperOption)]
        found = [each for each in params if (each.rich_help_panel or "").lower() == wanted]
        found = found or [
            each
            for each in params
            if any(wanted in text for text in (*each.opts, (each.help or "").lower()))
        ]
        if not found:
            groups = dict.fromkeys(each.rich_help_panel for each in params if each.rich_help_panel)
            raise ConfigError(f"no flag mentions {word!r}; groups are {', '.join(groups)}")
        formatter = ctx.make_formatter()
        self._format(ctx, formatter, found)
        print(formatter.getvalue().strip("\n"))
        raise typer.Exit

    def grammar(self) -> Grammar:
        """The flags that this command knows, in every spelling."""
        flags = [_flag(each) for each in self.params if isinstance(each, TyperOption)]
        flags.append(Flag("--help", "switch", ("-h",)))
        if self.knows_vllm_flags:
            own = {flag.name for flag in flags}
            flags += [each.flag for name, each in VLLM_FLAGS.items() if name not in own]
        words = sum(isinstance(each, TyperArgument) for each in self.params)
        return Grammar(flags, num_words=words, word_flag=self.word_flag)


class ServeCommand(FlexibleCommand):
    """Also knows the flags of `vllm serve` that Octavo does not have. MODEL may be a flag."""

    knows_vllm_flags = True
    word_flag = "--model"


def _flag(option: TyperOption) -> Flag:
    own = "--" + str(option.name).replace("_", "-")
    names = sorted(option.opts, key=lambda name: (name == own, len(name)), reverse=True)
    kind: Kind = "one"
    if option.is_flag:
        kind = "switch"
    elif option.metavar == JSON_METAVAR:
        kind = "json"
    elif option.multiple:
        kind = "many"
    negative = option.secondary_opts[0] if option.secondary_opts else None
    return Flag(names[0], kind, tuple(names[1:]), negative)


def _settings(path: Path, grammar: Grammar) -> tuple[list[str], dict[str | None, str]]:
    """The file's arguments, and its key for each parameter name."""
    words: list[str] = []
    keys: dict[str | None, str] = {}
    for key, arguments in read_settings(path):
        try:
            for name, values in grammar.plain(arguments).foreign:
                notice(name, values)
                heirs(name, values)
        except OctavoError as error:
            raise ConfigError(f"{path}: {key}: {error.message}") from error
        words += arguments
        found = grammar.find(f"--{key.lstrip('-')}")
        if found is not None:
            keys[found[0].name.removeprefix("--").replace("-", "_")] = key
    return words, keys
