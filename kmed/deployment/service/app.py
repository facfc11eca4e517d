"""The HTTP application around a run's model: its routes, and how a request becomes the answer of `kmed predict`."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib.resources
import math

import jinja2
import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from kmed.data.limits import pixels_limited
from kmed.deployment.classify import Answer, Answerer
from kmed.deployment.service import metrics as prometheus
from kmed.deployment.service.batching import Batcher, batch_sizes
from kmed.deployment.service.bodies import FORM, RAW, Upload, check_kind, is_form, read_body, split_body
from kmed.deployment.service.guard import Guard, refused
from kmed.deployment.service.limits import Limits, Refusal, Room, busy
from kmed.errors import KmedError
from kmed.evaluation.predictor import describe_run
from kmed.runs import Run, judged_split
from kmed.runtime import num_cores
from kmed.version import __version__

NOT_CLINICAL = "Not for clinical use: for research only, not a medical device."


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The response to a request with pictures.

    Attributes:
      answers: one per picture, in the order of the request, with the fields of `kmed predict --json`.
      notice: what the answers must not be used for.
    """

    answers: list[Answer]
    notice: str = NOT_CLINICAL


@dataclasses.dataclass(frozen=True)
class Failure:
    """The response to a request that is refused.

    Attributes:
      error: what is wrong with the request, and what would be right.
    """

    error: str


class Service:
    """A loaded run, with the threads that decode pictures and the one that predicts."""

    def __init__(self, run: Run, format: str, quantize: str, batch_size: int, limits: Limits):
        """Loads the model and predicts once per batch size, so that the first request does not pay for it.

        Args:
          run: a finished run.
          format, quantize: which of its files predicts.
          batch_size: the most pictures per step of the model.
          limits: what is refused.
        """
        self.limits, self.room = limits, Room(limits)
        sizes = batch_sizes(batch_size)
        self.answerer = Answerer(run, format, quantize, batch_sizes=sizes)
        if self.answerer.predictor.max_batch is not None:
            sizes = batch_sizes(min(batch_size, self.answerer.predictor.max_batch))
        self.description = describe_service(run, format, quantize, limits)
        height, width = self.answerer.resizing.common_size
        for size in sizes:
            blank = [np.zeros((height, width, 3), np.uint8)] * size
            list(self.answerer.answer([""] * size, blank))
        self.pool = concurrent.futures.ThreadPoolExecutor(max(num_cores(), 2), "kmed-pictures")
        self.metrics = prometheus.Metrics(lambda: self.batcher.num_waiting, lambda: self.room.requests)
        self.batcher = Batcher(self.answerer.answer, sizes, self.metrics.batch)

    async def predict(self, request: Request) -> list[Answer]:
        """Returns the answers to a request. Raises Refusal if it has none."""
        with self.room.admitted() as held:
            body = await read_body(request, self.limits, held)
            content_type = request.headers.get("content-type", "application/octet-stream")
            try:
                async with asyncio.timeout(self.limits.timeout):
                    return await self._answer(content_type, body)
            except TimeoutError:
                message = f"There was no answer within {self.limits.timeout:g} seconds. Send the request again."
                raise busy(503, "timeout", message) from None

    async def _answer(self, content_type: str, body: bytes) -> list[Answer]:
        loop = asyncio.get_running_loop()
        if is_form(content_type):  # a long one takes its time
            uploads = await loop.run_in_executor(self.pool, split_body, content_type, body, self.limits)
        else:
            uploads = split_body(content_type, body, self.limits)
        return await asyncio.gather(*map(self._one, uploads))

    async def _one(self, upload: Upload) -> Answer:
        answer: concurrent.futures.Future[Answer] = concurrent.futures.Future()
        self.pool.submit(self._classify, upload, answer)
        return await asyncio.wrap_future(answer)

    def _classify(self, upload: Upload, answer: concurrent.futures.Future) -> None:
        """Reads a picture and hands it to the batcher: the event loop, which all requests share, wakes only once."""
        try:
            picture = self._read(upload)
            if isinstance(picture, np.ndarray):
                self.batcher.submit(upload.name, picture, answer)
            elif answer.set_running_or_notify_cancel():
                answer.set_result(Answer(upload.name, error=str(picture)))
        except Exception as error:  # a defect, which the guard reports
            if answer.set_running_or_notify_cancel():
                answer.set_exception(error)

    def _read(self, upload: Upload) -> np.ndarray | KmedError:
        try:
            check_kind(upload.content)
        except KmedError as error:
            return error
        return self.answerer.read(upload.content)

    def stop(self) -> None:
        """Answers what is waiting, and ends the threads."""
        self.batcher.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)


