"""What files say of their own origin: where it counts, where it does not, and what cannot hurt."""

import json
import struct
import tracemalloc
import zlib
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.common.errors import ImageError
from pipeline.decoding.image_kinds import picture_format
from pipeline.origin import cbor, exif, jumbf, manifests, notes, xmp
from pipeline.origin.declared import NOTHING, declared_origin
from pipeline.origin.source_types import source_type
from pipeline.photos.images import PHOTO_SUFFIXES, read_image, read_picture
from tests import declared_pictures as made
from tests.broken_files import png_chunk
from tests.declared_pictures import FORMATS, GENERATED, action, manifest, picture, store
from tests.mutated_pictures import spoilt
from tests.shared import SHARED, needs_shared

PICTURES = made.declared_pictures()


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog):
    """What was not foreseen is passed over, and logged."""
    yield
    assert not [record for record in caplog.records if record.name.startswith("pipeline.origin")]


def declared(content: bytes) -> tuple[str | None, str | None]:
    return read_picture(BytesIO(content)).declared


def origin(content: bytes) -> str | None:
    return declared(content)[0]


@pytest.mark.parametrize("name", PICTURES)
def test_each_field_in_each_kind_of_file(name):
    content, kind, expected = PICTURES[name]
    assert picture_format(content[:64]) == kind
    assert origin(content) == expected
    assert np.array_equal(read_picture(BytesIO(content)).pixels, read_image(BytesIO(content)))


@pytest.mark.parametrize(
    ("content", "by"),
    [
        (picture(manifest=made.MANIFEST), made.MANIFEST_BY),
        (picture(xmp=made.xmp()), "XMP DigitalSourceType: trainedAlgorithmicMedia; not verified"),
        (picture(exif=made.CAMERA), made.CAMERA_BY),
        (
            picture("PNG", texts={"prompt": made.COMFY_PROMPT}),
            "PNG text prompt: ComfyUI; not verified",
        ),
        (
            picture(exif=made.comment(made.WEB_UI)),
            "EXIF UserComment: settings of Stable Diffusion; not verified",
        ),
    ],
)
def test_the_field_that_decides_is_named(content, by):
    assert declared(content)[1] == by


