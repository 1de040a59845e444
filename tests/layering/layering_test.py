#!/usr/bin/env python3
"""Shows that each rule of layering.py fires on a bad example and stays silent on a good one."""
import os
import subprocess
import sys
import tempfile
import unittest

import layering

# Path, content, the rules that must be reported.
EXAMPLES = [
    ("kernels/a.h", '#include <cstdint>\n#include "kernels/code_layout.h"\n', []),
    ("kernels/dispatch.cpp", '#include <string>\n#include "kernels/a.h"\n', []),
    ("kernels/avx2/table.cpp", '#include <immintrin.h>\n#include "kernels/a.h"\n', []),
    ("kernels/scalar/table.cpp", "#include <cmath>\n", []),
    ("quantizer/a.cpp", '#include <turboquant/quantizer.h>\n#include "kernels/a.h"\n', []),
    ("index/a.cpp", '#include <faiss/Index.h>\n#include "quantizer/a.h"\n', []),
    ("quantizer/a.cpp", '// unlike std::cout and printf(\n// #include "index/a.h"\n', []),
    ("quantizer/a.cpp", "std::snprintf(buffer, 8, format);\n", []),
    ("tests/quantizer/a.cpp", '#include "quantizer/a.h"\n#include <faiss/Index.h>\n', []),
    ("kernels/CMakeLists.txt", "tq_add_backend(avx2 FLAGS -mavx2 FILES table.cpp)\n", []),
    ("index/CMakeLists.txt", "tq_add_library(index DEPENDS turboquant::quantizer)\n", []),
    ("docs/a.md", "Data may lie in ../shared, results in build/.\n", []),
    ("data.bin", "TODO\0", []),
    ("examples/a/a.patch", "@@ -1,1 +1,2 @@\n // TODO: theirs\n+// ours\n", []),

    ("kernels/a.cpp", '#include "quantizer/a.h"\n', ["direction"]),
    ("quantizer/a.h", '#include "index/a.h"\n', ["direction"]),
    ("kvcache/a.cpp", '#include "index/a.h"\n', ["direction"]),
    ("index/a.cpp", '#  include "storage/a.h"\n', ["direction"]),
    ("include/turboquant/a.h", '#include "kernels/a.h"\n', ["direction"]),
    ("examples/a/main.cpp", '#include "quantizer/a.h"\n', ["direction"]),
    ("packing/a.cpp", '#include <zstd.h>\n#include "quantizer/a.h"\n', []),
    ("quantizer/CMakeLists.txt", "target_link_libraries(a turboquant::index)\n", ["direction"]),
    ("quantizer/a.cpp", '#include "a.h"\n', ["include-path"]),
    ("quantizer/a.cpp", '#include "../kernels/a.h"\n', ["include-path"]),
    ("quantizer/a.cpp", "#include <faiss/Index.h>\n", ["foreign"]),
    ("include/turboquant/quantizer.h", "#include <faiss/Index.h>\n", ["foreign"]),
    ("index/a.cpp", "#include <rocksdb/db.h>\n", ["foreign"]),
    ("storage/a.cpp", "#include <grpcpp/grpcpp.h>\n", ["foreign"]),
    ("quantizer/a.cpp", "#include <cuda_runtime.h>\n", ["foreign"]),
    ("index/a.cpp", "#include <zstd.h>\n", ["foreign"]),
    ("packing/a.cpp", '#include "index/a.h"\n', ["direction"]),
    ("quantizer/a.cpp", "#include <immintrin.h>\n", ["foreign"]),
    ("kernels/avx2/table.cpp", "#include <algorithm>\n", ["backend-header"]),
    ("kernels/neon/table.cpp", "#include <vector>\n", ["backend-header"]),
    ("kernels/a.h", "#include <array>\n", ["backend-header"]),
    ("include/turboquant/a.h", "void f(rocksdb::DB* db);\n", ["public-type"]),
    ("include/turboquant/a.h", "void f(cudaStream_t stream);\n", ["public-type"]),
    ("include/turboquant/a.h", "__m256i f();\n", ["public-type"]),
    ("quantizer/a.cpp", "std::cerr << 1;\n", ["library-habit"]),
    ("index/a.cpp", 'printf("x");\n', ["library-habit"]),
    ("kernels/dispatch.cpp", "std::abort();\n", ["library-habit"]),
    ("quantizer/a.cpp", "std::random_device device;\n", ["library-habit"]),
    ("quantizer/a.cpp", '__attribute__((target("avx2"))) void f();\n', ["isa"]),
    ("packing/a.cpp", '#include <zstd.h>\n#include "quantizer/a.h"\n', []),
    ("quantizer/CMakeLists.txt", "target_compile_options(a PRIVATE -mavx2)\n", ["isa"]),
    ("CMakeLists.txt", "set(CMAKE_CXX_FLAGS -march=native)\n", ["cmake", "isa"]),
    ("cmake/a.cmake", "include(FetchContent)\n", ["cmake"]),
    ("CMakeLists.txt", "add_compile_options(-O3)\n", ["cmake"]),
    ("docs/a.md", "See /home/someone/notes.\n", ["text"]),
    ("tools/a.sh", "# TODO: finish\n", ["text"]),
    ("examples/a/a.patch", "@@ -1,0 +1,1 @@\n+// TODO: ours\n", ["text"]),
    ("docs/a.md", "<<<<<<< HEAD\n", ["text"]),
]


