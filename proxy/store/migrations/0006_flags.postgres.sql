-- Which savings and guards are on, for whom and for how many, and who changed that when and why.

CREATE TABLE flags (
    name text NOT NULL,
    scope text NOT NULL,
    subject text NOT NULL,
    percent double precision NOT NULL,
    PRIMARY KEY (name, scope, subject)
);

-- One row for each rule of a change. Changes have their numbers from the versions of records, so that one number says
-- whether there is any news, and they are told of in the same way.
CREATE TABLE flag_audit (
    change bigint NOT NULL,
    name text NOT NULL,
    scope text NOT NULL,
    subject text NOT NULL,
    percent_before double precision,
    percent_after double precision,
    at double precision NOT NULL,
    who text NOT NULL,
    why text NOT NULL,
    restores bigint,
    PRIMARY KEY (change, name, scope, subject)
);
CREATE INDEX flag_audit_rule ON flag_audit (name, scope, subject, change);

CREATE CONSTRAINT TRIGGER flag_audit_tell AFTER INSERT ON flag_audit
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sameflight_tell();
