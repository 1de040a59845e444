#!/usr/bin/env python3
"""Turns the JSON files of run.py into tables and plots: see annbench/report.py."""

import sys

from annbench.report import main

sys.exit(main())
