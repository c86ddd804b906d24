//! Reading `config.json`.

use super::{Family, ModelConfig, RopeScaling};
use crate::{Error, Result};
use serde_json::{Map, Value};

/// No dimension is larger: bounds what a config that lies can make the program allocate.
const MAX_DIM: usize = 1 << 28;
/// No model has more blocks.
const MAX_LAYERS: usize = 10_000;

impl ModelConfig {
    /// Reads `config.json`. Rotary settings may stand at the top level (`rope_theta`, `rope_scaling`: transformers 4) or in
    /// `rope_parameters` (transformers 5).
    ///
    /// # Errors
    /// Names the field: an architecture, activation, rotary scaling or window that is not implemented; a dimension that is no whole
    /// number, zero, absurdly large, or at odds with another.
    pub fn from_hf(config: &Value) -> Result<Self> {
        let map = config.as_object().ok_or_else(|| Error::input("expected a JSON object with the model's settings"))?;
        let f = Fields(map);
        let family = family(&f)?;
        refuse_unsupported(&f)?;
        let default = Defaults::of(family);
        let hidden_size = f.dim("hidden_size", default.hidden_size)?;
        let num_heads = f.dim("num_attention_heads", 32)?;
        let num_layers = f.dim("num_hidden_layers", 32)?;
        if num_layers > MAX_LAYERS {
            return Err(Error::input(format!("expected at most {MAX_LAYERS} blocks, found {num_layers}")).at("num_hidden_layers"));
        }
        let max_position_embeddings = f.dim("max_position_embeddings", default.max_position_embeddings)?;
        // Qwen3's class gives head_dim a number of its own when the key is missing; an explicit null means the quotient.
        let head_dim = match (family, map.get("head_dim")) {
            (Family::Qwen3, None) => 128,
            (_, None | Some(Value::Null)) => {
                if !hidden_size.is_multiple_of(num_heads) {
                    return Err(Error::input(format!("{num_heads} heads do not divide hidden_size {hidden_size}"))
                        .at("num_attention_heads")
                        .hint("give head_dim in config.json"));
                }
                hidden_size / num_heads
            }
            _ => f.dim("head_dim", 0)?,
        };
        let attention_bias = f.bool("attention_bias", false)?;
        refuse_sliding_window(&f, family, num_layers, max_position_embeddings)?;
        let (rope_theta, rope_scaling) = rope(&f)?;
        let config = Self {
            family,
            vocab_size: f.dim("vocab_size", default.vocab_size)?,
            hidden_size,
            intermediate_size: f.dim("intermediate_size", default.intermediate_size)?,
            num_layers,
            num_heads,
            // Qwen's classes say 32 where the key is missing, Llama's says as many as query heads; null means the latter everywhere.
            num_kv_heads: match map.get("num_key_value_heads") {
                None if family != Family::Llama => 32,
                None | Some(Value::Null) => num_heads,
                Some(_) => f.dim("num_key_value_heads", 0)?,
            },
            head_dim,
            rope_theta,
            rope_scaling,
            rms_norm_eps: f.positive("rms_norm_eps", 1e-6)?,
            max_position_embeddings,
            tie_word_embeddings: f.bool("tie_word_embeddings", false)?,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            o_bias: family != Family::Qwen2 && attention_bias,
            mlp_bias: family == Family::Llama && f.bool("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            eos_token_ids: match map.get("eos_token_id") {
                // LlamaConfig's own defaults.
                None if family == Family::Llama => vec![2],
                v => token_ids("eos_token_id", v)?,
            },
            bos_token_id: match map.get("bos_token_id") {
                None if family == Family::Llama => Some(1),
                v => token_ids("bos_token_id", v)?.first().copied(),
            },
        };
        config.check()?;
        Ok(config)
    }

