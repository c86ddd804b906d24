//! Makers of tiny models, in both formats, byte by byte and without the code under test.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A tensor's shape and numbers.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub const VOCAB: usize = 264;

/// `config.json` of a tiny model: 2 blocks, width 64, 4 heads of 16 with 2 key/value heads, feed-forward 96.
pub fn config(model_type: &str) -> Value {
    let class = match model_type {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        _ => "Qwen3ForCausalLM",
    };
    json!({
        "architectures": [class], "model_type": model_type, "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_act": "silu",
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 262, "eos_token_id": 263,
    })
}

/// Numbers that differ from tensor to tensor and are exact in bf16 and f16.
pub fn numbers(name: &str, n: usize) -> Vec<f32> {
    let seed = name.bytes().fold(7u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    (0..n as u32).map(|i| ((seed.wrapping_add(i).wrapping_mul(2_654_435_761) >> 25) as f32 - 64.0) / 64.0).collect()
}

/// All tensors of [`config`]'s model.
pub fn tensors(model_type: &str) -> Tensors {
    let mut out = Tensors::new();
    let mut add = |name: String, shape: &[usize]| {
        let data = numbers(&name, shape.iter().product());
        out.insert(name, (shape.to_vec(), data));
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, 64]);
    add("model.norm.weight".into(), &[64]);
    for layer in 0..2 {
        let p = format!("model.layers.{layer}");
        add(format!("{p}.input_layernorm.weight"), &[64]);
        add(format!("{p}.post_attention_layernorm.weight"), &[64]);
        for (name, rows) in [("q_proj", 64), ("k_proj", 32), ("v_proj", 32)] {
            add(format!("{p}.self_attn.{name}.weight"), &[rows, 64]);
            if model_type == "qwen2" {
                add(format!("{p}.self_attn.{name}.bias"), &[rows]);
            }
        }
        if model_type == "qwen3" {
            add(format!("{p}.self_attn.q_norm.weight"), &[16]);
            add(format!("{p}.self_attn.k_norm.weight"), &[16]);
        }
        add(format!("{p}.self_attn.o_proj.weight"), &[64, 64]);
        for (name, shape) in [("gate_proj", [96, 64]), ("up_proj", [96, 64]), ("down_proj", [64, 96])] {
            add(format!("{p}.mlp.{name}.weight"), &shape);
        }
    }
    out
}

/// A safetensors file of any header and data.
pub fn safetensors_bytes(header: &Value, data: &[u8]) -> Vec<u8> {
    let header = serde_json::to_vec(header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// Bytes of numbers in a dtype of safetensors.
pub fn encode(dtype: &str, data: &[f32]) -> Vec<u8> {
    match dtype {
        "F32" => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
        "F16" => data.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        "BF16" => data.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        "I32" => data.iter().flat_map(|x| (*x as i32).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

/// A safetensors file of true header.
pub fn safetensors_file(tensors: &Tensors, dtype: &str) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, (shape, numbers)) in tensors {
        let start = data.len();
        data.extend(encode(dtype, numbers));
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}));
    }
    safetensors_bytes(&json!(header), &data)
}

/// GPT-2's character for a byte.
fn byte_char(b: u8) -> char {
    let plain = |b: u8| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    if plain(b) { char::from(b) } else { char::from_u32(256 + (0..b).filter(|x| !plain(*x)).count() as u32).unwrap() }
}

/// Tokens of a byte-level vocabulary: 256 bytes, 6 merges, then `<s>` (262) and `</s>` (263).
pub fn tokens() -> Vec<String> {
    let mut out: Vec<String> = (0..=255).map(|b| byte_char(b).to_string()).collect();
    out.extend(MERGES.iter().map(|m| m.replace(' ', "")));
    out.extend(["<s>".to_owned(), "</s>".to_owned()]);
    out
}

pub const MERGES: [&str; 6] = ["Ġ t", "h e", "Ġt he", "i n", "in g", "Ã ©"];

/// `tokenizer.json` of that vocabulary.
pub fn tokenizer_json() -> Value {
    let tokens = tokens();
    let vocab: Map<_, _> = tokens.iter().zip(0..).map(|(t, i): (_, u32)| (t.clone(), json!(i))).collect();
    let added = |id: usize| json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let merges: Vec<Vec<&str>> = MERGES.iter().map(|m| m.split(' ').collect()).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(262), added(263)], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
    })
}

pub fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// A whole Hugging Face folder with one weight file.
pub fn folder(dir: &Path, model_type: &str, dtype: &str) {
    folder_without_weights(dir, model_type);
    fs::write(dir.join("model.safetensors"), safetensors_file(&tensors(model_type), dtype)).unwrap();
}

pub fn folder_without_weights(dir: &Path, model_type: &str) {
    write_json(&dir.join("config.json"), &config(model_type));
    write_json(&dir.join("generation_config.json"), &json!({"eos_token_id": [263, 10]}));
    write_json(&dir.join("tokenizer.json"), &tokenizer_json());
    let template = "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}),
    );
}

/// Cuts the tensors into two shards with an index.
pub fn sharded_folder(dir: &Path, model_type: &str) {
    folder_without_weights(dir, model_type);
    let (mut parts, mut map) = ([Tensors::new(), Tensors::new()], Map::new());
    for (i, (name, tensor)) in tensors(model_type).into_iter().enumerate() {
        map.insert(name.clone(), json!(format!("part-{}.safetensors", i % 2)));
        parts[i % 2].insert(name, tensor);
    }
    for (i, part) in parts.iter().enumerate() {
        fs::write(dir.join(format!("part-{i}.safetensors")), safetensors_file(part, "F32")).unwrap();
    }
    write_json(&dir.join("model.safetensors.index.json"), &json!({"metadata": {}, "weight_map": map}));
}

