"""Chat templates as users give them: a file, or the text itself."""

from pathlib import Path

from octavo_protocol.errors import ValidationError

# A name with one of these is no path but a template.
_MARKS = ("{", "}", "\n")


def load_chat_template(chat_template: str | Path | None, *, is_literal: bool = False) -> str | None:
    """The template's text. None stays None; with `is_literal` the text is taken as it is.

    Raises `ValidationError` for what is neither a file nor a template.
    """
    if chat_template is None:
        return None
    if is_literal:
        if isinstance(chat_template, Path):
            raise TypeError("a literal chat_template must be text, not a path")
        return chat_template
    path = Path(chat_template)
    text = str(chat_template)
    if len(text) < 4096 and "\n" not in text and path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(chat_template, str) and any(mark in text for mark in _MARKS):
        return chat_template
    raise ValidationError(
        f"chat_template {text!r} is neither a file nor a template", parameter="chat_template"
    )
