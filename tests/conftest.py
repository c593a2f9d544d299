"""Every program that tests build is checked after each rewrite (`mcgen.ir.check`), in processes they start too."""

import os

os.environ["MCGEN_CHECK"] = "1"