/// A value of GGUF's metadata.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// A GGUF file in the making; fields can be changed before it is written.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub meta: Vec<(String, Meta)>,
    /// Name, dimensions as the file has them (innermost first), type, bytes.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn push_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

impl GgufFile {
    pub fn set(&mut self, key: &str, value: Meta) {
        self.meta.retain(|(k, _)| k != key);
        self.meta.push((key.to_owned(), value));
    }

    pub fn remove(&mut self, key: &str) {
        self.meta.retain(|(k, _)| k != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            push_str(&mut out, key);
            push_value(&mut out, value);
        }
        let mut offset = 0u64;
        for (name, dims, ty, bytes) in &self.tensors {
            push_str(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(ty.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (bytes.len() as u64).next_multiple_of(32);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        for (_, _, _, bytes) in &self.tensors {
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out
    }
}

fn push_value(out: &mut Vec<u8>, value: &Meta) {
    let array = |out: &mut Vec<u8>, ty: u32, n: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(ty.to_le_bytes());
        out.extend((n as u64).to_le_bytes());
    };
    match value {
        Meta::U32(x) => out.extend([4u32.to_le_bytes(), x.to_le_bytes()].concat()),
        Meta::F32(x) => out.extend([6u32.to_le_bytes(), x.to_le_bytes()].concat()),
        Meta::Bool(x) => out.extend([&7u32.to_le_bytes()[..], &[u8::from(*x)]].concat()),
        Meta::Str(x) => {
            out.extend(8u32.to_le_bytes());
            push_str(out, x);
        }
        Meta::Strs(xs) => {
            array(out, 8, xs.len());
            xs.iter().for_each(|x| push_str(out, x));
        }
        Meta::I32s(xs) => {
            array(out, 5, xs.len());
            xs.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
        Meta::F32s(xs) => {
            array(out, 6, xs.len());
            xs.iter().for_each(|x| out.extend(x.to_le_bytes()));
        }
    }
}

/// The rows of q and k as llama.cpp's converter orders them: reshape to heads x 2 x half, swap the last two.
pub fn permuted(data: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let (cols, head_dim) = (data.len() / rows, rows / heads);
    let half = head_dim / 2;
    let order = (0..heads).flat_map(|h| (0..half).flat_map(move |j| [h * head_dim + j, h * head_dim + half + j]));
    order.flat_map(|row| data[row * cols..(row + 1) * cols].to_vec()).collect()
}

/// The model of [`config`] and [`tensors`] as a converter of llama.cpp writes it, in F32.
pub fn gguf(arch: &str) -> GgufFile {
    let key = |name: &str| format!("{arch}.{name}");
    let mut meta = vec![
        ("general.architecture".to_owned(), Meta::Str(arch.to_owned())),
        (key("block_count"), Meta::U32(2)),
        (key("context_length"), Meta::U32(128)),
        (key("embedding_length"), Meta::U32(64)),
        (key("feed_forward_length"), Meta::U32(96)),
        (key("attention.head_count"), Meta::U32(4)),
        (key("attention.head_count_kv"), Meta::U32(2)),
        (key("attention.layer_norm_rms_epsilon"), Meta::F32(1e-5)),
        (key("rope.freq_base"), Meta::F32(10000.0)),
    ];
    let types = [vec![1; 262], vec![3; 2]].concat();
    for (name, value) in [
        ("model", Meta::Str("gpt2".into())),
        ("pre", Meta::Str("gpt-2".into())),
        ("tokens", Meta::Strs(tokens())),
        ("token_type", Meta::I32s(types)),
        ("merges", Meta::Strs(MERGES.iter().map(|m| (*m).to_owned()).collect())),
        ("bos_token_id", Meta::U32(262)),
        ("eos_token_id", Meta::U32(263)),
    ] {
        meta.push((format!("tokenizer.ggml.{name}"), value));
    }
    meta.push(("tokenizer.chat_template".into(), Meta::Str("{% for m in messages %}{{ bos_token + m.content }}{% endfor %}".into())));
    let tensors = tensors(arch).into_iter().map(|(name, (shape, data))| {
        let data = match (arch, name.contains("q_proj"), name.contains("k_proj")) {
            ("llama", true, _) => permuted(&data, 64, 4),
            ("llama", _, true) => permuted(&data, 32, 2),
            _ => data,
        };
        (gguf_name(&name), shape.iter().rev().map(|d| *d as u64).collect(), 0, encode("F32", &data))
    });
    GgufFile { version: 3, meta, tensors: tensors.collect() }
}

fn gguf_name(name: &str) -> String {
    [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ]
    .iter()
    .fold(name.to_owned(), |n, (hf, own)| n.replace(hf, own))
}

/// The words of the error with which a model is refused.
pub fn refusal(path: &Path) -> String {
    match sorft_native::model::weights::open(path.to_str().unwrap()) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(e) => e.to_string(),
    }
}

/// Opens a model that is expected to be good.
pub fn open(path: &Path) -> sorft_native::model::weights::ModelFiles {
    sorft_native::model::weights::open(path.to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"))
}

/// That a model's weights are exactly the given ones.
pub fn assert_weights(files: &sorft_native::model::weights::ModelFiles, expected: &Tensors) {
    for (name, (shape, data)) in expected {
        assert_eq!(files.weights.shape(name).as_ref(), Some(shape), "{name}");
        assert!(files.weights.read(name, shape).unwrap() == *data, "{name}");
    }
    assert_eq!(files.weights.names(), expected.keys().cloned().collect::<Vec<_>>());
}
