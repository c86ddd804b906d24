//! The fixtures: folders that `make_fixtures.py` wrote, with what PyTorch said of the model in each.

use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A line of SFT data: `loss_mask[i]` belongs to `ids[i]` as a target, the first has no history and does not count.
#[derive(Deserialize)]
pub struct Line {
    pub ids: Vec<u32>,
    pub loss_mask: Vec<u8>,
}

impl Line {
    /// The mask as the plan wants it.
    pub fn targets(&self) -> Vec<bool> {
        self.loss_mask.iter().map(|&m| m == 1).collect()
    }
}

/// What is known of one tensor's gradient.
#[derive(Deserialize)]
pub struct TensorReference {
    pub shape: Vec<usize>,
    /// ‖g32 - g64‖ / ‖g64‖ of PyTorch's own f32 gradient.
    pub torch_f32_error: f64,
    /// Whether the file holds the gradient's sketch instead of the gradient.
    pub sketched: bool,
}

/// The SFT loss of all lines as one batch, and its gradient.
#[derive(Deserialize)]
pub struct SftReference {
    pub loss: f64,
    pub loss_f32: f64,
    pub grad_norm: f64,
    pub grad_norm_f32: f64,
    pub tensors: BTreeMap<String, TensorReference>,
}

/// A greedy continuation.
#[derive(Deserialize)]
pub struct Greedy {
    pub prompt: Vec<u32>,
    pub ids: Vec<u32>,
}

/// AdamW steps, one line each.
#[derive(Deserialize)]
pub struct Steps {
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub betas: (f64, f64),
    pub eps: f64,
    pub lr: Vec<f64>,
    pub lines: Vec<Line>,
    pub loss: Vec<f64>,
    pub grad_norm: Vec<f64>,
    /// Log-probabilities of the first line after the last step.
    pub logprobs_after: Vec<f64>,
}

/// `reference.json`.
#[derive(Deserialize)]
pub struct Reference {
    pub lines: Vec<Line>,
    pub sft: SftReference,
    #[serde(default)]
    pub greedy: Vec<Greedy>,
    /// None of a real model: `check_real.py` runs those through the binary.
    pub steps: Option<Steps>,
}

/// A folder of the fixtures: a model, or an adapter inside its model's folder.
pub struct Fixture {
    pub path: PathBuf,
    /// The path below the fixtures.
    pub name: String,
    pub reference: Reference,
    arrays: Vec<u8>,
}

impl Fixture {
    fn read(root: &Path, path: &Path) -> Self {
        let read = |file: &str| std::fs::read(path.join(file)).unwrap_or_else(|e| panic!("{}: {e}", path.join(file).display()));
        let name = path.strip_prefix(root).expect("a fixture lies below the root").display().to_string();
        let reference = serde_json::from_slice(&read("reference.json")).unwrap_or_else(|e| panic!("{name}/reference.json: {e}"));
        Self { path: path.to_owned(), name, reference, arrays: read("reference.safetensors") }
    }

    /// An array of `reference.safetensors`, as f64.
    pub fn array(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.arrays).expect("reference.safetensors is whole");
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.name));
        match tensor.dtype() {
            Dtype::F32 => numbers(tensor.data(), |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => numbers(tensor.data(), f64::from_le_bytes),
            other => panic!("{}: {name} is {other:?}", self.name),
        }
    }

    /// The folder of the model that an adapter belongs to.
    pub fn base(&self) -> &Path {
        self.path.parent().expect("an adapter lies in its model's folder")
    }
}

fn numbers<const N: usize>(bytes: &[u8], convert: impl Fn([u8; N]) -> f64) -> Vec<f64> {
    bytes.as_chunks::<N>().0.iter().map(|b| convert(*b)).collect()
}

/// The committed fixtures, or those that `SORFT_PARITY_FIXTURES` names.
pub fn root() -> PathBuf {
    match std::env::var_os("SORFT_PARITY_FIXTURES") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/fixtures"),
    }
}

/// Folders below `folder` that hold `file`, sorted.
fn folders_with(folder: &Path, file: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut found: Vec<PathBuf> = entries.map(|e| e.expect("a readable folder").path()).filter(|p| p.join(file).is_file()).collect();
    found.sort();
    found
}

/// All models.
pub fn models() -> Vec<Fixture> {
    let root = root();
    let found: Vec<_> = folders_with(&root, "config.json").iter().map(|p| Fixture::read(&root, p)).collect();
    assert!(!found.is_empty(), "no model under {}", root.display());
    found
}

/// All adapters.
pub fn adapters() -> Vec<Fixture> {
    let root = root();
    let models = folders_with(&root, "config.json");
    let found: Vec<_> = models.iter().flat_map(|m| folders_with(m, "adapter_config.json")).map(|p| Fixture::read(&root, &p)).collect();
    assert!(!found.is_empty(), "no adapter under {}", root.display());
    found
}
