"""The terms for how a picture came about, and what they mean here: generated, edited or camera."""

GENERATED, EDITED, CAMERA = "generated", "edited", "camera"
RANKS = (GENERATED, EDITED, CAMERA)
"""What a file may say of its origin; where it says several, the first of these counts."""

# IPTC NewsCodes, https://cv.iptc.org/newscodes/digitalsourcetype/. Drawings, screenshots and data
# that became pictures are none of the three.
_IPTC = {
    "trainedalgorithmicmedia": GENERATED,
    "algorithmicmedia": GENERATED,
    "compositewithtrainedalgorithmicmedia": EDITED,
    "compositesynthetic": EDITED,
    "composite": EDITED,
    "compositecapture": EDITED,
    "algorithmicallyenhanced": EDITED,
    "humanedits": EDITED,
    "minorhumanedits": EDITED,
    "virtualrecording": EDITED,
    "digitalcapture": CAMERA,
    "computationalcapture": CAMERA,
    "negativefilm": CAMERA,
    "positivefilm": CAMERA,
    "print": CAMERA,
}
_PREFIXES = (
    "http://cv.iptc.org/newscodes/digitalsourcetype/",
    "https://cv.iptc.org/newscodes/digitalsourcetype/",
    "digsrctype:",  # as a QCode
    "",
)


def source_type(value: object) -> tuple[str, str] | None:
    """What a DigitalSourceType says, and its IPTC term; None where it is none of the three.

    `value` is the term or, as the standard has it, its address.
    """
    if not isinstance(value, str):
        return None
    text = value.strip()
    for prefix in _PREFIXES:
        term = text[len(prefix) :]
        if text.lower().startswith(prefix) and term.lower() in _IPTC:
            return _IPTC[term.lower()], term
    return None


def plain(value: object, longest: int = 60) -> str:
    """Text out of a file as it may be shown: one line, printable, not too long; "" if no text."""
    if not isinstance(value, str):
        return ""
    text = "".join(sign if sign.isprintable() else " " for sign in value[: 4 * longest])
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
