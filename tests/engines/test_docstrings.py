"""Everything public of the engines says what it does, itself or through what it implements."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import mutoscope_engines
import pytest

MODULES = [module.name for module in pkgutil.walk_packages(mutoscope_engines.__path__, "mutoscope_engines.")]


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Functions, classes, and methods and properties of classes, that a module defines."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            for method, member in vars(value).items():
                if not method.startswith("_") and (callable(member) or isinstance(member, property | classmethod)):
                    yield f"{name}.{method}", getattr(value, method)


def says(value: Any) -> str | None:
    if inspect.isclass(value):
        return value.__doc__ if not (value.__doc__ or "").startswith(f"{value.__name__}(") else None  # a dataclass's
    return inspect.getdoc(value)


@pytest.mark.parametrize("name", MODULES)
def test_whatever_is_public_has_a_docstring(name: str) -> None:
    module = import_module(name)
    assert module.__doc__
    assert [found for found, value in public(module) if not says(value)] == []
