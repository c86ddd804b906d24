//! A request's body, read and checked: what is asked, and how it is to be sampled.

use super::Settings;
use super::error::ApiError;
use super::fields::{Fields, expected};
use crate::model::chat::Message;
use crate::model::generate::SamplingParams;
use axum::http::StatusCode;
use serde_json::Value;

type Result<T> = std::result::Result<T, ApiError>;

/// Which of the two ways of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
}

/// One prompt, not yet tokens.
#[derive(Debug, PartialEq)]
pub(super) enum Prompt {
    Messages(Vec<Message>),
    Text(String),
    Ids(Vec<u32>),
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub endpoint: Endpoint,
    pub prompts: Vec<Prompt>,
    /// `seed` is only meant where `seeded`.
    pub params: SamplingParams,
    pub seeded: bool,
    /// How many alternatives to list beside each token's log-probability; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    pub stream: bool,
    /// A last chunk of the stream with the number of tokens.
    pub include_usage: bool,
}

/// Most alternatives that may be listed, as OpenAI has it.
const MAX_TOP_LOGPROBS: usize = 20;
/// Most stop strings. (OpenAI takes 4.)
const MAX_STOPS: usize = 16;
/// Fields that change nothing of an answer here.
const IGNORED: [&str; 10] = [
    "user",
    "store",
    "metadata",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "verbosity",
    "reasoning_effort",
];

/// Reads a body; `model` is the served one's name.
pub(super) fn read(endpoint: Endpoint, body: &[u8], model: &str, settings: &Settings) -> Result<Asked> {
    let mut fields = Fields::parse(body)?;
    if let Some(name) = fields.text("model")?.filter(|name| name != model) {
        return Err(unknown_model(&name, model));
    }
    let prompts = match endpoint {
        Endpoint::Chat => vec![Prompt::Messages(messages(fields.take("messages"))?)],
        Endpoint::Completions => prompts(fields.take("prompt"))?,
    };
    let n = fields.integer("n", 1..=settings.max_choices)?.unwrap_or(1);
    if n * prompts.len() > settings.max_choices {
        let message = format!("n: {n} answers to each of {} prompts are more than {}", prompts.len(), settings.max_choices);
        return Err(ApiError::field("n", message));
    }
    let logprobs = match endpoint {
        Endpoint::Chat => chat_logprobs(&mut fields)?,
        Endpoint::Completions => fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?,
    };
    let (params, seeded) = sampling(endpoint, &mut fields, n, settings)?;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let include_usage = stream_options(&mut fields, stream)?;
    refuse_unsupported(&mut fields)?;
    fields.ignore(&IGNORED);
    fields.finish("")?;
    Ok(Asked { endpoint, prompts, params, seeded, logprobs, stream, include_usage })
}

/// The error of a model that is not served.
pub(super) fn unknown_model(name: &str, served: &str) -> ApiError {
    let message = format!("model: there is no model `{name}`; this server has `{served}`");
    ApiError { status: StatusCode::NOT_FOUND, ..ApiError::field("model", message) }.code("model_not_found")
}

/// How answers are sampled, and whether the request has a seed.
fn sampling(endpoint: Endpoint, fields: &mut Fields, n: usize, settings: &Settings) -> Result<(SamplingParams, bool)> {
    let limit = settings.max_answer_tokens;
    let named = fields.integer("max_tokens", 1..=limit)?;
    let max_tokens = match endpoint {
        Endpoint::Chat => fields.integer("max_completion_tokens", 1..=limit)?.or(named).unwrap_or(limit),
        // OpenAI's default.
        Endpoint::Completions => named.unwrap_or(16.min(limit)),
    };
    let seed = fields.seed("seed")?;
    let defaults = SamplingParams::default();
    let params = SamplingParams {
        n,
        max_new_tokens: max_tokens,
        temperature: fields.number("temperature")?.unwrap_or(defaults.temperature),
        top_p: fields.number("top_p")?.unwrap_or(defaults.top_p),
        top_k: fields.integer("top_k", 0..=usize::MAX)?.unwrap_or(defaults.top_k),
        min_p: fields.number("min_p")?.unwrap_or(defaults.min_p),
        stop: fields.texts("stop", MAX_STOPS)?,
        seed: seed.unwrap_or_default(),
        ..defaults
    };
    params.check().map_err(|e| {
        let message = e.to_string();
        let field = message.split(':').next().unwrap_or_default().to_owned();
        ApiError::field(field, message)
    })?;
    Ok((params, seed.is_some()))
}

fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    match fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)? {
        Some(n) if n > 0 && !wanted => Err(ApiError::field("top_logprobs", "top_logprobs: needs \"logprobs\": true")),
        top => Ok(wanted.then_some(top.unwrap_or(0))),
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::field("stream_options", "stream_options: needs \"stream\": true"));
    }
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    options.ignore(&["include_obfuscation"]);
    options.finish("stream_options.")?;
    Ok(include_usage)
}

