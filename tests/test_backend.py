"""The web service: the rows of the command line, the queue, and what it refuses."""

import concurrent.futures
import html
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import jsonschema
import pytest
from PIL import Image

from pipeline.detectors.detector import GRAPH, WEIGHTS, Detector, load_detector
from pipeline.detectors.together import SECTION, companion_of, together
from pipeline.photos.inputs import find_photos
from pipeline.rows.rows import COMPARED_FIELDS, FIELDS
from pipeline.scoring.scoring import Scorer
from pipeline.service.installed import find_installed, find_left_out, why_alone
from tests import declared_pictures
from tests.broken_files import encoded
from tests.conftest import FACE_SAMPLE, REPOSITORY, SAMPLES
from tests.web_service import client, files, metric, serving, write_tiny_generator

PHOTOS = [Path(photo.path) for photo in find_photos([str(SAMPLES)])]


@pytest.fixture(scope="module")
def service(own_cache):
    with serving(own_cache) as running:
        yield running


def recommended() -> Detector:
    """What infer_vit.py scores with, where nothing else is asked for."""
    vit = load_detector(WEIGHTS / "vit")
    return together(vit, companion_of(vit))


@pytest.mark.parametrize("model", [None, "efficientnet_lite0", "all"])
def test_rows_are_those_of_the_command_line(service, model):
    shipped = [load_detector(path.parent) for path in WEIGHTS.glob("*/detector.json")]
    pair = recommended()
    detectors = {detector.name: detector for detector in [pair, *shipped]}
    chosen = {None: [pair.name], "all": [each.name for each in find_installed(WEIGHTS)]}
    names = chosen.get(model, [model])
    assert set(names) <= set(detectors) and (model != "all" or len(names) == len(detectors))
    answer = httpx.post(
        f"{service.address}/api/score",
        files=files(*PHOTOS),
        data={"model": model} if model else None,
        timeout=120,
    ).json()
    scorer = Scorer(*(detectors[name] for name in names))
    fields = COMPARED_FIELDS if len(names) > 1 else FIELDS
    expected = []
    for rows in scorer.score(find_photos([str(SAMPLES)])):
        for row in rows:
            row.path = Path(row.path).name
            expected.append(row.as_dict(fields))
    assert answer["models"] == names
    assert [tuple(row) for row in answer["rows"]] == [fields] * len(expected)
    for row, own in zip(answer["rows"], expected, strict=True):
        assert row == pytest.approx(own, abs=1e-6)
    numbers = [number for photo in answer["photos"] for number in photo["row_numbers"]]
    assert numbers == list(range(len(expected)))


def test_upright_size_is_told(service):
    rotated = SAMPLES / "real_hopper_rotated.jpg"
    answer = httpx.post(f"{service.address}/api/score", files=files(rotated), timeout=60).json()
    photo, row = answer["photos"][0], answer["rows"][0]
    assert photo["height"] > photo["width"] >= row["right"]
    assert photo["height"] >= row["bottom"]


def test_a_broken_photo_is_a_row_and_the_others_are_scored(service):
    parts = [("files", ("broken.jpg", b"\xff\xd8\xff\xe0 no more")), *files(FACE_SAMPLE)]
    answer = httpx.post(f"{service.address}/api/score", files=parts, timeout=60)
    assert answer.status_code == 200
    assert [row["verdict"] == "error" for row in answer.json()["rows"]] == [True, False]
    assert "JPEG" in answer.json()["rows"][0]["error"]


def test_what_a_file_declares_stands_in_its_rows_and_above_the_score(service):
    """What it says is somebody else's text; and that one says nothing proves nothing."""
    with Image.open(FACE_SAMPLE) as image:
        face = image.convert("RGB")
    fields = {declared_pictures.MAKE: "<b>x</b>", declared_pictures.MODEL: "y"}
    said = encoded(face, "PNG", exif=declared_pictures.exif(fields))
    parts = [("files", ("said.png", said)), ("files", ("plain.png", encoded(face, "PNG")))]
    answer = httpx.post(
        f"{service.address}/api/score", files=parts, data={"page": "1"}, timeout=60
    ).json()
    by = "EXIF Make and Model: <b>x</b>, y; not verified"
    assert [(row["declared"], row["declared_by"]) for row in answer["rows"]] == [
        ("camera", by),
        (None, None),
    ]
    scores = [row["fake_probability"] for row in answer["rows"]]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    first, second = answer["html"].split("<article")[1:]
    sentence = f"The file says that it comes from a camera ({html.escape(by)})."
    assert 0 < first.index(sentence) < first.index("Probability of fake")
    assert "That proves nothing" in second and "proves nothing" not in first


