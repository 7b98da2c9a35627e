"""Flags as vLLM's users write them become what typer reads."""

import json
from pathlib import Path

import pytest

from octavo.cli.arguments import Flag, Grammar
from octavo.cli.config_file import read_settings, take_config
from octavo_protocol.errors import ConfigError, ValidationError

GRAMMAR = Grammar(
    [
        Flag("--max-model-len"),
        Flag("--output", aliases=("-o",)),
        Flag("--served-model-name", "many"),
        Flag("--extra-config", "json", ("-ec",)),
        Flag("--enable-caching", "switch", negative="--no-enable-caching"),
        Flag("--greet", "switch", negative="--no-greet"),
        Flag("--disable-docs", "switch", negative="--no-disable-docs"),
        Flag("--swap-space", foreign=True),
        Flag("--enforce-eager", "switch", foreign=True),
        Flag("--compilation-config", "json", ("-cc",), foreign=True),
    ],
    num_words=1,
)


def plain(text: str) -> list[str]:
    return GRAMMAR.plain(text.split()).words


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--max_model_len 4k m", "--max-model-len=4k m"),
        ("--max-model_len=4k", "--max-model-len=4k"),
        ("--max-model-len a_b", "--max-model-len=a_b"),
        ("--max-model-len -1", "--max-model-len=-1"),
        ("--max-model-len 1 --max-model-len 2", "--max-model-len=2"),
        ("-o file", "--output=file"),
        ("-ofile", "--output=file"),
        ("--output -", "--output=-"),
        ("m -- --not-a-flag", "m -- --not-a-flag"),
    ],
)
def test_names_and_values(given: str, wanted: str) -> None:
    assert plain(given) == wanted.split()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("--greet", "--greet"),
        ("--no-greet", "--no-greet"),
        ("--no_greet", "--no-greet"),
        ("--greet=false", "--no-greet"),
        ("--greet --no-greet", "--no-greet"),
        ("--enable-caching", "--enable-caching"),
        ("--disable-caching", "--no-enable-caching"),
        ("--no-enable-caching", "--no-enable-caching"),
        ("--no-disable-caching", "--enable-caching"),
        ("--disable_caching=False", "--enable-caching"),
        ("--disable-docs", "--disable-docs"),
        ("--enable-docs", "--no-disable-docs"),
    ],
)
def test_switches_have_two_opposites(given: str, wanted: str) -> None:
    assert plain(given) == [wanted]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("m --served-model-name a b --greet", "-a -b --greet m"),
        ("m --served-model-name a --served-model-name b", "-a -b m"),
        ("m --served-model-name=a b", "-a -b m"),
        ("--served-model-name a m", "-a m"),
        ("--served-model-name a --greet m", "-a --greet m"),
    ],
)
def test_several_values_follow_a_flag_once_the_commands_own_word_is_there(
    given: str, wanted: str
) -> None:
    expected = wanted.replace("-a", "--served-model-name=a").replace("-b", "--served-model-name=b")
    assert plain(given) == expected.split()


def test_several_values_follow_where_a_flag_stands_for_the_word() -> None:
    flags = [Flag("--model"), Flag("--served-model-name", "many")]
    grammar = Grammar(flags, num_words=1, word_flag="--model")
    names = ["--served-model-name=a", "--served-model-name=b"]
    assert grammar.plain(["--model", "m", "--served-model-name", "a", "b"]).words[1:] == names
    assert grammar.plain(["--served-model-name", "a", "b"], ["--model=m"]).words[1:] == names


