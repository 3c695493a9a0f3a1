"""The web page's request filter: what may be requested, how much at once, and how large and slow a body may be.

Gradio's own server takes any number of uploads at once, keeps broken ones for ever, and ends many a malformed request
with a traceback.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_OPEN = 512  # requests that are being answered; an open page holds one or two of them
MOST_UPLOADS = 32  # at once
MOST_KEPT = 1 << 30  # bytes of uploads that are kept: before there are more, the oldest half goes
LEAST = 1 << 20  # bytes that each of them counts at least, which bounds their number too
FRAME = 1 << 16  # bytes of a question, and of an upload around its file
GRACE, SLOWEST = 5.0, 100_000  # seconds that a body may take; and one more for each so many bytes of it
RETRY_AFTER = (b"retry-after", b"5")  # seconds
NO_FILE = "The upload holds no whole file."

UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
READ = re.compile(  # what the page's script reads
    r"/((config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|(assets|static|svelte)/.+)?"
    r"|/gradio_api/(info|app_id|startup-events|upload_progress|queue/data|heartbeat/[^/]+)"
)


class Refusal(MultiPartException):
    """A status and a sentence for a request that is turned away; its base makes Gradio delete the upload it began."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Gate:
    """ASGI middleware that lets through what the page's own script sends, and answers the rest at once.

    uploads: the folder that Gradio keeps them in. most: bytes of an upload. ask: makes of the JSON of a
    question the one that is asked, or raises its Refusal.
    """

    def __init__(self, app: ASGIApp, *, uploads: Path, most: int, ask: Callable[[Any], Any]) -> None:
        self.app, self.uploads, self.ask = app, uploads, ask
        self.limits = {UPLOAD: most + FRAME, JOIN: FRAME}
        self.open = self.uploading = self.kept = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, scope["path"] == UPLOAD, self.limits.get(scope["path"]))
        try:
            with self._counted(scope["method"], scope["path"]):
                await self._let_through(scope, exchange)
        except Refusal as refusal:
            exchange.refusal = refusal
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):  # of a stream that had begun
                raise
            await send({"type": "http.response.body"})
        if exchange.refusal:
            await exchange.refuse(exchange.refusal)

    async def _let_through(self, scope: Scope, exchange: "_Exchange") -> None:
        """Has the page answer, after what can be told of the request before."""
        if scope["path"] == JOIN:
            await exchange.replace(self.ask)
        if not exchange.upload:
            await self.app(scope, exchange.receive, exchange.send)
            return
        if int(dict(scope["headers"]).get(b"content-length", 0)) > self.limits[UPLOAD]:
            raise exchange.too_long()
        if self.kept >= MOST_KEPT / 2:
            self.kept = 0
            await asyncio.to_thread(keep_newest, self.uploads, MOST_KEPT // 2)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except (AttributeError, TypeError):  # what Gradio's parser makes of a part that is no file
            raise Refusal(400, NO_FILE) from None
        finally:
            self.kept += max(exchange.size, LEAST * exchange.files)

    @contextmanager
    def _counted(self, method: str, path: str) -> Iterator[None]:
        """Counts a request while it is answered; Refusal of what the page's script does not send, or of too many."""
        if not (path in self.limits if method == "POST" else method in ("GET", "HEAD") and READ.fullmatch(path)):
            raise Refusal(404, "There is nothing here; open the page itself.")
        upload = path == UPLOAD
        if self.open >= MOST_OPEN or (upload and self.uploading >= MOST_UPLOADS):
            raise Refusal(503, "The page is busy; try again in a few seconds.")
        self.open, self.uploading = self.open + 1, self.uploading + upload
        try:
            yield
        finally:
            self.open, self.uploading = self.open - 1, self.uploading - upload


class _Exchange:
    """A request and its answer on their way through the gate. limit: bytes of its body; None where it has none."""

    def __init__(self, receive: Receive, send: Send, upload: bool, limit: int | None) -> None:
        self._receive, self._send, self.upload, self.limit = receive, send, upload, limit
        self.began = time.monotonic()
        self.size = self.files = 0
        self.whole = False
        self.refusal: Refusal | None = None
        self._body: bytes | None = None
        self._start: Message | None = None

    def too_long(self) -> Refusal:
        return Refusal(413, f"Too long: at most {(self.limit or 0) / 2**20:.2g} MB are taken.")

    async def receive(self) -> Message:
        """The next message; raises the Refusal of a body that is cut off, too long or too slow, and remembers it."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        if self.limit is None or self.whole:
            return await self._receive()
        try:
            left = self.began + GRACE + self.size / SLOWEST - time.monotonic()
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError:
            self.refusal = Refusal(408, "The request came too slowly.")
            raise self.refusal from None
        self.size += len(message.get("body", b""))
        self.whole = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            self.refusal = Refusal(400, "The request was cut off.")
        elif self.size > self.limit:
            self.refusal = self.too_long()
        if self.refusal:
            raise self.refusal
        return message

    async def replace(self, ask: Callable[[Any], Any]) -> None:
        """Reads the body, and gives `receive` instead what `ask` makes of its JSON."""
        body = b""
        while not self.whole:
            body += (await self.receive()).get("body", b"")
        try:
            question = json.loads(body)
        except (ValueError, RecursionError):
            raise Refusal(400, "The question is not JSON.") from None
        self._body = json.dumps(ask(question)).encode()

    async def send(self, message: Message) -> None:
        """Passes the answer on; that Gradio refuses an upload, or finds no file in it, becomes the Refusal."""
        if message["type"] == "http.response.start":
            if message["status"] == 503:
                message["headers"] = [*message["headers"], RETRY_AFTER]
            if self.upload:
                self._start = message
                return
        elif self._start and not self.refusal:
            if self._start["status"] >= 400:
                self.refusal = Refusal(self._start["status"], message["body"].decode())
            elif message["body"] == b"[]":
                self.refusal = Refusal(400, NO_FILE)
            else:
                self.files = len(json.loads(message["body"]))
                await self._send(self._start)
        if not self.refusal:
            await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answers; and reads for a while what is still being sent, for closing at once could destroy the answer."""
        # Gradio's script shows an upload's refusal as it is, and any other's `detail`.
        body = (refusal.message if self.upload else json.dumps({"detail": refusal.message})).encode()
        headers = [(b"content-type", b"text/plain" if self.upload else b"application/json"), (b"connection", b"close")]
        headers += [(b"content-length", b"%d" % len(body))] + [RETRY_AFTER] * (refusal.status in (429, 503))
        await self._send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        more = not self.whole
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                while more:
                    more = (await self._receive()).get("more_body", False)
        await self._send({"type": "http.response.body"})


def keep_newest(folder: Path, most: int) -> None:
    """Deletes the oldest files under a folder until they have `most` bytes; what vanishes meanwhile is left alone."""
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file():
                found.append((path.stat().st_mtime, max(path.stat().st_size, LEAST), path))
    for _, size, path in sorted(found, reverse=True):
        most -= size
        if most < 0:
            with suppress(OSError):
                path.unlink()
                path.parent.rmdir()  # the folder of its own that Gradio gives each
