//! A model's configuration, from a Hugging Face `config.json` (transformers 4 and 5 layouts) or from GGUF metadata.
//!
//! A missing key has the value that transformers gives it. A setting that would change the numbers and is not implemented (a rotary
//! scaling, an activation, a sliding window that is in use, experts, quantised weights) is refused by name, never ignored.

mod hf;

/// The architectures that the transformer implements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2, Llama 3.x, SmolLM2.
    Llama,
    /// Qwen2, Qwen2.5, Qwen2.5-Coder: biases on q, k and v.
    Qwen2,
    /// Qwen3: RMSNorm on each head's q and k, its own head size.
    Qwen3,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// `model_type` in `config.json`, and `general.architecture` in GGUF.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The class that transformers loads it with.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }
}

/// How rotary frequencies are changed for contexts longer than the pre-training one.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// The plain frequencies.
    None,
    /// All frequencies divided by `factor` (`rope_type = "linear"`).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's piecewise scaling (`rope_type = "llama3"`).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below this many turns over the original context a frequency is low.
        low_freq_factor: f64,
        /// Above this many turns a frequency is kept.
        high_freq_factor: f64,
        /// The context of pre-training.
        original_max_position_embeddings: usize,
    },
}

/// What the transformer needs to know of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Change of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f64,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias (`attention_bias` of Llama).
    pub o_bias: bool,
    /// Whether gate, up and down projections have biases (`mlp_bias` of Llama).
    pub mlp_bias: bool,
    /// Whether each head's q and k go through an RMSNorm (Qwen3).
    pub qk_norm: bool,
    /// Tokens that end a generation (config.json and generation_config.json together).
    pub eos_token_ids: Vec<u32>,
    /// The token that begins a sequence, where there is one.
    pub bos_token_id: Option<u32>,
}

impl ModelConfig {
    /// Width of all query heads together: the rows of `q_proj`.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together: the rows of `k_proj` and `v_proj`.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}
