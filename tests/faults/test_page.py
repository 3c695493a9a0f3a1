"""The page under load and abuse: a page served by a process of its own, and clients that send what browsers do not."""

import asyncio
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from small import train

if not find_spec("gradio"):
    pytest.skip("Gradio is missing", allow_module_level=True)

from trailseg import gate
from trailseg.app import MOST_SESSIONS, MOST_UNREAD

BYTES, KEPT, GRACE = 8 << 20, 64 << 20, 1.0  # instead of the real ones, so that tests reach them soon
BOUNDARY = "boundary"
TYPE = f"multipart/form-data; boundary={BOUNDARY}"
SERVE = f"""
import sys, time
from pathlib import Path
from trailseg import app, gate
from trailseg.predictor import Predictor
app.MOST_BYTES, gate.MOST_KEPT, gate.GRACE = {BYTES}, {KEPT}, {GRACE}
with app.serve(Predictor(Path(sys.argv[1]), device="cpu")) as address:
    print(address, flush=True)
    sys.stdin.read()
"""


class Answer(NamedTuple):
    """What came back."""

    status: int
    """0 where the connection ended without any."""
    head: str
    body: bytes
    seconds: float


class Served:
    """A page, its process, its folder and what it says on standard error."""

    def __init__(self, run: Path, folder: Path):
        self.folder, self.err = folder, folder.parent / "err"
        environment = os.environ | {"TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.err.open("w")}
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, str(run)], env=environment, text=True, **pipes)
        found = re.search(r":(\d+)/", self.process.stdout.readline())
        assert found, self.err.read_text()
        self.port = int(found[1])

    def memory(self) -> int:
        """Bytes that the process holds."""
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])

    def stored(self) -> int:
        """Bytes in its folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def traces(self) -> int:
        return self.err.read_text().count("Traceback")

    async def send(self, *pieces: bytes, pause: float = 0, wait: float = 60, cut: bool = False) -> Answer:
        """Sends pieces, with a pause after each, and reads the answer to its end; or cuts the connection instead."""
        began, got = time.perf_counter(), b""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
            if not cut:
                async with asyncio.timeout(wait):
                    while piece := await reader.read(1 << 16):
                        got += piece
        except (ConnectionError, TimeoutError):
            pass
        finally:
            writer.close()
        head, _, body = got.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1.1 (\d+)", head)
        return Answer(int(status[1]) if status else 0, head.decode("latin-1"), body, time.perf_counter() - began)

    async def get(self, path: str, **more) -> Answer:
        return await self.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode(), **more)

    async def predict(self, session: str, content: bytes) -> Answer:
        """What a browser does with a picture that is dropped; the refusal, or the stream with the answer."""
        began = time.perf_counter()
        answer = await self.send(post(gate.UPLOAD, form(part(content)), TYPE))
        if answer.status == 200:
            file = {"path": json.loads(answer.body)[0], "meta": {"_type": "gradio.FileData"}}
            answer = await self.send(post(gate.JOIN, question(session, [file])))
        if answer.status == 200:
            answer = await self.get(f"/gradio_api/queue/data?session_hash={session}")
        return answer._replace(seconds=time.perf_counter() - began)


def post(path: str, body: bytes, kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {size}"
    return head.encode() + b"\r\n\r\n" + body


def part(content: bytes, name: str = "a.png", field: str = 'files"; filename') -> bytes:
    disposition = f'Content-Disposition: form-data; name="{field}="{name}"' if name else f"Content-Disposition: {field}"
    return f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def question(session: object, data: object, function: object = 0, **more: object) -> bytes:
    return json.dumps({"session_hash": session, "data": data, "fn_index": function} | more).encode()


def answered(answer: Answer) -> bool:
    """Whether the stream ends with steps of a picture."""
    return b"process_completed" in answer.body and b"Step" in answer.body and b'"success":true' in answer.body


@pytest.fixture(scope="module")
def picture() -> bytes:
    png = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(png, "PNG")
    return png.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory, picture):
    """The page, warm; whatever is done with it, it lives and writes no traceback."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "tmp").mkdir()
    run = train(folder / "run", "iterative-v1", stem="x4", depth=2, size="32,64", steps=2)
    served = Served(run, folder / "tmp")
    try:
        assert answered(asyncio.run(served.predict("first", picture)))
        yield served
        assert served.process.poll() is None
        assert served.traces() == 0, served.err.read_text()[-4000:]
    finally:
        served.process.kill()


