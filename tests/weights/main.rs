//! Models on disk: what is read, what is refused and in which words, and what is saved. All files are tiny and made by the tests.

mod bad_input;
mod gguf;
mod make;
mod mutations;
mod peft;
mod safetensors;
mod saving;
