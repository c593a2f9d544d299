"""Every test, and every process that one starts, has tile programs checked after each rewrite."""

from __future__ import annotations

import os

from mcgen.ir.check import VARIABLE

os.environ[VARIABLE] = "1"
