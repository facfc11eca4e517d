"""Typed settings: the defaults, changed by a YAML file, changed by the command line; and their dump as YAML."""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import pydantic
import yaml

from kmed.errors import ConfigError, shorten, suggest
from kmed.files import write_text
from kmed.reading import parse_yaml, read_text


def _parse_size(value: Any) -> Any:
    """Turns "120x160" into (120, 160), height first; leaves anything else to the type check."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", value)
        if not match:
            raise ValueError("must be HEIGHTxWIDTH, such as 120x160")
        return int(match[1]), int(match[2])
    return value


FULL = (0, 65535)  # the values that 16 bits can hold


def parse_range(setting: str) -> tuple[int, int] | None:
    """Returns (low, high) of the setting `data.range`, such as "0-4095" or "full"; None for "auto"."""
    if setting == "auto":
        return None
    if setting == "full":
        return FULL
    low, high = setting[1:].split("-", 1) if setting.startswith("-") else setting.split("-", 1)
    return (-int(low) if setting.startswith("-") else int(low)), int(high)


def range_text(limits: tuple[int, int]) -> str:
    """Returns (low, high) as the setting `data.range` has it."""
    return "full" if tuple(limits) == FULL else f"{limits[0]}-{limits[1]}"


def _check_range(value: Any) -> Any:
    """Turns (0, 4095) into "0-4095"; checks the order of a range that is given as text."""
    text = "-".join(map(str, value)) if isinstance(value, (tuple, list)) and len(value) == 2 else value
    if text in ("auto", "full"):
        return text
    match = re.fullmatch(r"\s*(-?\d{1,10})\s*-\s*(-?\d{1,10})\s*", str(text))
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError("must be auto, full or LOW-HIGH, such as 0-4095")
    return f"{int(match[1])}-{int(match[2])}"


def _drop_none(value: Any) -> Any:
    """Turns "none" into None, so that the command line can take back what a YAML file sets."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def _as_list(value: Any) -> Any:
    """Turns a text into a list that holds it, and "none" into None."""
    value = _drop_none(value)
    return [value] if isinstance(value, str) else value


