"""The service under load: is every answer there and right, how long does it take, and does the memory stay flat?

    python scripts/load_test.py load saved_models/blood --pictures data/blood_cells --out results/service.csv
    python scripts/load_test.py hostile saved_models/blood
    python scripts/load_test.py stop saved_models/blood

Each command starts `kmed serve` in a process of its own and stops it with SIGTERM.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import http.client
import itertools
import json
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import click
import numpy as np
import pandas as pd
import psutil
from hostile_requests import hostile_requests, picture, send

import kmed
from kmed import progress, runtime
from kmed.deployment.classify import find_pictures
from kmed.evaluation.predictor import open_model
from kmed.files import replacing
from kmed.runs import finished_run

BLOCKS = 5  # of requests, before, between and after which the bare model predicts
TOLERANCE = 1e-5  # of probabilities: a batch of another size rounds differently
RUN = click.argument("run", type=click.Path(path_type=pathlib.Path))
FORMAT = click.option("--format", "format", default="keras", show_default=True)
CLIENTS = click.option("--clients", default=16, show_default=True)
SERVED = "POST", "/v1/predict"


@click.group(help=__doc__.split("\n")[0])
def main():
    """Groups the commands."""
    progress.configure()


@main.command()
@RUN
@FORMAT
@CLIENTS
@click.option("--requests", "num_requests", default=10_000, show_default=True, help="A multiple of the blocks, 5.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--pictures", help="Files, a folder or a glob.  [drawn demo data]")
@click.option("--num-pictures", default=200, show_default=True, help="How many of them are sent, again and again.")
@click.option("--seconds", default=20.0, show_default=True, help="How long the bare model predicts each time.")
@click.option("--out", type=click.Path(path_type=pathlib.Path), help="A CSV to which the row is added.")
@click.option("--note", default="", help="What else ran on the machine.")
def load(run, format, clients, num_requests, batch_size, pictures, num_pictures, seconds, out, note):
    """Many clients, each with one picture per request on an open connection; the answers are those of kmed predict."""
    with tempfile.TemporaryDirectory() as folder:
        paths = find_pictures([pictures or kmed.draw_demo(pathlib.Path(folder) / "demo")])[:num_pictures]
        expected = predicted(run, paths, format)
        contents = [pathlib.Path(path).read_bytes() for path in paths]
        with served(run, "--format", format, "--batch-size", str(batch_size)) as service, bare(run, format) as measure:
            sent, blocks, alone = [], [], [measure(batch_size, seconds)]
            for _ in range(BLOCKS):
                start, cpu = time.perf_counter(), service.cpu()
                sent += send_many(service, contents, num_requests // BLOCKS, clients)
                blocks.append(Speed(num_requests // BLOCKS, time.perf_counter() - start, service.cpu() - cpu))
                alone.append(measure(batch_size, seconds))
    row = summarize(sent, expected) | compare(blocks, alone)
    about = {"run": run.name, **facts(run), "format": format, "batch_size": batch_size, "clients": clients}
    row = about | row | {"note": note, "device": runtime.describe_device()}
    row |= {"versions": runtime.join_versions(versions()), "command": f"python {' '.join(sys.argv)}"}
    for name, value in row.items():
        click.echo(f"{name}: {value}")
    if out is not None:
        append(row, out)
    if row["errors"] or row["wrong"]:
        sys.exit(1)


@main.command()
@RUN
def hostile(run):
    """Requests in bad faith: each must get a 4xx, and the service must live and keep its memory."""
    token = "a-token-for-a-load-test"  # noqa: S105
    with served(run, "--timeout", "5", token=token) as service:
        statuses = {}
        requests = list(hostile_requests(token))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for request in requests:
                found = collections.Counter(pool.map(lambda one: send(service.address, one), [request] * request.times))
                statuses[request.name] = found
                click.echo(f"{request.name}: {', '.join(f'{status} x {count}' for status, count in found.items())}")
        final = ask(connect(service), picture("PNG"), {"Authorization": f"Bearer {token}"})[0]
        memory = service.memory() / 2**20
    wrong = [name for name, found in statuses.items() if not all(400 <= status < 500 for status in found)]
    click.echo(f"{len(requests)} kinds, {sum(request.times for request in requests)} requests; not refused: {wrong}.")
    click.echo(f"Afterwards a good picture gets {final}; the service ended with {service.code} and {memory:.0f} MB.")
    if wrong or final != 200 or service.code != 0:
        sys.exit(1)


@main.command()
@RUN
@CLIENTS
@click.option("--times", default=3, show_default=True)
def stop(run, clients, times):
    """SIGTERM under load: each request on an open connection must be answered, and the exit code be 0."""
    failed = False
    for _ in range(times):
        outcomes: collections.Counter = collections.Counter()
        with served(run) as service:
            threads = [threading.Thread(target=until_refused, args=(service, outcomes)) for _ in range(clients)]
            for thread in threads:
                thread.start()
            while outcomes["answered"] < 20 * clients:
                time.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            for thread in threads:
                thread.join()
        click.echo(f"{dict(outcomes)}, exit code {service.code}")
        failed |= bool(outcomes["lost"]) or service.code != 0
    sys.exit(failed)


# ----- the service, and the bare model -----


@dataclasses.dataclass(frozen=True)
class Speed:
    """How long it took to predict some pictures: seconds on the clock, and of processor time."""

    pictures: int
    seconds: float
    cpu_seconds: float


class Served:
    """A running service.

    Attributes:
      process: of `kmed serve`.
      address: (host, port).
      code: its exit code, once it has ended.
    """

    def __init__(self, process: subprocess.Popen, address: tuple[str, int]):
        self.process, self.address = process, address
        self.code: int | None = None

    def cpu(self) -> float:
        """Returns the processor time so far in seconds."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def memory(self) -> int:
        """Returns the resident memory in bytes."""
        return psutil.Process(self.process.pid).memory_info().rss


