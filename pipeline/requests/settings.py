"""The settings of the web service: environment variables or options of backend.py.

Each has its default and its meaning here.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping

from pipeline.common.errors import UserError
from pipeline.detectors.detector import WEIGHTS
from pipeline.requests import addresses

PREFIX = "DETECTOR_"
HIGHEST_PORT = 65535
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
    allowed_origins: str = _setting(
        "",
        "the origins of the page, such as https://faces.example, with commas: behind a proxy that "
        "does not pass the visitor's Host on",
    )
    root_path: str = _setting(
        "", "the path below which a proxy shows the service, such as /det, cut off by it or not"
    )
    trusted_proxies: str = _setting(
        "127.0.0.1,::1",
        "the proxies whose X-Forwarded-For and -Proto are believed: addresses or networks, with "
        "commas",
    )
    token: str = _setting(
        "", "if set, every request needs it as `Authorization: Bearer` or as a browser's password"
    )
    rate_limit: int = _setting(0, "requests a minute that one address may make; 0: any number")
    weights: str = _setting(str(WEIGHTS), "the folder with the detector folders")
    generator: str = _setting(
        str(WEIGHTS / "stylegan3"), "the folder of the generator of faces, if there is one"
    )
    reports: str = _setting(
        "",
        "the folder that keeps faces whose verdict a visitor at this computer reports as wrong",
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option for each setting but the token: the options of a program are no secret."""
    for field in dataclasses.fields(Settings):
        if field.name == "token":
            continue
        meaning = (
            f"{field.metadata['meaning']} ({_variable(field.name)}; default: "
            f"{'none' if field.default == '' else field.default})"
        )
        # A folder's name may hold the sign that argparse takes for its own
        parser.add_argument(_option(field.name), metavar="X", help=meaning.replace("%", "%%"))


def read_settings(
    environment: Mapping[str, str] = os.environ,
    options: Mapping[str, str | None] | None = None,
) -> Settings:
    """The settings as the options of `add_options` have them, or else the environment.

    `options` is name → what was given, None where nothing was. Raises UserError for a value of the
    wrong kind, and for a variable that begins with DETECTOR_ but is no setting: a misspelt limit
    would be none.
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    variables = {_variable(name): name for name in fields}
    given = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX):
            continue
        if variable not in variables:
            raise UserError(
                f"{variable}: there is no such setting; there are {', '.join(variables)}."
            )
        given[variables[variable]] = (f"{variable}={text}", text)
    for name, text in (options or {}).items():
        if text is not None:
            given[name] = (f"{_option(name)} {text}", text)
    return Settings(
        **{name: _parsed(said, text, fields[name]) for name, (said, text) in given.items()}
    )


def describe_settings() -> str:
    """A line for each setting: variable, default, meaning."""
    return "\n".join(
        f"{_variable(field.name):<25} {field.metadata['meaning']} (default: {field.default})"
        for field in dataclasses.fields(Settings)
    )


# What a text must be, besides a text; each raises ValueError with a sentence.
_CHECKS: dict[str, Callable[[str], object]] = {
    "allowed_hosts": addresses.allowed_hosts,
    "allowed_origins": addresses.allowed_origins,
    "root_path": addresses.root_path,
    "trusted_proxies": addresses.trusted_proxies,
}


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parsed(said: str, text: str, field: dataclasses.Field) -> str | int | float:
    """The value of a setting; `said` is how it was given."""
    if field.type is str:
        try:
            _CHECKS.get(field.name, str)(text)
        except ValueError as error:
            raise UserError(f"{said}: {error}") from None
        return text
    try:
        number = field.type(text)
    except ValueError:
        raise UserError(f"{said}: this must be a number.") from None
    lowest = 0 if field.name == "rate_limit" else 1e-6
    if not lowest <= number < math.inf:
        raise UserError(f"{said}: this must be a number above zero.")
    if field.name == "port" and number > HIGHEST_PORT:
        raise UserError(f"{said}: ports end at {HIGHEST_PORT}.")
    return number


if __name__ == "__main__":
    print(describe_settings())
