-- What is due at one endpoint is found past all that waits for another one, which hangs.

CREATE INDEX tillroll_deliveries_place ON tillroll_deliveries (endpoint, next_at)
WHERE state = 'pending';
