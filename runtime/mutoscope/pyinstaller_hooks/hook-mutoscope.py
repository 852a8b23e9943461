"""The built-in bundle; what is imported by name: commands, conditions, formats; the versions that `doctor` shows."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

datas = collect_data_files("mutoscope") + collect_data_files("mutoscope_bench")
datas += copy_metadata("mutoscope", recursive=True)
hiddenimports = collect_submodules("mutoscope", filter=lambda name: name != "mutoscope.pyinstaller_hooks")
hiddenimports += collect_submodules("mutoscope_bench")  # the command line takes its commands from there
