"""From what clients ask for to a request and its plan: models, files and LoRAs by name, and the operator's own rules.

Knows no queue. All methods may be called from any thread; those that decode files take turns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any

from mutoscope_engines.names import no_such

from ..builtin import bundle_path
from ..bundle.bundle import Bundle
from ..errors import MutoscopeError
from ..pipeline import Pipeline
from ..planning.plan import Plan
from ..planning.planner import with_pictures_read
from ..policy import Policy, ask
from ..request import FILES, VideoRequest
from .describing import files_taken
from .jobs import Job
from .named_loras import Hashes, refuse_other_loras, without_hashes
from .reading import Asked
from .recipes import command_line, python_lines, shortest
from .refusals import RefusedError, bad_request
from .studio import Studio


@dataclass(frozen=True, kw_only=True)
class Accepted:
    """A request that can be met, its files read and its LoRAs found, and what would be done."""

    model: str
    request: VideoRequest
    plan: Plan


class Intake:
    """What one studio can be asked for."""

    def __init__(self, studio: Studio, policy: Policy | None) -> None:
        self.studio, self._policy = studio, policy
        self._with_files = threading.Lock()
        # They only plan, and never open a graph: the worker's own pipeline holds the memory.
        self._planners = {name: Pipeline(bundle, studio.options) for name, bundle in studio.bundles.items()}

    def close(self) -> None:
        """Nothing may be asked of it afterwards."""
        for planner in self._planners.values():
            planner.close()

    def turn(self, names: Iterable[str]) -> AbstractContextManager[object]:
        """Requests with files take turns: one of them, with its pixels, may fill a gigabyte."""
        return self._with_files if set(names) & set(FILES) else nullcontext()

    def model(self, name: str | None, needs: str | None = None) -> tuple[str, Bundle]:
        """A model by its name; where there is no name, the first one, or the first that takes the file it needs.

        Raises:
            RefusedError: there is no such model.
        """
        bundles = self.studio.bundles
        if name is None:
            able = (each for each, bundle in bundles.items() if needs in files_taken(bundle.manifest))
            name = next(able, next(iter(bundles)))
        if name not in bundles:
            message = no_such("model", name[:80], list(bundles))
            raise RefusedError(HTTPStatus.NOT_FOUND, "model_not_found", message, "model")
        return name, bundles[name]

    def loras_of(self, name: str) -> list[str]:
        """The LoRAs that may be named for a model; none where it takes none in the precision in which it runs."""
        if not (names := self.studio.loras.names()):
            return []
        manifest, precision = self.studio.bundles[name].manifest, self._planners[name].settled.precision
        takes = precision is not None and manifest.lora_form(manifest.experts[0].role, precision) is not None
        return names if takes else []

    def accepted(self, asked: Asked) -> Accepted:
        """What a client asked for. To be called in a turn.

        Raises:
            RefusedError: the request cannot be met.
        """
        name, bundle = self.model(asked.model, asked.needs)
        try:
            values, hashes = without_hashes(asked.values)
            request = self.studio.loras.resolved(replace(asked, values=values).request(bundle.manifest))
            return self._planned(name, request, hashes)
        except MutoscopeError as error:
            raise bad_request(error, asked.called) from error

    def like(self, job: Job, **changed: Any) -> Accepted:
        """The same as before, with some fields changed. To be called in a turn.

        Raises:
            RefusedError: the request cannot be met, or not with the files of then.
        """
        name, _ = self.model(job.model)
        try:
            request = replace(self.studio.request_of(job), **changed)
            return self._planned(name, request, without_hashes(job.request)[1])
        except MutoscopeError as error:
            raise bad_request(error) from error

    def recipe(self, job: Job) -> dict[str, Any]:
        """The command line and the Python program that make the same video, and the request.

        Raises:
            RefusedError: there is no such model any more, or a file that it follows is not there as it was.
        """
        studio, (name, bundle) = self.studio, self.model(job.model)
        with self.turn(job.request):
            try:
                hashes = without_hashes(job.request)[1]
                request = shortest(studio.request_of(job), lambda said: self._checked(name, said, hashes))
            except MutoscopeError as error:
                raise bad_request(error) from error
        root = None if bundle.root == bundle_path() else str(bundle.root)
        said = (studio.loras.named(request), root, studio.options, studio.output, job.id)
        return {"request": job.request, "command": command_line(*said), "python": python_lines(*said)}

    def _planned(self, model: str, request: VideoRequest, hashes: Hashes) -> Accepted:
        request = with_pictures_read(request, self.studio.bundles[model].manifest)
        ask(self._policy, request)
        plan = self._checked(model, request, hashes)
        return Accepted(model=model, request=request, plan=plan)

    def _checked(self, model: str, request: VideoRequest, hashes: Hashes) -> Plan:
        plan = self._planners[model].plan(request)
        refuse_other_loras(plan, hashes)
        return plan
