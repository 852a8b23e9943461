"""The built-in bundle; what is imported by name: commands, families, formats; the versions that `doctor` shows."""

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

datas = collect_data_files("mutoscope") + copy_metadata("mutoscope", recursive=True)
hiddenimports = collect_submodules("mutoscope", filter=lambda name: name != "mutoscope.pyinstaller_hooks")
