"""An audit as files and in words: audit.json, groups.csv, pairs.csv, a contact sheet of the worst pairs, a summary."""

import collections
import contextlib
import pathlib
import shutil
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from kmed.config import load_config, parse_range
from kmed.data.audit import near_duplicates, residual
from kmed.data.audit.leaks import CONTRADICTING_SHARE, Audit, Pair, audit, choose_splits, groups_on_two_sides
from kmed.data.audit.sheet import headline, label_text, save_pairs, worst_pairs
from kmed.data.audit.workers import check_jobs
from kmed.data.prepare import open_table
from kmed.data.splits import read_splits
from kmed.errors import RunError
from kmed.files import exclusive, write_frame, write_json
from kmed.progress import warn

MAX_LISTED = 50
UNFINISHED = "unfinished"  # the folder for what an audit computes, until it is finished


def audit_data(
    path,
    *,
    out=None,
    splits: str | Iterable[str] | None = None,
    jobs: int | None = None,
    config=None,
    settings: Iterable[str | tuple[str, object]] = (),
) -> tuple[Audit, list[pathlib.Path]]:
    """Finds copies, leaks between splits, contradictory labels and broken files, and writes what was found.

    The sides are the splits that come with the data (folders, a split column, data.splits); no new split is drawn.

    What has been computed is kept in the folder `unfinished` in `out` until the audit is finished: one that is
    interrupted goes on from there when it is started again.

    Args:
      path: a folder, a CSV or an npz.
      out: the output folder; None: NAME_audit.
      splits: the splits to audit, as names or as one comma-separated string; None: all.
      jobs: how many processes share the work; None: one for each core, but one alone for a few hundred pictures.
      config: a YAML file whose data section is used.
      settings: overrides such as "data.splits=splits.csv".
    Returns: (Audit, the paths of the files written).
    Raises: DataError: the data cannot be used, or there is no such split. ConfigError: `jobs` is not a number of
      processes. RunError: the folder cannot be written, another audit is writing it, or a process has died.
    """
    check_jobs(jobs)
    resolved = load_config(config, [*settings, ("data.path", str(path))])
    table = open_table(resolved)
    if resolved.data.splits is not None:
        table = read_splits(table, resolved.data.splits, fold=resolved.data.fold)
    table = table.replace(range=parse_range(resolved.data.range) or table.range)
    names = splits.split(",") if isinstance(splits, str) else splits
    table = choose_splits(table, [name.strip() for name in names] if names else None)
    out = pathlib.Path(f"{table.name}_audit" if out is None else out)
    with _kept_until_finished(out) as folder:
        found = audit(table, seed=resolved.seed, jobs=jobs, folder=folder)
        return found, write_audit(found, out)


