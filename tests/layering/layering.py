#!/usr/bin/env python3
"""Checks the rules of docs/architecture.md on the files of the repository.

Usage: layering.py ROOT [--compile-commands FILE]. Prints one line for each broken rule,
`path:line: [rule] what`, and exits with 1 if there is any.
"""
import argparse
import json
import os
import re
import subprocess
import sys

# Which folders of ours a folder may include. Folders not named here may include all.
CORE = {
    "include": set(),
    "kernels": {"kernels"},
    "quantizer": {"kernels", "quantizer"},
    "packing": {"kernels", "quantizer", "packing"},
    "index": {"kernels", "quantizer", "packing", "index"},
    "storage": {"kernels", "quantizer", "packing", "index", "storage"},
    "service": {"kernels", "quantizer", "packing", "index", "storage", "service"},
    "tools": {"kernels", "quantizer", "packing", "index", "storage", "tools"},
    "kvcache": {"kernels", "quantizer", "packing", "kvcache"},
    "examples": set(),
}
LIBRARIES = {"kernels", "quantizer", "packing", "index", "storage", "kvcache"}
PUBLIC = "include/turboquant/"

# Where the headers of other projects may be included: pattern of the header, prefixes of paths.
FOREIGN = [
    (r"faiss/", ("index/", "storage/", "tools/", "tests/", "bench/", "python/", "examples/faiss_cpp/",
                 PUBLIC + "index_", PUBLIC + "gpu_index_", PUBLIC + "faiss_")),
    (r"zstd\.h", ("packing/",)),
    (r"(rocksdb|isa-l)/", ("storage/", "tests/storage/", "bench/")),
    (r"(grpc|grpcpp|google/protobuf)/|turboquant/v1/", ("service/", "tests/proto/", "tests/service/", "tests/fuzz/", "bench/")),
    (r"cuda", ("kernels/cuda/", "tests/kernels/", "tests/kvcache/cuda/", "bench/")),
    (r"(imm|x86|[a-z]mm)intrin\.h|arm_neon\.h|arm_sve\.h", ("kernels/",)),
]

# Inline functions of the standard library compiled with ISA flags could be the copy that the
# linker keeps for everyone, so backends and the headers they include do without. The scalar
# backend has no such flags.
BACKEND_HEADERS = {"cstdint", "cstddef", "cstring", "cassert", "immintrin.h", "arm_neon.h",
                   "unistd.h", "sys/syscall.h"}

PUBLIC_FORBIDDEN = re.compile(
    r"\b(rocksdb|grpc|google)::|\bcuda[A-Z]\w*|__global__|__device__|\b__m(128|256|512)|\b\w+x\d+_t\b")
LIBRARY_FORBIDDEN = re.compile(
    r"std::(cout|cerr|exit|abort|quick_exit|random_device)\b"
    r"|(?<![\w:.>])(printf|fprintf|puts|exit|abort|srand|rand)\s*\(")
TARGET_ATTRIBUTE = re.compile(r"__attribute__\s*\(\(\s*target|#\s*pragma\s+(GCC|clang)\s+(target|attribute)")
ISA_FLAG = re.compile(r"(?<![\w-])-m(?:avx|amx|sse|ssse|fma|bmi|f16c|arch|cpu|tune|prefer-vector)[\w.+=-]*")
CMAKE_FORBIDDEN = re.compile(
    r"-march=native|-ffast-math|-Ofast|FetchContent|ExternalProject|file\s*\(\s*DOWNLOAD"
    r"|\b(?:add_compile_options|include_directories|link_libraries)\s*\(|\bset\s*\(\s*CMAKE_CXX_FLAGS\b")
TEXT_FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:work|home|Users)/\w|\bTODO\b|\bFIXME\b|\bXXX\b|^(?:<{7}|>{7})(?: |$)", re.MULTILINE)

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
SOURCE = (".h", ".hpp", ".c", ".cc", ".cpp", ".cu", ".cuh")


def strip_comments(text):
    """Blanks comments, keeping line numbers. Strings that hold // are cut; no rule minds."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", text)


def backend_of(path):
    """The ISA backend whose folder holds the path, or None."""
    match = re.match(r"kernels/([^/]+)/", path)
    return match.group(1) if match and match.group(1) != "cuda" else None


def lines_matching(pattern, text):
    for number, line in enumerate(text.splitlines(), 1):
        match = pattern.search(line)
        if match:
            yield number, match.group()


def check_include(path, quoted, header):
    """Yields (rule, what) for one #include."""
    folder = path.split("/")[0]
    first = header.split("/")[0]
    if quoted:
        if "/" not in header or header.startswith(".") or "/../" in header:
            yield "include-path", f'"{header}" does not start at a folder of the repository'
        elif folder in CORE and first != "turboquant" and first not in CORE[folder]:
            yield "direction", f'{folder}/ may not include "{header}"'
    for pattern, allowed in FOREIGN:
        if re.match(pattern, header) and not path.startswith(allowed):
            yield "foreign", f"{header} is not for {path}"
    shared_with_backends = folder == "kernels" and path.endswith(".h") and "/cuda/" not in path
    simd = backend_of(path) not in (None, "scalar")
    if (simd or shared_with_backends) and not quoted and header not in BACKEND_HEADERS:
        yield "backend-header", f"<{header}> in code that is compiled with ISA flags"


