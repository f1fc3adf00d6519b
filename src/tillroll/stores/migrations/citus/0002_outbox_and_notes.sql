-- Spread what steps 0004 and 0005 of the schema made: of a ledger that was spread before they came,
-- too. A table that an earlier form of the first step took along is left as it is.

SELECT create_reference_table('tillroll_leases')
WHERE NOT EXISTS (
    SELECT 1 FROM pg_dist_partition WHERE logicalrelid = 'tillroll_leases'::regclass
);
SELECT create_distributed_table(
    'tillroll_outbox', 'account_id', colocate_with => 'tillroll_accounts'
)
WHERE NOT EXISTS (
    SELECT 1 FROM pg_dist_partition WHERE logicalrelid = 'tillroll_outbox'::regclass
);
SELECT create_distributed_table(
    'tillroll_deliveries', 'account_id', colocate_with => 'tillroll_accounts'
)
WHERE NOT EXISTS (
    SELECT 1 FROM pg_dist_partition WHERE logicalrelid = 'tillroll_deliveries'::regclass
);
SELECT create_distributed_table(
    'tillroll_notes', 'account_id', colocate_with => 'tillroll_accounts'
)
WHERE NOT EXISTS (
    SELECT 1 FROM pg_dist_partition WHERE logicalrelid = 'tillroll_notes'::regclass
);