@contextlib.contextmanager
def _kept_until_finished(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folder in `out` for what an audit computes, and removes it unless the audit is interrupted."""
    folder, there = out / UNFINISHED, out.exists()
    try:
        with exclusive(folder, taken=f"Another audit is writing {out}. Wait for it, or choose another folder."):
            try:
                yield folder
            except KeyboardInterrupt:
                warn(f"What has been computed is in {folder}: the same command goes on from there.")
                raise
            except RunError:  # a full disk, a process that has died: it can be put right
                raise
            except Exception:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if not there:
            with contextlib.suppress(OSError):  # it is not empty
                out.rmdir()


def write_audit(audit: Audit, out_dir) -> list[pathlib.Path]:
    """Writes audit.json, groups.csv and, if there are pairs to show, pairs.csv and worst_pairs.png.

    groups.csv has the columns path, photograph and group, as found from the pictures alone; training takes it
    as data.group. If groups were given (patients), groups_with_told.csv joins the found and the given groups:
    pictures of one patient need not look alike, so the found groups alone would not keep them together.

    pairs.csv has one row per pair that audit.json counts, all of them, with what is measured about it.

    Returns: the paths of the files written.
    Raises: RunError: the folder cannot be written.
    """
    out_dir = pathlib.Path(out_dir)
    paths = [out_dir / "audit.json", out_dir / "groups.csv"]
    write_json(paths[0], to_json(audit))
    _write_groups(audit, audit.group, paths[1])
    if audit.table.grouped:
        paths.append(out_dir / "groups_with_told.csv")
        _write_groups(audit, join_given_groups(audit), paths[-1])
    pairs = worst_pairs(audit)
    if pairs:
        paths += [out_dir / "pairs.csv", out_dir / "worst_pairs.png"]
        write_frame(paths[-2], list_pairs(audit))
        save_pairs(audit, pairs, paths[-1])
    return paths


def join_given_groups(audit: Audit) -> np.ndarray:
    """Returns object (N,), groups that keep together what shares a found group, a given group or a given cluster."""
    given = audit.table.rows[["group", "cluster"]].to_numpy()
    groupings = [pd.factorize(column)[0] for column in (audit.group, given[:, 0], given[:, 1])]
    rows = np.arange(len(audit.table))
    edges, start = [], len(rows)
    for codes in groupings:
        edges.append(np.stack([rows, start + codes], axis=1))
        start += codes.max() + 1
    joined = near_duplicates.components(start, np.concatenate(edges))[: len(rows)]
    return np.array([f"group_{code:05d}" for code in pd.factorize(joined)[0]], dtype=object)


def to_json(audit: Audit) -> dict:
    """Returns the content of audit.json; lists of examples have at most MAX_LISTED entries, and their full count."""
    table, files = audit.table, audit.files
    broken = files[files["reason"] != ""]
    sizes = collections.Counter(f"{row.height}x{row.width}" for row in files.itertuples(index=False))
    copies = collections.Counter(audit.photograph)
    return {
        "name": table.name,
        "seconds": round(audit.seconds, 1),
        "pictures": len(table),
        "labels": {name: int(np.nansum(column)) for name, column in zip(table.class_names, table.labels.T)},
        "unknown_labels": int(np.isnan(table.labels).sum()),
        "labels_a_split": table.counts()[[*table.class_names, "images"]].to_dict("index"),
        "sizes": dict(sizes.most_common(MAX_LISTED)),
        "modes": dict(collections.Counter(files["mode"]).most_common()),
        "odd_files": _some(odd_files(audit)),
        "unreadable": _some(broken[["path", "reason"]].to_dict("records")),
        "too_few_features": _some(_paths(audit, audit.featureless)),
        "byte_duplicates": _some([_paths(audit, rows) for rows in audit.identical]),
        "pairs_compared": audit.num_compared,
        "photographs": {"count": len(copies), "with_copies": sum(size > 1 for size in copies.values()),
                        "a_split": _distinct(audit, audit.photograph), "largest": dict(copies.most_common(10))},
        "groups": {"count": len(set(audit.group)), "of_several_photographs": len(_joined(audit)),
                   "a_split": _distinct(audit, audit.group), "photographs": _joined(audit)},
        "groups_on_two_sides": [
            {"group": name, "sides": _members(audit, audit.group == name), "evidence": describe_pair(audit, pair)}
            for name, pair in audit.on_two_sides.items()
        ],
        "contradictions": _some([describe_pair(audit, pair) for pair in audit.contradictions]),
        "doubts": _some([describe_pair(audit, pair) for pair in audit.doubts]),
        "small_overlaps_with_different_labels": _some([describe_pair(audit, pair) for pair in audit.overlaps]),
        "across_groups": _some(_joined_groups(audit)),
        "followups_with_different_labels": audit.num_followups,
        "told_groups": compare_given_groups(audit) if table.grouped else None,
        "settings": {
            **{name.lower(): value for name, value in vars(near_duplicates).items() if _is_limit(name, value)},
            "contradicting_share": CONTRADICTING_SHARE,
            "verdicts": [[*row[:2], None if np.isinf(row[2]) else row[2]] for row in residual.VERDICTS],
        },
    }  # fmt: skip


def list_pairs(audit: Audit) -> pd.DataFrame:
    """Returns the content of pairs.csv: one row per pair and problem; a pair with two problems has two rows."""
    problems = {
        "contradiction": audit.contradictions,
        "doubt": audit.doubts,
        "across groups": audit.across_groups,
        "two sides": audit.on_two_sides.values(),
        "small overlap": audit.overlaps,
    }
    records = []
    for problem, pairs in problems.items():
        for record in (describe_pair(audit, pair) for pair in pairs):
            both = {name: record.pop(f"{name}s") for name in ("path", "split", "label", "group")}
            sides = {f"{name}_{number}": values[number - 1] for name, values in both.items() for number in (1, 2)}
            records.append({"problem": problem, **sides, **record})
    return pd.DataFrame(records)


def odd_files(audit: Audit) -> list[dict]:
    """Returns {path, size, mode} of the readable files whose size or mode differs from that of nine tenths of them."""
    files = audit.files[audit.files["reason"] == ""]
    kind = files["height"].astype(str) + "x" + files["width"].astype(str) + " " + files["mode"]
    usual = kind.value_counts()
    if usual.iloc[0] < 0.9 * len(files):
        return []
    odd = files[kind != usual.index[0]]
    return [
        {"path": row.path, "size": f"{row.height}x{row.width}", "mode": row.mode} for row in odd.itertuples(index=False)
    ]


def compare_given_groups(audit: Audit) -> dict:
    """Returns how the found photographs and groups agree with the given ones (clusters and groups)."""
    from sklearn.metrics import adjusted_rand_score

    rows = audit.table.rows
    given = rows["group"].to_numpy()
    found = pd.Series(audit.group).groupby(given).nunique()
    return {
        "count": int(rows["group"].nunique()),
        "on_two_sides": _some(groups_on_two_sides(audit.table, given)),
        "rand_index_of_groups": float(adjusted_rand_score(given, audit.group)),
        "rand_index_of_photographs": float(adjusted_rand_score(rows["cluster"], audit.photograph)),
        "joined_by_the_pictures": _some(_joined_groups(audit)),
        "not_joined_by_the_pictures": int((found > 1).sum()),
    }


def describe_pair(audit: Audit, pair: Pair) -> dict:
    """Returns a pair as JSON: paths, splits, labels, what the two share, and the evidence."""
    record = {
        "paths": _paths(audit, (pair.first, pair.second)),
        "splits": [audit.table.rows["split"].iloc[row] for row in (pair.first, pair.second)],
        "labels": [label_text(audit, row) for row in (pair.first, pair.second)],
        "groups": [audit.table.rows["group"].iloc[row] for row in (pair.first, pair.second)],
        "kind": pair.kind,
        "verdict": pair.verdict,
        "shared_part": round(pair.share, 3),
    }
    if pair.alignment is not None:
        record["inliers"] = pair.alignment.inliers
        record["agreement"] = round(pair.alignment.agreement, 4)
        record["agreement_of_detail"] = round(pair.alignment.detail, 4)
        record["detail_of_most_tiles"] = round(pair.alignment.tile_detail, 4)
        record["drift"] = round(pair.alignment.drift, 3) if np.isfinite(pair.alignment.drift) else None
        record["mirrored"] = pair.alignment.mirrored
        record["inverted"] = pair.alignment.inverted
    return record


def summarize(audit: Audit) -> str:
    """Returns what was found, as text for people."""
    table, files = audit.table, audit.files
    photographs, groups = len(set(audit.photograph)), len(set(audit.group))
    broken, odd = int((files["reason"] != "").sum()), len(odd_files(audit))
    repeats = sum(len(rows) - 1 for rows in audit.identical)
    splits = ", ".join(f"{name} {count:,}" for name, count in _distinct(audit, audit.photograph).items() if name)
    lines = [
        f"{table.name}: {len(table):,} files show {photographs:,} photographs of {groups:,} groups "
        f"(photographs that share a spot)." + (f" Photographs per split: {splits}." if splits else ""),
        f"Files: {broken} unreadable, {repeats} byte for byte the same as another, {odd} of odd size or mode, "
        f"{len(audit.featureless)} with too little detail to compare.",
        f"Leaks: {_plural(len(audit.on_two_sides), 'group')} on two sides of a split"
        + ("." if splits else ": the data have no splits."),
        *(f"  {_line(audit, pair)}" for pair in list(audit.on_two_sides.values())[:5]),
        f"Labels: {_plural(len(audit.contradictions), 'pair')} of copies or overlapping photographs contradict; "
        f"{len(audit.doubts):,} more may be copies (in doubt), {len(audit.overlaps):,} share less than half of their "
        f"frame, and {audit.num_followups:,} are other exposures, which may differ.",
        *(f"  {_line(audit, pair)}" for pair in [*audit.contradictions[:5], *audit.doubts[:5]]),
    ]
    if table.grouped:
        across = audit.across_groups
        lines.append(
            f"Across groups: {_plural(len(across), 'pair')} of given groups with near-duplicates, which may be one"
            " patient" + (f", {sum(pair.labels for pair in across):,} with different labels." if across else ".")
        )
        lines += [f"  {_line(audit, pair)}" for pair in across[:5]]
        given = compare_given_groups(audit)
        lines.append(
            f"Given groups: {given['count']:,}, {given['on_two_sides']['count']} on two sides; the pictures join "
            f"{_plural(given['joined_by_the_pictures']['count'], 'pair')} of them; adjusted Rand index "
            f"{given['rand_index_of_groups']:.3f} (photographs against given clusters: "
            f"{given['rand_index_of_photographs']:.3f})."
        )
    return "\n".join(lines)


def _write_groups(audit, group, path):
    write_frame(path, pd.DataFrame({"path": audit.table.rows["path"], "photograph": audit.photograph, "group": group}))


def _line(audit, pair):
    paths = " and ".join(
        f"{audit.table.rows['path'].iloc[row]} [{label_text(audit, row)}]" for row in (pair.first, pair.second)
    )
    return f"{headline(pair)}: {paths}"


def _plural(number, noun):
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _is_limit(name, value):
    return name.isupper() and (isinstance(value, (int, float)) or name == "STRONG_LINKS")


def _some(items):
    """Returns the count and the first items of a list that may be long."""
    return {"count": len(items), "first": items[:MAX_LISTED]}


def _paths(audit, rows):
    return [audit.table.rows["path"].iloc[row] for row in rows]


def _distinct(audit, names):
    """Returns {split: number of different names among its pictures}."""
    return pd.Series(names).groupby(audit.table.rows["split"].to_numpy()).nunique().to_dict()


def _joined_groups(audit):
    """Returns the pairs across given groups as JSON, with the two names under "told"."""
    records = [describe_pair(audit, pair) for pair in audit.across_groups]
    return [{"told": sorted(record["groups"]), **record} for record in records]


def _joined(audit):
    """Returns {group: photographs} for the groups of several photographs."""
    found = pd.Series(audit.photograph).groupby(audit.group).unique()
    return {name: sorted(photographs) for name, photographs in found.items() if len(photographs) > 1}


def _members(audit, mask):
    """Returns, per split, how many pictures and which photographs the chosen rows have, with an example."""
    rows = audit.table.rows.assign(photograph=audit.photograph)[mask]
    return {
        split or "(no split)": {
            "pictures": len(part),
            "photographs": sorted(part["photograph"].unique()),
            "example": part["path"].iloc[0],
        }
        for split, part in rows.groupby("split")
    }
