"""The body of a request, which has to be read also where the answer does not depend on it.

A connection that is closed while its other end still sends is reset, and the answer is lost: a
visitor sees no sentence, and a proxy tells him "502 Bad Gateway" instead.
"""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

LINGER_SECONDS = 2.0


class RequestBody:
    """Passes the body of a request on, and knows whether there is more to come."""

    def __init__(self, scope: Scope, receive: Receive):
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        self._receive = receive
        self._complete = length == "0" and "transfer-encoding" not in headers
        # Who waits to be told to go on has sent nothing yet, and reads the answer first.
        self._awaited = "expect" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        self._awaited = False
        if message["type"] != "http.request" or not message.get("more_body"):
            self._complete = True
        return message

    async def discard(self) -> None:
        """Read what is left of it, if it comes soon."""
        if self._awaited:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._complete:
                    await self.receive()
