"""The record of an export: the JSON beside the file, a row of a table, and the lines that are printed."""

import pathlib

import pandas as pd

from kmed import runtime, tables


def record_path(path: pathlib.Path) -> pathlib.Path:
    """Returns the path of the JSON beside an exported file."""
    return path.with_name(f"{path.name}.json")


def export_row(record: dict) -> dict:
    """Returns an export, kept or refused, as one row of a table of exports."""
    checked, latency, description = record["checked"], record["latency"], record["description"]
    return {
        "model": description["model"],
        "task": description["task"],
        "image_size": "x".join(map(str, description["image_size"])),
        "format": record["format"],
        "quantize": record["quantize"],
        "megabytes": round(record["size_bytes"] / 1e6, 3),
        "latency_ms": round(latency["median_ms"], 3),
        "threads": record["threads"],
        "split": checked["split"],
        "num_images": checked["num_images"],
        "largest_difference": checked["largest_difference"],
        "mean_difference": checked["mean_difference"],
        "agreement": checked["agreement"],
        "score": checked["score"],
        "keras": checked["keras"],
        "exported": checked["exported"],
        **{
            f"change{end}": checked["change"][name] for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
        },
        "tolerance_points": checked["tolerance_points"],
        "passed": checked["passed"],
        "device": record["device"],
        "versions": runtime.join_versions(record["versions"]),
        "command": record["command"],
    }


def append_record(record: dict, path) -> None:
    """Adds an export, kept or refused, to a table of exports."""
    row = {name: "" if value is None else str(value) for name, value in export_row(record).items()}
    tables.append_rows(path, [pd.DataFrame([row])])


def describe_record(record: dict) -> str:
    """Returns the lines that `kmed export` prints at its end."""
    checked, latency = record["checked"], record["latency"]
    change, name = checked["change"], checked["score"].replace("_", " ")
    lines = [
        f"{export_words(record)}: {record['size_bytes'] / 1e6:.1f} MB; one picture in {latency['median_ms']:.1f} ms "
        f"({record['threads']} threads, {record['device']})",
        f"compared with the Keras model on {checked['num_images']} {checked['split']} pictures in "
        f"{checked['num_clusters']} clusters:",
        f"  same decision for {checked['agreement']:.2%}; probabilities differ by at most "
        f"{checked['largest_difference']:.2g}, on average by {checked['mean_difference']:.2g}",
        f"  {name} {checked['exported']:.4f} against {checked['keras']:.4f}: {100 * change['value']:+.2f} points "
        f"({100 * change['low']:+.2f} to {100 * change['high']:+.2f}); {checked['tolerance_points']:g} may be lost",
    ]
    if record.get("float32"):
        plain = record["float32"]
        size, median = plain["size_bytes"] / 1e6, plain["latency"]["median_ms"]
        lines.append(f"  float32: {size:.1f} MB, {median:.1f} ms per picture")
    return "\n".join(lines)


def export_words(record: dict) -> str:
    """Returns the format and quantization of an export in words, such as "tflite int8"."""
    return record["format"] if record["quantize"] == "none" else f"{record['format']} {record['quantize']}"
