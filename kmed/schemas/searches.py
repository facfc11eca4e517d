"""The JSON files of a study and of the jobs of a sweep."""

import typing
from typing import Annotated

from pydantic import Field

from kmed.schemas.records import Count, File, Name


class TuneFile(File):
    """tune.json: the search space and the shared settings of a study."""

    space: dict[Name, dict[str, typing.Any]]
    settings: dict[str, typing.Any]  # only those that were given, as in a config.yaml
    trials: Annotated[Count, Field(ge=1)]
    prune: bool


class JobsFile(File):
    """jobs.json: which job of Slurm trains which model of a sweep."""

    jobs: dict[Name, Name]