@pytest.mark.parametrize("kind", FORMATS)
def test_without_notes_nothing_is_declared(kind):
    assert declared(picture(kind)) == NOTHING


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        ("trainedAlgorithmicMedia", "generated"),
        ("algorithmicMedia", "generated"),
        ("compositeWithTrainedAlgorithmicMedia", "edited"),
        ("compositeSynthetic", "edited"),
        ("composite", "edited"),
        ("algorithmicallyEnhanced", "edited"),
        ("humanEdits", "edited"),
        ("digitalCapture", "camera"),
        ("computationalCapture", "camera"),
        ("negativeFilm", "camera"),
        ("digitalCreation", None),
        ("screenCapture", None),
        ("trainedAlgorithmicMediaOfAnotherKind", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("form", ["attribute", "element", "resource"])
@pytest.mark.parametrize("prefix", [made.IPTC, made.IPTC.replace("http:", "https:"), ""])
def test_terms_of_the_iptc_in_xmp(term, expected, form, prefix):
    [value] = xmp.digital_source_types(made.xmp(prefix + term, form)) or [""]
    said = source_type(value)
    assert (said and said[0]) == expected


def test_other_vocabularies_say_nothing():
    for value in ("http://example.com/trainedAlgorithmicMedia", 5, None, ["digitalCapture"]):
        assert source_type(value) is None


@pytest.mark.parametrize(
    "block",
    [
        made.comment(made.WEB_UI, "utf-16-le"),
        made.exif({made.COMMENT: b"ASCII\0\0\0" + made.WEB_UI.encode()}),
        made.comment(made.FOOOCUS),
        made.comment(made.COMFY_PROMPT),
        made.comment('{"sui_image_params": {"prompt": "a face"}}'),
        made.exif({made.SOFTWARE: "Fooocus v2.5.5"}),
        made.exif({made.SOFTWARE: "Adobe Firefly"}),
        made.exif({made.MAKE: f"workflow:{made.COMFY_WORKFLOW}", made.MODEL: "prompt:{}"}),
        made.exif({made.MODEL: f"prompt:{made.COMFY_PROMPT}"}),
        made.exif({made.MAKE: "OpenAI", made.MODEL: "gpt-image-1"}),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_forms_of_generators_in_exif(block, kind):
    assert origin(picture(kind, block)) == "generated"


@pytest.mark.parametrize(
    "texts",
    [
        {"parameters": "width=3, height=4"},
        {"parameters": "Steps: many, Sampler: Haydn"},
        {"prompt": "Smile!"},
        {"prompt": '{"question": "Smile?"}'},
        {"workflow": "scan, crop, save"},
        {"workflow": '{"nodes": 3}'},
        {"Dream": "of a face"},
        {"sd-metadata": "none"},
        {"Software": "Adobe ImageReady"},
        {"Title": made.WEB_UI},
        {"Description": made.WEB_UI},
        {"Comment": made.COMFY_PROMPT},
        {"Author": "Midjourney"},
        {"Description": GENERATED, "Title": "Made with ChatGPT", "Copyright": "NovelAI"},
    ],
)
def test_texts_of_other_programs_and_captions_do_not_count(texts):
    assert declared(picture("PNG", texts=texts)) == NOTHING


@pytest.mark.parametrize("kind", FORMATS)
def test_captions_in_exif_and_xmp_do_not_count(kind):
    caption = f"Midjourney, {GENERATED}, {made.WEB_UI}"
    inner = (
        f"<dc:description><rdf:Alt><rdf:li>{caption}</rdf:li></rdf:Alt></dc:description>"
        f"<dc:title>{GENERATED}</dc:title><dc:creator>NovelAI</dc:creator>"
    )
    block = made.exif({made.DESCRIPTION: caption})
    packet = made.xmp("", "none", inner)
    content = picture(kind, block, packet)
    assert packet in content or kind == "PNG"
    assert declared(content) == NOTHING


def test_the_source_type_of_an_ingredient_is_not_that_of_the_picture():
    pantry = (
        "<dc:relation><rdf:Bag><rdf:li>"
        f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{GENERATED}"/>'
        "</rdf:li></rdf:Bag></dc:relation>"
        f'<dc:source rdf:parseType="Resource"><Iptc4xmpExt:DigitalSourceType>{GENERATED}'
        "</Iptc4xmpExt:DigitalSourceType></dc:source>"
    )
    assert declared(picture(xmp=made.xmp("", "none", pantry))) == NOTHING


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_behind_the_picture_do_not_count(kind, name):
    appended, _, _ = PICTURES[name]
    notes_alone = made.xmp() + made.MANIFEST + made.WEB_UI.encode() + b"EXIF" + made.CAMERA
    for behind in (appended, notes_alone):
        assert declared_origin(BytesIO(picture(kind) + behind), kind) == NOTHING


def test_chunks_behind_the_end_of_a_picture_do_not_count():
    text = png_chunk(b"tEXt", b"parameters\0" + made.WEB_UI.encode())
    assert declared(picture("PNG") + text + png_chunk(b"IEND", b"")) == NOTHING
    segment = b"\xff\xe1" + struct.pack(">H", len(made.CAMERA) + 2) + made.CAMERA
    assert declared(picture("JPEG") + segment + b"\xff\xd9") == NOTHING
    within_riff = made._webp_with(picture("WEBP"), made.MANIFEST)
    outside = picture("WEBP") + within_riff[-len(made.MANIFEST) - 8 :]
    assert (origin(within_riff), declared(outside)) == ("generated", NOTHING)


def test_a_note_in_a_wrong_place_does_not_count():
    content = picture("PNG", texts={"parameters": made.WEB_UI})
    assert declared(content.replace(b"Steps: 20", b"Steps: 21")) == NOTHING  # wrong checksum
    unnamed = box_at_the_end(b"uuid", bytes(16) + bytes(4) + b"manifest\0" + bytes(8))
    assert declared(picture("AVIF") + unnamed) == NOTHING
    in_app11 = b"XX" + struct.pack(">HI", 1, 1) + made.MANIFEST
    plain = picture()
    assert declared(plain[:2] + made.app11(in_app11) + plain[2:]) == NOTHING


def box_at_the_end(kind: bytes, head: bytes) -> bytes:
    return made.box(kind, head + made.MANIFEST)


def test_file_names_do_not_count(tmp_path):
    path = tmp_path / "trainedAlgorithmicMedia Midjourney ChatGPT.png"
    path.write_bytes(picture("PNG"))
    assert read_picture(path).declared == NOTHING
    assert read_picture(str(path)).declared == NOTHING


def test_generated_comes_before_edited_before_camera():
    edited = made.xmp(f"{made.IPTC}compositeSynthetic")
    camera = made.xmp(f"{made.IPTC}digitalCapture")
    captured = store(manifest(action("c2pa.created", f"{made.IPTC}digitalCapture", "Leica")))
    said = [
        picture(exif=made.CAMERA, xmp=edited, manifest=made.MANIFEST),
        picture(exif=made.CAMERA, xmp=edited, manifest=captured),
        picture(exif=made.CAMERA, xmp=camera, manifest=captured),
        picture(exif=made.CAMERA, xmp=camera),
        picture(exif=made.comment(made.WEB_UI), xmp=edited, manifest=captured),
    ]
    assert [declared(content) for content in said] == [
        ("generated", made.MANIFEST_BY),
        ("edited", "XMP DigitalSourceType: compositeSynthetic; not verified"),
        ("camera", "C2PA manifest: digitalCapture by Leica; not verified"),
        ("camera", "XMP DigitalSourceType: digitalCapture; not verified"),
        ("generated", "EXIF UserComment: settings of Stable Diffusion; not verified"),
    ]


CAPTURED = action("c2pa.created", f"{made.IPTC}digitalCapture", "Leica")
MADE = action("c2pa.created", GENERATED, "Firefly")


@pytest.mark.parametrize(
    ("of_manifests", "expected"),
    [
        ([manifest(MADE)], ("generated", "C2PA manifest: trainedAlgorithmicMedia by Firefly")),
        ([manifest(CAPTURED)], ("camera", "C2PA manifest: digitalCapture by Leica")),
        (
            [manifest(CAPTURED, action("c2pa.edited", agent={"name": "Photoshop"}))],
            ("edited", "C2PA manifest: c2pa.edited by Photoshop"),
        ),
        # cropping and the like is no edit
        ([manifest(CAPTURED, action("c2pa.cropped"), action("c2pa.resized"))], ("camera", ...)),
        # generated into what was there before
        ([manifest(action("c2pa.edited", GENERATED))], ("edited", ...)),
        ([manifest(action("c2pa.created", None, "DALL·E"))], ("generated", ...)),
        ([manifest(action("c2pa.created"))], (None, "C2PA manifest by Test Program")),
        ([manifest()], (None, "C2PA manifest by Test Program")),
        # the last one is the active one; another counts only as the ingredient that it is
        ([manifest(MADE, label="a"), manifest(CAPTURED, label="b")], ("camera", ...)),
        (
            [
                manifest(MADE, label="a"),
                manifest(action("c2pa.opened"), label="b", parents={"a": "parentOf"}),
            ],
            ("generated", ...),
        ),
        (
            [
                manifest(MADE, label="a"),
                manifest(CAPTURED, label="b", parents={"a": "componentOf"}),
            ],
            ("edited", ...),
        ),
        (
            [manifest(MADE, label="a"), manifest(CAPTURED, label="b", parents={"a": "inputTo"})],
            ("camera", ...),
        ),
        # in a circle, and to one that is not there
        ([manifest(label="a", parents={"a": "parentOf", "z": "parentOf"})], (None, ...)),
    ],
)
def test_manifests_and_their_ingredients(of_manifests, expected):
    said = manifests.statement(jumbf.manifest_store(store(*of_manifests)))
    assert said.origin == expected[0]
    assert expected[1] in (..., said.by)


def test_metadata_that_a_manifest_holds_counts_too():
    held = json.dumps({"Iptc4xmpExt:DigitalSourceType": f"{made.IPTC}compositeSynthetic"})
    assertion = made.superbox("stds.iptc", made.box(b"json", held.encode()))
    whole = store(made.superbox("urn:c2pa:2", made.superbox("c2pa.assertions", assertion)))
    assert origin(picture(manifest=whole)) == "edited"


def test_a_manifest_that_says_nothing_of_the_origin_is_named_behind_what_does():
    silent = store(manifest())
    assert declared(picture(manifest=silent)) == (
        None,
        "C2PA manifest by Test Program; not verified",
    )
    assert declared(picture(exif=made.CAMERA, manifest=silent)) == ("camera", made.CAMERA_BY)
    damaged = made.superbox("c2pa", made.box(b"jumb", b"no description"))
    assert declared(picture(manifest=damaged)) == (
        None,
        "C2PA manifest that cannot be read; not verified",
    )


def test_names_in_a_file_come_out_as_one_short_line():
    agent = "Evil\n\x1b[31m\u202eProgram " + "x" * 5_000
    _, by = declared(picture(manifest=store(manifest(action("c2pa.created", GENERATED, agent)))))
    assert by.startswith("C2PA manifest: trainedAlgorithmicMedia by Evil [31m Program xxx")
    assert by.isprintable() and len(by) < 130
    _, by = declared(picture(exif=made.exif({made.MAKE: "=1+1\t", made.MODEL: "x" * 1_000})))
    assert by.startswith("EXIF Make and Model: =1+1, xxx") and len(by) < 130


BOMB = zlib.compress(bytes(300 << 20), 9)  # 300 MB in 300 kB


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"parameters\0\0" + BOMB),
        png_chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
        b"".join(png_chunk(b"zTXt", b"parameters\0\0" + BOMB) for _ in range(20)),
        png_chunk(b"tEXt", b"parameters\0" + bytes(30 << 20)),
        png_chunk(b"tEXt", b"parameters") * 3,
        png_chunk(b"zTXt", b"parameters\0\0no zlib"),
        png_chunk(b"iTXt", b"parameters\0"),
        png_chunk(b"tEXt", b"\0") * 30_000,
    ],
)
def test_chunks_that_unfold_to_too_much_are_as_if_not_there(chunk):
    plain = picture("PNG", made.CAMERA)
    place = plain.index(b"IDAT") - 4
    content = BytesIO(plain[:place] + chunk + plain[place:])
    said, memory = watched(lambda: declared_origin(content, "PNG"))
    assert said.origin in ("camera", None) and memory < 8 << 20