@pytest.mark.parametrize(
    ("arguments", "document"),
    [
        (["--extra-config", '{"a": 1}'], {"a": 1}),
        (["--extra-config.a", "1"], {"a": 1}),
        (["--extra-config.a=x"], {"a": "x"}),
        (["--extra_config.some-key", "true"], {"some_key": True}),
        (["-ec.a.b", "0.5", "-ec.a.c", "null"], {"a": {"b": 0.5, "c": None}}),
        (["--extra-config", '{"a": 1, "b": 2}', "--extra-config.a", "3"], {"a": 3, "b": 2}),
        (["--extra-config.k+", "x", "--extra-config.k+", "+y"], {"k": ["x", "+y"]}),
        (["--extra-config", '{"k": ["w"]}', "--extra-config.k+", "x"], {"k": ["w", "x"]}),
        (["--extra-config.a", "[1, 2]"], {"a": [1, 2]}),
        (["--extra-config+", "x", "--extra-config+", "2"], ["x", 2]),
    ],
)
def test_json_flags_take_one_key_at_a_time(arguments: list[str], document: object) -> None:
    words = GRAMMAR.plain(arguments).words
    assert len(words) == 1
    name, _, text = words[0].partition("=")
    assert (name, json.loads(text)) == ("--extra-config", document)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--max-modellen 3", "there is no flag --max-modellen; did you mean --max-model-len?"),
        ("--zzz", "there is no flag --zzz; --help lists the flags"),
        ("--max-model-len", "--max-model-len needs a value"),
        ("--max-model-len --greet", "--max-model-len needs a value"),
        ("--greet=maybe", "--greet is true or false, not 'maybe'"),
        ("--extra-config {a", "--extra-config needs JSON"),
        ("--max-model-len.a 3", "--max-model-len takes no keys; write --max-model-len VALUE"),
        ("--extra-config.a 1 --extra-config.a+ 2", "needs a list, but its value is 1"),
    ],
)
def test_what_cannot_be_read_says_what_to_write(given: str, message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        plain(given)
    assert message in raised.value.message


def test_a_short_switch_has_no_opposite() -> None:
    grammar = Grammar([Flag("--help", "switch", ("-h",))])
    assert grammar.find("--no-help") is not None
    assert grammar.find("--no-") is None


def test_flags_of_vllm_alone_are_kept_apart() -> None:
    given = ["m", "--swap-space", "4", "--no-enforce-eager", "-cc.level", "3", "--greet"]
    result = GRAMMAR.plain(given)
    assert result.words == ["--greet", "m"]
    assert result.foreign == [
        ("--swap-space", ["4"]),
        ("--enforce-eager", ["false"]),
        ("--compilation-config", ['{"level": 3}']),
    ]


def test_flags_win_over_settings_and_json_joins_them() -> None:
    settings = ["--max-model-len=1", "--served-model-name=a", '--extra-config={"a": 1, "b": 2}']
    given = ["m", "--served-model-name", "b", "--extra-config.a", "3"]
    assert GRAMMAR.plain(given, settings).words == [
        "--max-model-len=1",
        "--served-model-name=b",
        '--extra-config={"a": 3, "b": 2}',
        "m",
    ]


def test_the_file_is_taken_out_of_the_arguments() -> None:
    assert take_config(["m", "--config", "a.yaml", "--greet"]) == (["m", "--greet"], Path("a.yaml"))
    assert take_config(["--config=a.yaml"]) == ([], Path("a.yaml"))
    assert take_config(["m", "--", "--config", "x"]) == (["m", "--", "--config", "x"], None)


@pytest.mark.parametrize("arguments", [["--config"], ["--config", "a", "--config=b"]])
def test_one_file_at_most(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="--config"):
        take_config(arguments)


def test_settings_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "max_model_len: 4k\nport: 8001\ngreet: false\nenable-caching: true\n"
        "served-model-name: [a, b]\nextra-config: {a: {b: 0.5}}\nswap-space:\n"
    )
    assert read_settings(path) == [
        ("max_model_len", ["--max-model-len=4k"]),
        ("port", ["--port=8001"]),
        ("greet", ["--greet=false"]),
        ("enable-caching", ["--enable-caching=true"]),
        ("served-model-name", ["--served-model-name=a", "--served-model-name=b"]),
        ("extra-config", ['--extra-config={"a": {"b": 0.5}}']),
        ("swap-space", []),
    ]


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("# nothing\n")
    assert read_settings(path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected flag names with their values"),
        ("a: [\n", "is not YAML"),
        ("3: 4\n", "3 is not the name of a flag"),
        ("extra-config: {day: 2024-01-01}\n", "extra-config: Object of type date"),
        (None, "cannot read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "serve.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_settings(path)
    assert message in raised.value.message
    assert str(path) in raised.value.message
