//! 0G Storage: Merkle tree, segments, transfer client and embedded node.
