"""Signatures of C2PA manifests, made and verified by c2pa-python; skipped where that is missing."""

import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from pipeline.origin import jumbf, manifests, notes
from pipeline.photos.images import read_picture
from tests.declared_pictures import (
    CAMERA,
    FORMATS,
    GENERATED,
    IPTC,
    MANIFEST,
    MANIFEST_BY,
    action,
    picture,
)
from tests.mutated_pictures import with_right_checksums

c2pa = pytest.importorskip("c2pa", reason="needs c2pa-python: pip install c2pa-python")
pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")

TYPES = dict(zip(FORMATS, ("jpeg", "png", "webp", "avif", "heic", "tiff"), strict=True))
EXTENSIONS = """basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=emailProtection
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
"""
COMMANDS = """ecparam -name prime256v1 -genkey -noout -out ca.key
req -x509 -new -key ca.key -subj /O=Root/CN=Root -days 9 -out ca.pem
ecparam -name prime256v1 -genkey -noout -out leaf.key
pkcs8 -topk8 -nocrypt -in leaf.key -out leaf.pkcs8
req -new -key leaf.key -subj /O=Signer/CN=Signer -out leaf.csr
x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 -extfile ext -out leaf.pem
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A folder with the key and the certificate of a signer whom nobody knows."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "ext").write_text(EXTENSIONS)
    for command in COMMANDS.splitlines():
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder


def signed(
    content: bytes, kind: str, keys: Path, *actions: dict, ingredient: dict | None = None
) -> bytes:
    chain = (keys / "leaf.pem").read_bytes() + (keys / "ca.pem").read_bytes()
    key = (keys / "leaf.pkcs8").read_bytes()
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", chain, key, None))
    kind = f"image/{TYPES[kind]}"
    definition = {
        "claim_generator_info": [{"name": "Test Program"}],
        "assertions": [{"label": "c2pa.actions", "data": {"actions": list(actions)}}],
    }
    out = BytesIO()
    with c2pa.Builder(definition) as builder:
        if ingredient:
            builder.add_ingredient(ingredient, kind, BytesIO(content))
        builder.sign(signer, kind, BytesIO(content), out)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_signature_is_verified_and_both_readers_say_the_same(kind, keys):
    content = signed(picture(kind), kind, keys, action("c2pa.created", GENERATED))
    by = "C2PA manifest: trainedAlgorithmicMedia by Test Program"
    assert read_picture(BytesIO(content)).declared == (
        "generated",
        f"{by}; verified, signer not checked",
    )
    own = jumbf.manifest_store(notes.read_notes(BytesIO(content), kind).manifest)
    assert manifests.statement(own) == ("generated", by)


def test_a_changed_picture_is_not_verified(keys):
    content = bytearray(
        signed(picture("PNG", CAMERA), "PNG", keys, action("c2pa.created", f"{IPTC}digitalCapture"))
    )
    camera = content.index(b"Canon EOS 5D")
    content[camera : camera + 5] = b"Nikon"
    assert read_picture(BytesIO(with_right_checksums(bytes(content)))).declared == (
        "camera",
        "C2PA manifest: digitalCapture by Test Program; not verified: the signature does not hold",
    )


def test_an_ingredient_is_what_the_picture_was(keys):
    made = signed(picture(), "JPEG", keys, action("c2pa.created", GENERATED))
    opening = action("c2pa.opened") | {"parameters": {"ingredientIds": ["xmp:iid:1"]}}
    parent = {"relationship": "parentOf", "instance_id": "xmp:iid:1", "title": "before"}
    opened = signed(made, "JPEG", keys, opening, ingredient=parent)
    own = jumbf.manifest_store(notes.read_notes(BytesIO(opened), "JPEG").manifest)
    assert manifests.statement(own).origin == "generated"
    assert read_picture(BytesIO(opened)).declared.origin == "generated"


def test_a_manifest_that_the_library_refuses_is_still_named(keys):
    assert read_picture(BytesIO(picture(manifest=MANIFEST))).declared.by.startswith(
        MANIFEST_BY.removesuffix("; not verified")
    )
