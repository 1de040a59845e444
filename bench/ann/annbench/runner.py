"""Runs systems side by side, one process each, taking turns repetition by repetition."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics
from .config import Settings, System

HERE = Path(__file__).resolve().parent
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)
RECALL_AT = (1, 10, 100)


@dataclass
class Result:
    """What is known of one system; times are lists, one entry a repetition."""

    system: System
    version: str = ""
    error: str = ""
    bytes: int | None = None
    grown_bytes: int | None = None
    train_s: list[float] = field(default_factory=list)
    add_s: list[float] = field(default_factory=list)
    batch_s: list[float] = field(default_factory=list)
    one_s: list[float] = field(default_factory=list)
    recall: dict[int, float] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)


def busy_seconds() -> float:
    """Time that all processors together spent working since the start of the machine."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _, _, irq, softirq, steal = file.readline().split()[1:9]
    ticks = sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds(pids: list[int]) -> float:
    """Processor time of this process and of others by their ids."""
    total = time.process_time()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


class SystemFailed(RuntimeError):
    """A worker replied with an error, died or took too long."""


class Peer:
    """The process of one system."""

    def __init__(self, system: System, python: str, threads: int, log: Any, timeout_s: float):
        self.result = Result(system)
        self.timeout_s = timeout_s
        env = dict(os.environ, **{name: str(threads) for name in THREAD_VARIABLES}, **system.env)
        self.process = subprocess.Popen(
            [python, "-m", f"{HERE.name}.worker", system.wrapper],
            cwd=HERE.parent,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            self.process.stdin.write(json.dumps({"do": operation, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SystemFailed(f"its process ended with {self.process.wait()}") from None
        ready, _, _ = select.select([self.process.stdout], [], [], self.timeout_s)
        if not ready:
            self.process.kill()
            raise SystemFailed(f"{operation} took more than {self.timeout_s:g} s")
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SystemFailed(f"its process ended with {code} during {operation}")
        reply = json.loads(line)
        if "error" in reply:
            raise SystemFailed(f"{operation}: {reply['error']}")
        return reply

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


class Runner:
    """Measures systems over one data set."""

    def __init__(
        self,
        settings: Settings,
        interpreters: dict[str, str],
        base: np.ndarray,
        queries: np.ndarray,
        log: Any,
        progress: Any = sys.stderr,
        cache: Path | None = None,
    ) -> None:
        self.settings = settings
        self.interpreters = {"default": sys.executable, **interpreters}
        self.base, self.queries = base, queries
        self.log, self.progress, self.cache = log, progress, cache
        self.k = min(settings.k, len(base))
        self.other_load = 0.0  # share of the machine that others used while searches were timed

    def exact_products(self) -> np.ndarray:
        """Products of the true nearest, kept in a file from run to run where there is a folder."""
        if self.cache is None:
            self.say("exact search")
            return metrics.exact_search(self.base, self.queries, self.k)[0]
        key = hashlib.blake2b(self.base.tobytes(), digest_size=8)
        key.update(self.queries.tobytes())
        path = self.cache / f"exact-{key.hexdigest()}-{self.k}.npy"
        if path.exists():
            return np.load(path)
        self.say("exact search")
        products, _ = metrics.exact_search(self.base, self.queries, self.k)
        np.save(path, products)
        return products

    def run(self, systems: list[System]) -> list[Result]:
        self.truth = self.exact_products()
        with tempfile.TemporaryDirectory() as folder:
            self.folder = Path(folder)
            np.save(self.folder / "base.npy", self.base)
            np.save(self.folder / "queries.npy", self.queries)
            results, peers = [], []
            for system in systems:
                started = self.start(system)
                results.append(started.result if isinstance(started, Peer) else started)
                if isinstance(started, Peer):
                    peers.append(started)
            try:
                self.measure(peers)
            finally:
                for peer in peers:
                    peer.close()
        return results

    def start(self, system: System) -> Peer | Result:
        python = self.interpreters.get(system.python)
        if python is None:
            return Result(system, error=f"no interpreter is named for '{system.python}'")
        settings = self.settings
        try:
            return Peer(system, python, settings.threads, self.log, settings.timeout_s)
        except OSError as error:
            return Result(system, error=str(error))

    def measure(self, peers: list[Peer]) -> None:
        s = self.settings
        self.each(peers, "load", self.load)
        self.repeat(peers, "build", s.build_repetitions, self.build)
        self.each(peers, "size", self.size)
        self.each(peers, "answer", self.answer)
        before = self.clocks(peers)
        fast = [peer for peer in peers if not peer.result.batch_s]
        self.repeat(fast, "batch", s.repetitions, self.batch)
        self.repeat(peers, "one query", s.repetitions, self.one)
        elapsed, busy, own = (b - a for a, b in zip(before, self.clocks(peers), strict=True))
        others = (busy - own) / (elapsed * (os.cpu_count() or 1))
        self.other_load = min(1.0, max(0.0, others))  # clocks tick in hundredths of a second
        self.each([p for p in peers if p.result.system.estimates], "estimates", self.estimates)

    def clocks(self, peers: list[Peer]) -> tuple[float, float, float]:
        return time.perf_counter(), busy_seconds(), own_seconds([p.process.pid for p in peers])

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=self.progress, flush=True)

    def each(self, peers: list[Peer], label: str, step: Any) -> None:
        self.say(label)
        for peer in peers:
            self.attempt(peer, step)

    def repeat(self, peers: list[Peer], label: str, repetitions: int, step: Any) -> None:
        """Systems take turns; one that has used up its budget sits out the later turns."""
        spent = {id(peer): 0.0 for peer in peers}
        for repetition in range(repetitions):
            self.say(f"{label}, repetition {repetition + 1} of {repetitions}")
            for peer in peers:
                if repetition == 0 or spent[id(peer)] < self.settings.budget_s:
                    start = time.perf_counter()
                    self.attempt(peer, step)
                    spent[id(peer)] += time.perf_counter() - start

    def attempt(self, peer: Peer, step: Any) -> None:
        if peer.result.error:
            return
        try:
            step(peer)
        except SystemFailed as error:
            peer.result.error = str(error)
            self.say(f"{peer.result.system.name} failed: {error}")

    def load(self, peer: Peer) -> None:
        reply = peer.ask(
            "load",
            base=str(self.folder / "base.npy"),
            queries=str(self.folder / "queries.npy"),
            threads=self.settings.threads,
            params=peer.result.system.params,
        )
        peer.result.version = reply["version"]

    def build(self, peer: Peer) -> None:
        reply = peer.ask("build")
        peer.result.train_s.append(reply["train_s"])
        peer.result.add_s.append(reply["add_s"])
        if peer.result.grown_bytes is None:  # later builds reuse memory of the first
            peer.result.grown_bytes = reply["grown_bytes"]

    def size(self, peer: Peer) -> None:
        peer.result.bytes = peer.ask("size")["bytes"]

    def answer(self, peer: Peer) -> None:
        path = self.folder / "answer.npy"
        elapsed = peer.ask("answer", k=self.k, path=str(path))["batch_s"]
        if elapsed > self.settings.budget_s:  # too slow to be asked again
            peer.result.batch_s.append(elapsed)
        ids = np.load(path)
        for at in RECALL_AT:
            if at <= self.k:
                peer.result.recall[at] = metrics.recall(
                    self.base, self.queries, self.truth, ids, at
                )

    def batch(self, peer: Peer) -> None:
        peer.result.batch_s.append(peer.ask("batch", k=self.k)["batch_s"])

    def one(self, peer: Peer) -> None:
        s = self.settings
        budget = s.budget_s / s.repetitions
        reply = peer.ask("one", k=self.k, n=s.one_queries, budget_s=budget)
        peer.result.one_s.append(reply["one_s"])

    def estimates(self, peer: Peer) -> None:
        path = self.folder / "estimates.npy"
        queries = self.queries[: self.settings.estimate_queries]
        peer.ask("estimates", n=len(queries), path=str(path))
        truth = queries.astype(np.float64) @ self.base.T.astype(np.float64)
        estimates = np.load(path).astype(np.float64)
        peer.result.estimates = metrics.estimate_quality(estimates, truth, self.base.shape[1])
