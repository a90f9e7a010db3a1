-- Portable to SQLite and PostgreSQL: TEXT and BIGINT only. Amounts are decimal text, times are UTC milliseconds,
-- addresses and hashes are 0x and lower case, JSON is text. Keys stand here sealed, never in clear.

CREATE TABLE task (
    id TEXT PRIMARY KEY,
    user_address TEXT NOT NULL,
    state TEXT NOT NULL,
    is_ended BIGINT NOT NULL,
    machine TEXT NOT NULL,
    version BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    submitted_address TEXT NOT NULL,
    nonce TEXT NOT NULL,
    dataset_hash TEXT NOT NULL,
    training_params TEXT NOT NULL,
    model_hash TEXT NOT NULL,
    model_name TEXT NOT NULL,
    signature TEXT NOT NULL,
    user_public_key TEXT NOT NULL,
    progress TEXT,
    sealed_file_key TEXT,
    encrypted_secret TEXT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
);
-- One unfinished task per user.
CREATE UNIQUE INDEX task_open_user ON task (user_address) WHERE is_ended = 0;
CREATE INDEX task_user ON task (user_address, sequence);
CREATE INDEX task_state ON task (state);

CREATE TABLE task_event (
    task_id TEXT NOT NULL,
    sequence BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (task_id, sequence)
);

CREATE TABLE effect (
    id TEXT PRIMARY KEY,
    subject TEXT NOT NULL,
    subject_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    generation BIGINT NOT NULL,
    due_ms BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    lease_owner TEXT,
    lease_expires_ms BIGINT NOT NULL,
    fence BIGINT NOT NULL
);
CREATE INDEX effect_due ON effect (kind, due_ms);
CREATE INDEX effect_subject ON effect (subject, subject_id);

CREATE TABLE dataset (
    user_address TEXT NOT NULL,
    hash TEXT NOT NULL,
    file TEXT NOT NULL,
    sealed_key TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    created_ms BIGINT NOT NULL,
    used_ms BIGINT NOT NULL,
    PRIMARY KEY (user_address, hash)
);

CREATE TABLE adapter (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    user_address TEXT NOT NULL,
    task_id TEXT NOT NULL,
    fine_tuning_provider TEXT NOT NULL,
    base_model TEXT NOT NULL,
    storage_root TEXT NOT NULL,
    signer TEXT NOT NULL,
    sealed_key TEXT NOT NULL,
    state TEXT NOT NULL,
    machine TEXT NOT NULL,
    version BIGINT NOT NULL,
    canary_build TEXT,
    created_ms BIGINT NOT NULL,
    updated_ms BIGINT NOT NULL
);
CREATE INDEX adapter_user ON adapter (user_address);
CREATE INDEX adapter_task ON adapter (task_id);

CREATE TABLE chain_transaction (
    id TEXT PRIMARY KEY,
    nonce BIGINT NOT NULL,
    raw TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE spent_signature (
    id TEXT PRIMARY KEY,
    expires_ms BIGINT NOT NULL
);

CREATE TABLE usage (
    id TEXT PRIMARY KEY,
    sequence BIGINT NOT NULL,
    user_address TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    input_fee TEXT NOT NULL,
    output_fee TEXT NOT NULL,
    fee TEXT NOT NULL,
    state TEXT NOT NULL,
    owner TEXT NOT NULL,
    settlement_nonce TEXT,
    created_ms BIGINT NOT NULL
);
CREATE INDEX usage_user ON usage (user_address, state);

CREATE TABLE settlement (
    user_address TEXT NOT NULL,
    nonce TEXT NOT NULL,
    total_fee TEXT NOT NULL,
    requests_hash TEXT NOT NULL,
    state TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (user_address, nonce)
);

CREATE TABLE setting (
    name TEXT PRIMARY KEY,
    content TEXT NOT NULL
);
