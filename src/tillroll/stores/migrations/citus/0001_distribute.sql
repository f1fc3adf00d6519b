-- Spread a ledger over a Citus cluster by account. Run once, on the coordinator, before it is used;
-- what later steps of the schema made is spread by the steps after this one.
-- Citus refuses triggers on distributed tables; there the application's role is what keeps the
-- history as it is (see `tillroll migrate --role`), and `tillroll verify` what shows that it was.

DROP TRIGGER tillroll_entries_keep ON tillroll_entries;
DROP TRIGGER tillroll_entries_fixed ON tillroll_entries;
DROP TRIGGER tillroll_price_versions_keep ON tillroll_price_versions;
DROP TRIGGER tillroll_price_versions_fixed ON tillroll_price_versions;

SELECT create_reference_table('tillroll_migrations');
SELECT create_reference_table('tillroll_meta');
SELECT create_reference_table('tillroll_price_versions');
SELECT create_reference_table('tillroll_registry');
SELECT create_distributed_table('tillroll_accounts', 'account_id');
SELECT create_distributed_table(
    'tillroll_entries', 'account_id', colocate_with => 'tillroll_accounts'
);
SELECT create_distributed_table(
    'tillroll_refusals', 'account_id', colocate_with => 'tillroll_accounts'
);
SELECT create_distributed_table(
    'tillroll_replays', 'account_id', colocate_with => 'tillroll_accounts'
);

INSERT INTO tillroll_meta VALUES ('spread', 'citus'), ('writing', 'append')
ON CONFLICT (name) DO UPDATE SET value = excluded.value;
