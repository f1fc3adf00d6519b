"""A role of least privilege: enough for the application, too little to change what was."""

import psycopg
import pytest

import tillroll
from tests.servers.cluster import Cluster
from tillroll.stores.postgres_schema import RIGHTS
from tillroll.testing import conformance

# The one promise that is the owner's to keep: the role must not be able to.
OWNERS = "metadata_can_be_erased"


@pytest.fixture
def owners_url(postgres_url: str) -> str:
    return postgres_url


@pytest.fixture
def url(owners_url: str, postgres_role: str) -> str:
    """The URL under a role that has the rights of the application."""
    tillroll.migrate(owners_url, role=postgres_role)
    return owners_url.replace("postgres@", f"{postgres_role}@", 1)


def test_every_promise_is_kept(url: str, owners_url: str):
    report = conformance.run(lambda clock: tillroll.open(url, clock=clock))
    assert [result.name for result in report.failures] == [OWNERS]
    assert "owner" in report.failures[0].message
    report = conformance.run(lambda clock: tillroll.open(owners_url, clock=clock), only=OWNERS)
    assert report.ok
    with tillroll.open(url) as ledger:
        assert ledger.store.check() == []
        assert all(ok for _, _, ok in ledger.store.facts())
        assert ledger.verify().ok


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE tillroll_entries SET metadata = NULL",
        "DELETE FROM tillroll_entries",
        "TRUNCATE tillroll_entries",
        "DROP TABLE tillroll_entries",
        "ALTER TABLE tillroll_entries DISABLE TRIGGER ALL",
        "DROP TRIGGER tillroll_entries_fixed ON tillroll_entries",
        "DELETE FROM tillroll_accounts",
        "TRUNCATE tillroll_accounts",
        "UPDATE tillroll_price_versions SET reason = 'x'",
        "DELETE FROM tillroll_price_versions",
        "DELETE FROM tillroll_meta",
        "INSERT INTO tillroll_migrations VALUES (999, '', '')",
        "UPDATE tillroll_migrations SET checksum = 'x'",
        "DROP VIEW tillroll_postings",
        "ALTER FUNCTION tillroll_keep() RENAME TO kept",
        "SELECT tillroll_keep()",
        "CREATE TRIGGER mine BEFORE INSERT ON tillroll_entries EXECUTE FUNCTION now()",
    ],
)
def test_the_database_refuses(url: str, harm: str):
    with tillroll.open(url) as ledger:
        ledger.apply_prices([], author="ann", reason="none yet")
        ledger.grant("acme", 10)
    with (
        psycopg.connect(url) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(harm.encode())


def test_rights_cannot_be_passed_on(url: str, owners_url: str):
    with psycopg.connect(url) as connection:
        connection.execute("GRANT ALL ON tillroll_entries TO PUBLIC")  # grants nothing, and warns
    with psycopg.connect(owners_url) as owner:
        asked = "SELECT has_table_privilege('public', 'tillroll_entries', %s)"
        for right in ("SELECT", "INSERT", "UPDATE"):
            assert owner.execute(asked, (right,)).fetchone() == (False,)


def test_erasing_says_whose_job_it_is(url: str, owners_url: str):
    with tillroll.open(url) as ledger, tillroll.open(owners_url) as owner:
        ledger.grant("acme", 10, metadata={"name": "Ann"})
        with pytest.raises(tillroll.StoreReadOnly, match="owner of the tables") as problem:
            ledger.erase_metadata("acme")
        assert problem.value.written == "nothing"
        ledger.consume("acme", units=1)
        assert owner.erase_metadata("acme") == 1
        assert ledger.verify().ok


def test_rights_are_exactly_these(url: str, owners_url: str, postgres_role: str):
    """More that was given before is taken away, and every table that there is has its line."""
    with psycopg.connect(owners_url) as owner:
        owner.execute(f"GRANT ALL ON tillroll_entries, tillroll_meta TO {postgres_role}".encode())
        owner.execute("GRANT SELECT ON tillroll_accounts TO PUBLIC")
    statements = tillroll.migrate(owners_url, role=postgres_role).statements
    assert f'GRANT SELECT, INSERT ON tillroll_entries TO "{postgres_role}"' in statements
    with psycopg.connect(owners_url) as owner:
        rows = owner.execute(
            "SELECT table_name, grantee, privilege_type FROM information_schema.role_table_grants "
            "WHERE table_schema = 'public' AND grantee IN (%s, 'PUBLIC')",
            (postgres_role,),
        ).fetchall()
        wanted = {
            (table, postgres_role, right)
            for table, rights in RIGHTS.items()
            for right in rights.split(", ")
        }
        assert set(rows) == wanted
        there = owner.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v', 'p') "
            "AND relnamespace = 'public'::regnamespace"
        ).fetchall()
        assert {name for (name,) in there} == set(RIGHTS)
    assert url


