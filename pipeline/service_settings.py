"""The settings of the web service: environment variables, each with its default and its meaning."""

import dataclasses
import math
import os
from collections.abc import Mapping

from pipeline.detector import WEIGHTS
from pipeline.errors import UserError

PREFIX = "DETECTOR_"
SAMPLES = WEIGHTS.parent / "samples"


def _setting(default: object, meaning: str) -> dataclasses.Field:
    return dataclasses.field(default=default, metadata={"meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What may be set, as DETECTOR_HOST, DETECTOR_PORT and so on; see `describe_settings`."""

    host: str = _setting("127.0.0.1", "the address to listen at; 0.0.0.0 is all of the machine's")
    port: int = _setting(8000, "the port to listen at")
    allowed_hosts: str = _setting(
        "localhost,127.0.0.1,[::1]", "the names a visitor may use for this server, with commas"
    )
    token: str = _setting(
        "", "if set, every request needs it as `Authorization: Bearer` or as a browser's password"
    )
    rate_limit: int = _setting(0, "requests a minute that one address may make; 0: any number")
    weights: str = _setting(str(WEIGHTS), "the folder with the detector folders")
    generator: str = _setting(
        str(WEIGHTS / "stylegan3"), "the folder of the generator of faces, if there is one"
    )
    models_kept: int = _setting(3, "choices of detectors that stay in memory")
    max_files: int = _setting(16, "photos in one request")
    max_file_mb: float = _setting(20.0, "MB in one photo")
    max_body_mb: float = _setting(40.0, "MB in one request")
    max_megapixels: float = _setting(60.0, "million pixels in one photo, seen in its header")
    places: int = _setting(64, "requests that are read, wait or are worked on; others get 503")
    max_waiting_mb: float = _setting(512.0, "MB of photos in all these requests together")
    body_seconds: float = _setting(30.0, "in which a request must have arrived")
    answer_seconds: float = _setting(120.0, "in which it must have been answered, else 503")
    shutdown_seconds: int = _setting(30, "that running requests are given when the service stops")


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings as the environment has them.

    Raises UserError for a value of the wrong kind, and for a variable that begins with DETECTOR_
    but is no setting: a misspelt limit would be none.
    """
    fields = {f"{PREFIX}{field.name.upper()}": field for field in dataclasses.fields(Settings)}
    given = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        field = fields.get(variable)
        if field is None:
            raise UserError(f"{variable}: there is no such setting; there are {', '.join(fields)}.")
        given[field.name] = _parsed(variable, text, field.type)
    return Settings(**given)


def describe_settings() -> str:
    """A line for each setting: variable, default, meaning."""
    return "\n".join(
        f"{PREFIX}{field.name.upper():<18} {field.metadata['meaning']} (default: {field.default})"
        for field in dataclasses.fields(Settings)
    )


def _parsed(variable: str, text: str, kind: type) -> str | int | float:
    if kind is str:
        return text
    try:
        number = kind(text)
    except ValueError:
        raise UserError(f"{variable}={text}: this must be a number.") from None
    lowest = 0 if variable == f"{PREFIX}RATE_LIMIT" else 1e-6
    if not lowest <= number < math.inf:
        raise UserError(f"{variable}={text}: this must be a number above zero.")
    return number


if __name__ == "__main__":
    print(describe_settings())
