"""The built-in bundle, and the modules that tables name as text: backends, commands, families and writers."""  # noqa: N999

from PyInstaller.utils.hooks import collect_data_files, collect_submodules, copy_metadata

datas = collect_data_files("mutoscope") + copy_metadata("mutoscope", recursive=True)
hiddenimports = collect_submodules("mutoscope") + collect_submodules("mutoscope_engines")
