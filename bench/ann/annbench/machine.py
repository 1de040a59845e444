"""What a document says of the machine."""

from __future__ import annotations

import platform


def processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            facts = dict(
                [part.strip() for part in line.split(":", 1)] for line in file if ":" in line
            )
    except OSError:
        return platform.processor()
    name = facts.get("model name", platform.processor())
    extensions = ("avx2", "avx512_vnni", "avx512vbmi", "amx_int8", "asimddp", "i8mm", "sve")
    flags = facts.get("flags", facts.get("Features", "")).split()
    found = [extension for extension in extensions if extension in flags]
    return f"{name} ({', '.join(found)})" if found else name
