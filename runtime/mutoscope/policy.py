"""A product's own rules: a function that is asked before anything is made. Knows no rule.

# rules.py
def policy(request):
    if "secret project" in request.prompt.lower():
        return "this installation makes no videos of the secret project"

mutoscope generate --policy rules.policy "a red circle"
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from .errors import RequestError
from .request import VideoRequest

Policy = Callable[[VideoRequest], str | None]
"""Takes a request, and gives why it is refused, or `None`. Must be safe to call from several threads."""

UNSAID = "it breaks a rule of this installation"


class PolicyError(RequestError):
    """The installation's own rules refuse the request; says why."""


def load_policy(name: str) -> Policy:
    """The function with a dotted name, such as "rules.policy"; the current folder is searched first.

    Raises:
        RequestError: there is no such module or function, or importing it fails.
    """
    module, _, function = name.rpartition(".")
    if not module or not function:
        raise RequestError(f"policy must be a dotted name, such as rules.policy; got {name!r}")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(import_module(module), function)
    except Exception as error:  # whatever the module does when it is imported
        raise RequestError(f"policy={name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise RequestError(f"policy={name!r} is not a function; it is of type {type(found).__name__}")
    policy: Policy = found
    return policy


def ask(policy: Policy | None, request: VideoRequest) -> None:
    """
    Raises:
        PolicyError: the rules refuse the request.
        RequestError: the policy itself failed, or gave neither text nor `None`; nothing is made then.
    """
    if policy is None:
        return
    try:
        reason = policy(request)
    except Exception as error:
        raise RequestError(
            f"nothing was made, as the policy failed with {type(error).__name__}; it must return None or text"
        ) from error
    if reason is None:
        return
    if not isinstance(reason, str):
        raise RequestError(
            f"nothing was made, as the policy returned {type(reason).__name__}; it must return None or text"
        )
    raise PolicyError(f"refused: {reason.strip() or UNSAID}")
