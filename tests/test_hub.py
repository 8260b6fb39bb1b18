"""Detectors to the Hugging Face hub and back, against a small server that speaks its interface.

The server knows what huggingface_hub asks of the hub to create a repository, to commit to it and to
download it; everything on our side and in huggingface_hub is real.
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import FACE_SAMPLE
from tests.tiny_detectors import make_detector

REPOSITORY = Path(__file__).resolve().parent.parent
COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """One repository's files; which requests carried a token; whether to refuse them all."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuses = False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Requests(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.refuses:
            return self._answer({"error": "not for you"}, status=403)
        if self.path == "/api/repos/create":
            return self._answer({"url": f"{self.server.address}/me/found", "name": "me/found"})
        if self.path == "/api/validate-yaml":
            return self._answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in asked
                    ]
                }
            )
        assert self.path == "/api/models/me/found/commit/main", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "deletedFile":
                del self.server.files[line["value"]["path"]]
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[line["value"]["path"]] = content
        address = f"{self.server.address}/me/found/commit/{COMMIT}"
        return self._answer({"commitUrl": address, "commitOid": COMMIT, "success": True})

    def do_GET(self):
        if re.match(r"/api/models/me/found(/revision/main)?(\?|$)", self.path):
            siblings = [{"rfilename": name} for name in self.server.files]
            about = {"id": "me/found", "modelId": "me/found", "sha": COMMIT, "siblings": siblings}
            return self._answer(about | {"private": False, "tags": [], "downloads": 0})
        if self.path.startswith("/api/models/me/found/tree/"):
            return self._answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                    for name, content in self.server.files.items()
                ]
            )
        found = re.match(r"/me/found/resolve/[^/]+/(.+)$", self.path)
        if not found or found[1] not in self.server.files:
            return self._answer({"error": "not found"}, status=404)
        content = self.server.files[found[1]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def _answer(self, content, status: int = 200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def run(hub, own_cache, tmp_path):
    """Run Python with the hub's address and a token in its environment."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
        known = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_me"}
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=REPOSITORY,
            env=os.environ | known | {"HF_HUB_DISABLE_XET": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


PUSH = """
import sys
from pathlib import Path
from pipeline.common import command_line
from pipeline.foreign import hub
command_line.run(lambda: print(hub.push(Path(sys.argv[1]), sys.argv[2])))
"""


# What training does at its end.
TRAINED_PUSH = PUSH.replace("foreign import hub", "training.for_hub import push_detector").replace(
    "hub.push(", "push_detector("
)


def test_a_detector_goes_to_the_hub_and_scores_from_it(hub, run, tmp_path):
    folder = make_detector(tmp_path / "found", "meso4", gain=2.0)
    (folder / "README.md").write_text("# found\n\nThe model card.\n")
    done = run("-c", PUSH, folder, "me/found")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.address}/me/found"
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.tokens == {"Bearer hf_me"}

    hub.files["evil.bin"] = b"a pickle, never fetched"
    hub.files["model.numbers.bin"] = b"what is large in a graph with 8-bit weights"
    rows = []
    for weights in ("hf-hub:me/found", folder):
        output = tmp_path / f"{len(rows)}.jsonl"
        arguments = ("infer_meso4.py", FACE_SAMPLE, "--weights", weights, "--output", output)
        done = run(*arguments, "--face", "none")
        assert done.returncode == 0, done.stderr
        rows.append(json.loads(output.read_text()))
    assert rows[0] == rows[1]
    fetched = {path.name for path in (tmp_path / "hf").rglob("*")}
    assert {"model.onnx", "model.numbers.bin"} <= fetched and "evil.bin" not in fetched


STALE = ("config.json", "preprocessor_config.json", "model.safetensors", "model.numbers.bin")


def test_what_the_command_uploads_replaces_what_was_there(hub, run, tmp_path):
    hub.files = dict.fromkeys((*STALE, "adapter/adapter_config.json", "notes.json"), b"{}")
    output = tmp_path / "meso4"
    arguments = ("for-hub", "weights/meso4", "--output", output, "--push-to-hub", "me/found")
    done = run("manage_detectors.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"Uploaded to {hub.address}/me/found."
    assert hub.files.pop("notes.json") == b"{}", "somebody's own"
    assert hub.files == {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.slow
def test_what_training_uploads_is_written_for_others(hub, run):
    hub.files = dict.fromkeys(STALE, b"{}")
    done = run("-c", TRAINED_PUSH, "weights/efficientnet_lite0", "me/found")
    assert done.returncode == 0, done.stderr
    config = json.loads(hub.files["config.json"])
    assert config["architecture"] == "tf_efficientnet_lite0"
    assert b'create_model("hf-hub:me/found", pretrained=True)' in hub.files["README.md"]
    assert not {"preprocessor_config.json", "model.numbers.bin"} & set(hub.files)


def test_a_refusal_and_a_wrong_name_are_one_sentence(hub, run, tmp_path):
    folder = make_detector(tmp_path / "found", "meso4")
    hub.refuses = True
    done = run("-c", PUSH, folder, "me/found")
    assert done.returncode == 2
    assert f"{folder} could not be uploaded to me/found (" in done.stderr
    assert "nothing has to be trained again" in done.stderr and "Traceback" not in done.stderr
    done = run("-c", TRAINED_PUSH, "weights/meso4", "me/found")
    assert done.returncode == 2
    assert "weights/meso4 could not be uploaded to me/found (" in done.stderr
    done = run("-c", PUSH, folder, "not a name")
    assert done.returncode == 2
    assert "is no name of the form owner/name" in done.stderr and "Traceback" not in done.stderr


def test_what_the_hub_does_not_have(run, tmp_path):
    done = run("infer_meso4.py", FACE_SAMPLE, "--weights", "hf-hub:me/other")
    assert done.returncode == 2
    assert "--weights: https://huggingface.co/me/other" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_token_training_does_not_even_start(run, tmp_path):
    done = run("train_meso.py", "--data", tmp_path, "--push-to-hub", "me/found", HF_TOKEN="")
    assert done.returncode == 2
    assert "nobody is logged in" in done.stderr
