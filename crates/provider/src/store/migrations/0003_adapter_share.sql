-- Who besides its owner may use an adapter.
CREATE TABLE adapter_share (
    adapter_id TEXT NOT NULL,
    user_address TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (adapter_id, user_address)
);
CREATE INDEX adapter_share_user ON adapter_share (user_address);