def test_of_400_at_once_some_are_answered_and_the_rest_refused_at_once(served, picture, tally, trials):
    async def rush():
        return await asyncio.gather(*(served.predict(f"rush{number}", picture) for number in range(400)))

    before = served.memory()
    for _ in range(trials(1, 5)):
        answers = asyncio.run(rush())
        done = [answer for answer in answers if answered(answer)]
        refused = [answer for answer in answers if answer.status == 503 and "retry-after: 5" in answer.head]
        assert 16 <= len(done) <= 100
        assert max(answer.seconds for answer in refused) < 10, "at once, as far as one core reads 400 requests"
        tally("page: of 400 predictions at once, those answered or refused with 503", len(done + refused), len(answers))
        after = asyncio.run(served.predict("after", picture))
        assert answered(after)
        assert after.seconds < 5
    assert served.memory() - before < 200 << 20


def test_400_open_the_page_at_once(served, tally, trials):
    async def rush():
        return await asyncio.gather(*(served.get("/") for _ in range(400)))

    before = served.memory()
    for _ in range(trials(1, 5)):
        good = sum(answer.status == 200 and b"</html>" in answer.body for answer in asyncio.run(rush()))
        tally("page: of 400 who open it at once, those who get it", good, 400)
    assert served.memory() - before < 600 << 20, "each answer of a megabyte once"


def test_open_streams_are_bounded_and_the_next_is_refused_at_once(served):
    async def hold():
        calls = [served.get(f"/gradio_api/heartbeat/{number}", wait=2) for number in range(gate.MOST_OPEN + 50)]
        return await asyncio.gather(*calls), await served.get("/")

    streams, after = asyncio.run(hold())
    assert Counter(answer.status for answer in streams) == {200: gate.MOST_OPEN, 503: 50}
    assert max(answer.seconds for answer in streams if answer.status == 503) < 2
    assert after.status == 200