    /// Adds the EOS tokens that `generation_config.json` names to those of `config.json`. Where there is such a file, what transformers'
    /// class would say for a `config.json` without any does not count.
    ///
    /// # Errors
    /// If `eos_token_id` is neither a token id, a list of them, nor null.
    pub fn add_generation_config(&mut self, generation: &Value, config_json: &Value) -> Result<()> {
        if config_json.get("eos_token_id").is_none() {
            self.eos_token_ids.clear();
        }
        for id in token_ids("eos_token_id", generation.get("eos_token_id"))? {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        if self.bos_token_id.is_none() {
            self.bos_token_id = token_ids("bos_token_id", generation.get("bos_token_id"))?.first().copied();
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let message = format!("{} key/value heads do not divide {} query heads", self.num_kv_heads, self.num_heads);
            return Err(Error::input(message).at("num_key_value_heads"));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::input(format!("rotary embedding needs an even head size, found {}", self.head_dim)).at("head_dim"));
        }
        if self.head_dim.saturating_mul(self.num_heads) > MAX_DIM {
            return Err(Error::input(format!("{} heads of {} are too wide", self.num_heads, self.head_dim)).at("head_dim"));
        }
        Ok(())
    }
}

/// What the configuration classes of transformers say where a key is missing.
struct Defaults {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
}

impl Defaults {
    fn of(family: Family) -> Self {
        match family {
            Family::Llama => Self { vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, max_position_embeddings: 2048 },
            Family::Qwen2 | Family::Qwen3 => {
                Self { vocab_size: 151_936, hidden_size: 4096, intermediate_size: 22016, max_position_embeddings: 32768 }
            }
        }
    }
}

/// Typed access to a JSON object; errors name the field.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// A value that is there and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    fn dim(&self, name: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        match value.as_u64() {
            Some(n) if (1..=MAX_DIM as u64).contains(&n) => Ok(n as usize),
            _ => Err(Error::input(format!("expected a whole number from 1 to {MAX_DIM}, found {value}")).at(name)),
        }
    }

    fn positive(&self, name: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(default) };
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(Error::input(format!("expected a positive number, found {value}")).at(name)),
        }
    }

    fn bool(&self, name: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| Error::input(format!("expected true or false, found {value}")).at(name))
    }

    fn str(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| Error::input(format!("expected a string, found {value}")).at(name))
    }
}

/// The family, by `model_type` and `architectures`, which must not contradict each other.
fn family(f: &Fields<'_>) -> Result<Family> {
    let known = || {
        let names: Vec<_> = Family::ALL.iter().map(|x| format!("{} ({})", x.architecture(), x.model_type())).collect();
        format!("the supported architectures are {}", names.join(", "))
    };
    let by_type = match f.str("model_type")? {
        Some(name) => {
            let found = Family::ALL.into_iter().find(|x| x.model_type() == name);
            Some(found.ok_or_else(|| Error::input(format!("model type `{name}` is not supported")).at("model_type").hint(known()))?)
        }
        None => None,
    };
    let class = f.get("architectures").and_then(|v| v.get(0)).and_then(Value::as_str);
    let by_class = match class {
        Some(name) => {
            let found = Family::ALL.into_iter().find(|x| x.architecture() == name);
            Some(found.ok_or_else(|| Error::input(format!("architecture `{name}` is not supported")).at("architectures").hint(known()))?)
        }
        None => None,
    };
    match (by_type, by_class) {
        (Some(a), Some(b)) if a != b => {
            Err(Error::input(format!("model_type `{}` contradicts architecture `{}`", a.model_type(), b.architecture()))
                .at("architectures"))
        }
        (Some(a), _) | (None, Some(a)) => Ok(a),
        (None, None) => Err(Error::input("expected `model_type` or `architectures`, found neither").hint(known())),
    }
}

/// Settings that change what the model computes and that are not implemented.
fn refuse_unsupported(f: &Fields<'_>) -> Result<()> {
    if let Some(act) = f.str("hidden_act")?.filter(|a| !matches!(*a, "silu" | "swish")) {
        return Err(Error::input(format!("activation `{act}` is not supported: expected `silu`")).at("hidden_act"));
    }
    for name in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if f.get(name).and_then(Value::as_u64).is_some_and(|n| n > 0) {
            return Err(Error::input("mixture-of-experts models are not supported").at(name));
        }
    }
    if f.get("quantization_config").is_some() {
        return Err(Error::input("quantised Hugging Face weights (AWQ, GPTQ, bitsandbytes, ...) are not supported")
            .at("quantization_config")
            .hint("use the model's unquantised weights, or a GGUF file"));
    }
    Ok(())
}

