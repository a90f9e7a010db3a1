//! The provider against real neighbours: an embedded chain with the real contracts, an embedded storage node, SQLite (and
//! PostgreSQL when `TEST_DATABASE_URL` is set), and real training on the small base model.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod abuse;
mod events;
mod external;
mod external_server;
mod http;
mod methods;
mod plaintext;
mod quotes;
mod recipient;
mod recovery;
mod settlement;
mod store;
mod walk;
mod world;
