//! Bytes and types that cross a trust or process boundary.
