"""The model lines that export knows. A family is one package and its rows in this table."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from .family import Family

# Class of the pipeline, as model_index.json names it, to the module of its family.
FAMILIES = dict.fromkeys(
    ("WanPipeline", "WanImageToVideoPipeline", "WanVACEPipeline", "WanDMDPipeline"), "mutoscope_export.families.wan"
)


def load_family(pipeline_class: str) -> Family:
    """The family of a pipeline class in `FAMILIES`."""
    return cast(Family, import_module(FAMILIES[pipeline_class]))
