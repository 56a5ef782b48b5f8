"""The command line. Importing it, before numpy, keeps BLAS from starting threads: they cost memory and nothing here uses them."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
