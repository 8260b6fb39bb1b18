"""The service under more than it can or will take: it refuses at once, and goes on."""

import socket
import time
from pathlib import Path

import httpx
import pytest

from pipeline.photos.inputs import find_photos
from pipeline.requests.uploads import Places, Refusal
from tests.conftest import FACE_SAMPLE, SAMPLES
from tests.web_service import client, files, metric, serving, wait_for

PHOTOS = [Path(photo.path) for photo in find_photos([str(SAMPLES)])]


def test_a_rate_limit_counts_requests_and_lets_time_heal():
    with client(rate_limit=60) as browser:
        statuses = [browser.post("/api/score").status_code for _ in range(70)]
        assert statuses[:60] == [415] * 60
        assert 429 in statuses[60:]
        refused = browser.post("/api/score")
        if refused.status_code == 429:
            time.sleep(float(refused.headers["retry-after"]) + 0.1)
        assert browser.post("/api/score").status_code == 415


def test_a_full_service_refuses_at_once_and_a_visitor_who_leaves_frees_the_place(own_cache):
    with serving(own_cache, places=1, body_seconds=20) as running:
        slow = socket.create_connection(("127.0.0.1", running.port))
        slow.sendall(_beginning_of_a_form(running.port))
        wait_for(lambda: metric(running.address, "detector_requests_in_progress") == 1)
        started = time.monotonic()
        refused = httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE))
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy" in refused.json()["error"]
        assert time.monotonic() - started < 15, "it waited for the slow one"
        assert httpx.get(f"{running.address}/healthz").status_code == 200
        slow.close()
        wait_for(lambda: metric(running.address, "detector_requests_in_progress") == 0)
        accepted = httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        assert accepted.status_code == 200


def test_a_visitor_who_leaves_while_waiting_is_not_worked_for(own_cache):
    many = files(*PHOTOS[:8] * 2)
    with serving(own_cache) as running:
        httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        before = metric(running.address, "detector_batch_photos_sum")
        for _ in range(6):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{running.address}/api/score",
                    files=many,
                    timeout=httpx.Timeout(30, read=0.2),
                )
        wait_for(lambda: metric(running.address, "detector_requests_in_progress") == 0)
        httpx.post(f"{running.address}/api/score", files=files(FACE_SAMPLE), timeout=60)
        done = metric(running.address, "detector_batch_photos_sum") - before
        assert done < 6 * len(many), "photos of those who have left were scored"


def test_what_takes_too_long_is_given_up(own_cache):
    with client(answer_seconds=0.01) as browser:
        answer = browser.post("/api/score", files=files(*PHOTOS))
        assert answer.status_code == 503
        assert "too long" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1
        assert "detector_requests_in_progress 0.0" in browser.get("/metrics").text


def test_all_requests_together_hold_no_more_than_the_limit():
    places = Places(3, most_bytes=100)
    with places.take() as first, places.take() as second:
        first.hold(60)
        with pytest.raises(Refusal) as refused:
            second.hold(41)
        assert (refused.value.status, bool(refused.value.retry_after)) == (503, True)
        second.hold(40)
    assert places.taken == 0
    with places.take() as third:
        third.hold(100)


def _beginning_of_a_form(port: int) -> bytes:
    return (
        b"POST /api/score HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: 100000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n" % port
    )
