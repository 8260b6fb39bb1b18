"""What the routes take, from their description; whatever else is sent is refused, never ignored."""

from starlette.requests import Request

from pipeline.requests.api_description import GENERATE, RECORD, REPORT, SCORE
from pipeline.requests.uploads import Refusal, no_such_field


def _form_fields(route: dict) -> dict[str, bool]:
    content = route["openapi_extra"]["requestBody"]["content"]["multipart/form-data"]
    properties = content["schema"]["properties"]
    return {name: kind["type"] == "array" for name, kind in properties.items()}


_SCORE, _GENERATE = _form_fields(SCORE), _form_fields(GENERATE)
# Path of a route → its form fields: name → whether it may be given more than once. The page's own
# form holds what all its buttons need; what asks for the results as HTML is for its script.
FORM_FIELDS = {
    "/api/score": _SCORE,
    "/api/record": _form_fields(RECORD),
    "/api/report": _form_fields(REPORT),
    "/api/generate": _GENERATE,
    "/": {name: many for name, many in (_SCORE | _GENERATE).items() if name != "page"}
    | {"generate": False},
}


async def form_only(request: Request) -> None:
    """A dependency of the API's routes: a form is the only place where they look for anything.

    Raises Refusal (422) for a query, and for the body of a GET.
    """
    path = request.scope["route"].path
    for name in request.query_params:
        raise no_such_field("query parameter", name, path, FORM_FIELDS.get(path, {}))
    length = request.headers.get("content-length", "0")
    if request.method == "GET" and (length != "0" or "transfer-encoding" in request.headers):
        raise Refusal(422, f"GET {path} takes no body.")