Source = Annotated[str | None, pydantic.BeforeValidator(_drop_none)]
Files = Annotated[list[str] | None, pydantic.BeforeValidator(_as_list)]
Pixels = Annotated[int, pydantic.Field(ge=8, le=4096)]
ImageSize = Annotated[tuple[Pixels, Pixels], pydantic.BeforeValidator(_parse_size)]
ValueRange = Annotated[str, pydantic.BeforeValidator(_check_range)]
Fraction = Annotated[float, pydantic.Field(ge=0, lt=1)]
Count = Annotated[int, pydantic.Field(ge=1)]
BatchSize = Annotated[int, pydantic.Field(ge=1, le=65536)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Positive = Annotated[float, pydantic.Field(gt=0)]


class Section(pydantic.BaseModel):
    """A group of settings that accepts no other keys than its own."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuses true and false for what is not a choice between them: Python would take them for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("must not be true or false")
        return value


class ModelConfig(Section):
    """Which network, and what it starts from."""

    name: str = "resnet18"  # a network; `kmed models` lists them
    weights: Source = None  # imagenet, a safetensors or PyTorch file, or an earlier run; none: random
    # of pixels in [0, 1], before the backbone, or (means, deviations); none: that of the weights, else imagenet
    normalization: Literal["imagenet", "unit"] | tuple[list[float], list[float]] | None = None
    dropout: Fraction | None = None  # rate before the head; none: as published for the model
    options: dict[str, Any] = {}  # the model's own, such as stochastic_depth_rate or patch_size


class DataConfig(Section):
    """Where the images are, how they are read, and how they are split."""

    path: str | None = None  # a folder, a CSV or an npz; none: the built-in demo data
    name: str | None = None  # the name of the data in results; none: that of the folder or file
    image_size: ImageSize = (120, 160)  # height and width that images are resized to
    fit: Literal["pad", "crop", "stretch"] = "pad"  # pad and crop keep the aspect ratio
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box"] = "bilinear"  # how images are resized
    decode: Literal["full", "reduced"] = "full"  # of JPEG files; reduced: at 1/2, 1/4 or 1/8 of their size, if enough
    range: ValueRange = "auto"  # of 16-bit pictures, what becomes black to white: auto, full or LOW-HIGH
    split_folders: dict[str, str] = {}  # {folder name: split}, where a name does not say it
    class_names: list[str] | None = None  # the legal classes, in order; none: those that are found
    # {name in the data: class, or none for no class}, in data that do not use the names of class_names; none: no map
    class_map: dict[str, str | None] | None = None
    labels_csv: str | None = None  # which CSV has the labels, if the folder has several
    path_column: str | None = None  # of a CSV; none: found by its name
    label_column: str | None = None  # of a CSV, one column of words; none: found by its name
    label_columns: list[str] | None = None  # of a CSV, columns of 0, 1 or empty; none: found
    no_finding: Literal["label", "empty"] = "label"  # multilabel: "No Finding" is a label, or the empty set
    not_findings: list[str] = ["Support Devices"]  # labels that may stand beside "No Finding"
    split_column: str | None = None  # of a CSV; none: found by its name
    group: str | None = None  # what a split keeps together: a column, a CSV, or regex:...(...)...
    cluster: str | None = None  # what intervals resample, given in the same ways; none: the group
    splits: str | None = None  # a splits.csv to read instead of drawing a split
    fold: Annotated[int, pydantic.Field(ge=0)] | None = None  # of that splits.csv, the fold that is tested on
    unlabelled: bool = False  # the images have no labels, which `kmed recalibrate --method prior` can use
    corrections: Files = None  # a labels.csv of `kmed data labels` with edited labels, or several, which count in turn
    val_fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.2  # share of what is not test, if there is no val
    test_fraction: Fraction = 0.2  # share of all images, if there is no test split; 0: none
    skip_unreadable: bool = False  # whether broken files are left out; otherwise they are an error
    # where decoded images stay; shared: in a folder of the user's, for all runs
    cache: Literal["auto", "memory", "disk", "shared", "none"] = "auto"

    @property
    def decoding(self) -> dict[str, str]:
        """{"decode": "reduced"}, or {} if JPEG files are decoded at their full size, as other programs do."""
        return {} if self.decode == "full" else {"decode": self.decode}


class AugmentConfig(Section):
    """How training images are augmented."""

    level: Literal["none", "light", "medium", "strong"] = "light"  # how strongly; with pretrained weights: medium
    orientation: Literal["upright", "free"] = "upright"  # free: any rotation and flip, as for smears
    density: Literal["none", "stain", "exposure"] = "none"  # stain: of smears and slides; exposure: of X-rays
    mixup: NonNegative = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: NonNegative = 0.0  # alpha of the Beta distribution; 0: off


class TrainConfig(Section):
    """How the model is trained."""

    epochs: Count = 10  # how often the training images are seen
    loss: str = "auto"  # one of the losses of the task, see kmed.tasks; auto: its default
    batch_size: BatchSize = 32  # images per step
    accumulate: Count = 1  # steps whose gradients are averaged into one update, as if the batch were so much larger
    learning_rate: Positive = 1e-3  # AdamW's peak, after the warm-up; with pretrained weights: 0.0003
    warmup_epochs: NonNegative = 1.0  # epochs in which the learning rate rises
    weight_decay: NonNegative = 0.05  # not applied to biases and normalisation
    label_smoothing: Fraction = 0.0  # how far labels are moved away from 0 and 1
    clip_norm: NonNegative = 1.0  # largest norm of the whole gradient; 0: off
    ema: Fraction = 0.99  # decay per update of the averaged weights; 0: off
    ema_every: Count = 1  # updates between two renewals of that average, which then takes less time
    class_weights: Literal["none", "balanced"] = "none"  # balanced: rare classes weigh more in the loss
    freeze_epochs: Annotated[int, pydantic.Field(ge=0)] = 0  # epochs in which only the head learns
    backbone_learning_rate: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0  # factor on the backbone's learning rate
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0  # factor per block, from the last to the first
    # whether a backbone keeps the batch normalisation that it came with; with pretrained weights: true
    freeze_batch_norm: bool = False
    # image: each image once per epoch; cluster: as many, drawn from all clusters, such as photographs, equally often
    sample: Literal["image", "cluster"] = "image"
    teacher: Source = None  # a finished run, whose answers are learnt beside the labels; none: only the labels
    teacher_temperature: Positive = 3.0  # what both networks' logits are divided by before they are compared
    teacher_weight: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5  # share of the teacher in the loss
    monitor: str = "val_loss"  # the best epoch has the lowest *_loss or the highest other score
    patience: Annotated[int, pydantic.Field(ge=0)] = 0  # epochs without improvement before a stop; 0: never
    dtype: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = "auto"  # auto: the faster one, as measured
    devices: list[str] | None = None  # such as [GPU:0, GPU:1]; none: every GPU, of each process
    tensorboard: bool = True  # whether logs for TensorBoard are written
    trackers: list[str] = []  # programs that gather runs, such as [mlflow]; none: only the run folder


class EvaluateConfig(Section):
    """How the finished model is evaluated."""

    batch_size: BatchSize = 64  # images per step
    # views whose mean is predicted: flips adds the mirror image, dihedral all turns and flips that keep the size
    views: Literal["none", "flips", "dihedral"] = "none"
    num_resamples: Annotated[int, pydantic.Field(ge=10, le=100_000)] = 1000  # bootstrap resamples per interval
    level: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.95  # nominal coverage of the intervals
    # what decisions are tuned for on validation: each label by itself, or (the last three) all labels together
    thresholds: Literal["f1", "youden", "sensitivity", "exact_match", "hamming", "cost"] = "f1"
    sensitivity: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.9  # the target, if thresholds is sensitivity
    cost_missed: Positive = 1.0  # the price of a missed finding, if thresholds is cost
    cost_false: Positive = 1.0  # the price of a finding that is not there, if thresholds is cost
    case: Source = None  # what is scored besides single images: cluster, group or a column of the data; none: nothing
    coverage: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.9  # target coverage of the prediction sets
    novelty_false_alarms: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.01  # share of validation images flagged
    subgroups: list[str] | None = None  # columns of the data; none: sex, age and view, if present


class Config(Section):
    """Every setting of a run."""

    task: Literal["auto", "multiclass", "multilabel"] = "auto"  # auto: taken from the labels
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0  # random seed for the split, the weights and all draws
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def dump(self) -> str:
        """Returns the resolved settings as YAML that `load_config` reads back unchanged."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def flat(self) -> dict[str, Any]:
        """Returns {"section.key": value} of all settings, as YAML has them."""
        sections = self.model_dump(mode="json")
        own = {name: value for name, value in sections.items() if not isinstance(value, dict)}
        nested = {name: value for name, value in sections.items() if isinstance(value, dict)}
        return own | {f"{name}.{key}": value for name, section in nested.items() for key, value in section.items()}

    def write(self, path) -> None:
        """Writes `dump()` to `path`, whole or not at all."""
        write_text(path, self.dump())


def load_config(path=None, overrides: Iterable[str | tuple[str, Any]] = ()) -> Config:
    """Returns the settings of a YAML file, changed by overrides, on top of the defaults.

    A file may build on another one, which it names as `base: other.yaml`, relative to itself. The base is read first,
    with its own base before it. Each setting in the file then replaces the one of the base as a whole: a list or a
    mapping such as `model.options` is not merged with that of the base.

    Args:
      path: a YAML file, or None for the defaults.
      overrides: strings "section.key=value", with the value written as in YAML, or pairs (key, value), with the
        value used unchanged; later ones win.
    Raises: ConfigError: the file or a base is missing or not YAML, files are bases of each other, a key does not
      exist (the nearest one is suggested), or a value has the wrong type.
    Example:
      >>> load_config(overrides=["train.epochs=3", "data.image_size=60x80"]).train.epochs
      3
    """
    values = _read_with_base(pathlib.Path(path)) if path is not None else {}
    for override in overrides:
        key, value = override if isinstance(override, tuple) else _parse_override(override)
        _set(values, key, value)
    return _check(values, path)


def setting_names() -> list[str]:
    """Returns every legal key, sections written with a dot, in the order of `Config`."""
    return [".".join(path) for path, _ in _leaves(Config)]


def _check(values: dict, path) -> Config:
    """Returns the settings as a Config; `path` is the file that errors name, or None."""
    try:
        return Config.model_validate(values)
    except pydantic.ValidationError as error:
        origin = f"{path}: " if path is not None else ""
        raise ConfigError(origin + _describe(error.errors()[0])) from None


def _read_with_base(path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> dict:
    """Returns the settings of a file on top of those of its base; `above` are the files that build on it."""
    values = _read_yaml(path)
    if "base" not in values:
        return values
    name, trail = values.pop("base"), (*above, path)
    if not isinstance(name, str):
        raise ConfigError(f"{path}: base names another YAML file, relative to this one. Received: {name!r}.")
    base = path.parent / name
    if base.resolve() in [each.resolve() for each in trail]:
        raise ConfigError(f"Config files build on each other in a circle: {' -> '.join(map(str, (*trail, base)))}.")
    if not base.exists():
        raise ConfigError(f"{path}: there is no base {base}. A base is named relative to the file that builds on it.")
    inherited = _read_with_base(base, trail)
    _check(inherited, base)  # so that an error in the base names the base
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(inherited.get(key), dict)
        inherited[key] = {**inherited[key], **value} if both else value
    return inherited


def _read_yaml(path: pathlib.Path) -> dict:
    if not path.exists():
        raise ConfigError(f"There is no config file {path}. Give a YAML file, such as configs/blood_cells.yaml.")
    text = read_text(path, lambda message: ConfigError(f"The config file {message}"))
    try:
        values = parse_yaml(text, lambda node: _keep_text(node, ""))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML{error}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as `key: value`. Received: {type(values).__name__}.")
    return values


def _keep_text(node: yaml.Node, key: str, inside: bool = False) -> None:
    """Makes YAML take what is written for a setting of text as text: a class `no` is not False, and `1` is no number.

    Args:
      node: what is written for the setting or section `key`.
      inside: whether the node is a part of a list or mapping, where `null` is text too.
    """
    if key in TEXT_SETTINGS and isinstance(node, yaml.ScalarNode):
        if inside or node.tag != "tag:yaml.org,2002:null":
            node.tag = "tag:yaml.org,2002:str"
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _keep_text(item, key, inside=True)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if key in TEXT_SETTINGS:
                _keep_text(name, key, inside=True)
                _keep_text(value, key, inside=True)
            else:
                _keep_text(value, f"{key}.{name.value}".lstrip("."))


def _parse_override(override: str) -> tuple[str, Any]:
    """Returns (key, value) of "a.b=value", the value read as YAML."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"A setting is written section.key=value, such as train.epochs=3. Received: {override!r}.")
    try:
        # YAML 1.1 reads 1e-3 (no dot) as a string; the type check turns numeric strings into numbers.
        return key.strip(), parse_yaml(text, lambda node: _keep_text(node, key.strip())) if text.strip() else None
    except ValueError as error:
        raise ConfigError(f"The value of {shorten(key)} is not valid YAML{error}. Received: {shorten(text)}.") from None


def _set(values: dict, key: str, value: Any) -> None:
    """Puts `value` at "a.b" of the nested dict `values`."""
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise ConfigError(f"{section!r} is not a section, so {key!r} cannot be set.{suggest(key, setting_names())}")
    values[last] = value


def _leaves(model: type[pydantic.BaseModel], prefix: tuple[str, ...] = ()):
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


# Settings whose values are text, alone, in a list or in a mapping.
TEXT_SETTINGS = frozenset(
    ".".join(path)
    for path, field in _leaves(Config)
    if field.annotation in (str, str | None, list[str], list[str] | None, dict[str, str])
)


def _describe(error: Mapping[str, Any]) -> str:
    """Returns one line for pydantic's first error."""
    known = dict.fromkeys(setting_names())
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"There is no setting {shorten(key)}.{_nearest_key(location, list(known))}"
    # Inside a union or a tuple pydantic's location runs deeper than the setting's name.
    while location and ".".join(location) not in known:
        location.pop()
    name = ".".join(location) or key
    message = error["msg"].removeprefix("Value error, ")
    value = error.get("input")
    return f"{name}: {message[0].lower() + message[1:]}. Received: {shorten(value)}."


def _nearest_key(location: list[str], known: list[str]) -> str:
    """Returns a hint: a key of that name in another section, else the nearest spelling."""
    *section, last = location
    elsewhere = [name for name in known if name.rsplit(".", 1)[-1] == last]
    if elsewhere:
        return f" Did you mean {elsewhere[0]!r}?"
    siblings = {name.rsplit(".", 1)[-1]: name for name in known if name.split(".")[:-1] == section}
    sections = {name.split(".")[0]: name.split(".")[0] for name in known} if not section else {}
    candidates = {**sections, **siblings}
    hint = suggest(last, candidates)
    if not hint:
        return suggest(".".join(location), known) or f" Legal here: {', '.join(sorted(candidates) or known)}."
    near = hint.split("'")[1]
    return f" Did you mean {candidates[near]!r}?"
