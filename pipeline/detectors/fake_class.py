"""Which class of a foreign classifier means fake: by its labels, or as the user says.

Foreign classifiers number their classes as they like. Taken the wrong way round, a classifier calls
every photo fake and every fake a photo, and nothing in its results says so. So one label that
clearly means fake decides; where none or several do, nothing is guessed.
"""

import argparse
import functools
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.common.errors import UserError

OPTION = "--fake-label"
BY_NAME = "by its name"


@dataclass(frozen=True)
class FakeClass:
    """What was decided: of a classifier's outputs, named `labels`, number `output` means fake.
    `decided` says how, as the end of a sentence."""

    labels: tuple[str, ...]
    output: int
    decided: str

    @property
    def label(self) -> str:
        return self.labels[self.output]

    def in_words(self, path: str | Path) -> str:
        """The decision as a sentence, for whoever uses the weights at `path`."""
        return (
            f"{path}: of its classes {_listed(self.labels)}, {self.label!r} counts as fake, "
            f"{self.decided}; if that is wrong, name the right one with {OPTION}."
        )

    def as_section(self) -> dict:
        """What detector.json keeps of it, in the section `fake_class`."""
        return asdict(self) | {"labels": list(self.labels)}


class FakeLabels:
    """What the user named with `--fake-label`: labels of the classes that mean fake, each of one
    or several of the weights that are used."""

    def __init__(self, names: Sequence[str] = ()):
        self._names = tuple(names)
        self._used: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._names)

    def choose(self, labels: Sequence[str], path: str | Path) -> FakeClass:
        """Which of the classes of the classifier at `path` means fake.

        What the user has named wins over what the labels say. With more than two classes only the
        user decides. Raises UserError where nobody does.
        """
        labels = tuple(labels)
        outputs = self._named(labels)
        if len(outputs) == 1:
            return FakeClass(labels, outputs.pop(), f"as {OPTION} says")
        if outputs:
            raise UserError(
                f"{path}: {OPTION} fits several of its classes ({_listed(labels)}): name one."
            )
        if len(labels) > 2:
            raise UserError(
                f"{path}: it tells {len(labels)} classes apart ({_listed(labels)}) where real and "
                f"fake are wanted: name the one that means fake with {OPTION}; its probability "
                "then is fake_probability, and all others together count as real."
            )
        fakes = fake_outputs(labels)
        if len(fakes) != 1 or len(labels) != 2:
            which = "both mean" if len(fakes) > 1 else "none clearly means"
            raise UserError(
                f"{path}: of its classes {_listed(labels)} {which} fake: name the one that does "
                f"with {OPTION}, such as {OPTION} {labels[-1]!r}."
            )
        return FakeClass(labels, fakes[0], BY_NAME)

    def choose_if_named(
        self, labels: Sequence[str], otherwise: int, why: str, path: str | Path
    ) -> FakeClass:
        """As `choose`, for weights whose classes are known: `otherwise` is the one that means fake
        unless the user says another, `why` how that is known."""
        if self._named(tuple(labels)):
            return self.choose(labels, path)
        return FakeClass(tuple(labels), otherwise, why)

    def require_used(self) -> None:
        """Raise UserError where a label was named that none of the weights has."""
        for name in self._names:
            if name not in self._used:
                raise UserError(
                    f"{OPTION} {name}: none of the weights named here has such a class. It is for "
                    "classifiers of other projects; a detector folder says itself what is fake."
                )

    def _named(self, labels: tuple[str, ...]) -> set[int]:
        found = set()
        for name in self._names:
            same = [number for number, label in enumerate(labels) if label == name]
            same = same or [
                number
                for number, label in enumerate(labels)
                if label.strip().casefold() == name.strip().casefold()
            ]
            if same:
                self._used.add(name)
            found |= set(same)
        return found


def add_option(parser: argparse.ArgumentParser, of_what: str = "--weights") -> None:
    """The option `--fake-label`, for scripts that read foreign weights; `args.fake_labels`."""
    parser.add_argument(
        OPTION,
        dest="fake_labels",
        action="append",
        default=[],
        metavar="LABEL",
        help=f"where {of_what} is a classifier of another project whose labels do not say which "
        "of its classes means fake: the label of that class",
    )


def say_fake_class(path: str | Path, description: dict) -> None:
    """Say on standard error which class of imported weights counts as fake, as their detector.json
    (`description`) has it; nothing for other detectors."""
    section = description.get("fake_class")
    if section:  # detector_values.py has checked it
        chosen = FakeClass(tuple(section["labels"]), section["output"], section["decided"])
        print(chosen.in_words(path), file=sys.stderr)