def test_models_are_those_installed_and_the_best_comes_first(tmp_path):
    for name, auc in (("weak", 0.6), ("strong", 0.9), ("middling", 0.7)):
        shutil.copytree(WEIGHTS / "meso4", tmp_path / name)
        path = tmp_path / name / "detector.json"
        description = json.loads(path.read_text())
        description["name"] = name
        description["metrics"]["auc"] = auc
        description["metrics"].pop("unseen_auc", None)  # which would come before it
        path.write_text(json.dumps(description))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "detector.json").write_text("{")
    shutil.copytree(tmp_path / "weak", tmp_path / "weak copy")
    assert find_left_out(tmp_path) == [tmp_path / "broken", tmp_path / "weak copy"]
    with client(weights=str(tmp_path)) as browser:
        models = browser.get("/api/models").json()
        assert [model["name"] for model in models] == ["strong", "middling", "weak"]
        assert [model["recommended"] for model in models] == [True, False, False]
        assert "folder" not in models[0]
        page = browser.get("/").text
        assert re.search(r'value="strong" checked', page)
        assert "AUC 0.90" in page


def test_unseen_generators_count_where_all_folders_state_them(tmp_path):
    for name, auc, unseen in (("narrow", 0.95, 0.55), ("broad", 0.85, 0.75)):
        shutil.copytree(WEIGHTS / "meso4", tmp_path / name)
        path = tmp_path / name / "detector.json"
        description = json.loads(path.read_text())
        description["name"] = name
        description["metrics"] |= {"auc": auc, "unseen_auc": unseen}
        path.write_text(json.dumps(description))
    assert [detector.name for detector in find_installed(tmp_path)] == ["broad", "narrow"]


@pytest.fixture
def two(tmp_path) -> Path:
    """A folder with two detectors that were calibrated as one."""
    for name in ("meso4", "mesoinception4"):
        shutil.copytree(WEIGHTS / name, tmp_path / name)
    change(tmp_path / "meso4", lambda first: first["metrics"].update(unseen_auc=0.9))
    change(tmp_path / "meso4", lambda first: first.update({SECTION: sections_of(tmp_path)}))
    return tmp_path


def sections_of(weights: Path) -> dict:
    first, second = (load_detector(weights / name) for name in ("meso4", "mesoinception4"))
    section = {
        "name": second.name,
        "temperatures": [first.calibration.temperature, second.calibration.temperature],
        "calibration": first.description["calibration"] | {"threshold": 0.8},
        "metrics": first.description["metrics"] | {"auc": 0.9},
    }
    return {second.description["files"][GRAPH]: section}


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    path = folder / "detector.json"
    description = json.loads(path.read_text())
    edit(description)
    path.write_text(json.dumps(description))


def test_two_that_were_calibrated_as_one_are_offered_as_one_and_each_alone(two, own_cache):
    with client(weights=str(two)) as browser:
        models = browser.get("/api/models").json()
        assert [model["name"] for model in models] == [
            "meso4+mesoinception4",
            "meso4",
            "mesoinception4",
        ]
        assert [model["members"] for model in models] == [["meso4", "mesoinception4"], [], []]
        assert [model["recommended"] for model in models] == [True, False, False]
        assert (models[0]["auc"], models[0]["threshold"]) == (0.9, 0.8)
        assert "meso4 and mesoinception4 as one" in browser.get("/").text
        answer = browser.post("/api/score", files=files(FACE_SAMPLE)).json()
        assert answer["models"] == ["meso4+mesoinception4"] and answer["notes"] == []
        assert {(row["model"], row["threshold"]) for row in answer["rows"]} == {
            ("meso4+mesoinception4", 0.8)
        }
        alone = browser.post("/api/score", files=[*files(FACE_SAMPLE), ("model", (None, "meso4"))])
        assert alone.json()["models"] == ["meso4"]


def calibrated_anew(weights: Path) -> None:
    change(weights / "mesoinception4", lambda second: second["calibration"].update(temperature=9.0))


def damaged(weights: Path) -> None:
    change(weights / "meso4", lambda first: next(iter(first[SECTION].values())).pop("metrics"))


def removed(weights: Path) -> None:
    shutil.rmtree(weights / "mesoinception4")


@pytest.mark.parametrize("mishap", [calibrated_anew, damaged, removed])
def test_where_two_cannot_score_as_one_the_first_does_and_it_is_said(two, own_cache, mishap):
    assert why_alone(two) == ""
    mishap(two)
    with client(weights=str(two)) as browser:
        answer = browser.post("/api/score", files=files(FACE_SAMPLE)).json()
        assert answer["models"] == ["meso4"]
        [note] = answer["notes"]
        assert re.search("meso4 scores alone.* mesoinception4", note)
        assert str(two) not in note
        assert html.escape(note) in browser.get("/").text


