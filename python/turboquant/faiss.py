"""TurboQuant inside FAISS's own Python module.

    import faiss, turboquant.faiss
    turboquant.faiss.install()
    index = faiss.index_factory(384, "IDMap2,TQ3", faiss.METRIC_INNER_PRODUCT)

Afterwards faiss.index_factory, write_index, read_index, serialize_index, clone_index and pickle
know TurboQuant indexes, alone and inside FAISS's wrappers. A process that reads such pickles calls
install() first.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import threading
from typing import Any, NamedTuple

import numpy

_PLUGINS = pathlib.Path(__file__).parent / "_plugins"
_lock = threading.Lock()
_plugin: ctypes.CDLL | None = None


class TurboQuantFields(NamedTuple):
    """What a TurboQuant index inside a FAISS index stores."""

    d: int
    ntotal: int
    bits: int
    estimator: str  #: "tq", "t", "qjl", "qjlg" or "mse"
    metric: str  #: "ip", "l2" or "cosine"
    seed: int
    code_size: int  #: bytes per vector
    is_ivf: bool
    by_residual: bool


class _Fields(ctypes.Structure):  # struct Fields of faiss_plugin/plugin.cpp
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("d", "bits", "estimator", "projection")),
        *((name, ctypes.c_int32) for name in ("metric", "normalize", "is_ivf", "by_residual")),
        ("seed", ctypes.c_uint64),
        ("ntotal", ctypes.c_int64),
        ("code_size", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
    ]


def supported_versions() -> list[str]:
    """The FAISS versions that this installation has a plugin for."""
    return sorted(path.stem for path in _PLUGINS.glob("*.so"))


def _loaded_libraries() -> list[str]:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        paths = {line.rstrip("\n").partition("/")[2] for line in maps}
    return sorted("/" + path for path in paths if "faiss" in os.path.basename(path))


def _make_symbols_global() -> None:
    """Lets libraries that are loaded later see FAISS's symbols."""
    mode = os.RTLD_NOLOAD | os.RTLD_GLOBAL | os.RTLD_NOW
    for path in _loaded_libraries():
        try:
            library = ctypes.CDLL(path, mode=mode)
        except OSError:
            continue
        if hasattr(library, "_ZN5faiss11clone_indexEPKNS_5IndexE"):
            return
    raise RuntimeError(
        "turboquant.faiss cannot reach into this build of FAISS: it exports none of its C++ "
        "functions. Use Debian's python3-faiss or a faiss-cpu wheel from 1.13.2 on."
    )


def install() -> None:
    """Teaches the FAISS of this process TurboQuant. Calling it again does nothing.

    Raises ImportError when FAISS is missing, RuntimeError with the reason when this FAISS is not
    one that it fits exactly: classes change their layout even in patch releases, and a plugin for
    another version would corrupt memory.
    """
    global _plugin
    with _lock:
        if _plugin is not None:
            return
        import faiss

        version = faiss.__version__
        path = _PLUGINS / f"{version}.so"
        if not path.is_file():
            have = ", ".join(supported_versions()) or "none"
            raise RuntimeError(
                f"turboquant.faiss has no plugin for FAISS {version} (it has: {have}). Plugins fit "
                "one exact version; build one with: pip install . "
                "--config-settings=cmake.define.FAISS_SOURCE_DIR=<source of that version>"
            )
        _make_symbols_global()
        try:
            plugin = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
        except OSError as error:
            raise RuntimeError(
                f"the plugin for FAISS {version} does not fit this build of it: {error}"
            ) from error
        numbers = [int(part) for part in version.split(".")]
        built_for = plugin.tq_faiss_version()
        if built_for != numbers[0] * 10000 + numbers[1] * 100 + numbers[2]:
            raise RuntimeError(f"{path} was built for FAISS {built_for}, not for {version}")
        plugin.tq_faiss_install.restype = ctypes.c_char_p
        plugin.tq_faiss_fields.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Fields)]
        failure = plugin.tq_faiss_install()
        if failure is not None:
            raise RuntimeError(f"turboquant.faiss cannot be installed: {failure.decode()}")
        _plugin = plugin


def is_installed() -> bool:
    return _plugin is not None


def _find(index: Any) -> _Fields | None:
    if _plugin is None:
        raise RuntimeError("call turboquant.faiss.install() first")
    fields = _Fields()
    found = _plugin.tq_faiss_fields(int(index.this), ctypes.byref(fields))
    return fields if found else None


def fields(index: Any) -> TurboQuantFields | None:
    """What the first TurboQuant index inside a FAISS index stores; None when there is none."""
    found = _find(index)
    if found is None:
        return None
    estimator = ["tq", "qjlg" if found.projection else "qjl", "mse", "t"][found.estimator]
    metric = "l2" if found.metric == 1 else "cosine" if found.normalize else "ip"
    return TurboQuantFields(
        d=found.d,
        ntotal=found.ntotal,
        bits=found.bits,
        estimator=estimator,
        metric=metric,
        seed=found.seed,
        code_size=found.code_size,
        is_ivf=bool(found.is_ivf),
        by_residual=bool(found.by_residual),
    )


def codes(index: Any) -> numpy.ndarray:
    """A copy of the codes, uint8 (ntotal, code_size), of the flat TurboQuant index inside."""
    found = _find(index)
    if found is None or found.is_ivf:
        raise ValueError("there is no flat TurboQuant index inside")
    size = found.ntotal * found.code_size
    data = ctypes.string_at(found.codes, size) if size else b""
    return numpy.frombuffer(data, numpy.uint8).reshape(found.ntotal, found.code_size).copy()
