"""The routes of the service, and that its answers are those of `kmed predict`."""

import concurrent.futures
import json
import sys

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from services import TOKEN, make, picture
from starlette.testclient import TestClient

import kmed
from kmed.deployment.classify import as_json
from kmed.deployment.service import app as application
from kmed.deployment.service.app import create_app, without_nan


@pytest.fixture(scope="module")
def service(short_run):
    return make(short_run, max_body=1, max_pictures=5, max_queue=3)


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        yield client


def dicom() -> bytes:
    """Returns a grey DICOM picture that names a patient."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, SecondaryCaptureImageStorage
    made = pydicom.Dataset()
    made.file_meta, made.SOPClassUID, made.SOPInstanceUID = meta, SecondaryCaptureImageStorage, "1.2.3"
    made.PatientName, made.PatientID = "Surname^Given", "4711"
    made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = 32, 40, 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    made.PixelData = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8).tobytes()
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


PICTURES = {
    "1.png": picture(1),
    "2.jpg": picture(2, format="JPEG"),
    "3.tif": picture(3, format="TIFF", compression="tiff_lzw"),
    "4.dcm": dicom(),
    "5.txt": b"no picture",
}


def post(client, pictures: dict):
    return client.post("/v1/predict", files=[("file", pair) for pair in pictures.items()])


def predicted(run, folder, pictures: dict, **options) -> list[dict]:
    """Returns what `kmed predict --json` says of these files, by name."""
    paths = []
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
        paths.append(folder / name)
    lines = as_json(kmed.classify_files(run.folder, paths, batch_size=4, **options))
    return [json.loads(line) | {"path": path.name} for line, path in zip(lines, paths, strict=True)]


def assert_same(answers: list[dict], expected: list[dict]) -> None:
    assert [answer["path"] for answer in answers] == [answer["path"] for answer in expected]
    for answer, known in zip(answers, expected, strict=True):
        assert answer.keys() == known.keys() and bool(answer["error"]) == bool(known["error"])
        for name in ("found", "prediction_set", "unlike_training", "overlay", "pictures"):
            assert answer[name] == known[name]
        assert answer["probs"] == pytest.approx(known["probs"], abs=1e-6)
        if known["distance"] is None:
            assert answer["distance"] is None
        else:
            assert answer["distance"] == pytest.approx(known["distance"], rel=1e-5)


def test_a_form_with_all_formats_gets_the_answers_of_kmed_predict(client, short_run, tmp_path):
    response = post(client, PICTURES)
    assert response.status_code == 200 and "Not for clinical use" in response.json()["notice"]
    assert_same(response.json()["answers"], predicted(short_run, tmp_path, PICTURES))
    assert "not a JPEG, PNG, TIFF or DICOM file" in response.json()["answers"][4]["error"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("image/png", "1.png"), ("image/jpeg", "2.jpg"), ("image/tiff", "3.tif"), ("application/dicom", "4.dcm"),
     ("application/octet-stream", "4.dcm"), (None, "1.png")],
)  # fmt: skip
def test_a_body_that_is_one_picture(client, short_run, tmp_path, kind, name):
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post("/v1/predict", content=PICTURES[name], headers=headers)
    expected = predicted(short_run, tmp_path, {name: PICTURES[name]})
    assert response.status_code == 200
    assert_same(response.json()["answers"], [expected[0] | {"path": "picture"}])


@pytest.mark.parametrize("format", ["tflite", "onnx"])
def test_exported_files_answer_too(run, tmp_path, short_measurements, format):
    if format == "onnx":
        pytest.importorskip("tf2onnx", reason="tf2onnx is not installed: pip install kmed[onnx]")
    kmed.export(run.folder, format, threads=1)
    with TestClient(create_app(make(run, format))) as client:
        response = post(client, PICTURES)
        assert client.get("/v1/model").json()["format"] == format
    assert_same(response.json()["answers"], predicted(run, tmp_path, PICTURES, format=format))


def test_pictures_of_many_requests_go_through_the_model_together_and_keep_their_order(client, short_run, tmp_path):
    pictures = {f"{number}.png": picture(number) for number in range(24)}
    expected = predicted(short_run, tmp_path, pictures)
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        groups = [dict(list(pictures.items())[start : start + 4]) for start in range(0, 24, 4)]
        responses = list(pool.map(lambda group: post(client, group), groups))
    assert {response.status_code for response in responses} == {200}
    assert_same([answer for response in responses for answer in response.json()["answers"]], expected)


def test_nothing_of_a_request_is_written_to_disk(client):
    written, watching = [], True

    def watch(event, arguments):
        if watching and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            written.append(arguments[0])
        if watching and event.startswith("tempfile."):
            written.append(event)

    sys.addaudithook(watch)
    large = picture(0, (500, 500), "TIFF")  # 750 kB
    response = post(client, {"large.tif": large, **dict(list(PICTURES.items())[:4])})
    watching = False
    assert response.status_code == 200 and written == []


def test_the_log_has_no_name_no_path_and_no_finding(client, caplog):
    with caplog.at_level("DEBUG"):
        post(client, {"Surname_Given.dcm": PICTURES["4.dcm"], "Other.png": b"broken"})
        client.get("/patients/Surname?name=Given", headers={"X-Patient": "Surname"})
        client.request("SURNAME", "/v1/model")
    said = [record.getMessage() for record in caplog.records if record.name == "kmed"]
    assert len(said) == 3 and said[0].startswith("POST /v1/predict 200 ") and said[1].startswith("GET other 404 ")
    assert said[2].startswith("other /v1/model 405 ")
    others = [record.getMessage() for record in caplog.records if record.name not in ("httpx", "httpx2", "httpcore")]
    for word in ("Surname", "Given", "4711", "Other.png", "found", "testclient"):
        assert not any(word in line for line in others), word


def test_the_model_is_described_with_its_scores(client, short_run):
    told = client.get("/v1/model").json()
    scores = json.loads(short_run.metrics.read_text())["test"]["scores"]
    assert told["class_names"] == ["red", "green", "blue"] and told["thresholds"] is None
    assert told["scores"]["accuracy"] == {key: scores["accuracy"][key] for key in ("value", "low", "high")}
    assert "Not for clinical use" in told["notice"] and told["limits"]["max_body"] == 1


def test_the_metrics_count_requests_pictures_and_refusals(short_run):
    with TestClient(create_app(make(short_run, max_pictures=2))) as client:
        post(client, {"1.png": PICTURES["1.png"], "5.txt": b"no picture"})
        post(client, {"1.png": b"", "2.png": b""})
        text = client.get("/metrics").text
    for line in (
        'kmed_requests_total{route="/v1/predict",status="200"} 1.0',
        'kmed_requests_total{route="/v1/predict",status="400"} 1.0',
        'kmed_refused_total{reason="empty"} 1.0',
        'kmed_pictures_total{result="answered"} 1.0',
        'kmed_pictures_total{result="unreadable"} 1.0',
        "kmed_batch_pictures_count 1.0",
        "kmed_waiting_pictures 0.0",
    ):
        assert line in text
    assert sum(line.startswith("kmed_found_total{") for line in text.splitlines()) == 1


def test_the_pages_load_nothing_from_another_host(client):
    page = client.get("/docs").text
    assert "POST /v1/predict" in page and "Not for clinical use" in page
    assert "<script" not in page and "src=" not in page and "cdn" not in page
    schema = client.get("/openapi.json").json()
    body = schema["paths"]["/v1/predict"]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "image/png", "application/dicom"} <= body.keys()
    assert "prediction_set" in schema["components"]["schemas"]["Answer"]["properties"]


def test_only_the_health_needs_no_token(service):
    # without `with`: the service of the other tests is not stopped
    client = TestClient(create_app(service, TOKEN))
    assert client.get("/healthz").json() == {"status": "ok"}
    for path in ("/v1/model", "/metrics", "/docs", "/openapi.json", "/elsewhere"):
        response = client.get(path)
        assert response.status_code == 401 and response.headers["WWW-Authenticate"] == "Bearer"
        assert "Bearer TOKEN" in response.json()["error"]
    for header in ("Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer", f"Bearer  {TOKEN}"):
        assert client.get("/v1/model", headers={"Authorization": header}).status_code == 401
    right = [("Authorization", f"Bearer {TOKEN}")]
    assert client.get("/v1/model", headers=right).status_code == 200
    assert client.get("/v1/model", headers=right * 2).status_code == 401


@pytest.mark.parametrize(
    ("content", "headers", "status", "words"),
    [
        (b"", {}, 400, "holds no picture"),
        (b"x" * 1_000_001, {}, 413, "may have 1 MB"),
        (b"{}", {"Content-Type": "application/json"}, 415, "must be multipart/form-data, image/jpeg"),
        (b"x", {"Content-Encoding": "gzip"}, 415, "without Content-Encoding"),
        (b"no form", {"Content-Type": "multipart/form-data"}, 400, "no boundary"),
        (PICTURES["1.png"][:200], {}, 422, "cannot be read as a picture"),
    ],
)
def test_what_is_refused_says_why(client, content, headers, status, words):
    response = client.post("/v1/predict", content=content, headers=headers)
    body = response.json()
    assert response.status_code == status
    assert words in (body["error"] if status != 422 else body["answers"][0]["error"])


def test_a_body_without_a_length_is_counted_as_it_comes(client):
    response = client.post("/v1/predict", content=(b"x" * 10_000 for _ in range(1000)))
    assert response.status_code == 413


def test_too_many_pixels_are_refused_and_the_limit_ends_with_the_service(short_run, tmp_path):
    wide = picture(0, (1, 1_000_001))
    with TestClient(create_app(make(short_run, max_pixels=1))) as client:
        response = client.post("/v1/predict", content=wide)
        assert response.status_code == 422 and "more than 1 million pixels" in response.json()["answers"][0]["error"]
    assert predicted(short_run, tmp_path, {"wide.png": wide})[0]["error"] == ""


def test_a_full_queue_gets_429_and_others_are_answered_later(service, client, monkeypatch):
    waiting = []
    monkeypatch.setattr(service.batcher, "submit", lambda name, picture, answer: waiting.append(answer))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        held = [pool.submit(client.post, "/v1/predict", content=PICTURES["1.png"]) for _ in range(3)]
        while len(waiting) < 3:
            assert not any(future.done() for future in held)
        response = client.post("/v1/predict", content=PICTURES["1.png"])
        assert response.status_code == 429 and response.headers["Retry-After"] == "1"
        assert client.get("/healthz").status_code == 200
        for future in waiting:
            future.set_result(application.Answer("picture", ("red",), {"red": 1.0}))
        assert {future.result().status_code for future in held} == {200}
    assert service.room.requests == service.room.bytes == 0


def test_no_answer_in_time_is_503_and_the_picture_is_dropped(short_run, monkeypatch):
    slow = make(short_run, timeout=0.2)
    waiting = []
    monkeypatch.setattr(slow.batcher, "submit", lambda name, picture, answer: waiting.append(answer))
    with TestClient(create_app(slow)) as client:
        response = client.post("/v1/predict", content=PICTURES["1.png"])
    assert response.status_code == 503 and response.headers["Retry-After"] == "1" and waiting[0].cancelled()


def test_a_defect_is_one_line_without_the_message(service, client, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("Surname")

    monkeypatch.setattr(service.answerer, "read", fail)
    response = client.post("/v1/predict", content=PICTURES["1.png"])
    assert response.status_code == 500 and "Surname" not in response.text + caplog.text
    assert "ValueError in test_app.py, line" in caplog.text


def test_a_model_that_fails_is_said_and_the_next_request_is_answered(service, client, monkeypatch):
    answer = service.batcher._answer
    monkeypatch.setattr(service.batcher, "_answer", lambda *_: 1 / 0)
    assert client.post("/v1/predict", content=PICTURES["1.png"]).status_code == 500
    monkeypatch.setattr(service.batcher, "_answer", answer)
    assert client.post("/v1/predict", content=PICTURES["1.png"]).status_code == 200


def test_numbers_that_json_does_not_have_become_null():
    assert without_nan({"a": [float("nan"), 1.5, "x", None, True], "b": (float("inf"),)}) == {
        "a": [None, 1.5, "x", None, True],
        "b": [None],
    }


def test_a_stopped_service_is_not_healthy(short_run):
    stopped = make(short_run)
    stopped.stop()
    assert TestClient(create_app(stopped)).get("/healthz").status_code == 503
    with pytest.raises(RuntimeError, match="The batcher has been stopped"):
        stopped.batcher.submit("1.png", np.zeros((32, 40, 3), np.uint8))
