"""Small pictures that say where they come from, in each kind of file, and the notes they carry."""

import json
import struct

import numpy as np
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tests.broken_files import encoded, png_chunk

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = f"{IPTC}trainedAlgorithmicMedia"
WEB_UI = (
    "a face\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, "
    "Size: 512x512, Model hash: 6ce0161689, Model: v1-5-pruned"
)
COMFY_PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {"seed": 5, "steps": 20}}})
COMFY_WORKFLOW = json.dumps({"last_node_id": 9, "nodes": [{"id": 7}], "links": [[1, 4]]})
FOOOCUS = json.dumps({"prompt": "a face", "sampler": "dpmpp_2m", "seed": "8", "steps": 30})
DREAM = "a face -s 50 -S 1950357039 -W 512 -H 512 -C 7.5 -A k_lms"
MAKE, MODEL, SOFTWARE, DESCRIPTION, COMMENT = 0x010F, 0x0110, 0x0131, 0x010E, 0x9286
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "TIFF")


def picture(
    kind: str = "JPEG",
    exif: bytes = b"",
    xmp: bytes = b"",
    manifest: bytes = b"",
    texts: dict[str, str] | None = None,
) -> bytes:
    """A picture of 48 × 40 pixels with these notes, each where the standard puts it."""
    grain = np.random.default_rng(3).integers(0, 255, (40, 48, 3), np.uint8)
    settings: dict = {"exif": exif} if exif else {}
    if kind == "PNG":
        settings["pnginfo"] = PngImagePlugin.PngInfo()
        for keyword, text in (texts or {}).items():
            settings["pnginfo"].add_text(keyword, text)
        if xmp:
            settings["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif kind == "TIFF":
        settings = {"tiffinfo": _tags(exif, xmp, manifest)}
    elif xmp:
        settings["xmp"] = xmp
    content = encoded(Image.fromarray(grain), kind, **settings)
    return _WITH_MANIFEST[kind](content, manifest) if manifest and kind != "TIFF" else content


def _tags(exif: bytes, xmp: bytes, manifest: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    read = Image.Exif()
    read.load(exif)
    for tag in (MAKE, MODEL, SOFTWARE, DESCRIPTION):
        if tag in read:
            tags[tag] = read[tag]
    if comment := read.get_ifd(0x8769).get(COMMENT):
        tags[0x8769] = {COMMENT: comment}
    for tag, value in ((700, xmp), (0xCD41, manifest)):
        if value:
            tags.tagtype[tag] = 7
            tags[tag] = value
    return tags


def _jpeg_with(content: bytes, manifest: bytes) -> bytes:
    """In two segments, as what is too long for one is."""
    half = len(manifest) // 2
    parts = (manifest[:half], manifest[:8] + manifest[half:])
    segments = [
        b"JP" + struct.pack(">HI", 1, number) + part for number, part in enumerate(parts, start=1)
    ]
    return content[:2] + b"".join(map(app11, segments)) + content[2:]


def app11(segment: bytes) -> bytes:
    return b"\xff\xeb" + struct.pack(">H", len(segment) + 2) + segment


def _png_with(content: bytes, manifest: bytes) -> bytes:
    place = content.index(b"IDAT") - 4
    return content[:place] + png_chunk(b"caBX", manifest) + content[place:]


def _webp_with(content: bytes, manifest: bytes) -> bytes:
    chunk = b"C2PA" + struct.pack("<I", len(manifest)) + manifest + bytes(len(manifest) % 2)
    return b"RIFF" + struct.pack("<I", len(content) - 8 + len(chunk)) + content[8:] + chunk


def _heif_with(content: bytes, manifest: bytes) -> bytes:
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return content + box(b"uuid", uuid + bytes(4) + b"manifest\0" + bytes(8) + manifest)


_WITH_MANIFEST = {
    "JPEG": _jpeg_with,
    "PNG": _png_with,
    "WEBP": _webp_with,
    "AVIF": _heif_with,
    "HEIF": _heif_with,
}


def exif(fields: dict[int, str | bytes]) -> bytes:
    """An EXIF block as Pillow writes it, from a tag to what it says."""
    block = Image.Exif()
    for tag, value in fields.items():
        if tag == COMMENT:
            block.get_ifd(0x8769)[tag] = value
        else:
            block[tag] = value
    return block.tobytes()


CAMERA = exif({MAKE: "Canon", MODEL: "Canon EOS 5D", SOFTWARE: "Adobe Photoshop 25.1"})
CAMERA_BY = "EXIF Make and Model: Canon, Canon EOS 5D; not verified"


def comment(text: str, encoding: str = "utf-16-be") -> bytes:
    return exif({COMMENT: b"UNICODE\0" + text.encode(encoding)})


def xmp(value: str = GENERATED, form: str = "attribute", inner: str = "") -> bytes:
    """An XMP packet with a DigitalSourceType in one of the forms that RDF allows."""
    attribute = f'Iptc4xmpExt:DigitalSourceType="{value}"' if form == "attribute" else ""
    element = {
        "element": f"<Iptc4xmpExt:DigitalSourceType>{value}</Iptc4xmpExt:DigitalSourceType>",
        "resource": f'<Iptc4xmpExt:DigitalSourceType rdf:resource="{value}"/>',
    }.get(form, "")
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'xmlns:dc="http://purl.org/dc/elements/1.1/" {attribute}>{element}{inner}'
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def action(name: str, source: str | None = None, agent: object = None) -> dict:
    said = {"action": name, "digitalSourceType": source, "softwareAgent": agent}
    return {key: value for key, value in said.items() if value is not None}


def manifest(*actions: dict, label: str = "urn:c2pa:1", parents: dict | None = None) -> bytes:
    """A manifest of a store, with its actions and ingredients, {label: relationship}."""
    assertions = [superbox("c2pa.actions.v2", box(b"cbor", cbor({"actions": list(actions)})))]
    for number, (parent, relationship) in enumerate((parents or {}).items()):
        address = {"url": f"self#jumbf=/c2pa/{parent}", "hash": bytes(32)}
        said = {"relationship": relationship, "activeManifest": address}
        name = "c2pa.ingredient.v3" + f"__{number}" * bool(number)
        assertions.append(superbox(name, box(b"cbor", cbor(said))))
    claim = {"claim_generator_info": {"name": "Test Program", "version": "1"}}
    return superbox(
        label,
        superbox("c2pa.assertions", *assertions)
        + superbox("c2pa.claim.v2", box(b"cbor", cbor(claim)))
        + superbox("c2pa.signature", box(b"cbor", cbor([b"", {}, None, b"none"]))),
    )


def store(*manifests: bytes) -> bytes:
    """A C2PA manifest store; the last manifest is the active one."""
    return superbox("c2pa", *manifests)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def superbox(label: str, *content: bytes) -> bytes:
    description = bytes(16) + b"\3" + label.encode() + b"\0"
    return box(b"jumb", box(b"jumd", description) + b"".join(content))


def cbor(value: object) -> bytes:
    """CBOR of text, bytes, whole numbers, lists, maps, true, false and null."""
    if value is None or isinstance(value, bool):
        return {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
    if isinstance(value, int):
        return _head(1, -1 - value) if value < 0 else _head(0, value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return _head(4, len(value)) + b"".join(map(cbor, value))
    pairs = (cbor(part) for pair in value.items() for part in pair)
    return _head(5, len(value)) + b"".join(pairs)


def _head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    size = next(size for size in (1, 2, 4, 8) if number < 1 << 8 * size)
    return bytes([kind << 5 | 24 + size.bit_length() - 1]) + number.to_bytes(size, "big")


MANIFEST = store(manifest(action("c2pa.created", GENERATED, {"name": "ChatGPT"})))
MANIFEST_BY = "C2PA manifest: trainedAlgorithmicMedia by ChatGPT; not verified"


def declared_pictures() -> dict[str, tuple[bytes, str, str | None]]:
    """One picture for each field and each form in which generators sign: {name: (content, kind,
    what it declares)}."""
    found: dict[str, tuple[bytes, str, str | None]] = {}
    for kind in FORMATS:
        found |= {
            f"{kind} C2PA": (picture(kind, manifest=MANIFEST), kind, "generated"),
            f"{kind} XMP": (picture(kind, xmp=xmp()), kind, "generated"),
            f"{kind} camera": (picture(kind, CAMERA), kind, "camera"),
            f"{kind} software": (picture(kind, exif({SOFTWARE: "NovelAI"})), kind, "generated"),
        }
        if kind != "TIFF":
            content = picture(kind, comment(WEB_UI))
            found[f"{kind} comment"] = (content, kind, "generated")
    texts = {
        "parameters": WEB_UI,
        "prompt": COMFY_PROMPT,
        "workflow": COMFY_WORKFLOW,
        "Dream": DREAM,
        "sd-metadata": '{"model": "stable diffusion", "image": {}}',
        "invokeai_metadata": '{"app_version": "5.0.0", "seed": 3}',
        "Software": "NovelAI",
    }
    for keyword, text in texts.items():
        content = picture("PNG", texts={keyword: text})
        found[f"PNG {keyword}"] = (content, "PNG", "generated")
    return found
