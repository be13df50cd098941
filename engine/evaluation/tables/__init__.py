"""One module a table: what it is called, its flags, how it is measured, what is to be said of it.

Every module has `NAME`, `TITLE`, `arguments(parser)` and `measure(given, results) -> list[Run]`. It may have `TEXT`
(said above its table), `PERCENT` (False where values are no shares) and `remarks(runs) -> str` (said below it).
"""

from __future__ import annotations

# In the order of docs/RESULTS.md; a name is also its module's.
TABLES = (
    "facts",
    "consolidation",
    "language",
    "mqar",
    "needles",
    "babi",
    "formal",
    "intents",
    "translation",
    "ablation",
    "clocks",
    "optimizers",
    "cost",
)
