//! Downloads a model from the Hugging Face hub into a cache folder.
