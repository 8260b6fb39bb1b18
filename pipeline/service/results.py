"""What the page says of a photo, in words, and what a verdict is worth by its detector."""

from typing import NamedTuple

from pipeline.rows.rows import Row, by_face
from pipeline.scoring.stability import AVERAGED, CHANGES
from pipeline.service.installed import Installed
from pipeline.service.scale import Scale, range_in_words, scale_of, verdict_by_score
from pipeline.service.service import Answer, Shown

WORDS = {
    "fake": "Looks fake",
    "uncertain": "Cannot tell",
    "real": "Nothing found that speaks for fake",
    "no face": "No face found",
    "error": "Cannot be read",
}
ZONES = {"fake": "looks fake", "uncertain": "cannot tell", "real": "nothing found"}  # of a scale
_DISAGREE = "disagree"  # the verdicts of several detectors on one face


class Judgement(NamedTuple):
    """What one detector says of one face; `scale` is None where its folder has none."""

    row: Row
    detector: Installed
    words: str
    scale: Scale | None
    meaning: list[str]
    seen: str | None
    heat_map: str | None


class Result(NamedTuple):
    """What the page says of one photo: on the whole, and of each face what each detector says.

    `verdict` is that of the face that looks most like a fake, `uncertain` where the detectors
    disagree about it. `holding` says of each face and detector whether the verdict holds; it is
    empty where nobody asked.
    """

    photo: Shown
    verdict: str
    words: str
    faces: list[list[Judgement]]
    holding: list[str]


def results_of(answer: Answer) -> list[Result]:
    """What the page says of each photo of an answer."""
    detectors = {detector.name: detector for detector in answer.choice.detectors}
    return [_result(photo, detectors, answer.choice.stability) for photo in answer.photos]


def _result(photo: Shown, detectors: dict[str, Installed], stability: bool) -> Result:
    faces = _judgements(photo, detectors)
    holding = _holding(faces) if stability else []
    if not faces:
        verdict = photo.rows[0].verdict
        return Result(photo, verdict, WORDS[verdict], faces, holding)
    verdicts = [_of_face(judgements) for judgements in faces]
    worst = next(each for each in ("fake", _DISAGREE, "uncertain", "real") if each in verdicts)
    of_faces = f"{verdicts.count(worst)} of {len(faces)} faces"
    if len(faces) == 1:
        words = WORDS.get(worst, "The detectors disagree")
    else:
        words = {
            "fake": f"{of_faces} {'looks' if verdicts.count(worst) == 1 else 'look'} fake",
            _DISAGREE: f"The detectors disagree about {of_faces}",
            "uncertain": f"Cannot tell for {of_faces}",
            "real": f"{WORDS['real']}, in {len(faces)} faces",
        }[worst]
    verdict = "uncertain" if worst == _DISAGREE else worst
    return Result(photo, verdict, words, faces, holding)


def _of_face(judgements: list[Judgement]) -> str:
    first = judgements[0].row
    return _DISAGREE if first.agreement is False else first.verdict


def _judgements(photo: Shown, detectors: dict[str, Installed]) -> list[list[Judgement]]:
    """What the detectors say of each face, face by face."""
    pictures_of = {
        id(row): pair for row, *pair in zip(photo.rows, photo.seen, photo.heat_maps, strict=True)
    }
    faces = [
        [
            Judgement(
                row,
                detectors[row.model],
                WORDS[row.verdict],
                scale_of(row, detectors[row.model], ZONES),
                meaning(row, detectors[row.model]),
                *pictures_of[id(row)],
            )
            for row in rows
            if row.fake_probability is not None
        ]
        for rows in by_face(photo.rows)
    ]
    return [judgements for judgements in faces if judgements]


def _holding(faces: list[list[Judgement]]) -> list[str]:
    """Whether the verdicts hold, each after the face and the detector that it is about where there
    are several."""
    said = []
    for judgements in faces:
        for judgement in judgements:
            about = [f"face {judgement.row.face + 1}"] if len(faces) > 1 else []
            about += [judgement.detector.title] if len(judgements) > 1 else []
            before = f"{', '.join(about)}: " if about else ""
            said.append(
                before[:1].upper() + before[1:] + holding(judgement.row, judgement.detector)
            )
    return said


def holding(row: Row, detector: Installed) -> str:
    """Whether a verdict that was tried holds when the photo is changed a little, in sentences."""
    if row.stability is None:
        return "Not tried, because the score is far from where the verdict would change."
    if detector.real_scores:
        between = range_in_words(row, detector.real_scores)
    else:
        low, high = row.fake_probability_low, row.fake_probability_high
        between = f"The probability of fake goes from {100 * low:.1f} % to {100 * high:.1f} %."
    same = round(row.stability * len(CHANGES))
    if row.reason:
        held = (
            "No, so none is given: the face gets another verdict by itself than on average with "
            f"its {' and '.join(AVERAGED)} copies."
        )
    elif same == len(CHANGES):
        held = (
            "Yes, also when the photo is saved again, made smaller, mirrored or shifted a little."
        )
    else:
        held = (
            f"Not always: of {len(CHANGES)} copies of the face that were saved again, made "
            f"smaller, mirrored or shifted, {same or 'none'} {'gets' if same == 1 else 'get'} the "
            "same verdict."
        )
    return f"{held} {between}"


def meaning(row: Row, detector: Installed) -> list[str]:
    """Sentences on what a verdict is worth, from what was measured of its detector."""
    fpr_percent = round((1 - detector.recall_real) * 100)
    found = round(detector.recall_fake * 100)
    missed = round(detector.missed_fakes * 100)
    by_score = ZONES[verdict_by_score(row, detector)]
    sentences = {
        "fake": [
            "That is a reason to look closer, not evidence."
            if detector.real_scores
            else f"Of 100 real faces that tested it, about {fpr_percent} scored high enough to be "
            "called fake, too.",
        ],
        "real": [
            f"That does not make it real: of 100 fakes of the kinds it was trained on, about "
            f"{missed} scored as low, too, and more of those made in a way it has not learned.",
        ],
        "uncertain": [
            f"Too high for most real faces, too low to call it fake: it catches about {found} of "
            "100 fakes of the kinds it was trained on, and many of the others end up here.",
        ],
        "not held": [
            f"By its score alone this would be “{by_score}”, but small changes to the photo turn "
            "that.",
        ],
    }["not held" if row.reason else row.verdict]
    side = max(row.right - row.left, row.bottom - row.top)
    if side < detector.input_size / 2:
        sentences.append(
            f"The face is only {side} pixels large and the detector looks at "
            f"{detector.input_size}: soft faces look to it like what generators make."
        )
    return sentences
