"""The DigitalSourceType in an XMP packet (IPTC Photo Metadata Standard 2023.2).

Only the property of the picture itself counts: not one of an ingredient, nor a word in a caption.
"""

from xml.parsers import expat

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "  # names are "namespace name"
_PROPERTY = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/ DigitalSourceType"
_PICTURE = [f"{_RDF}RDF", f"{_RDF}Description"]  # what the property must stand in
_LONGEST_VALUE = 1_000  # characters
_DEEPEST = 100  # elements


def digital_source_types(packet: bytes) -> list[str]:
    """The values of the picture's DigitalSourceType; there should be one at most.

    Raises ValueError where the packet is not well-formed, too deep, or has a document type, in
    which entities could be declared that unfold without end.
    """
    found: list[str] = []
    path: list[str] = []
    text = ""

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal text
        path.append(name)
        text = ""
        if len(path) > _DEEPEST:
            raise ValueError("XMP that is too deep")
        if path[-2:] == _PICTURE and _PROPERTY in attributes:
            found.append(attributes[_PROPERTY])
        elif is_property() and f"{_RDF}resource" in attributes:
            found.append(attributes[f"{_RDF}resource"])

    def end(_name: str) -> None:
        if is_property() and text.strip():
            found.append(text)
        path.pop()

    def characters(data: str) -> None:
        nonlocal text
        if is_property() and len(text) < _LONGEST_VALUE:
            text += data

    def is_property() -> bool:
        return path[-1] == _PROPERTY and path[-3:-1] == _PICTURE

    def refuse(*_declaration) -> None:
        raise ValueError("XMP with a document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.rstrip(b"\0 \t\r\n"), True)
    except expat.ExpatError as error:
        raise ValueError(f"XMP that is not well-formed: {error}") from error
    return found
