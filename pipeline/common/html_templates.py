"""The pages' templates, in templates/. Whatever they show is escaped.

Imported only where a page is written: rows in other formats need no jinja2.
"""

from pathlib import Path

import jinja2

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"


def environment(folder: Path = TEMPLATES) -> jinja2.Environment:
    """Where the templates of a folder are had. A name that a template does not know is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
