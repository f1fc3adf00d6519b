"""A host's Alembic leaves our tables alone, told so as docs/operating/alembic.md tells it."""

from collections.abc import Callable
from pathlib import Path

import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

import tillroll
from tests.docs.pages import read_page

PAGE = Path(__file__).parents[2] / "docs" / "operating" / "alembic.md"


def differences(url: str, models: sqlalchemy.MetaData, include_name: object) -> list[str]:
    """Return what `alembic revision --autogenerate` would do, as text."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    with engine.connect() as connection:
        options = {"include_name": include_name} if include_name else {}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), models)
    engine.dispose()
    return [f"{name} {getattr(what, 'name', what)}" for name, what, *_ in found]


def test_autogenerate_leaves_our_tables_alone(postgres_url: str):
    tillroll.migrate(postgres_url, row_level_security=True)
    models = sqlalchemy.MetaData()
    sqlalchemy.Table("orders", models, sqlalchemy.Column("id", sqlalchemy.Integer))
    [snippet] = [block.text for block in read_page(PAGE).blocks if block.title == "ours.py"]
    names: dict[str, Callable[..., bool]] = {}
    exec(snippet, names)  # noqa: S102 - the page's own text
    untold = differences(postgres_url, models, None)
    assert "remove_table tillroll_entries" in untold
    assert differences(postgres_url, models, names["include_name"]) == ["add_table orders"]