def watched(act) -> tuple:
    """What it returns, and the bytes that Python held at most meanwhile."""
    tracemalloc.start()
    try:
        return act(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_text_after_the_pixels_counts_and_so_does_a_compressed_one():
    plain = picture("PNG")
    place = plain.index(b"IEND") - 4
    text = zlib.compress(made.WEB_UI.encode())
    for chunk in (
        png_chunk(b"zTXt", b"parameters\0\0" + text),
        png_chunk(b"iTXt", b"parameters\0\1\0en\0translated\0" + text),
        png_chunk(b"iTXt", b"parameters\0\0\0\0\0" + made.WEB_UI.encode()),
    ):
        assert origin(plain[:place] + chunk + plain[place:]) == "generated"


LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
).encode()


@pytest.mark.parametrize(
    "packet",
    [
        LAUGHS + made.xmp("&i;"),
        b'<!DOCTYPE x SYSTEM "file:///etc/hostname">' + made.xmp(),
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/hostname">]>' + made.xmp("&e;"),
        made.xmp()[:-20],
        made.xmp() + b"<x/>",
        b"<a>" * 300_000,
        b"\xff\xfe",
        b"<",
        b"",
    ],
)
def test_hostile_xmp_says_nothing(packet):
    with pytest.raises(ValueError):
        xmp.digital_source_types(packet)
    content = BytesIO(picture("WEBP", made.CAMERA, packet or b"\0"))
    said, memory = watched(lambda: declared_origin(content, "WEBP"))
    assert said.origin == "camera" and memory < 80 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 100_000,  # arrays in arrays
        b"\xc1" * 100_000,  # tags of tags
        b"\x9f" * 1_000,
        b"\xa1\x61a" * 1_000,
        b"\x9a\xff\xff\xff\xff",  # four milliards of items
        b"\x9f" + b"\x00" * 100_000,
        b"\x5b" + b"\xff" * 8,
        b"\x7f\x41a\xff",
        b"\xff",
        b"\x1c",
        b"\xf8\x20",
        b"",
    ],
)
def test_hostile_cbor_is_refused(data):
    with pytest.raises(ValueError):
        cbor.decode(data)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(plain_values)
