-- Every change of a key or an allowance gets the next version, whoever makes it.

CREATE TABLE record_version (
    last_value bigint NOT NULL
);
INSERT INTO record_version (last_value) VALUES (0);

CREATE TRIGGER api_keys_inserted AFTER INSERT ON api_keys BEGIN
    UPDATE record_version SET last_value = last_value + 1;
    UPDATE api_keys SET version = (SELECT last_value FROM record_version) WHERE id = new.id;
END;
CREATE TRIGGER api_keys_updated AFTER UPDATE ON api_keys WHEN new.version = old.version BEGIN
    UPDATE record_version SET last_value = last_value + 1;
    UPDATE api_keys SET version = (SELECT last_value FROM record_version) WHERE id = new.id;
END;

CREATE TRIGGER allowances_inserted AFTER INSERT ON allowances BEGIN
    UPDATE record_version SET last_value = last_value + 1;
    UPDATE allowances SET version = (SELECT last_value FROM record_version)
        WHERE kind = new.kind AND name = new.name;
END;
CREATE TRIGGER allowances_updated AFTER UPDATE ON allowances WHEN new.version = old.version BEGIN
    UPDATE record_version SET last_value = last_value + 1;
    UPDATE allowances SET version = (SELECT last_value FROM record_version)
        WHERE kind = new.kind AND name = new.name;
END;
