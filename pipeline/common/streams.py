"""Standard output and error that any text can be written to."""

import codecs
import sys

_READABLE = {
    "→": "->", "…": "...", "–": "-", "−": "-", "×": "x", "·": "*", "±": "+/-", "≤": "<=", "≥": ">=",
    "“": '"', "”": '"', "’": "'", "█": "#",
}  # fmt: skip


def accept_any_text() -> None:
    """From now on write what the console's encoding lacks in other signs instead of stopping.

    On Windows many consoles, and whatever a program's output is sent to, take 250 characters: an
    arrow in a help text or a name in another script would end the program. Arrows and the like
    become ASCII, others their Python escapes, by which a name can still be told. Where the user has
    chosen another way (PYTHONIOENCODING=cp1252:replace), it stays.
    """
    codecs.register_error("readable", _readable)
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) in ("strict", "backslashreplace"):
            stream.reconfigure(errors="readable")


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (_READABLE.get(sign) or sign.encode("unicode_escape").decode() for sign in signs)
    return "".join(plain), error.end