@contextlib.contextmanager
def served(run, *options, token: str | None = None):
    """Yields a Served with a model that is ready; it is stopped by SIGTERM at the end."""
    environment = os.environ | ({} if token is None else {"KMED_TOKEN": token})
    command = [sys.executable, "-m", "kmed", "serve", str(run), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"http://([\d.]+):(\d+)", line):
                break
        else:
            raise click.ClickException("".join(lines))
        # The log is read to its end, or the service would wait for room in the pipe.
        reader = threading.Thread(target=collections.deque, args=(process.stderr, 0))
        reader.start()
        service = Served(process, (found[1], int(found[2])))
        try:
            yield service
        finally:
            process.send_signal(signal.SIGTERM)
            service.code = process.wait()
            reader.join()


@contextlib.contextmanager
def bare(run, format):
    """Yields a function (batch size, seconds) that returns the Speed of the model alone, in another process."""
    command = [sys.executable, __file__, "bare-model", str(run), "--format", format]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def measure(batch_size: int, seconds: float) -> Speed:
            process.stdin.write(f"{batch_size} {seconds}\n")
            process.stdin.flush()
            return Speed(*json.loads(process.stdout.readline()))

        yield measure
        process.stdin.close()


@main.command(hidden=True)
@RUN
@FORMAT
def bare_model(run, format):
    """Predicts noise of the model's size for each line "BATCH SECONDS" of standard input, and prints the Speed."""
    predictor = open_model(finished_run(run), format)
    height, width = finished_run(run).read_config().data.image_size
    for line in sys.stdin:
        size, limit = int(line.split()[0]), float(line.split()[1])
        batch = np.random.default_rng(0).integers(0, 256, (size, height, width, 3)).astype(np.float32)
        predictor.predict(batch)
        start, cpu, count = time.perf_counter(), time.process_time(), 0
        while (seconds := time.perf_counter() - start) < limit:
            predictor.predict(batch)
            count += size
        print(json.dumps([count, seconds, time.process_time() - cpu]), flush=True)


def predicted(run, paths, format) -> list[dict]:
    """Returns what `kmed predict` says of the files."""
    command = [sys.executable, "-m", "kmed", "--quiet", "predict", str(run), *paths, "--json", "--format", format]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


# ----- the clients -----


def connect(service: Served) -> http.client.HTTPConnection:
    """Returns an open connection."""
    connection = http.client.HTTPConnection(*service.address, timeout=120)
    connection.connect()
    return connection


def ask(connection, content: bytes, headers=()) -> tuple[int, dict]:
    """Returns (status, body) of a request with one picture."""
    connection.request(*SERVED, content, {"Content-Type": "application/octet-stream", **dict(headers)})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def send_many(service: Served, contents: list[bytes], count: int, clients: int) -> list[dict]:
    """Returns one record per request, in the order of the answers: picture, status, answer, seconds and memory."""
    numbers, records = itertools.count(), []

    def client():
        connection = connect(service)
        while (number := next(numbers)) < count:
            row = number % len(contents)
            start = time.perf_counter()
            try:
                status, body = ask(connection, contents[row])
            except (OSError, http.client.HTTPException) as error:
                status, body = 0, {"error": repr(error)}
                connection = connect(service)
            seconds = time.perf_counter() - start
            answer = body["answers"][0] if status == 200 else body
            memory = service.memory() if number % 20 == 0 else None
            records.append({"row": row, "status": status, "answer": answer, "seconds": seconds, "memory": memory})

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        for future in [pool.submit(client) for _ in range(clients)]:
            future.result()
    return records


