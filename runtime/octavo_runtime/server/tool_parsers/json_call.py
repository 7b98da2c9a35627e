"""Calls written as JSON objects, which most families share: `{"name": ..., "arguments": {...}}`."""

from octavo_runtime.server.json_scanner import parse_json
from octavo_runtime.server.text_reader import Steps
from octavo_runtime.server.tool_parsers.stepwise import StepwiseParser

_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonCallParser(StepwiseParser):
    """Reads calls that are JSON objects. The call that was read is left open."""

    def _read_call(self, *, needs_arguments: bool = False) -> Steps[bool]:
        """Read an object with `name` and `arguments` or `parameters`; False: it is no call.

        Arguments stream as written once the name is known. Null and, unless `needs_arguments`,
        nothing are `{}`; other keys are passed over. Where the object breaks after its arguments
        have begun, the call ends with what came.
        """
        reader = self.reader
        name = held = None
        more = yield from reader.literal("{")
        while more:
            key = yield from self._read_key()
            if key == "name" and name is None:
                name = yield from reader.string()
            elif key in _ARGUMENT_KEYS and held is None and not self._is_open:
                if name and (yield from reader.peek()) == "{":
                    yield from self._read_arguments(name)
                else:
                    held = yield from self._read_held()
            elif key is None or not (yield from reader.json(_pass_over)):
                break
            yield from reader.spaces()
            more = yield from reader.literal(",")
        closed = yield from reader.literal("}")
        if self._is_open:
            return True
        arguments = _object_text(held) if held or needs_arguments else "{}"
        if not (closed and name and arguments):
            return False
        self._open(name)
        self._argue(arguments)
        return True

    def _read_arguments(self, name: str) -> Steps[bool]:
        """Read the JSON object of a call's arguments, streaming them; the call is left open."""
        if (yield from self.reader.peek()) != "{":
            return False
        self._open(name)
        yield from self.reader.json(self._argue)
        return True

    def _read_list(self) -> Steps[bool]:
        """Read `[call, call, ...]`, closing each call; False: it begins with no call."""
        reader = self.reader
        if not (yield from reader.literal("[")):
            return False
        yield from reader.spaces()
        if not (yield from self._read_call(needs_arguments=True)):
            return False
        while True:
            self._close()
            reader.mark()
            yield from reader.spaces()
            if not (yield from reader.literal(",")):
                break
            yield from reader.spaces()
            if not (yield from self._read_call(needs_arguments=True)):
                break
        if (yield from reader.literal("]")):
            reader.mark()
        return True

    def _read_key(self) -> Steps[str | None]:
        """Read `"key":` and the white space around it; None: something else is there."""
        yield from self.reader.spaces()
        key = yield from self.reader.string()
        if key is not None:
            yield from self.reader.spaces()
            if not (yield from self.reader.literal(":")):
                return None
            yield from self.reader.spaces()
        return key

    def _read_held(self) -> Steps[str]:
        parts: list[str] = []
        yield from self.reader.json(parts.append)
        return "".join(parts)


def _object_text(text: str | None) -> str | None:
    """JSON text of the object that `text` is, or that the JSON string `text` contains."""
    try:
        value = parse_json(text or "")
        if isinstance(value, str):
            text, value = value, parse_json(value)
    except ValueError:
        return None
    if value is None:
        return "{}"
    return text if isinstance(value, dict) else None


def _pass_over(text: str) -> None:
    """A value that nobody asked for."""