def test_a_plan_gives_nothing(owners_url: str, postgres_role: str):
    planned = tillroll.migrate(owners_url, plan=True, role=postgres_role)
    assert planned.steps
    assert any(statement.startswith("GRANT USAGE") for statement in planned.statements)
    tillroll.migrate(owners_url)
    planned = tillroll.migrate(owners_url, plan=True, role=postgres_role)
    assert not planned.steps
    with (
        psycopg.connect(owners_url.replace("postgres@", f"{postgres_role}@", 1)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT 1 FROM tillroll_entries")


def test_which_roles_can_be_limited(owners_url: str, postgres: Cluster, postgres_role: str):
    with pytest.raises(tillroll.InvalidInput, match="CREATE ROLE"):
        tillroll.migrate(owners_url, role="nobody'; DROP")
    with pytest.raises(tillroll.InvalidInput, match="owner"):
        tillroll.migrate(owners_url, role="postgres", plan=True)
    postgres.run(f"GRANT postgres TO {postgres_role}")
    with pytest.raises(tillroll.InvalidInput, match="owner"):
        tillroll.migrate(owners_url, role=postgres_role)
    postgres.run(f"REVOKE postgres FROM {postgres_role}")


def test_only_the_owner_gives_rights(url: str, postgres_role: str):
    """PostgreSQL itself only warns that nothing was granted."""
    for asked in ({"role": "postgres"}, {"role": postgres_role}, {"row_level_security": True}):
        with pytest.raises(tillroll.TillrollError, match="owner") as problem:
            tillroll.migrate(url, **asked)
        assert problem.value.written == "nothing"


def test_tables_in_another_schema(owners_url: str, postgres: Cluster, postgres_role: str):
    with psycopg.connect(owners_url) as owner:
        owner.execute('CREATE SCHEMA "Till roll"')
    there = f"{owners_url}&options=-c%20search_path%3D%22Till%5C%20roll%22"
    assert 'GRANT USAGE ON SCHEMA "Till roll"' in " ".join(
        tillroll.migrate(there, role=postgres_role).statements
    )
    with tillroll.open(there.replace("postgres@", f"{postgres_role}@", 1)) as ledger:
        ledger.grant("acme", 10)
        assert ledger.verify().ok


def test_by_an_owner_that_is_no_superuser(postgres: Cluster, postgres_role: str):
    """Whoever made the tables can give the rights; nothing of it takes a superuser."""
    name = postgres.create_database()
    postgres.run(f"CREATE ROLE owner_of_{name} LOGIN")
    postgres.run(f"GRANT CREATE ON SCHEMA public TO owner_of_{name}", database=name)
    url = postgres.url(name)
    owners = url.replace("postgres@", f"owner_of_{name}@", 1)
    tillroll.migrate(owners, role=postgres_role)
    with tillroll.open(url.replace("postgres@", f"{postgres_role}@", 1)) as ledger:
        ledger.grant("acme", 10)
        assert ledger.verify().ok
    postgres.drop_database(name)
    postgres.run(f"DROP ROLE owner_of_{name}")
