"""A reader of C2PA manifest stores: which manifests there are and what they say, not whether it is
true. Signatures are the business of verification.py.

A store is a tree of JUMBF boxes (ISO 19566-5; C2PA specification 2.2, section 11.1) whose leaves
are CBOR or JSON.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.origin import cbor

_MOST_BOXES = 5_000
_LARGEST_LEAF = 1 << 20  # bytes; thumbnails may be larger, and are not read
_STORE = "c2pa"
# The assertions that say how a picture came about; "__1" and so on may follow a label.
_WITH_METADATA = ("stds.iptc", "c2pa.metadata", "cawg.metadata")
_READ = ("c2pa.actions", "c2pa.ingredient", *_WITH_METADATA)


class _Box(NamedTuple):
    label: str  # "" for a leaf
    kind: bytes
    start: int  # of what is in it
    end: int


def manifest_store(data: bytes) -> dict:
    """What c2pa-python's `Reader.json` gives of a store, as far as it says something of the origin.

    `{"active_manifest": label, "manifests": {label: {"claim_generator", "claim_generator_info",
    "assertions": [{"label", "data"}], "ingredients": [{"relationship", "active_manifest"}]}}}`.
    Raises ValueError where this is no store, or damaged where it is read.
    """
    tree = _Tree(data)
    stores = [box for box in tree.boxes(0, len(data)) if box.label == _STORE]
    if not stores:
        raise ValueError("no C2PA manifest store")
    manifests = {
        box.label: _manifest(tree, box) for box in tree.inside(stores[0]) if box.kind == b"jumb"
    }
    if not manifests:
        raise ValueError("a C2PA manifest store without a manifest")
    return {"active_manifest": list(manifests)[-1], "manifests": manifests}


def is_store(data: bytes) -> bool:
    """Whether a C2PA manifest store begins here, as far as its first bytes tell."""
    try:
        return next(_Tree(data).boxes(0, len(data))).label == _STORE
    except (ValueError, StopIteration):
        return False


class _Tree:
    """The boxes in the data, read in turn; no more than `_MOST_BOXES` of them altogether."""

    def __init__(self, data: bytes):
        self._data = data
        self._seen = 0

    def inside(self, box: _Box) -> Iterator[_Box]:
        return self.boxes(box.start, box.end)

    def boxes(self, start: int, end: int) -> Iterator[_Box]:
        while start + 8 <= end:
            box = self._box(start, end)
            yield box
            start = box.end

    def _box(self, start: int, end: int) -> _Box:
        self._seen += 1
        if self._seen > _MOST_BOXES:
            raise ValueError("JUMBF with far too many boxes")
        size = int.from_bytes(self._data[start : start + 4], "big")
        kind = self._data[start + 4 : start + 8]
        header = 8
        if size == 1:
            size, header = int.from_bytes(self._data[start + 8 : start + 16], "big"), 16
        elif size == 0:
            size = end - start
        if size < header or start + size > end:
            raise ValueError("a JUMBF box that is larger than what it stands in")
        label = self._label(start + header, start + size) if kind == b"jumb" else ""
        return _Box(label, kind, start + header, start + size)

    def _label(self, start: int, end: int) -> str:
        """The label in the description box, the first one of a superbox."""
        size = int.from_bytes(self._data[start : start + 4], "big")
        if self._data[start + 4 : start + 8] != b"jumd" or not 25 <= size <= end - start:
            raise ValueError("a JUMBF superbox without a description")
        return self._data[start + 25 : start + size].split(b"\0", 1)[0].decode("utf-8", "replace")

    def leaf(self, box: _Box) -> object:
        """What the first CBOR or JSON box in a superbox holds. Raises ValueError."""
        for inner in self.inside(box):
            if inner.kind in (b"cbor", b"json") and inner.end - inner.start <= _LARGEST_LEAF:
                data = self._data[inner.start : inner.end]
                try:
                    return cbor.decode(data) if inner.kind == b"cbor" else json.loads(data)
                except RecursionError as error:
                    raise ValueError("JSON that is too deep") from error
        return None


def _manifest(tree: _Tree, manifest: _Box) -> dict:
    said: dict = {"claim_generator_info": [], "assertions": [], "ingredients": []}
    for box in tree.inside(manifest):
        if box.label.startswith("c2pa.claim"):
            claim = _map(tree.leaf(box))
            info = claim.get("claim_generator_info")
            said["claim_generator"] = claim.get("claim_generator")
            said["claim_generator_info"] = info if isinstance(info, list) else [info]
        elif box.label == "c2pa.assertions":
            for assertion in tree.inside(box):
                if assertion.label.startswith("c2pa.ingredient"):
                    said["ingredients"].append(_ingredient(_map(tree.leaf(assertion))))
                elif assertion.label.startswith(_READ):
                    data = _map(tree.leaf(assertion))
                    said["assertions"].append({"label": assertion.label, "data": data})
    return said


def _ingredient(assertion: dict) -> dict:
    reference = assertion.get("activeManifest") or assertion.get("c2pa_manifest")
    address = _map(reference).get("url")
    label = address.rpartition("/")[2] if isinstance(address, str) else None
    return {"relationship": assertion.get("relationship"), "active_manifest": label}


def _map(value: object) -> dict:
    return value if isinstance(value, dict) else {}
