"""The price book as a reviewed file: read it, plan a change, see what it would do, apply it.

`book` reads and writes `tillroll.toml`; `plan` compares it with the version in force and says what
the change would have done to real past usage; `genai` proposes prices for language models. What a
price means is decided in `tillroll.ledger.pricing`; storing versions is the engine's.
"""

from tillroll.catalog.book import (
    InvalidPriceBook,
    PriceFile,
    dump,
    load,
    parse,
    read,
    schema,
    template,
)
from tillroll.catalog.genai import (
    PricesPackageMissing,
    Proposals,
    Skipped,
    models_in_book,
    propose,
)
from tillroll.catalog.plan import (
    Change,
    Effect,
    FieldChange,
    Holding,
    Impact,
    ImpactRow,
    Plan,
    ProductChange,
    UsageRecord,
    diff,
    effects,
    impact,
)

__all__ = [
    "Change",
    "Effect",
    "FieldChange",
    "Holding",
    "Impact",
    "ImpactRow",
    "InvalidPriceBook",
    "Plan",
    "PriceFile",
    "PricesPackageMissing",
    "ProductChange",
    "Proposals",
    "Skipped",
    "UsageRecord",
    "diff",
    "dump",
    "effects",
    "impact",
    "load",
    "models_in_book",
    "parse",
    "propose",
    "read",
    "schema",
    "template",
]
