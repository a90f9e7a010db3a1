//! End-to-end tests with the real binaries: the command line against a running network, and a provider that is killed in
//! every state.

mod cli_walk;
mod demo;
mod kill;
mod ports;
mod support;
