"""The clock of a machine that is an hour late, for each Python that finds this at its start."""

import time

_own = time.time
time.time = lambda: _own() - 3600
