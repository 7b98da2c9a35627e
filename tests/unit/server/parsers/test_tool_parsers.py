"""What models of each family write, and what comes out."""

import json

import pytest
from tests.unit.server.parsers.support import DISTINCT, NOW, TOOLS, WRITERS, parse

from octavo_protocol.errors import ConfigError
from octavo_runtime.server.tool_parsers import TOOL_PARSERS, ToolParser, tool_parser
from octavo_runtime.server.tool_parsers.hermes import HermesParser

PARIS = ("get_weather", '{"city": "Paris"}')
NOON = ("time.now", "{}")


def test_parsers_are_found_by_name() -> None:
    assert tool_parser("hermes") is HermesParser
    assert tool_parser("qwen25") is HermesParser


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'herms'; choose one of .*hermes.*mistral") as failure:
        tool_parser("herms")
    assert failure.value.parameter == "tool_call_parser"


def test_every_parser_is_tested() -> None:
    assert set(WRITERS) == set(TOOL_PARSERS)


@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        pytest.param(
            "hermes",
            'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n'
            '</tool_call>\n<tool_call>\n{"arguments": {}, "name": "time.now"}\n</tool_call>\n',
            "I look.",
            [PARIS, NOON],
            id="hermes, parallel, text before, name behind arguments",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": "a", "arguments": {"x": "</tool_call> }\\" {"}}</tool_call> Bye.',
            "Bye.",
            [("a", '{"x": "</tool_call> }\\" {"}')],
            id="hermes, end marker and braces in a string, text behind",
        ),
        pytest.param(
            "hermes",
            'One.\n<tool_call>{"name": "time.now"}</tool_call>\nTwo.',
            "One.\n\nTwo.",
            [NOON],
            id="hermes, text on both sides, no arguments",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>',
            "",
            [("a", '{"x": 1}')],
            id="hermes, arguments as a string that contains JSON",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}</tool_call>',
            "",
            [PARIS],
            id="hermes, a brace forgotten behind the arguments",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": "get_weather", "arguments": {"city": "Par',
            "",
            [("get_weather", '{"city": "Par')],
            id="hermes, cut in the arguments",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": "get_weather", "argu',
            '<tool_call>{"name": "get_weather", "argu',
            [],
            id="hermes, cut before the arguments",
        ),
        pytest.param(
            "hermes",
            "Write <tool_call> around it, or </tool_call>. a < b\n",
            "Write <tool_call> around it, or </tool_call>. a < b\n",
            [],
            id="hermes, text about markers",
        ),
        pytest.param(
            "hermes",
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            [],
            id="hermes, the name is no string",
        ),
        pytest.param(
            "internlm",
            'Ok<|action_start|><|plugin|>\n{"name": "time.now", "parameters": {}}<|action_end|>\n',
            "Ok",
            [NOON],
            id="internlm",
        ),
        pytest.param(
            "llama3_json",
            '{"name": "get_weather", "parameters": {"city": "Paris"}}',
            "",
            [PARIS],
            id="llama3, bare",
        ),
        pytest.param(
            "llama3_json",
            '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": '
            '{"city": "Paris"}}; {"name": "time.now", "parameters": {}}',
            "",
            [PARIS, NOON],
            id="llama3, tag, type, two calls",
        ),
        pytest.param(
            "llama3_json",
            '{"name": "Ada", "age": 36}',
            '{"name": "Ada", "age": 36}',
            [],
            id="llama3, an answer in JSON",
        ),
        pytest.param(
            "llama3_json",
            'Write {"name": "a", "parameters": {}} then.',
            'Write {"name": "a", "parameters": {}} then.',
            [],
            id="llama3, JSON inside an answer",
        ),
        pytest.param(
            "mistral",
            '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, '
            '{"name": "time.now", "arguments": {}}]',
            "",
            [PARIS, NOON],
            id="mistral, list",
        ),
        pytest.param(
            "mistral",
            'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]time.now[ARGS]{}',
            "Sure.",
            [PARIS, NOON],
            id="mistral, names",
        ),
        pytest.param(
            "mistral",
            '[TOOL_CALLS]get_weather[CALL_ID]a1B2c3[ARGS]{"city": "Paris"}[TOOL_CALLS]time.now{}',
            "",
            [PARIS, NOON],
            id="mistral, call ids, and no [ARGS]",
        ),
        pytest.param(
            "qwen3_coder",
            "I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>"
            "\n<parameter=days>\n3\n</parameter>\n<parameter=detailed>\nTrue\n</parameter>\n"
            "<parameter=place>\n{'lat': 1.5}\n</parameter>\n</function>\n</tool_call>",
            "I look.",
            [
                (
                    "get_weather",
                    '{"city": "Paris", "days": 3, "detailed": true, "place": {"lat": 1.5}}',
                )
            ],
            id="qwen3 coder, values by the schema",
        ),
        pytest.param(
            "qwen3_coder",
            '<function=write_file>\n<parameter=text>\n\nif a < b:\n    print("</tool_call>")\n\n'
            "</parameter>\n</function>\n</tool_call>",
            "",
            [("write_file", json.dumps({"text": '\nif a < b:\n    print("</tool_call>")\n'}))],
            id="qwen3 coder, section start forgotten, unknown tool, lines kept",
        ),
        pytest.param(
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<param",
            "",
            [("get_weather", '{"city": "Paris"')],
            id="qwen3 coder, cut",
        ),
        pytest.param(
            "qwen3_coder",
            "Use <function=f> here",
            "Use <function=f> here",
            [],
            id="qwen3 coder, text about markers",
        ),
        pytest.param(
            "qwen3_coder",
            "<function=get_weather><parameter=days>soon</parameter></function>",
            "",
            [("get_weather", '{"days": "soon"}')],
            id="qwen3 coder, a value that the schema does not allow",
        ),
        pytest.param(
            "glm45",
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
            "</tool_call>\n<tool_call>time.now\n</tool_call>",
            "",
            [PARIS, NOON],
            id="glm",
        ),
        pytest.param(
            "minimax_m2",
            'Ok.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris'
            '</parameter>\n</invoke>\n<invoke name="time.now">\n</invoke>\n</minimax:tool_call>',
            "Ok.",
            [PARIS, NOON],
            id="minimax",
        ),
        pytest.param(
            "pythonic",
            '[get_weather(city="Paris"), time.now()]',
            "",
            [PARIS, NOON],
            id="pythonic",
        ),
        pytest.param(
            "pythonic",
            r"""[f-1(a=-1, b=2.5, c=[None, True, false], d={'k': ("x",)}, e='it\'s )]')]""",
            "",
            [
                (
                    "f-1",
                    '{"a": -1, "b": 2.5, "c": [null, true, false], "d": {"k": ["x"]}, '
                    '"e": "it\'s )]"}',
                )
            ],
            id="pythonic, all literals",
        ),
        pytest.param(
            "pythonic",
            "[f(a=__import__('os').system('true'))]",
            "[f(a=__import__('os').system('true'))]",
            [],
            id="pythonic, code is not run",
        ),
        pytest.param("pythonic", "[1, 2] is a list", "[1, 2] is a list", [], id="pythonic, a list"),
        pytest.param(
            "llama4_pythonic",
            '<|python_start|>[get_weather(city="Paris")]<|python_end|>',
            "",
            [PARIS],
            id="llama4",
        ),
        pytest.param(
            "json",
            '[{"name": "get_weather", "parameters": {"city": "Paris"}}]',
            "",
            [PARIS],
            id="json",
        ),
        pytest.param("json", "[1, 2]", "[1, 2]", [], id="json, another list"),
        pytest.param(
            "granite",
            '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}]',
            "",
            [PARIS],
            id="granite",
        ),
        pytest.param(
            "jamba",
            '<tool_calls>[\n{"name": "time.now", "arguments": {}}\n]</tool_calls>',
            "",
            [NOON],
            id="jamba",
        ),
        pytest.param(
            "phi4_mini_json",
            'functools[{"name": "time.now", "arguments": {}}]',
            "",
            [NOON],
            id="phi4",
        ),
        pytest.param(
            "deepseek_v3",
            "Ok<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>'
            "time.now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "Ok",
            [PARIS, NOON],
            id="deepseek v3",
        ),
        pytest.param(
            "deepseek_v31",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
            '{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
            "",
            [PARIS],
            id="deepseek v3.1",
        ),
        pytest.param(
            "kimi_k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|>'
            "<|tool_call_begin|>functions.time.now:1<|tool_call_argument_begin|>{}"
            "<|tool_call_end|><|tool_calls_section_end|>",
            "",
            [PARIS, NOON],
            id="kimi k2",
        ),
    ],
)
def test_output_of_a_model(
    name: str, text: str, content: str, calls: list[tuple[str, str]]
) -> None:
    assert parse(name, text) == (content, calls)
    assert parse(name, text, range(len(text))) == (content, calls)


