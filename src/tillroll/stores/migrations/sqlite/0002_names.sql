-- Listing accounts by name reads a page, not the whole table for every page.

CREATE INDEX tillroll_accounts_name ON tillroll_accounts (project, account);

CREATE TRIGGER tillroll_price_versions_keep BEFORE DELETE ON tillroll_price_versions
BEGIN
    SELECT raise(ABORT, 'price versions are never deleted');
END;
