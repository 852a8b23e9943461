"""The file of jobs: read and checked as a whole before any of it runs. Knows lines, names and plans."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mutoscope_engines.names import no_such

from ..errors import MutoscopeError, RequestError
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..policy import Policy, ask
from ..request import FILES, LORAS, OutputOptions, VideoRequest
from ..solvers.noise import SEED_MAX
from ..values import checks
from .key import key_of, seed_of, setting_of, texts_of
from .task import Task

OF_A_JOB = ("id", "repeat", "meta")
NAMES = (*(field.name for field in fields(VideoRequest)), *OF_A_JOB)
MOST_REPEATS = 1_000_000


@dataclass(frozen=True)
class BadLine:
    """A line of the file that cannot be done, by its number from 1, and why."""

    line: int
    cause: str


class JobsError(RequestError):
    """The file of jobs cannot be done as it is.

    Attributes:
        problems: all lines that are wrong.
    """

    def __init__(self, path: Path, problems: list[BadLine]) -> None:
        lines = f"{len(problems)} line{'s' if len(problems) > 1 else ''}"
        super().__init__(f"{path} has errors in {lines}, so no video was made; correct them and run it again")
        self.problems = problems


@dataclass(frozen=True)
class Job:
    """One line of the file."""

    line: int
    id: str | None  # `None` where the line has none
    repeat: int
    meta: Any
    request: VideoRequest
    folder: Path  # what its paths are relative to

    @property
    def name(self) -> str:
        """Its id, or the number of its line."""
        return str(self.line) if self.id is None else self.id

    @property
    def seeded(self) -> VideoRequest:
        """The request with a seed, which follows from the line where it has none, and with the paths of its files."""
        seed = seed_of(self.request, self.id) if self.request.seed is None else self.request.seed
        given = {name: path for name in FILES if (path := getattr(self.request, name)) is not None}
        files: dict[str, Any] = {name: self._located(path) for name, path in given.items()}
        for name in LORAS:
            files[name] = tuple(
                replace(lora, path=str(self.folder / lora.path)) for lora in getattr(self.request, name)
            )
        return replace(self.request, seed=seed, **files)

    def _located(self, path: Any) -> Any:
        """Where a file is, or each of several."""
        return tuple(map(self._located, path)) if isinstance(path, tuple) else str(self.folder / path)


@dataclass(frozen=True)
class Checked:
    """Jobs that can all be done."""

    setting: dict[str, Any]
    tasks: tuple[Task, ...]


def read_jobs(
    path: Path, pipeline: Pipeline, ending: str, output: OutputOptions, policy: Policy | None = None
) -> Checked:
    """The videos that a file of jobs asks for, every job planned, in the order of the file.

    The policy is asked once for each job that can be done, with the seed of its first video. Its repeats differ in
    nothing but the seed, and workers get what was allowed, so neither is asked about again.

    Raises:
        RequestError: the file cannot be read, or has no jobs.
        JobsError: lines that cannot be done; names all of them.
    """
    problems: list[BadLine] = []
    jobs: dict[str, Job] = {}
    tasks: list[Task] = []
    setting: dict[str, Any] = {}
    for number, text in _lines(path):
        try:
            job = parse_job(number, text, path.parent.absolute())
            if job.name in jobs:
                raise RequestError(f"line {jobs[job.name].line} has the id {job.name!r}, too; give each job its own")
            jobs[job.name] = job
            plan = pipeline.plan(seeded := job.seeded)
            ask(policy, seeded)
            setting = setting or setting_of(plan, ending, output)
            tasks += _tasks(job, plan, setting)
        except MutoscopeError as error:
            problems.append(BadLine(number, str(error)))
    if problems:
        raise JobsError(path, problems)
    if not tasks:
        raise RequestError(f'{path} has no jobs; write one JSON object a line, such as {{"prompt": "a red circle"}}')
    return Checked(setting, tuple(tasks))


def parse_job(number: int, text: str, folder: Path) -> Job:
    """One line.

    Args:
        number: the line's, from 1.
        text: what stands there.
        folder: what the paths of its files are relative to.

    Raises:
        RequestError: it is no JSON object, or has a name or value that cannot be; names all of them.
    """
    values = _parsed(text)
    if not isinstance(values, dict):
        raise RequestError(
            f'a job must be a JSON object, such as {{"prompt": "a red circle"}}; got {text.strip()[:60]}'
        )
    problems = [no_such("name", name, NAMES) for name in values if name not in NAMES]
    own = {name: values[name] for name in OF_A_JOB if name in values}
    identity, repeat = own.get("id"), own.get("repeat", 1)
    if "id" in own and (not isinstance(identity, str) or not identity):
        problems.append(f"id must be text and not empty; got {identity!r}")
    try:
        checks.whole("repeat", repeat, minimum=1, maximum=MOST_REPEATS)
    except RequestError as error:
        problems.append(str(error))
    try:
        request = VideoRequest.from_dict({name: values[name] for name in values if name in NAMES and name not in own})
    except RequestError as error:
        problems.append(str(error))
    if problems:
        raise RequestError("; ".join(problems))
    return Job(number, identity, repeat, own.get("meta"), request, folder)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, with its number from 1."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}; name a file of jobs") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    for number, line in enumerate(text.split("\n"), start=1):  # JSON may hold other ends of lines, such as U+2028
        if line.strip():
            yield number, line


def _parsed(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise RequestError(f"{', '.join(sorted(twice))} is given twice; give it once")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise RequestError(f"{constant} is not a number in JSON; give a finite one")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"this is not JSON at character {error.pos + 1}: {error.msg}; got {text.strip()[:60]}"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise RequestError(f"this is not JSON: {error}") from None
    except RecursionError:
        raise RequestError("this JSON is nested too deeply; write meta with fewer levels") from None


def _tasks(job: Job, plan: Plan, setting: dict[str, Any]) -> Iterator[Task]:
    """The videos of a job, with one seed after the other."""
    last = plan.seed + job.repeat - 1
    if last > SEED_MAX:
        raise RequestError(f"repeat={job.repeat} needs seeds up to {last}, and the largest is {SEED_MAX}")
    geometry = plan.geometry
    changed = len({lora.role for lora in plan.loras})  # denoisers, of which then another graph runs
    symbols = (len(plan.guidance.weights), plan.schedule.state_rows, changed)
    size = (geometry.height, geometry.width, geometry.num_frames, *symbols)
    texts, seeded = texts_of(plan), job.seeded
    for repeat in range(job.repeat):
        seed = plan.seed + repeat
        yield Task(
            id=job.name,
            repeat=repeat + 1,
            line=job.line,
            meta=job.meta,
            request=replace(seeded, seed=seed),
            key=key_of(setting, replace(plan, seed=seed)),
            size=size,
            texts=texts,
        )
