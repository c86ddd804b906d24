//! Tasks, patches, prompts, answers, and how well answers hit. Knows nothing of tensors or models.
