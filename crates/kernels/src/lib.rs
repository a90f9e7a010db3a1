//! Dense math with forward and backward.
