//! Multi-LoRA engine and the OpenAI-compatible router over it.