def until_refused(service: Served, outcomes: collections.Counter) -> None:
    """Sends requests on an open connection until the service takes no new one, and counts what became of each."""
    content = picture("PNG")
    while True:
        try:
            connection = connect(service)
        except ConnectionError:
            return
        while connection.sock is not None:  # the service has not said that the connection ends
            try:
                outcomes["answered" if ask(connection, content)[0] == 200 else "lost"] += 1
            except (OSError, http.client.HTTPException):
                outcomes["lost"] += 1
                connection.close()


# ----- the row of results -----


def summarize(sent: list[dict], expected: list[dict]) -> dict:
    """Returns whether the answers came, whether they are right, their times, and the memory."""
    answered = [record for record in sent if record["status"] == 200]
    milliseconds = [1000 * record["seconds"] for record in answered]
    first, last = (memory_of(sent[part]) / 2**20 for part in (slice(0, 1000), slice(-1000, None)))
    apart = max(difference(record["answer"], expected[record["row"]]) for record in answered)
    return {
        "requests": len(sent),
        "errors": len(sent) - len(answered),
        "wrong": sum(not same(record["answer"], expected[record["row"]]) for record in answered),
        "largest_difference": float(f"{apart:.1g}"),
        "median_ms": round(statistics.median(milliseconds), 1),
        "p99_ms": round(float(np.quantile(milliseconds, 0.99)), 1),
        "memory_first_mb": round(first, 1),
        "memory_last_mb": round(last, 1),
    }


def compare(blocks: list[Speed], alone: list[Speed]) -> dict:
    """Returns the throughput of the service beside that of the bare model just before and after each block.

    The ratio of processor times does not depend on what else runs on the machine, nor on the clients.
    """
    rates = [speed.pictures / speed.seconds for speed in alone]
    ratios = [2 * one.pictures / one.seconds / (rates[block] + rates[block + 1]) for block, one in enumerate(blocks)]
    pictures, bare_pictures = (sum(speed.pictures for speed in speeds) for speeds in (blocks, alone))
    cpu = 1000 * sum(speed.cpu_seconds for speed in blocks) / pictures
    bare_cpu = 1000 * sum(speed.cpu_seconds for speed in alone) / bare_pictures
    return {
        "requests_per_s": round(pictures / sum(speed.seconds for speed in blocks), 1),
        "bare_images_per_s": round(bare_pictures / sum(speed.seconds for speed in alone), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(min(ratios), 3),
        "ratio_high": round(max(ratios), 3),
        "cpu_ms": round(cpu, 2),
        "bare_cpu_ms": round(bare_cpu, 2),
        "cpu_ratio": round(bare_cpu / cpu, 3),
    }


def same(answer: dict, known: dict) -> bool:
    """Returns whether an answer is that of kmed predict, but for the name and the last digits."""
    exact = ("found", "prediction_set", "unlike_training", "error")
    distances = [0.0 if one["distance"] is None else one["distance"] for one in (answer, known)]
    is_near = math.isclose(*distances, rel_tol=100 * TOLERANCE)
    return all(answer[name] == known[name] for name in exact) and is_near and difference(answer, known) <= TOLERANCE


def difference(answer: dict, known: dict) -> float:
    """Returns the largest difference between the probabilities of two answers."""
    return max(abs(answer["probs"][name] - prob) for name, prob in known["probs"].items())


def memory_of(records: list[dict]) -> float:
    """Returns the mean memory of the service during these requests, in bytes."""
    return statistics.mean(record["memory"] for record in records if record["memory"] is not None)


def facts(run) -> dict:
    """Returns the model and its image size."""
    config = finished_run(run).read_config()
    return {"model": config.model.name, "image_size": "x".join(map(str, config.data.image_size))}


def versions() -> dict[str, str]:
    """Returns the versions of what kmed and the service run on."""
    from importlib import metadata

    return runtime.versions() | {name: metadata.version(name) for name in ("fastapi", "uvicorn")}


def append(row: dict, path: pathlib.Path) -> None:
    """Adds a row to a CSV."""
    table = pd.DataFrame([row])
    if path.exists():
        table = pd.concat([pd.read_csv(path), table])
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)


if __name__ == "__main__":
    main()