class LayeringTest(unittest.TestCase):
    def test_examples(self):
        for path, content, expected in EXAMPLES:
            with self.subTest(path=path, content=content):
                found = [rule for _, rule, _ in layering.check_file(path, content.encode())]
                self.assertEqual(sorted(found), expected)

    def test_every_rule_has_a_bad_example(self):
        shown = {rule for _, _, rules in EXAMPLES for rule in rules}
        with open(layering.__file__, encoding="utf-8") as file:
            source = file.read()
        named = {"direction", "include-path", "foreign", "backend-header", "public-type",
                 "library-habit", "isa", "cmake", "text"}
        self.assertEqual(shown, named)
        for rule in named:
            self.assertIn(f'"{rule}"', source)

    def test_links(self):
        files = {"README.md", "docs/a.md", "docs/b.md", "include/turboquant/a.h"}
        good = {
            "README.md": "[a](docs/a.md#the-2nd-part-of-it) [b](docs/b.md) [out](https://a.b/c)\n",
            "docs/a.md": "# A\n## The 2nd part, of `it`\n[h](../include/turboquant/a.h)\n[f](../include/turboquant)\n",
            "docs/b.md": "[here](#heading)\n# Heading\n```sh\n[x](y) # z\n```\n",
        }
        self.assertEqual(list(layering.check_links(good, files)), [])
        for path, text, where in (
            ("docs/b.md", "\n[c](c.md)\n", ("docs/b.md", 2)),
            ("docs/b.md", "[a](a.md#b)\n", ("docs/b.md", 1)),
            ("docs/b.md", "```\n# part\n```\n[a](#part)\n", ("docs/b.md", 4)),
            ("README.md", "[b](docs/b.md)\n", ("docs/a.md", 1)),
        ):
            with self.subTest(text=text):
                found = list(layering.check_links({**good, path: text}, files))
                self.assertEqual([one[:3] for one in found], [(*where, "link")])

    def test_compile_commands(self):
        def entry(path, flags):
            return {"directory": "/b", "file": f"/r/{path}", "command": f"g++ {flags} -c {path}"}
        good = [entry("kernels/avx2/table.cpp", "-mavx2"), entry("kernels/scalar/table.cpp", "-O2"),
                entry("quantizer/quantizer.cpp", "-O2 -Wall")]
        bad = [entry("quantizer/quantizer.cpp", "-mavx2"), entry("kernels/dispatch.cpp", "-mfma"),
               entry("kernels/scalar/table.cpp", "-march=haswell")]
        self.assertEqual(list(layering.check_compile_commands("/r", good)), [])
        self.assertEqual(len(list(layering.check_compile_commands("/r", bad))), len(bad))

    def test_program_on_a_tree(self):
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(os.path.join(root, "quantizer"))
            source = os.path.join(root, "quantizer", "a.cpp")
            for text, status in (('#include "kernels/a.h"\n', 0), ('#include "index/a.h"\n', 1)):
                with open(source, "w", encoding="utf-8") as file:
                    file.write(text)
                result = subprocess.run([sys.executable, "-B", layering.__file__, root],
                                        capture_output=True, text=True, check=False)
                self.assertEqual(result.returncode, status, result.stdout + result.stderr)
                self.assertEqual("quantizer/a.cpp:1: [direction]" in result.stdout, status == 1)


if __name__ == "__main__":
    unittest.main()
