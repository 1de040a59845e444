#!/usr/bin/env python3
"""Curves of recall against queries a second, of this project's indexes beside their peers.

  bench/ann/curves.py wordnet1m --out build/bench/curves
  bench/ann/curves.py wordnet1m --systems 'IVF*' 'FAISS IVF*' --rows 200000

Each index of curves.toml is built once, alone in memory, and searched with each of its settings.
Every run adds to DATASET.json in the output folder and writes DATASET.md and a plot from it.
"""

import sys

from annbench.curves import main

sys.exit(main())
