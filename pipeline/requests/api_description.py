"""What /openapi.json says of the routes: their forms, their answers, with examples."""

from collections.abc import Sequence

from pydantic import TypeAdapter

from pipeline.rows.rows import COMPARED_FIELDS, FIELDS, Row

_ROW = {
    "path": "face.jpg",
    "face": 0,
    "left": 61,
    "top": 40,
    "right": 190,
    "bottom": 214,
    "face_score": 0.98,
    "fake_probability": 0.067,
    "verdict": "real",
    "threshold": 0.736,
    "model": "meso4",
    "error": None,
    "declared": "camera",
    "declared_by": "EXIF Make and Model: Canon, Canon EOS 5D; not verified",
    "stability": 1.0,
    "fake_probability_low": 0.041,
    "fake_probability_high": 0.083,
    "reason": None,
}
_ANSWER = {
    "models": ["meso4"],
    "rows": [_ROW],
    "photos": [{"name": "face.jpg", "width": 256, "height": 256, "row_numbers": [0]}],
    "notes": [],
}
_STRINGS = {"type": "array", "items": {"type": "string"}}
_DATA_URIS = {"type": "array", "items": {"type": ["string", "null"]}}
_PHOTOS = {
    "files": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "minItems": 1,
        "description": "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC, told by content",
    },
    "sample": {
        "type": "string",
        "description": "the name of a sample photo instead",
    },
}
_ANY_PHOTO = [{"required": ["files"]}, {"required": ["sample"]}]
_MODEL = {
    "type": "array",
    "items": {"type": "string"},
    "description": "names of installed models, or all; the recommended one unless given. Two "
    "networks that score as one are a model, too, named FIRST+SECOND",
    "example": ["meso4"],
}
_EXPLAIN = {
    "type": "boolean",
    "default": False,
    "description": "add for each row what the network saw and its heat map, as data URIs; of two "
    "networks as one, those of the first",
}
_STABILITY = {
    "type": "boolean",
    "default": False,
    "description": "look again, after small changes, at each face near a threshold; a verdict that "
    "does not hold becomes uncertain",
}
_PAGE = {
    "type": "boolean",
    "default": False,
    "description": "add a small copy of each photo, and the results as HTML",
}


def _refusals(*statuses: int) -> dict:
    """The answers to requests that are not served."""
    reasons = {
        400: "the request is malformed, or names another server",
        401: "a token is needed",
        403: "another site's page has sent this",
        404: "wrong verdicts are not collected here",
        408: "the photos did not arrive in time",
        413: "too many photos, or too large",
        415: "not multipart/form-data",
        422: "a field is wrong, missing or unknown",
        429: "too many requests; see Retry-After",
        501: "no generator is installed",
        503: "busy, or no detector is installed; see Retry-After",
    }
    schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    example = {"error": "There is no photo in the request; choose at least one."}
    content = {"application/json": {"schema": schema, "example": example}}
    return {status: {"description": reasons[status], "content": content} for status in statuses}


