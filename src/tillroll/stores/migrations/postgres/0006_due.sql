-- What is due at one endpoint is found past all that waits for another one, which hangs.

DROP INDEX CONCURRENTLY IF EXISTS tillroll_deliveries_place;
CREATE INDEX CONCURRENTLY tillroll_deliveries_place ON tillroll_deliveries (endpoint, next_at)
WHERE state = 'pending';