/// Refuses a sliding window that some token of some block would feel.
fn refuse_sliding_window(f: &Fields<'_>, family: Family, num_layers: usize, context: usize) -> Result<()> {
    // transformers' Llama knows no window, whatever its config.json says.
    if family == Family::Llama || !f.bool("use_sliding_window", false)? {
        return Ok(());
    }
    let window = match f.0.get("sliding_window") {
        Some(Value::Null) => return Ok(()),
        _ => f.dim("sliding_window", 4096)?,
    };
    let some_layer = match f.get("layer_types").and_then(Value::as_array) {
        Some(types) => types.iter().any(|t| t.as_str() == Some("sliding_attention")),
        None => match f.get("max_window_layers") {
            Some(v) => v.as_u64().is_none_or(|n| n < num_layers as u64),
            None => 28 < num_layers,
        },
    };
    if some_layer && window < context {
        return Err(Error::input(format!("sliding-window attention (window {window}) is not supported"))
            .at("use_sliding_window")
            .hint(format!("set max_position_embeddings to {window} in config.json to use the model within one window")));
    }
    Ok(())
}

/// Base and scaling of the rotary frequencies, from either layout.
fn rope(f: &Fields<'_>) -> Result<(f64, RopeScaling)> {
    // transformers 5 takes an older key where it is there and says anything.
    let older = f.get("rope_scaling").filter(|v| v.as_object().is_none_or(|map| !map.is_empty()));
    let (place, settings) = match (older, f.get("rope_parameters")) {
        (Some(v), _) => ("rope_scaling", Some(v)),
        (None, v) => ("rope_parameters", v),
    };
    let empty = Map::new();
    let settings = match settings {
        Some(v) => v.as_object().ok_or_else(|| Error::input(format!("expected an object, found {v}")).at(place))?,
        None => &empty,
    };
    let r = Fields(settings);
    if let Some((name, _)) = settings.iter().find(|(_, v)| v.is_object()) {
        return Err(Error::input(format!("rotary settings per kind of layer (`{name}`) are not supported")).at(place));
    }
    for fields in [f, &r] {
        if let Some(v) = fields.get("partial_rotary_factor").filter(|v| v.as_f64() != Some(1.0)) {
            return Err(Error::input(format!("a partly rotated head is not supported (found {v})")).at("partial_rotary_factor"));
        }
    }
    let theta = r.positive("rope_theta", f.positive("rope_theta", 10_000.0)?).map_err(|e| e.at(place))?;
    let kind = match r.str("rope_type").map_err(|e| e.at(place))? {
        Some(kind) => kind,
        None => r.str("type").map_err(|e| e.at(place))?.unwrap_or("default"),
    };
    let needed = |name: &str| {
        if r.get(name).is_none() {
            return Err(Error::input(format!("rope_type `{kind}` needs `{name}`")).at(place));
        }
        r.positive(name, 0.0).map_err(|e| e.at(place))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: needed("factor")? },
        "llama3" => {
            let low_freq_factor = needed("low_freq_factor")?;
            let high_freq_factor = needed("high_freq_factor")?;
            if high_freq_factor <= low_freq_factor {
                return Err(Error::input("high_freq_factor must be larger than low_freq_factor").at(place));
            }
            // Beside the settings it counts for transformers 5 and not for 4.
            let (context, inside, beside) = ("original_max_position_embeddings", &r, f);
            let of = match (inside.get(context), beside.get(context)) {
                (Some(a), Some(b)) if a != b => {
                    return Err(Error::input(format!("{b} contradicts the {a} of {place}")).at(context));
                }
                (None, Some(_)) => beside,
                _ => needed(context).map(|_| inside)?,
            };
            RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: of.dim(context, 0).map_err(|e| e.at(place))?,
            }
        }
        other => {
            return Err(Error::input(format!("rotary scaling `{other}` is not supported"))
                .at(format_args!("{place}.rope_type"))
                .hint("the supported ones are default, linear and llama3"));
        }
    };
    Ok((theta, scaling))
}

/// A token id, a list of them, or null.
fn token_ids(name: &str, value: Option<&Value>) -> Result<Vec<u32>> {
    let one = |v: &Value| {
        v.as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .ok_or_else(|| Error::input(format!("expected a token id, a list of token ids or null, found {v}")).at(name))
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => {
            let mut out = Vec::new();
            for id in ids {
                let id = one(id)?;
                if !out.contains(&id) {
                    out.push(id);
                }
            }
            Ok(out)
        }
        Some(id) => Ok(vec![one(id)?]),
    }
}

#[cfg(test)]
#[path = "hf_tests.rs"]
mod tests;