def check_source(path, text):
    """Yields (line, rule, what) for one C++ file."""
    code = strip_comments(text)
    for number, line in enumerate(code.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            for rule, what in check_include(path, match.group(1) == '"', match.group(2)):
                yield number, rule, what
    if path.startswith(PUBLIC):
        for number, what in lines_matching(PUBLIC_FORBIDDEN, code):
            yield number, "public-type", f"{what} in a public header"
    if path.split("/")[0] in LIBRARIES:
        for number, what in lines_matching(LIBRARY_FORBIDDEN, code):
            yield number, "library-habit", f"{what} in a library"
    if not backend_of(path):
        for number, what in lines_matching(TARGET_ATTRIBUTE, code):
            yield number, "isa", f"{what} outside a backend folder"


def check_cmake(path, text):
    """Yields (line, rule, what) for one CMake file."""
    text = re.sub(r"#[^\n]*", "", text)
    folder = path.split("/")[0]
    for number, what in lines_matching(CMAKE_FORBIDDEN, text):
        yield number, "cmake", what
    if path != "kernels/CMakeLists.txt":
        for number, what in lines_matching(ISA_FLAG, text):
            yield number, "isa", f"{what} outside kernels/CMakeLists.txt"
    if folder in CORE and folder != "examples":
        for number, line in enumerate(text.splitlines(), 1):
            for library in re.findall(r"turboquant::(\w+)", line):
                if library in CORE and library not in CORE[folder]:
                    yield number, "direction", f"{folder}/ may not link turboquant::{library}"


def check_compile_commands(root, entries):
    """Yields (path, rule, what) for sources that are compiled with ISA flags but may not be."""
    for entry in entries:
        path = os.path.relpath(os.path.join(entry["directory"], entry["file"]), root)
        flag = ISA_FLAG.search(entry.get("command") or " ".join(entry["arguments"]))
        backend = backend_of(path)
        if flag and (backend is None or backend == "scalar"):
            yield path, "isa", f"compiled with {flag.group()}"


def check_file(path, data):
    """Yields (line, rule, what) for one tracked file."""
    if b"\0" in data[:8192]:
        return
    text = data.decode("utf-8", errors="replace")
    if not path.startswith("tests/layering/"):  # which names what it looks for
        own = text
        if path.endswith(".patch"):  # of which only the added lines are ours
            own = "".join(x if x[0] == "+" else "\n" for x in text.splitlines(keepends=True))
        for number, what in lines_matching(TEXT_FORBIDDEN, own):
            yield number, "text", repr(what)
    if path.endswith(SOURCE):
        yield from check_source(path, text)
    elif path.endswith((".cmake", ".cmake.in", "CMakeLists.txt")):
        yield from check_cmake(path, text)


def repository_files(root):
    """Tracked and not yet tracked files; all outside build folders where git does not answer."""
    command = ["git", "-c", "safe.directory=*", "-C", root, "ls-files", "-z", "--cached", "--others",
               "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
        return sorted({p for p in listed.split("\0") if p and os.path.isfile(os.path.join(root, p))})
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, files in os.walk(root):
            folders[:] = [f for f in folders if not f.startswith((".", "build"))]
            found += [os.path.relpath(os.path.join(folder, f), root) for f in files]
        return sorted(found)


def anchor(heading):
    """What a link to a heading of Markdown ends in."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def without_code(text):
    """Markdown with its blocks of code empty."""
    return re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.S | re.M)


def check_links(documents, files):
    """Yields (path, line, rule, what). documents: path to Markdown; files: all there are."""
    anchors = {
        path: {anchor(heading) for heading in re.findall(r"^#+ (.*)$", without_code(text), re.M)}
        for path, text in documents.items()
    }
    folders = {os.path.dirname(path) for path in files}
    linked = set()
    for path, text in documents.items():
        for number, line in enumerate(without_code(text).split("\n"), 1):
            for link in re.findall(r"\]\(([^)\s]+)\)", line):
                if re.match(r"[a-z]+:", link):
                    continue
                name, _, part = link.partition("#")
                target = path
                if name:
                    target = os.path.normpath(os.path.join(os.path.dirname(path), name))
                if path == "README.md":
                    linked.add(target)
                if target not in files and target not in folders:
                    yield path, number, "link", f"{link}: there is no such file"
                elif part and part not in anchors.get(target, set()):
                    yield path, number, "link", f"{link}: there is no such heading"
    if "README.md" in documents:
        for path in documents:
            if path.startswith("docs/") and path not in linked:
                yield path, 1, "link", "README.md does not lead here"


def check_repository(root, compile_commands=None):
    """All broken rules, as lines."""
    problems = []
    files = repository_files(root)
    documents = {}
    for path in files:
        with open(os.path.join(root, path), "rb") as file:
            data = file.read()
        if path.endswith(".md"):
            documents[path] = data.decode("utf-8", errors="replace")
        problems += [f"{path}:{n}: [{rule}] {what}" for n, rule, what in check_file(path, data)]
    links = check_links(documents, set(files))
    problems += [f"{path}:{n}: [{rule}] {what}" for path, n, rule, what in links]
    if compile_commands:
        with open(compile_commands, encoding="utf-8") as file:
            entries = json.load(file)
        problems += [f"{p}: [{rule}] {what}" for p, rule, what in check_compile_commands(root, entries)]
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root")
    parser.add_argument("--compile-commands")
    arguments = parser.parse_args()
    problems = check_repository(os.path.abspath(arguments.root), arguments.compile_commands)
    print("\n".join(problems) or "no rule broken")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
