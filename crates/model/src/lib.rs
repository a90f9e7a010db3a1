//! Transformer families, LoRA layers, weights and adapter files.
