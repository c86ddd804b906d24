//! LoRA adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use super::safetensors::{self, Safetensors};
use super::{SaveDtype, TensorSpec, WeightSource, atomic, read_json};
use crate::model::lora::LoraConfig;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A tensor of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterTensor {
    /// PEFT's name: `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    /// `[rank, in]` for A, `[out, rank]` for B.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub data: Vec<f32>,
}

/// The linear layers of a block that can have an adapter, each with the part of the block that holds it.
pub const TARGETS: [(&str, &str); 7] = [
    ("self_attn", "q_proj"),
    ("self_attn", "k_proj"),
    ("self_attn", "v_proj"),
    ("self_attn", "o_proj"),
    ("mlp", "gate_proj"),
    ("mlp", "up_proj"),
    ("mlp", "down_proj"),
];

/// PEFT's name of a tensor: `module` is one of [`TARGETS`], `which` is `'A'` or `'B'`.
pub fn tensor_name(layer: usize, module: &str, which: char) -> String {
    let part = TARGETS.iter().find(|(_, m)| *m == module).map_or("self_attn", |(part, _)| part);
    format!("base_model.model.model.layers.{layer}.{part}.{module}.lora_{which}.weight")
}

/// Writes a folder that `peft` loads. `base_model` is what `--model` was (PEFT loads the base model from there by itself);
/// `read` gives the numbers of each of `tensors`, once, in order. The bytes depend on the arguments alone; each file is written to a
/// temporary name, fsynced and renamed.
///
/// # Errors
/// If a file cannot be written, `read` fails or gives a number of elements that is not the tensor's, or a number is not finite.
pub fn save_peft(
    dir: &Path,
    lora: &LoraConfig,
    base_model: &str,
    tensors: &[TensorSpec],
    read: &mut dyn FnMut(&str) -> Result<Vec<f32>>,
) -> Result<()> {
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    safetensors::write(&dir.join("adapter_model.safetensors"), tensors, SaveDtype::F32, read)?;
    atomic::write_json(&dir.join("adapter_config.json"), &to_peft(lora, base_model))
}

/// Reads an adapter's folder: its settings, and its tensors sorted by name.
///
/// # Errors
/// If a file is missing or broken, or a setting would change results in a way that is not implemented (DoRA, rsLoRA, biases, ranks of
/// their own for some modules, ...).
pub fn load_peft(dir: &Path) -> Result<(LoraConfig, Vec<AdapterTensor>)> {
    let config_path = dir.join("adapter_config.json");
    if !config_path.is_file() {
        return Err(Error::input("there is no adapter_config.json in this folder").at_file(dir).hint("--adapter takes a PEFT LoRA folder"));
    }
    let weights_path = dir.join("adapter_model.safetensors");
    if !weights_path.is_file() {
        let hint = if dir.join("adapter_model.bin").is_file() {
            "adapters in PyTorch's .bin format are not read: save it again with a current `peft`, which writes safetensors"
        } else {
            "the adapter's download or save is not complete"
        };
        return Err(Error::input("there is no adapter_model.safetensors in this folder").at_file(dir).hint(hint));
    }
    let source = Safetensors::open(&weights_path)?;
    let names = source.names();
    let targets = targets(&names).map_err(|e| e.at_file(&weights_path))?;
    let lora = from_peft(&read_json(&config_path)?, targets).map_err(|e| e.at_file(&config_path))?;
    check_tensors(&lora, &source).map_err(|e| e.at_file(&weights_path))?;
    let read = |name: String| {
        let shape = source.shape(&name).unwrap_or_default();
        source.read(&name, &shape).map(|data| AdapterTensor { name, shape, data })
    };
    names.into_iter().map(read).collect::<Result<Vec<_>>>().map(|tensors| (lora, tensors))
}

/// `adapter_config.json`.
fn to_peft(lora: &LoraConfig, base_model: &str) -> Value {
    // A whole number where it is one: that is how PEFT's own users write it.
    let alpha = if lora.alpha.fract() == 0.0 && lora.alpha.abs() < 1e9 { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": null,
        "target_modules": lora.targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    })
}

