"""A process that reads one epoch of pictures on request, for `scripts/input_speed.py`: kmed's pipeline or PyTorch's.

It is started with a description in JSON, prints one line of JSON when it is ready, then answers each line of its input
with the images of an epoch, the seconds they took, and the processor's seconds of the process and its children. It
imports only what the chosen framework needs, so that PyTorch can have an environment of its own. `list` is a text file
with one path per line:

    echo | python scripts/input_epoch.py '{"framework": "kmed", "list": "files.txt", "size": [120, 160],
        "decode": "full", "free": true, "workers": 2}'
"""

import json
import math
import os
import pathlib
import sys
import time

BATCH_SIZE = 32
LIGHT = {"rotation": 5, "zoom": 0.05, "shift": 0.04, "brightness": 8 / 127.5, "contrast": 0.05}  # kmed's level "light"


def main():
    """Reads what to run, builds it, and runs an epoch for each line of input."""
    wanted = json.loads(sys.argv[1])
    wanted["files"] = pathlib.Path(wanted["list"]).read_text(encoding="utf-8").splitlines()
    batches, facts = FRAMEWORKS[wanted["framework"]](wanted)
    answer(facts)
    for epoch, _ in enumerate(sys.stdin):
        start, before = time.perf_counter(), processor_seconds()
        count = sum(len(batch[0]) for batch in batches(epoch))
        answer(
            {
                "images": count,
                "seconds": time.perf_counter() - start,
                "processor_seconds": processor_seconds() - before,
            }
        )


def answer(message: dict) -> None:
    """Writes one line of JSON."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def processor_seconds() -> float:
    """Returns the seconds that this process and its running and ended children have used, on all cores together."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in CHILDREN:
        user, system = pathlib.Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


CHILDREN: list[int] = []  # the processes that PyTorch reads with


def kmed_batches(wanted: dict):
    """Returns (function epoch -> batches, {"versions"}): decoding, resizing and augmentation, without a cache."""
    import numpy as np
    import pandas as pd

    from kmed import runtime

    runtime.load_backend()
    from kmed.data.augment import Augmentation
    from kmed.data.images import Resizing
    from kmed.data.pipeline import Pipeline
    from kmed.data.table import Table

    rows = pd.DataFrame({"path": wanted["files"], "group": "", "cluster": "", "split": ""})
    labels = np.eye(2, dtype=np.float32)[np.arange(len(rows)) % 2]
    table = Table(rows, labels, ("a", "b"), "multiclass", "speed", pathlib.Path("/"))
    resizing = Resizing(tuple(wanted["size"]), decode=wanted["decode"])
    augmentation = Augmentation("light", "free" if wanted["free"] else "upright")
    pipeline = Pipeline(table, resizing, augmentation=augmentation, batch_size=BATCH_SIZE, cache="none")
    return pipeline.epoch, {"versions": runtime.versions()}


def torch_batches(wanted: dict, tensors: bool):
    """Returns (function epoch -> batches, {"versions"}): the same with PyTorch's DataLoader and torchvision.

    Args:
      wanted: the description.
      tensors: whether pictures are decoded to tensors by torchvision, instead of by Pillow as its datasets do.
    """
    import torch
    import torchvision
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    steps = [
        v2.Resize(wanted["size"], v2.InterpolationMode.BILINEAR, antialias=True),
        v2.RandomHorizontalFlip(),
        *([v2.RandomVerticalFlip()] if wanted["free"] else []),
        v2.RandomAffine(
            180 if wanted["free"] else LIGHT["rotation"],
            (LIGHT["shift"], LIGHT["shift"]),
            (math.exp(-LIGHT["zoom"]), math.exp(LIGHT["zoom"])),
            interpolation=v2.InterpolationMode.BILINEAR,
        ),
        v2.ColorJitter(LIGHT["brightness"], LIGHT["contrast"]),
        *([] if tensors else [v2.PILToTensor()]),
        v2.ToDtype(torch.float32, scale=True),
    ]
    transform = v2.Compose(steps)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(wanted["files"])

        def __getitem__(self, index):
            if tensors:
                image = decode_image(wanted["files"][index], ImageReadMode.RGB)
            else:
                image = Image.open(wanted["files"][index]).convert("RGB")
            return transform(image), index % 2

    loader = torch.utils.data.DataLoader(
        Files(), BATCH_SIZE, shuffle=True, drop_last=True, num_workers=wanted["workers"], persistent_workers=True
    )

    def batches(_):
        batches = iter(loader)
        CHILDREN[:] = [worker.pid for worker in batches._workers]
        return batches

    for _ in zip(range(2), batches(0)):
        pass  # starts the processes
    return batches, {"versions": {"torch": torch.__version__, "torchvision": torchvision.__version__}}


FRAMEWORKS = {
    "kmed": kmed_batches,
    "torchvision, Pillow": lambda wanted: torch_batches(wanted, tensors=False),
    "torchvision, tensors": lambda wanted: torch_batches(wanted, tensors=True),
}

if __name__ == "__main__":
    main()
