-- Every change of a key or an allowance gets the next version, whoever makes it, and tells the listeners once per
-- transaction. Versions are handed out under a lock that is held to the end of the transaction: a lower one is never
-- committed after a higher one, so whoever asks for what came after a version misses nothing.

CREATE SEQUENCE record_version;

CREATE FUNCTION sameflight_lock_versions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(6013409, 2);
    RETURN NULL;
END $$;

CREATE FUNCTION sameflight_next_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := nextval('record_version');
    RETURN NEW;
END $$;

-- Deferred to the commit, where all say the same and are sent as one.
CREATE FUNCTION sameflight_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('sameflight_changes', (SELECT last_value::text FROM record_version));
    RETURN NULL;
END $$;

CREATE TRIGGER api_keys_lock BEFORE INSERT OR UPDATE ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION sameflight_lock_versions();
CREATE TRIGGER api_keys_version BEFORE INSERT OR UPDATE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION sameflight_next_version();
CREATE CONSTRAINT TRIGGER api_keys_tell AFTER INSERT OR UPDATE ON api_keys
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sameflight_tell();

CREATE TRIGGER allowances_lock BEFORE INSERT OR UPDATE ON allowances
    FOR EACH STATEMENT EXECUTE FUNCTION sameflight_lock_versions();
CREATE TRIGGER allowances_version BEFORE INSERT OR UPDATE ON allowances
    FOR EACH ROW EXECUTE FUNCTION sameflight_next_version();
CREATE CONSTRAINT TRIGGER allowances_tell AFTER INSERT OR UPDATE ON allowances
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sameflight_tell();
