"""The ctypes binding of the Python package, from the source tree: it needs nothing but numpy."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

_path = pathlib.Path(__file__).resolve().parents[2] / "python/turboquant/kvcache/_library.py"
_spec = importlib.util.spec_from_file_location("turboquant_kv_library", _path)
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module
_spec.loader.exec_module(_module)

RAW_BITS, Cache, Library, side = _module.RAW_BITS, _module.Cache, _module.Library, _module.side