def bomb() -> bytes:
    """A PNG whose header promises more pixels than are read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in parts)


def bad_uploads(picture: bytes) -> dict[str, tuple[bytes, ...]]:
    """Pieces to send, by what is wrong with them."""
    good = form(part(picture))
    chunked = post(gate.UPLOAD, b"", TYPE).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    two = form(*2 * [part(bytes(BYTES // 2 + 99999))])
    field = part(b"text", "", 'form-data; name="files"')
    return {
        "too long": (post(gate.UPLOAD, form(part(bytes(BYTES + 1))), TYPE),),
        "too long, and does not say so": (chunked, b"%x\r\n" % len(two), two, b"\r\n0\r\n\r\n"),
        "two that are too long together": (post(gate.UPLOAD, two, TYPE),),
        "longer than it says": (post(gate.UPLOAD, good, TYPE, length=60),),
        "a length below 0": (post(gate.UPLOAD, good, TYPE, length=-1),),
        "no boundary": (post(gate.UPLOAD, good, "multipart/form-data"),),
        "another boundary": (post(gate.UPLOAD, good, TYPE + "x"),),
        "not multipart": (post(gate.UPLOAD, good),),
        "noise": (post(gate.UPLOAD, np.random.default_rng(1).bytes(100_000), TYPE),),
        "empty": (post(gate.UPLOAD, b"", TYPE),),
        "no parts": (post(gate.UPLOAD, form(), TYPE),),
        "no file": (post(gate.UPLOAD, form(field), TYPE),),
        "no file, with progress": (post(gate.UPLOAD + "?upload_id=x", form(field), TYPE),),
        "another field": (post(gate.UPLOAD, form(part(picture, field='other"; filename')), TYPE),),
        "no name": (post(gate.UPLOAD, form(part(b"text", "", "form-data")), TYPE),),
        "5000 parts": (post(gate.UPLOAD, form(*5000 * [part(b"x")]), TYPE),),
        "a long name": (post(gate.UPLOAD, form(part(picture, 20_000 * "a")), TYPE),),
        "a folder for a name": (post(gate.UPLOAD, form(part(picture, "..")), TYPE),),
        "slow": (post(gate.UPLOAD, b"", TYPE, length=len(good)), good[:60]),
        **{f"ends at {end}": (post(gate.UPLOAD, good[:end], TYPE),) for end in (1, 60, 2000, len(good) - 12)},
    }


def test_bad_uploads_are_refused(served, picture, tally):
    async def send():
        uploads = bad_uploads(picture)
        return dict(zip(uploads, await asyncio.gather(*(served.send(*u) for u in uploads.values())), strict=True))

    before = served.memory()
    answers = asyncio.run(send())
    wrong = {name: answer for name, answer in answers.items() if answer.status not in range(400, 500)}
    assert not wrong
    assert {answer.status for name, answer in answers.items() if "too long" in name} == {413}
    assert answers["slow"].status == 408
    assert answers["two that are too long together"].body == b"Too long: at most 8.1 MB are taken."
    assert served.traces() == 0
    tally("page: malformed and oversized uploads that got 4xx", len(answers) - len(wrong), len(answers))
    assert served.memory() - before < 100 << 20


def test_uploads_that_are_cut_off_leave_nothing_behind(served, picture, tally, trials):
    whole = post(gate.UPLOAD, form(part(50 * picture)), TYPE)
    cuts = np.linspace(20, len(whole) - 40, trials(40, 400), dtype=int)

    async def cut():
        await asyncio.gather(*(served.send(whole[:end], pause=0.05, cut=True) for end in cuts[::2]))
        await asyncio.gather(*(served.send(whole[:end], cut=True) for end in cuts[1::2]))
        await asyncio.sleep(0.5)  # until the page has noticed

    before = served.stored()
    asyncio.run(cut())
    assert answered(asyncio.run(served.predict("cut", picture)))
    assert served.stored() == before, "that picture was uploaded before"
    tally("page: uploads cut off, without a traceback", len(cuts) * (served.traces() == 0), len(cuts))


@pytest.mark.parametrize("name", ["../../x.png", "/etc/x.png", "a\0b.png", "a\nb.png", 300 * "x" + ".png", "<b>.png"])
def test_a_hostile_name_stays_in_the_folder(served, picture, name):
    answer = asyncio.run(served.send(post(gate.UPLOAD, form(part(picture, name)), TYPE)))
    assert answer.status == 200
    (stored,) = json.loads(answer.body)
    assert Path(stored).read_bytes() == picture
    assert Path(stored).resolve().parents[2] == served.folder.resolve()


def test_questions_that_the_page_does_not_ask_are_refused(served, picture, tally):
    (mine,) = json.loads(asyncio.run(served.send(post(gate.UPLOAD, form(part(picture)), TYPE))).body)
    paths = (
        "/etc/passwd",
        "etc/passwd",
        __file__,
        f"{mine}x",
        f"{mine}\0",
        str(Path(mine).parent),
        "",
        "http://a/b",
        3,
    )
    paths = (*paths, f"{mine}/../../../../../../../../etc/passwd", "file:///etc/passwd", None, [], 10_000 * "x")
    bodies = [
        *(question("a", [{"path": path, "meta": {"_type": "gradio.FileData"}}]) for path in paths),
        *(question("a", data) for data in ([], [None], [mine], [3], {}, None, 3 * [{"path": mine}])),
        *(question("a", [{"path": mine}], function) for function in (2, 99, -1, "x", None, [])),
        *(question(session, [{"path": mine}]) for session in (None, "", 3, [], 1000 * "x", "a/b", "a\n")),
        *(question("a", [], 1, event_data=data) for data in (None, 3, [], {}, {"place": "x"})),
        *(question("a", [], 1, event_data={"place": place}) for place in (-1, 3, 1.0, 10**30, None)),
        *(b"", b"{", b"[]", b"NaN", b"\xff\xfe", b"[" * 50_000, b'"' + bytes(1 << 20) + b'"'),
    ]

    async def send():
        return [await served.send(post(gate.JOIN, body)) for body in bodies]

    answers = asyncio.run(send())
    good = [answer for answer in answers if answer.status in (400, 413) and "detail" in json.loads(answer.body)]
    assert served.traces() == 0
    tally("page: forged questions that got 4xx", len(good), len(answers))


def test_what_a_question_holds_besides_is_ignored(served, picture):
    (mine,) = json.loads(asyncio.run(served.send(post(gate.UPLOAD, form(part(picture)), TYPE))).body)
    file = {"path": mine, "url": 3, "size": "x", "meta": None, "orig_name": [], "is_stream": 9}
    more = {"batched": True, "simple_format": [], "trigger_id": "x", "event_id": 3, "event_data": 3}

    async def ask():
        joined = await served.send(post(gate.JOIN, question("besides", [file], **more)))
        return joined, await served.get("/gradio_api/queue/data?session_hash=besides")

    joined, stream = asyncio.run(ask())
    assert joined.status == 200
    assert answered(stream)


def test_nothing_but_the_page_is_there(served, picture):
    (mine,) = json.loads(asyncio.run(served.send(post(gate.UPLOAD, form(part(picture)), TYPE))).body)
    api = "/gradio_api"
    reads = [f"{api}/file=/etc/passwd", f"{api}/file={mine}", f"{api}/proxy=http://127.0.0.1:1/", "/openapi.json"]
    reads += ["/static/../../../../etc/passwd", "/assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", f"{api}/dev/reload"]
    posts = [f"{api}/run/of_file", f"{api}/api/of_sample", f"{api}/call/of_file", f"{api}/component_server", "/login"]
    sent = [served.get(path) for path in reads] + [served.send(post(path, question("a", []))) for path in posts]

    async def send():
        return await asyncio.gather(*sent)

    assert {answer.status for answer in asyncio.run(send())} <= {403, 404}


@pytest.mark.parametrize(
    ("content", "says"), [(b"no picture", b"is not a picture"), (bomb(), b"60000 x 60000 pixels")], ids=["text", "bomb"]
)
def test_a_file_that_is_no_picture_or_a_bomb_gets_a_sentence(served, content, says):
    before = served.memory()
    assert says in asyncio.run(served.predict("bad", content)).body
    assert served.memory() - before < 50 << 20
    assert served.traces() == 0


def test_slow_clients_do_not_keep_the_others_waiting(served, picture, tally):
    many = 2 * gate.MOST_UPLOADS
    begun = post(gate.UPLOAD, part(b""), TYPE, length=100_000)

    async def crawl():
        drip = [b"x"] * 3
        slow = [served.send(begun, *drip, pause=1, wait=1) for _ in range(many)]
        slow += [served.send(b"GET / HTTP/1.1\r\nX: ", *drip, pause=1, wait=1) for _ in range(many)]
        crawling = asyncio.gather(*slow)
        await asyncio.sleep(1)
        opened = await served.get("/")
        await asyncio.sleep(GRACE)
        predicted = await served.predict("among", picture)
        await crawling
        return opened, predicted

    opened, predicted = asyncio.run(crawl())
    assert opened.status == 200
    assert answered(predicted)
    tally("page: answers among clients that send a byte a second", sum(a.seconds < 3 for a in (opened, predicted)), 2)


def test_answers_that_nobody_fetches_are_bounded(served):
    async def ask():
        (path,) = json.loads((await served.send(post(gate.UPLOAD, form(part(b"no picture")), TYPE))).body)
        for number in range(MOST_SESSIONS + 1):
            while (await served.send(post(gate.JOIN, question(f"alone{number}", [{"path": path}])))).status == 503:
                await asyncio.sleep(0.01)
        streams = [await served.get(f"/gradio_api/queue/data?session_hash=alone{n}") for n in (0, MOST_SESSIONS)]
        same = [await served.send(post(gate.JOIN, question("same", [{"path": path}]))) for _ in range(MOST_UNREAD)]
        return streams, [answer.status for answer in same]

    (first, last), same = asyncio.run(ask())
    assert b"session_not_found" in first.body
    assert b"process_completed" in last.body
    assert same[0] == 200
    assert same[-1] == 429
    assert served.traces() == 0


def test_uploads_are_not_kept_for_ever(served):
    rng = np.random.default_rng(2)
    for _ in range(12):
        big = form(part(rng.bytes(BYTES)))
        assert asyncio.run(served.send(post(gate.UPLOAD, big, TYPE))).status == 200
        assert served.stored() < KEPT + BYTES


def test_the_newest_files_are_kept(tmp_path):
    for age, name in enumerate(["new/a", "middle/b", "loose", "old/c"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(3 << 20))
        os.utime(tmp_path / name, (10**9 - age,) * 2)
    gate.keep_newest(tmp_path, 6 << 20)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "middle", "new"]