def test_a_replaced_detector_is_loaded_anew(tmp_path, own_cache):
    target = tmp_path / "meso4"
    shutil.copytree(WEIGHTS / "meso4", target)
    with client(weights=str(tmp_path)) as browser:

        def probability() -> float:
            answer = browser.post("/api/score", files=files(FACE_SAMPLE)).json()
            return answer["rows"][0]["fake_probability"]

        before = probability()
        shutil.rmtree(target)
        shutil.copytree(WEIGHTS / "mesoinception4", target)
        assert probability() != before


@pytest.mark.parametrize(
    ("data", "parts", "status", "fact"),
    [
        ({"model": "../../etc"}, True, 422, "meso4, "),
        ({"model": "meso4"}, False, 422, "photo"),
        ({"sample": "../README.md"}, False, 422, "two_people.jpg"),
        ({"explain": "perhaps"}, True, 422, "explain"),
    ],
)
def test_wrong_fields_are_refused_with_a_sentence(service, data, parts, status, fact):
    answer = httpx.post(
        f"{service.address}/api/score",
        data=data,
        files=files(FACE_SAMPLE) if parts else {"files": ("", b"")},
        timeout=60,
    )
    assert answer.status_code == status
    assert fact in answer.json()["error"]


def test_a_sample_is_scored_by_its_name(service):
    answer = httpx.post(
        f"{service.address}/api/score",
        files={"sample": (None, FACE_SAMPLE.name)},
        timeout=60,
    )
    assert answer.json()["rows"][0]["path"] == FACE_SAMPLE.name


def test_a_face_cannot_be_generated_without_weights(tmp_path):
    with client(generator=str(tmp_path / "nothing")) as browser:
        answer = browser.post("/api/generate", files={"seed": (None, "1")})
        assert answer.status_code == 501
        assert "python convert_stylegan3.py" in answer.json()["error"]


@pytest.mark.parametrize(
    "wrong", [{"seed": "-1"}, {"seed": str(2**32)}, {"seed": "1.5"}, {"truncation": "nan"}]
)
def test_a_seed_or_truncation_out_of_range_is_refused(service, wrong):
    parts = {name: (None, text) for name, text in wrong.items()}
    answer = httpx.post(f"{service.address}/api/generate", files=parts, timeout=60)
    assert answer.status_code == 422
    assert "must be" in answer.json()["error"]


def test_a_generated_face_goes_to_the_chosen_models(tmp_path):
    write_tiny_generator(tmp_path / "generator")
    with client(generator=str(tmp_path / "generator")) as browser:

        def generate(seed: int) -> dict:
            parts = {"seed": (None, str(seed)), "model": (None, "all"), "page": (None, "1")}
            return browser.post("/api/generate", files=parts).json()

        first, again, other = generate(7), generate(7), generate(8)
        assert first["models"] == [detector.name for detector in find_installed(WEIGHTS)]
        assert first["rows"][0]["path"] == "generated face, seed 7, truncation 0.7"
        assert first["photos"][0]["width"] == 64
        assert first["photos"][0]["preview"] == again["photos"][0]["preview"]
        assert first["photos"][0]["preview"] != other["photos"][0]["preview"]


def test_heat_maps_come_with_what_the_network_saw(service):
    if not importlib.util.find_spec("pipeline.scoring.explanation"):
        pytest.skip("pipeline.scoring.explanation is not there yet")
    answer = httpx.post(
        f"{service.address}/api/score",
        files=files(SAMPLES / "two_people.jpg", SAMPLES / "no_face_coffee.webp"),
        data={"explain": "1"},
        timeout=300,
    ).json()
    two_people, coffee = answer["photos"]
    assert len(two_people["heat_maps"]) == 2
    assert all(uri.startswith("data:image/png;base64,") for uri in two_people["heat_maps"])
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in two_people["seen"])
    assert "heat_maps" not in coffee
    assert answer["notes"] == []


def test_heat_maps_that_cannot_be_drawn_are_missed_aloud(service):
    if importlib.util.find_spec("pipeline.scoring.explanation"):
        pytest.skip("heat maps can be drawn here")
    answer = httpx.post(
        f"{service.address}/api/score", files=files(FACE_SAMPLE), data={"explain": "1"}, timeout=60
    ).json()
    assert "requirements.txt" in answer["notes"][0]
    assert answer["rows"][0]["verdict"]