def unnamed(count: int) -> tuple[str, ...]:
    """What Hugging Face calls classes without names: LABEL_0, LABEL_1, …"""
    return tuple(f"LABEL_{number}" for number in range(count))


def fake_outputs(labels: Iterable[str]) -> list[int]:
    """Which of the labels clearly mean fake."""
    return [number for number, label in enumerate(labels) if meaning(label) == "fake"]


def meaning(label: str) -> str | None:
    """ "fake" or "real" where an English label clearly means one of them, else None.

    `not fake`, `non-real`, `unaltered` and `AI-free` mean the contrary of what is denied, however
    they are spelt: in capitals, in CamelCase, with hyphens, underscores, numbers or nothing between
    the words. Whole words count: there is no `ai` in `portrait`.
    """
    meanings = set()
    for clause in re.split(r"[,;:/()\[\]|]", unicodedata.normalize("NFKC", label)):
        meanings |= _meanings_of_clause([word for part in _parts(clause) for word in _words(part)])
    # Photos are said to be generated, made or taken by people and cameras, too.
    if "real" in meanings:
        meanings.discard("made")
    if "made" in meanings:
        meanings = meanings - {"made"} | {"fake"}
    return meanings.pop() if len(meanings) == 1 else None


_VOCABULARY = {
    "fake": """
        fake faked fakery deepfake deepfaked ai aigc gan stylegan progan cyclegan stargan biggan
        diffusion sdxl midjourney dalle dall flux synthetic synthesized synthesised synthesis synth
        artificial manipulated manipulation tampered tampering forged forgery falsified altered
        alteration modified edited doctored photoshopped retouched morphed morph morphing swap
        swapped swapping faceswap faceswapped face2face neuraltextures reenacted reenactment
        inpainted inpainting spoof spoofed spoofing attack counterfeit bogus phony phoney sham hoax
        fabricated fraud fraudulent imposter impostor imitation simulated cgi rendered machine
        computer inauthentic
    """,
    "real": """
        real realism genuine authentic authenticity original pristine bonafide bona natural human
        hum live legit legitimate camera photograph
    """,
    "made": "generated generation generative created made produced",
    "not": "not no non never without isnt isn un",
    "free": "free",
    # Words that say nothing; known, so that words written together can be told apart.
    "filling": """
        a an the is are of by in with class label type category image img picture pic photo face
        facial video frame clip art data sample person people it this detected content portrait
        media based fide stable deep gen
    """,
}
_KIND = {word: kind for kind, words in _VOCABULARY.items() for word in words.split()}
_LONGEST = 60  # letters of words that are written together
_CONTRARY = {"fake": "real", "real": "fake", "made": "real"}


def _meanings_of_clause(words: list[str]) -> set[str]:
    """What a clause's words mean; a denial holds for all that follow it in the clause, `free` for
    all before it."""
    denied = False
    meanings = []
    for word in words:
        kind = _KIND.get(word)
        if kind == "not":
            denied = True
        elif kind == "free" and meanings:
            meanings = [_CONTRARY[each] for each in meanings]
        elif kind in _CONTRARY:
            meanings.append(_CONTRARY[kind] if denied else kind)
    return set(meanings)


def _parts(clause: str) -> list[str]:
    """The words of a clause as they are written: apart, or in CamelCase."""
    parts = []
    for part in re.split(r"[\W_]+", clause.replace("'", "").replace("’", "")):
        part = part.strip("0123456789")
        if _words(part.lower()) != [part.lower()] or part.lower() in _KIND:
            parts.append(part)
        else:  # no word that is known: perhaps CamelCase with one that is not
            parts += re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+", part)
    return [part.lower() for part in parts if part]


@functools.lru_cache(maxsize=1024)
def _split(text: str) -> tuple[str, ...] | None:
    """A text as known words that are written together, the fewest; None where it is none."""
    if not text:
        return ()
    best = None
    for end in range(len(text), 0, -1):
        for word in (text[:end], text[:end].removesuffix("s")):
            if word in _KIND:
                rest = _split(text[end:])
                if rest is not None and (best is None or 1 + len(rest) < len(best)):
                    best = (word, *rest)
                break
    return best


def _words(part: str) -> list[str]:
    """A part as words: `aigenerated` as two; what is not known stays as it is."""
    return list((len(part) <= _LONGEST and _split(part)) or [part])


def _listed(labels: Sequence[str]) -> str:
    shown = [repr(label) for label in labels[:8]]
    return " and ".join(shown) if len(labels) == 2 else ", ".join(shown + ["…"][: len(labels) > 8])