@settings(deadline=None)
def test_cbor_gives_back_what_was_written(value):
    try:
        assert cbor.decode(made.cbor(value)) == value
    except ValueError as error:
        assert "too deep" in str(error)


def test_cbor_of_other_programs():
    # RFC 8949, appendix A
    for data, value in {
        "f93e00": 1.5,
        "fb3ff199999999999a": 1.1,
        "3903e7": -1000,
        "c074323031332d30332d32315432303a30343a30305a": "2013-03-21T20:04:00Z",
        "9f018202039f0405ffff": [1, [2, 3], [4, 5]],
        "bf6346756ef563416d7421ff": {"Fun": True, "Amt": -2},
        "7f657374726561646d696e67ff": "streaming",
        "5f42010243030405ff": b"\1\2\3\4\5",
        "a201020304": {},  # no text among its keys
        "f7": None,
    }.items():
        assert cbor.decode(bytes.fromhex(data)) == value


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_bytes_have_a_value_or_a_value_error(data):
    """Each reader by itself: what it does not foresee is not hidden here."""
    for read in (
        cbor.decode,
        jumbf.manifest_store,
        xmp.digital_source_types,
        lambda data: exif.statements(BytesIO(data)),
        lambda data: exif.statements(BytesIO(b"II*\0\x08\0\0\0" + data)),
        lambda data: jumbf.manifest_store(made.store(data)),
        lambda data: manifests.statement(jumbf.manifest_store(made.store(manifest() + data))),
        *(lambda data, kind=kind: notes.read_notes(BytesIO(data), kind) for kind in FORMATS),
    ):
        try:
            read(data)
        except ValueError:
            continue