def describe_service(run: Run, format: str, quantize: str, limits: Limits) -> dict:
    """Returns what GET /v1/model tells: the run's description, its scores with intervals, and the limits."""
    metrics = run.read_json(run.metrics)
    stored = metrics.get(judged_split(metrics), {}).get("scores", {})  # none without labels
    keys = ("value", "low", "high")
    scores = {name: {key: score.get(key) for key in keys} for name, score in stored.items()}
    fields = {
        "notice": NOT_CLINICAL,
        "run": run.folder.name,
        **describe_run(run),
        "format": format,
        "quantize": quantize,
        "scores": scores,
        "limits": dataclasses.asdict(limits),
    }
    return without_nan(fields)


def without_nan(value):
    """Returns a value whose numbers that are not finite have become None, as JSON has none of them."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """Returns the application; its start and end are those of the service's threads.

    Args:
      service: a loaded run.
      token: what clients must send; None: anyone may ask.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        with pixels_limited(service.limits.max_pixels):
            yield
            service.stop()

    app = FastAPI(
        title="kmed",
        version=__version__,
        summary="Answers of one trained model for medical images.",
        description=NOT_CLINICAL,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_routes(app, service)
    routes = tuple(route.path for route in app.routes if hasattr(route, "path"))
    app.add_middleware(Guard, metrics=service.metrics, routes=routes, token=token)

    @app.exception_handler(Refusal)
    async def refuse(request: Request, refusal: Refusal) -> Response:
        service.metrics.refused(refusal.reason)
        return refused(refusal)

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    return app


_CODES: dict[int | str, dict] = {
    400: {"model": Failure, "description": "An empty, broken or incomplete request."},
    401: {"model": Failure, "description": "The token is missing or wrong."},
    408: {"model": Failure, "description": "The request came too slowly."},
    413: {"model": Failure, "description": "Too many bytes or pictures."},
    415: {"model": Failure, "description": "Another type of body."},
    422: {"model": Prediction, "description": "No picture could be read; each answer has its error."},
    429: {"model": Failure, "description": "Too many requests wait; Retry-After names the seconds."},
    503: {"model": Failure, "description": "There was no answer in time."},
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {"schema": {"type": "object", "properties": {"file": _FILES}, "required": ["file"]}},
            **dict.fromkeys(RAW, _BINARY),
        },
    }
}


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", response_model=Prediction, responses=_CODES, openapi_extra=_BODY)
    async def predict(request: Request) -> Response:
        """Classify one picture (as the body) or several (as files of a form): JPEG, PNG, TIFF or DICOM.

        A picture that cannot be read gives an answer with its error, and the others are still classified.
        """
        answers = await service.predict(request)
        service.metrics.answered(answers)
        content = {"answers": [dataclasses.asdict(answer) for answer in answers], "notice": NOT_CLINICAL}
        return JSONResponse(without_nan(content), 422 if all(answer.error for answer in answers) else 200)

    @app.get("/v1/model")
    async def model() -> dict:
        """The classes, thresholds and scores with 95 % intervals of the model, and the limits of the service."""
        return service.description

    @app.get("/healthz", responses={503: {"model": Failure, "description": "The model predicts no more."}})
    async def health() -> Response:
        """Whether pictures are being classified; needs no token."""
        alive = service.batcher.is_alive
        return JSONResponse(
            {"status": "ok"} if alive else {"error": "The model predicts no more."}, 200 if alive else 503
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts and times, in Prometheus' text format."""
        return Response(service.metrics.text(), media_type=prometheus.CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(_page(app.openapi()))


def _page(schema: dict) -> str:
    """Returns the page that describes the routes; it has no scripts, and loads nothing from another host."""
    source = importlib.resources.files("kmed.deployment.service").joinpath("page.html").read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True).from_string(source).render(schema=schema, body_types=[FORM, *RAW])