def test_json_arguments_stream_as_they_come() -> None:
    parser = TOOL_PARSERS["hermes"](TOOLS)
    deltas = [
        [(delta.index, delta.name, delta.arguments) for delta in parser.feed(piece).calls]
        for piece in [
            '<tool_call>{"name": "f", "argum',
            'ents": {"a',
            '": [1',
            "]}}</tool",
            "_call>",
        ]
    ]
    assert deltas == [
        [],
        [(0, "f", ""), (0, None, '{"a')],
        [(0, None, '": [1')],
        [(0, None, "]}")],
        [],
    ]


def test_strings_in_elements_stream_as_they_come() -> None:
    parser = TOOL_PARSERS["qwen3_coder"]([])
    text = ["<function=f>\n<parameter=code>", "\na = ", '"b"\n', "\n</para", "meter></function>"]
    assert ["".join(delta.arguments for delta in parser.feed(piece).calls) for piece in text] == [
        '{"code": "',
        "a = ",
        '\\"b\\"',
        "\\n",
        '"}',
    ]


def test_content_streams_but_for_what_may_begin_a_marker() -> None:
    parser: ToolParser = TOOL_PARSERS["hermes"]([])
    pieces = ["Hi the", "re <", "b> or <tool_", "cal", "m. "]
    assert [parser.feed(piece).content for piece in pieces] == [
        "Hi the",
        "re",
        " <b> or",
        "",
        " <tool_calm.",
    ]
    assert parser.finish().content == " "


@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize(
    "value",
    ["[" * 200_000, "-" * 200_000 + "1", "1+" * 200_000 + "1", "{'a':" * 200_000, "9" * 9000],
)
def test_absurd_values_are_no_error(name: str, value: str) -> None:
    calls = WRITERS[name]([("get_weather", {"place": "@"})])
    text = calls.replace("'@'", value).replace('"@"', value).replace("@", value)
    content, found = parse(name, text)
    assert len(content) + sum(len(arguments) for _, arguments in found) > 0


def test_finish_twice_says_nothing_new() -> None:
    parser = TOOL_PARSERS["hermes"]([NOW])
    parser.feed("a <tool")
    assert [parser.finish().content, parser.finish().content] == [" <tool", ""]