anything = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["active_manifest", "manifests", "a", "claim_generator_info", "claim_generator"]
                + ["assertions", "ingredients", "data", "actions", "action", "digitalSourceType"]
                + ["softwareAgent", "name", "relationship"]
            ),
            inner | st.sampled_from(["a", "c2pa.created", "parentOf", GENERATED]),
        )
    ),
    max_leaves=40,
)


@given(anything, anything)
@settings(deadline=None)
def test_a_store_of_any_shape_says_something(of_a, of_b):
    manifests.statement({"active_manifest": "a", "manifests": {"a": of_a, "b": of_b}})
    manifests.statement({"active_manifest": of_a, "manifests": of_b})
    manifests.statement(
        {"active_manifest": "a", "manifests": {"a": {"assertions": [{"data": of_a}, of_b]}}}
    )


def test_boxes_without_end():
    nested = b""
    for _ in range(2_000):
        nested = made.superbox("c2pa.assertions", nested)
    for data in (
        store(manifest(), *[made.box(b"free", b"")] * 10_000),
        store(nested),
        store(struct.pack(">I", 0xFFFFFFFF) + b"jumb"),
        store(struct.pack(">I4sQ", 1, b"jumb", 1 << 62)),
        store(struct.pack(">I", 0) + b"jumb"),
        store(struct.pack(">I", 4) + b"jumb"),
    ):
        content = BytesIO(picture("PNG", made.CAMERA, manifest=data))
        said, memory = watched(lambda content=content: declared_origin(content, "PNG"))
        assert said == ("camera", made.CAMERA_BY) and memory < 8 << 20


def test_exif_that_points_everywhere_at_once():
    """Each of 60,000 entries claims the whole megabyte."""
    size = 1 << 20
    tags = [*range(1, 60_000), made.MAKE, made.MODEL, made.SOFTWARE]
    entries = b"".join(struct.pack("<HHII", tag, 2, size - 8, 8) for tag in sorted(tags))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 60_002) + entries
    said, memory = watched(lambda: exif.statements(BytesIO(block.ljust(size, b"x"))))
    assert all(len(by) < 130 for _, by in said) and memory < 8 << 20
    for start in (0, 8, 1 << 31, 0xFFFFFFFF):
        assert exif.statements(BytesIO(b"MM\0*" + struct.pack(">I", start) + b"\xff" * 40)) == []


def test_ten_thousand_parts_and_no_more():
    """What hides behind more parts than any program writes is not looked for."""
    for kind, part in (("JPEG", b"\xff\xe2\0\2"), ("PNG", png_chunk(b"teSt", b""))):
        start = 2 if kind == "JPEG" else 33
        plain = picture(kind, made.CAMERA)
        few, many = (
            plain[:start] + part * number + plain[start:] for number in (9_000, notes.MOST_PARTS)
        )
        assert declared_origin(BytesIO(few), kind).origin == "camera"
        assert declared_origin(BytesIO(many), kind) == NOTHING
    filled = picture(exif=made.CAMERA)
    filled = filled[:2] + b"\xff" * 1_000_000 + filled[2:]
    assert declared_origin(BytesIO(filled), "JPEG") == NOTHING


def test_five_hundred_spoilt_files():
    """None raises anything but an ImageError of its pixels; most notes of the rest are still read,
    and none is read that was not there."""
    said = set()
    pictures = {name: content for name, (content, _, _) in PICTURES.items()}
    for name, content in spoilt(pictures, 500, seed=19):
        for kind in FORMATS:  # also as what it is not
            assert declared_origin(BytesIO(content), kind).origin in ("generated", "camera", None)
        try:
            by = read_picture(BytesIO(content)).declared.by or ""
        except ImageError:
            continue
        assert by.isprintable() and len(by) < 200, name
        said.add(by.partition(":")[0])
    assert {"C2PA manifest", "XMP DigitalSourceType", "EXIF Make and Model"} <= said


@needs_shared
def test_no_labelled_face_is_said_to_be_generated_that_is_not():
    looked_at = 0
    for path in (SHARED / "faces").rglob("*"):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            with open(path, "rb") as file:
                said = declared_origin(file, picture_format(file.read(64)))
            assert said.origin != "generated" or "fake" in path.parts, path
            looked_at += 1
    assert looked_at > 15_000
