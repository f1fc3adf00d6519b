-- What is in the history stays as it is; only metadata may be erased. The application's role has
-- no right to change it anyway (see `tillroll migrate --role`); this keeps owners from slips.

CREATE FUNCTION tillroll_keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% are never deleted', replace(tg_table_name, 'tillroll_', '');
END $$;

CREATE FUNCTION tillroll_fix() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF tg_table_name = 'tillroll_entries' THEN
        IF new.metadata IS NULL
        AND (new.account_id, new.seq, new.request_id, new.ref, new.kind)
        IS NOT DISTINCT FROM (old.account_id, old.seq, old.request_id, old.ref, old.kind)
        AND (new.recorded_at, new.effective_at, new.body, new.hash)
        IS NOT DISTINCT FROM (old.recorded_at, old.effective_at, old.body, old.hash) THEN
            RETURN new;
        END IF;
    END IF;
    RAISE EXCEPTION '% are never changed', replace(tg_table_name, 'tillroll_', '');
END $$;

CREATE TRIGGER tillroll_entries_keep BEFORE DELETE ON tillroll_entries
FOR EACH ROW EXECUTE FUNCTION tillroll_keep();

CREATE TRIGGER tillroll_entries_fixed BEFORE UPDATE ON tillroll_entries
FOR EACH ROW EXECUTE FUNCTION tillroll_fix();

CREATE TRIGGER tillroll_price_versions_keep BEFORE DELETE ON tillroll_price_versions
FOR EACH ROW EXECUTE FUNCTION tillroll_keep();

CREATE TRIGGER tillroll_price_versions_fixed BEFORE UPDATE ON tillroll_price_versions
FOR EACH ROW EXECUTE FUNCTION tillroll_fix();
