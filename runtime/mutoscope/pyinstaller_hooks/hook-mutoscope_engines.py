"""The backends, which are imported by name, and what OpenVINO opens by its path, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from PyInstaller.utils.hooks import collect_dynamic_libs, collect_submodules, copy_metadata

hiddenimports = collect_submodules("mutoscope_engines")
if find_spec("openvino"):
    binaries = collect_dynamic_libs("openvino", search_patterns=["*.dll", "*.dylib", "*.so", "*.so.*"])
    datas = copy_metadata("openvino")