/// What would change an answer, and cannot be done here.
fn refuse_unsupported(fields: &mut Fields) -> Result<()> {
    let is_zero = |v: &Value| v.as_f64() == Some(0.0);
    let is_empty = |v: &Value| v.as_array().is_some_and(Vec::is_empty) || v.as_object().is_some_and(serde_json::Map::is_empty);
    let is_false = |v: &Value| v.as_bool() == Some(false);
    fields.unsupported("frequency_penalty", is_zero)?;
    fields.unsupported("presence_penalty", is_zero)?;
    fields.unsupported("logit_bias", is_empty)?;
    fields.unsupported("tools", is_empty)?;
    fields.unsupported("functions", is_empty)?;
    fields.unsupported("tool_choice", |v| v == "none" || v == "auto")?;
    fields.unsupported("function_call", |v| v == "none" || v == "auto")?;
    fields.unsupported("response_format", |v| v.get("type").is_some_and(|t| t == "text"))?;
    fields.unsupported("modalities", |v| v.as_array().is_some_and(|m| m.iter().all(|m| m == "text")))?;
    fields.unsupported("echo", is_false)?;
    fields.unsupported("best_of", |v| v.as_u64() == Some(1))?;
    fields.unsupported("suffix", |v| v == "")
}

fn messages(value: Option<Value>) -> Result<Vec<Message>> {
    match value {
        Some(Value::Array(items)) if !items.is_empty() => items.into_iter().enumerate().map(|(i, m)| message(i, m)).collect(),
        Some(other) => Err(expected("messages", "a list of messages, at least one", &other)),
        None => Err(ApiError::field("messages", "messages: expected a list of messages, found nothing")),
    }
}

fn message(i: usize, value: Value) -> Result<Message> {
    let name = |field: &str| format!("messages[{i}]{field}");
    let Value::Object(mut fields) = value else {
        return Err(expected(&name(""), "an object with role and content", &value));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        // OpenAI's newer name for the same.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        _ => {
            let found = fields.get("role").cloned().unwrap_or_default();
            return Err(expected(&name(".role"), "system, developer, user or assistant", &found));
        }
    };
    let role = role.to_owned();
    let content = match fields.shift_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let part = |(k, part): (usize, &Value)| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text.to_owned()),
                _ => Err(expected(&name(&format!(".content[{k}]")), "{\"type\": \"text\", \"text\": ...}", part)),
            };
            parts.iter().enumerate().map(part).collect::<Result<String>>()?
        }
        other => return Err(expected(&name(".content"), "a text, or a list of text parts", &other.unwrap_or_default())),
    };
    let known = ["role", "name", "refusal", "annotations"];
    let is_nothing = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    if let Some((field, _)) = fields.iter().find(|(field, v)| !known.contains(&field.as_str()) && !is_nothing(v)) {
        let field = name(&format!(".{field}"));
        return Err(
            ApiError::field(&field, format!("{field}: this server does not support it; leave it out")).code("unsupported_parameter")
        );
    }
    Ok(Message { role, content })
}

fn prompts(value: Option<Value>) -> Result<Vec<Prompt>> {
    const WANTED: &str = "a text, a list of texts, a list of token ids, or a list of such lists";
    let id = |name: &str, v: &Value| {
        let id = v.as_u64().and_then(|x| u32::try_from(x).ok());
        id.ok_or_else(|| expected(name, "token ids", v))
    };
    let ids = |name: &str, items: &[Value]| items.iter().map(|v| id(name, v)).collect::<Result<Vec<u32>>>().map(Prompt::Ids);
    match value {
        None => Err(ApiError::field("prompt", format!("prompt: expected {WANTED}, found nothing"))),
        Some(Value::String(text)) => Ok(vec![Prompt::Text(text)]),
        Some(Value::Array(items)) if items.first().is_some_and(Value::is_number) => Ok(vec![ids("prompt", &items)?]),
        Some(Value::Array(items)) if !items.is_empty() => {
            let one = |(i, item): (usize, &Value)| match item {
                Value::String(text) => Ok(Prompt::Text(text.clone())),
                Value::Array(items) => ids(&format!("prompt[{i}]"), items),
                other => Err(expected(&format!("prompt[{i}]"), "a text or a list of token ids", other)),
            };
            items.iter().enumerate().map(one).collect()
        }
        Some(other) => Err(expected("prompt", WANTED, &other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FIELDS: [&str; 16] = [
        "model",
        "messages",
        "prompt",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
        "seed",
        "stream",
        "stream_options",
        "logprobs",
        "top_logprobs",
    ];

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (0..200i64).prop_map(Value::from),
            prop_oneof![Just("user"), Just("text"), Just("é")].prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            let key = prop_oneof![Just("role"), Just("content"), Just("type"), Just("text"), Just("x")].prop_map(str::to_owned);
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((key, inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_body_panics_and_what_is_taken_is_within_limits(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            fields in proptest::collection::vec((proptest::sample::select(&FIELDS[..]), value()), 0..6),
            chat in any::<bool>(),
        ) {
            let settings = Settings::default();
            let endpoint = if chat { Endpoint::Chat } else { Endpoint::Completions };
            prop_assert!(read(endpoint, &bytes, "m", &settings).is_err());
            let mut body = serde_json::Map::from_iter([("prompt".to_owned(), Value::from("a"))]);
            if chat {
                body = serde_json::Map::from_iter([("messages".to_owned(), serde_json::json!([{"role": "user", "content": "a"}]))]);
            }
            body.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            if let Ok(asked) = read(endpoint, Value::Object(body).to_string().as_bytes(), "m", &settings) {
                prop_assert!(asked.params.check().is_ok());
                prop_assert!(asked.params.n * asked.prompts.len() <= settings.max_choices);
                prop_assert!((1..=settings.max_answer_tokens).contains(&asked.params.max_new_tokens));
            }
        }
    }
}
