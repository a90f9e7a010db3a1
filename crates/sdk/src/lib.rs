//! The client of the network.