/// The settings in `adapter_config.json`. `targets`: the modules whose tensors there are; they tell where the file has an expression.
fn from_peft(config: &Value, targets: Vec<String>) -> Result<LoraConfig> {
    let refuse = |field: &str, message: String| Error::input(message).at(field);
    let get = |field: &str| config.get(field).filter(|v| !v.is_null());
    match get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        other => return Err(refuse("peft_type", format!("expected `LORA`, found `{}`", other.unwrap_or("nothing")))),
    }
    for field in ["use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if get(field).is_some_and(|v| v != &json!(false)) {
            return Err(refuse(field, "this setting is not supported: expected false".to_owned()));
        }
    }
    const UNSUPPORTED: [&str; 12] = [
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "trainable_token_indices",
        "layer_replication",
        "target_parameters",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "monteclora_config",
        "velora_config",
        "use_bdlora",
    ];
    for field in UNSUPPORTED {
        let empty = |v: &Value| v.as_object().is_some_and(serde_json::Map::is_empty) || v.as_array().is_some_and(Vec::is_empty);
        if get(field).is_some_and(|v| !empty(v)) {
            return Err(refuse(field, "this setting is not supported: expected null".to_owned()));
        }
    }
    if let Some(bias) = get("bias").filter(|v| v.as_str() != Some("none")) {
        return Err(refuse("bias", format!("trained biases are not supported: expected \"none\", found {bias}")));
    }
    // PiSSA, OLoRA, LoftQ and the like change the base weights as well; the others only choose where training began.
    if let Some(init) =
        get("init_lora_weights").filter(|v| !v.is_boolean() && !["gaussian", "eva", "orthogonal"].map(Value::from).contains(v))
    {
        return Err(refuse("init_lora_weights", format!("{init} changes the base weights, which is not supported"))
            .hint("convert the adapter to a plain LoRA with `peft` (save_pretrained with path_initial_model_for_weight_conversion)"));
    }
    let rank = get("r").and_then(Value::as_u64).filter(|r| (1..=1 << 16).contains(r));
    let rank = rank.ok_or_else(|| refuse("r", "expected a whole number from 1 to 65536".to_owned()))?;
    let alpha = get("lora_alpha").and_then(Value::as_f64).map(|a| a as f32).filter(|a| a.is_finite());
    let alpha = alpha.ok_or_else(|| refuse("lora_alpha", "expected a number".to_owned()))?;
    // Where the targets are an expression, the tensors alone tell. A listed one may name its part of the block as well.
    if let Some(listed) = get("target_modules").and_then(Value::as_array) {
        let is_listed = |t: &String| listed.iter().filter_map(Value::as_str).any(|l| l.rsplit('.').next() == Some(t));
        if let Some(other) = targets.iter().find(|t| !is_listed(t)) {
            let message = format!("the adapter has tensors for {other}, which is not among {}", Value::from(listed.clone()));
            return Err(refuse("target_modules", message).hint("adapter_config.json and adapter_model.safetensors are of two adapters"));
        }
    }
    Ok(LoraConfig { rank: rank as usize, alpha, targets })
}

/// The modules that have an adapter, in canonical order, by the names of its tensors; a tensor of anything else is an error.
fn targets(names: &[String]) -> Result<Vec<String>> {
    for name in names {
        parse_name(name).ok_or_else(|| {
            Error::input(format!("tensor `{name}` is not a LoRA matrix of a linear layer of a block"))
                .hint("adapters of embeddings, of the head and of other kinds are not supported")
        })?;
    }
    let found = |module: &&(&str, &str)| names.iter().any(|n| parse_name(n).is_some_and(|(_, m, _)| m == module.1));
    let targets: Vec<_> = TARGETS.iter().filter(found).map(|(_, module)| (*module).to_owned()).collect();
    if targets.is_empty() { Err(Error::input("the adapter has no tensors")) } else { Ok(targets) }
}

/// Layer, module and `A` or `B` of a tensor's name.
fn parse_name(name: &str) -> Option<(usize, &str, char)> {
    let (layer, rest) = name.strip_prefix("base_model.model.model.layers.")?.split_once('.')?;
    let (module, which) = rest.split_once(".lora_")?;
    let (part, module) = module.split_once('.')?;
    let which = match which {
        "A.weight" => 'A',
        "B.weight" => 'B',
        _ => return None,
    };
    let layer: usize = layer.parse().ok()?;
    TARGETS.contains(&(part, module)).then_some((layer, module, which))
}

/// That every layer has every target's A and B with the rank.
fn check_tensors(lora: &LoraConfig, source: &Safetensors) -> Result<()> {
    let names = source.names();
    let layers = names.iter().filter_map(|n| parse_name(n)).map(|(layer, ..)| layer + 1).max().unwrap_or(0);
    // Each layer has at least one tensor, or one is missing: a name that lies about its layer cannot make this loop long.
    for layer in 0..layers.min(names.len() + 1) {
        for module in &lora.targets {
            for (which, dim) in [('A', 0), ('B', 1)] {
                let name = tensor_name(layer, module, which);
                let shape = source.shape(&name).ok_or_else(|| {
                    Error::input(format!("there is no tensor `{name}`"))
                        .hint("adapters of some layers only are not supported: every layer needs the same modules")
                })?;
                if shape.len() != 2 || shape[dim] != lora.rank {
                    return Err(Error::input(format!("tensor `{name}` has shape {shape:?}: expected rank {}", lora.rank)));
                }
            }
        }
    }
    Ok(())
}