def _form(properties: dict, **more: object) -> dict:
    schema = {"type": "object", "properties": properties, "additionalProperties": False} | more
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _object(properties: dict, required: Sequence[str]) -> dict:
    """The schema of an object with no other properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _answered() -> dict:
    columns = TypeAdapter(Row).json_schema()["properties"]
    columns["verdict"] = {"enum": ["fake", "real", "uncertain", "no face", "error"]}
    columns["declared"] = {
        "enum": ["generated", "edited", "camera", None],
        "description": "what the file says of its own origin; null proves nothing",
    }
    columns["declared_by"]["description"] = (
        "the field that says so, and whether a signature was verified"
    )
    columns["stability"]["description"] = (
        "share of changed copies of the face with the same verdict; null where there were none"
    )
    columns["reason"]["description"] = "why the verdict is uncertain, where it did not hold"
    row = _object({name: columns[name] for name in COMPARED_FIELDS}, FIELDS)
    photo = _object(
        {
            "name": {"type": "string"},
            "width": {"type": "integer", "description": "of the upright photo; 0: unreadable"},
            "height": {"type": "integer"},
            "row_numbers": {"type": "array", "items": {"type": "integer"}},
            "preview": {"type": "string", "description": "a data URI"},
            "seen": _DATA_URIS,
            "heat_maps": _DATA_URIS,
        },
        ["name", "width", "height", "row_numbers"],
    )
    schema = _object(
        {
            "models": _STRINGS,
            "rows": {"type": "array", "items": row},
            "photos": {"type": "array", "items": photo},
            "notes": _STRINGS | {"description": "what could not be done"},
            "html": {"type": "string"},
        },
        ["models", "rows", "photos", "notes"],
    )
    content = {"application/json": {"schema": schema, "example": _ANSWER}}
    return {200: {"description": "rows", "content": content}}


_ANSWERED = _answered()

SCORE: dict = {
    "summary": "Score photos: rows as the scoring commands write them, one a face",
    "description": (
        "A photo that cannot be read becomes a row with the verdict `error` and a sentence; the "
        "others are scored. With several models each face has a row of each, and one more column, "
        "`agreement`. The row numbers of a photo count from 0 in `rows`."
    ),
    "responses": _ANSWERED | _refusals(400, 401, 403, 408, 413, 415, 422, 429, 503),
    "openapi_extra": _form(
        _PHOTOS | {"model": _MODEL, "explain": _EXPLAIN, "stability": _STABILITY, "page": _PAGE},
        anyOf=_ANY_PHOTO,
    ),
}
RECORD: dict = {
    "summary": "Score photos, and answer with a report to keep and its record",
    "description": (
        "A ZIP archive of report.html, to look at and print, and report.json, which "
        "verify_report.py checks against the photos. Each photo needs a name of its own."
    ),
    "responses": {
        200: {
            "description": "report.html and report.json",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    }
    | _refusals(400, 401, 403, 408, 413, 415, 422, 429, 503),
    "openapi_extra": _form(
        _PHOTOS | {"model": _MODEL, "explain": _EXPLAIN, "stability": _STABILITY}, anyOf=_ANY_PHOTO
    ),
}
REPORT: dict = {
    "summary": "Report that the verdict on a face is wrong: it is kept, as mark_wrong.py does",
    "description": (
        "Only where the service was started with --reports DIR, and only for programs on its own "
        "computer; others get 404. The photo is scored again, as the other fields say."
    ),
    "responses": {
        200: {
            "description": "where the face is kept",
            "content": {
                "application/json": {"schema": _object({"kept": {"type": "string"}}, ["kept"])}
            },
        }
    }
    | _refusals(400, 401, 403, 404, 408, 413, 415, 422, 429, 503),
    "openapi_extra": _form(
        _PHOTOS
        | {
            "truth": {
                "type": "string",
                "enum": ["real", "fake"],
                "description": "what is true of the face",
            },
            "face": {"type": "integer", "minimum": 0, "default": 0},
            "model": _MODEL,
            "stability": _STABILITY,
        },
        required=["truth"],
        anyOf=_ANY_PHOTO,
    ),
}
GENERATE: dict = {
    "summary": "Generate a face and score it",
    "responses": _ANSWERED | _refusals(400, 401, 403, 408, 413, 415, 422, 429, 501, 503),
    "openapi_extra": _form(
        {
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1, "default": 0},
            "truncation": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.7},
            "model": _MODEL,
            "explain": _EXPLAIN,
            "stability": _STABILITY,
            "page": _PAGE,
        }
    ),
}
MODELS: dict = {
    "summary": "The installed models, the recommended one first, with what was measured of each; "
    "`members` are the networks of those that score as one",
    "responses": _refusals(400, 401, 422),
}
HEALTH: dict = {"summary": "Whether the service runs", "responses": _refusals(422)}
METRICS: dict = {
    "summary": "What the service counts of itself, for Prometheus",
    "responses": {200: {"description": "metrics", "content": {"text/plain": {}}}}
    | _refusals(400, 401, 422),
}