def test_scoring_imports_no_training_framework():
    code = (
        "import sys\n"
        "from starlette.testclient import TestClient\n"
        "from backend import app\n"
        "with TestClient(app, base_url='http://localhost') as browser:\n"
        f"    files = {{'files': open({str(FACE_SAMPLE)!r}, 'rb')}}\n"
        "    assert browser.get('/').status_code == 200\n"
        "    assert browser.post('/api/score', files=files).json()['rows'][0]['fake_probability']\n"
        "print({'torch', 'tensorflow', 'keras', 'timm'} & sys.modules.keys())\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert ran.stdout.strip() == "set()", ran.stderr


def test_small_requests_are_scored_together(service):
    before = metric(service.address, "detector_batch_photos_count")
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(
            pool.map(
                lambda _: httpx.post(
                    f"{service.address}/api/score", files=files(FACE_SAMPLE), timeout=120
                ),
                range(48),
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    first, *others = [answer.json()["rows"][0] for answer in answers]
    for row in others:
        assert row == pytest.approx(first, abs=1e-6), "a photo's rows depend on its neighbours"
    assert metric(service.address, "detector_batch_photos_count") - before < 40


def test_health_metrics_and_description(service):
    assert httpx.get(f"{service.address}/healthz").json() == {"status": "ok"}
    httpx.post(f"{service.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
    text = httpx.get(f"{service.address}/metrics").text
    assert 'detector_requests_total{route="/api/score",status="200"}' in text
    assert "detector_requests_in_progress 0.0" in text
    assert "process_resident_memory_bytes" in text
    described = httpx.get(f"{service.address}/openapi.json").json()
    form = described["paths"]["/api/score"]["post"]["requestBody"]["content"]
    assert "files" in form["multipart/form-data"]["schema"]["properties"]
    answer = described["paths"]["/api/score"]["post"]["responses"]["200"]["content"]
    example = answer["application/json"]["example"]["rows"][0]
    assert {*example, "error", "reason"} == set(FIELDS)  # FastAPI leaves out what is null


@pytest.mark.parametrize("more", [{}, {"model": "all", "page": "1", "explain": "on"}])
def test_answers_are_as_described(service, more):
    described = httpx.get(f"{service.address}/openapi.json").json()
    answers = described["paths"]["/api/score"]["post"]["responses"]
    schema = answers["200"]["content"]["application/json"]["schema"]
    parts = [*files(SAMPLES / "two_people.jpg"), ("files", ("broken.jpg", b"no photo"))]
    answer = httpx.post(f"{service.address}/api/score", files=parts, data=more, timeout=300)
    jsonschema.validate(answer.json(), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(answer.json() | {"rows": [{"path": "face.jpg"}]}, schema)


@pytest.mark.parametrize("path", ["/api/score", "/healthz"])
def test_a_wrong_method_is_told_the_right_ones(service, path):
    answer = httpx.delete(service.address + path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == ("POST" if path == "/api/score" else "GET")


def test_every_answer_is_guarded(service):
    for path in ("/", "/static/page.js", "/api/models", "/nowhere", "/samples/nothing.png"):
        answer = httpx.get(service.address + path, headers={"Origin": "http://elsewhere.example"})
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers
        if answer.status_code >= 400:
            assert answer.json()["error"]
    page = httpx.get(service.address).text
    assert not re.search(r"<script>|style=|onclick=|https?://", page)


def test_other_names_and_other_sites_are_refused(service):
    named = httpx.get(service.address, headers={"Host": "elsewhere.example"})
    assert (named.status_code, "name" in named.json()["error"]) == (400, True)
    sent = httpx.post(
        f"{service.address}/api/score",
        files=files(FACE_SAMPLE),
        headers={"Origin": "http://elsewhere.example"},
    )
    assert (sent.status_code, "site" in sent.json()["error"]) == (403, True)


def test_a_token_is_asked_for():
    with client(token="secret") as browser:
        assert browser.get("/healthz").status_code == 200
        refused = browser.get("/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic")
        for wrong in ("Bearer wrong", "Bearer", "Basic ???", "Basic c2VjcmV0", "Digest secret"):
            assert browser.get("/", headers={"Authorization": wrong}).status_code == 401
        assert browser.get("/", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert browser.get("/", auth=("anybody", "secret")).status_code == 200


def test_the_page_works_without_a_script(service):
    page = httpx.post(service.address, files=files(FACE_SAMPLE), data={"model": "all"}, timeout=60)
    assert page.headers["content-type"].startswith("text/html")
    assert page.text.count('class="judgement"') == len(find_installed(WEIGHTS))
    empty = httpx.post(service.address, files={"files": ("", b"")}, timeout=60)
    assert empty.status_code == 422
    assert re.search(r'role="alert">[^<]*photo', empty.text)
