#!/usr/bin/env python3
"""Times the engine beside turbovec and FAISS in one run, on the same vectors.

  python3 -m venv .venv && .venv/bin/pip install numpy faiss-cpu==1.15.1 turbovec==1.1.2
  .venv/bin/python bench/peers/run.py build/release/bench/peers/scan_bench --dimension 384

Systems take turns for --rounds rounds; the best time of each is reported, as a table and ratios.
Vectors are random unit vectors or the rows of --base repeated to --rows: times do not depend on
them. Threads: 2 everywhere.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.update(OMP_NUM_THREADS="2", RAYON_NUM_THREADS="2")
import numpy as np  # noqa: E402  (after the thread counts are set)


def best(function, repetitions):
    function()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def write_fbin(path, x):
    with open(path, "wb") as file:
        np.array(x.shape, dtype=np.int32).tofile(file)
        x.astype(np.float32).tofile(file)


def engine(args, files, bits, isa):
    env = dict(os.environ)
    if isa:
        env["TURBOQUANT_FORCE_ISA"] = isa
    out = subprocess.run([args.scan_bench, *files, str(bits), str(args.k), str(args.repetitions)],
                         env=env, capture_output=True, text=True)
    return json.loads(out.stdout) if out.returncode == 0 else {"error": out.stderr.strip()}


def turbovec(args, x, q, bits):
    import turbovec as tv
    start = time.perf_counter()
    index = tv.TurboQuantIndex(x.shape[1], bits)
    index.add(x)
    add = time.perf_counter() - start
    index.prepare()
    return {"system": f"turbovec {bits} bits", "add_s": add,
            "batch_s": best(lambda: index.search(q, args.k), args.repetitions),
            "one_ms": 1e3 * best(lambda: index.search(q[:1], args.k), 20 * args.repetitions)}


def faiss_index(args, x, q, name):
    import faiss
    faiss.omp_set_num_threads(2)
    index = faiss.index_factory(x.shape[1], name, faiss.METRIC_INNER_PRODUCT)
    index.train(x[:10000])
    start = time.perf_counter()
    index.add(x)
    add = time.perf_counter() - start
    return {"system": f"FAISS {name}", "add_s": add,
            "batch_s": best(lambda: index.search(q, args.k), args.repetitions),
            "one_ms": 1e3 * best(lambda: index.search(q[:1], args.k), 20 * args.repetitions)}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan_bench")
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--rows", type=int, default=82000)
    parser.add_argument("--queries", type=int, default=960)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--isas", default="", help="backends to force, comma-separated")
    parser.add_argument("--no-faiss", action="store_true")
    parser.add_argument("--base", help=".npy file whose rows are repeated")
    args = parser.parse_args()
    random = np.random.default_rng(1)

    def vectors(n):
        if args.base:
            rows = np.load(args.base, mmap_mode="r")
            x = np.resize(rows, (n, rows.shape[1])).astype(np.float32)
        else:
            x = random.standard_normal((n, args.dimension), dtype=np.float32)
        return np.ascontiguousarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    x, q = vectors(args.rows), vectors(args.queries)
    d = x.shape[1]
    bits = [int(b) for b in args.bits.split(",")]
    isas = args.isas.split(",") if args.isas else [""]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, "base.fbin"), os.path.join(folder, "queries.fbin")]
        write_fbin(files[0], x)
        write_fbin(files[1], q)
        runs = []
        for b in bits:
            runs += [lambda b=b, i=i: engine(args, files, b, i) for i in isas]
            runs.append(lambda b=b: turbovec(args, x, q, b))
        if not args.no_faiss:
            names = [f"PQ{d}x4fs", f"PQ{d // 2}x4fs", "RaBitQfs4", "SQ8", "Flat"]
            runs += [lambda n=n: faiss_index(args, x, q, n) for n in names]
        results = {}
        for _ in range(args.rounds):
            for i, run in enumerate(runs):
                try:
                    result = run()
                except Exception as error:  # a peer that fails is listed, not dropped
                    result = {"system": f"run {i}", "error": repr(error)}
                kept = results.setdefault(result.get("system", f"run {i}"), result)
                for key, value in result.items():
                    if key.endswith(("_s", "_ms")):
                        kept[key] = min(kept[key], value)
                    if key == "gmacs":
                        kept[key] = max(kept[key], value)

    print(f"{args.rows} x {d}, {args.queries} queries, k={args.k}, 2 threads, best of "
          f"{args.rounds} x {args.repetitions}")
    print("| system | add, s | batch, s | one query, ms | G multiply-adds/s | plain read, ms |")
    print("|---|---|---|---|---|---|")
    for result in results.values():
        if "error" in result:
            print(f"| {result.get('system')} | failed: {result['error']} |||||")
            continue
        print(f"| {result['system']} | {result['add_s']:.3f} | {result['batch_s']:.4f} "
              f"| {result['one_ms']:.3f} | {result.get('gmacs', '')} | {result.get('read_ms', '')} |")
    sys.stdout.flush()
    print(json.dumps(list(results.values())))


if __name__ == "__main__":
    main()
