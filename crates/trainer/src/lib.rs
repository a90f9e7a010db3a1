//! One fine-tuning run.
