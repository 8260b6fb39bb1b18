"""What a C2PA manifest store says of the origin of its picture."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.origin.generators import generator_named_in
from pipeline.origin.source_types import EDITED, GENERATED, RANKS, plain, source_type

_MOST_MANIFESTS = 50  # that are followed from ingredient to ingredient
_MOST_ACTIONS = 500  # of a manifest
# Actions that change what is to be seen, other than cropping, scaling or converting it
# (C2PA specification 2.2, section 18.15).
_EDITING = ("c2pa.edited", "c2pa.placed", "c2pa.drawing")
_CREATING = "c2pa.created"
_SOURCE_TYPE = "digitalSourceType"
_IN_METADATA = "Iptc4xmpExt:DigitalSourceType"


class Statement(NamedTuple):
    """`origin` is one of RANKS, or None where the manifests say none of them; `by` says what they
    say instead of it, and who."""

    origin: str | None
    by: str


def statement(store: dict) -> Statement:
    """What the active manifest says and, where the picture was made of others, theirs.

    `store` is as `jumbf.manifest_store` or c2pa-python give it. Whatever the picture was before
    (relationship parentOf) it still is; where it only holds a generated part (componentOf), it is
    edited. What else went into it (inputTo) is none of it.
    """
    active = store.get("active_manifest")
    manifests = _map(store.get("manifests"))
    if not isinstance(active, str):
        return Statement(None, "C2PA manifest")
    said = list(_all_statements(manifests, active))
    if said:
        return min(said, key=lambda one: RANKS.index(one.origin))
    name = _claim_generator(_map(manifests.get(active)))
    return Statement(None, f"C2PA manifest{f' by {name}' if name else ''}")


def _all_statements(manifests: dict, active: str) -> Iterator[Statement]:
    waiting: list[tuple[object, bool]] = [(active, False)]
    seen: set[tuple[str, bool]] = set()
    while waiting and len(seen) < _MOST_MANIFESTS:
        label, is_part = waiting.pop(0)
        if not isinstance(label, str) or (label, is_part) in seen:
            continue
        seen.add((label, is_part))
        manifest = _map(manifests.get(label))
        for said in _statements(manifest):
            if not is_part:
                yield said
            elif said.origin == GENERATED:
                yield said._replace(origin=EDITED)
        for ingredient in map(_map, _list(manifest.get("ingredients"))[:_MOST_MANIFESTS]):
            relationship = ingredient.get("relationship")
            if relationship in ("parentOf", "componentOf"):
                is_component = relationship == "componentOf"
                waiting.append((ingredient.get("active_manifest"), is_part or is_component))


def _statements(manifest: dict) -> Iterator[Statement]:
    generator = _claim_generator(manifest)
    for assertion in map(_map, _list(manifest.get("assertions"))):
        data = _map(assertion.get("data"))
        for action in map(_map, _list(data.get("actions"))[:_MOST_ACTIONS]):
            yield from _of_action(action, generator)
        if said := source_type(data.get(_IN_METADATA)):
            yield _worded(*said, generator)


def _of_action(action: dict, generator: str) -> Iterator[Statement]:
    agent = _name(action.get("softwareAgent")) or generator
    name = action.get("action")
    if said := source_type(action.get(_SOURCE_TYPE)):
        origin, term = said
        # What is generated and put into a picture that was there already makes it edited.
        if origin == GENERATED and name != _CREATING:
            origin = EDITED
        yield _worded(origin, term, agent)
    elif name == _CREATING and generator_named_in(agent):
        yield _worded(GENERATED, name, agent)
    elif name in _EDITING:
        yield _worded(EDITED, name, agent)


def _worded(origin: str, term: str, name: str) -> Statement:
    return Statement(origin, f"C2PA manifest: {term}{f' by {name}' if name else ''}")


def _claim_generator(manifest: dict) -> str:
    info = _list(manifest.get("claim_generator_info"))
    return _name(info[0] if info else None) or _name(manifest.get("claim_generator"))


def _name(agent: object) -> str:
    """The name of software, which is text or a map with a name and perhaps a version."""
    return plain(_map(agent).get("name")) or plain(agent)


def _map(value: object) -> dict:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list:
    return value if isinstance(value, list) else []
