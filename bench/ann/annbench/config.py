"""Reads the parameters of a benchmark, which are data: see ann.toml."""

from __future__ import annotations

import fnmatch
import itertools
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """Says which entry of the file is wrong, and how."""


@dataclass(frozen=True)
class System:
    """One line of the tables: a wrapper with its parameters."""

    name: str
    wrapper: str  # a module of systems/
    params: dict[str, Any] = field(default_factory=dict)
    bits: float | None = None  # code bits for each coordinate, for comparisons at equal bits
    ours: bool = False
    estimates: bool = False  # whether scores are estimates of inner products, to be judged as such
    env: dict[str, str] = field(default_factory=dict)
    python: str = "default"  # which of [interpreters] runs it


@dataclass(frozen=True)
class Run:
    """Systems that are measured side by side, interleaved."""

    name: str
    title: str
    systems: list[str]  # patterns of system names
    reference: str


@dataclass(frozen=True)
class Settings:
    k: int = 100
    threads: int = 2
    repetitions: int = 5
    build_repetitions: int = 2
    one_queries: int = 100
    estimate_queries: int = 100
    budget_s: float = 6.0
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) <= 0:
                raise ConfigError(f"settings.{item.name} must be positive")


@dataclass(frozen=True)
class Config:
    settings: Settings
    datasets: dict[str, dict[str, Any]]
    systems: list[dict[str, Any]]
    runs: dict[str, Run]
    interpreters: dict[str, str]
    expected: dict[str, dict[str, dict[str, float]]]  # data set, system, figure

    def systems_of(self, patterns: list[str], dimension: int) -> list[System]:
        """Systems whose name matches a pattern, in the order of the file."""
        known = [s for entry in self.systems for s in expand(entry, dimension)]
        names = [s.name for s in known]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two systems are named '{name}'")
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ConfigError(f"no system matches '{pattern}'")
        return [s for s in known if any(fnmatch.fnmatchcase(s.name, p) for p in patterns)]


def fill(value: Any, variables: dict[str, Any]) -> Any:
    """Replaces {variable} in strings; a string that is one variable becomes its value."""
    if isinstance(value, str):
        for name, replacement in variables.items():
            if value == "{" + name + "}":
                return replacement
        try:
            return value.format(**variables)
        except (KeyError, IndexError) as error:
            raise ConfigError(f"'{value}' names an unknown variable: {error}") from None
    if isinstance(value, dict):
        return {key: fill(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, variables) for item in value]
    return value


def expand(entry: dict[str, Any], dimension: int) -> list[System]:
    """One system for each combination of the values of `sweep`."""
    sweep = entry.get("sweep", {})
    systems = []
    for values in itertools.product(*sweep.values()):
        variables = {"d": dimension, "half_d": dimension // 2, **dict(zip(sweep, values))}
        filled = fill({key: item for key, item in entry.items() if key != "sweep"}, variables)
        if "bits" not in filled and "bits" in variables:
            filled["bits"] = variables["bits"]
        systems.append(System(**filled))
    return systems


def load(path: Path) -> Config:
    with open(path, "rb") as file:
        try:
            data = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path}: {error}") from None
    return parse(data)


def parse(data: dict[str, Any]) -> Config:
    sections = {"settings", "datasets", "systems", "runs", "interpreters", "expected"}
    if unknown := set(data) - sections:
        raise ConfigError(f"unknown sections: {', '.join(sorted(unknown))}")
    try:
        settings = Settings(**data.get("settings", {}))
    except TypeError as error:
        raise ConfigError(f"settings: {error}") from None
    allowed = {item.name for item in fields(System)} | {"sweep"}
    for entry in data.get("systems", []):
        label = entry.get("name", "a system without a name")
        if missing := {"name", "wrapper"} - set(entry):
            raise ConfigError(f"{label}: lacks {', '.join(sorted(missing))}")
        if unknown := set(entry) - allowed:
            raise ConfigError(f"{label}: unknown keys {', '.join(sorted(unknown))}")
    runs = {}
    for name, entry in data.get("runs", {}).items():
        try:
            runs[name] = Run(name=name, **entry)
        except TypeError as error:
            raise ConfigError(f"runs.{name}: {error}") from None
    return Config(
        settings=settings,
        datasets=data.get("datasets", {}),
        systems=data.get("systems", []),
        runs=runs,
        interpreters=data.get("interpreters", {}),
        expected=data.get("expected", {}),
    )
