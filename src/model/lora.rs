//! Low-rank adapters (Hu et al. 2021): y = x W' + (alpha / rank) (x A') B', beside frozen base weights.

/// The settings of an adapter.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LoraConfig {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The scale is `alpha / rank`.
    pub alpha: f32,
    /// Module names that get an adapter: of `q_proj k_proj v_proj o_proj gate_proj up_proj down_proj`.
    pub targets: Vec<String>,
}
