"""scripts/input_speed.py: which processes read the same files, and how their times are compared."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def speed(script):
    return script("input_speed")


def test_ratios_are_to_the_faster_of_the_others_round_by_round(speed):
    def turn(own, pillow, tensors):
        times = {"kmed": own, "pytorch, decoded by Pillow": pillow, "pytorch, decoded to tensors": tensors}
        return {
            mode: {"images": 100, "seconds": value, "processor_seconds": 2 * value} for mode, value in times.items()
        }

    turns = [turn(1, 4, 2), turn(2, 8, 4), turn(1, 4, 2)]  # the machine is half as fast in the second round
    row = speed.raced("kmed", turns, {"versions": {"kmed": "1"}})
    assert (row["ratio_of_seconds"], row["ratio_of_processor_time"], row["images_per_second"]) == (2, 2, 100)
    assert (row["processor_ms_per_image"], row["epochs"], row["images"], row["versions"]) == (20, 3, 100, "kmed=1")
    alone = speed.raced("kmed", [{"kmed": turn(1, 4, 2)["kmed"]}], {"versions": {}})
    assert alone["ratio_of_seconds"] == ""


def test_kmed_alone_reads_the_files_that_were_drawn(speed, tmp_path):
    for index in range(40):
        Image.fromarray(np.full((32, 40, 3), 6 * index, np.uint8)).save(tmp_path / f"{index}.jpeg")
    files = speed.draw_files(tmp_path, 33)
    assert len(set(files)) == 33 and files == speed.draw_files(tmp_path, 33)
    modes = {name: how for name, how in speed.MODES.items() if how[0] == "kmed"}
    rows = speed.race(files, {"size": (16, 20), "free": True, "workers": 2}, modes, 1, None)
    assert [row["mode"] for row in rows] == ["kmed", "kmed, data.decode=reduced"]
    assert all(row["images"] == 32 and row["images_per_second"] > 0 and "pillow=" in row["versions"] for row in rows)
