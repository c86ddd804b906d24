//! Chat templates, rendered by minijinja as transformers renders them (Jinja2 with `trim_blocks`, `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, and Python's `json.dumps` as `tojson`).

mod python;
mod python_json;

use crate::{Error, Result, ceiling};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, context};
use std::collections::BTreeMap;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

/// What the system says, if anything, and a prompt: a conversation that the answer is to follow.
pub fn conversation(system: Option<&str>, prompt: &str) -> Vec<Message> {
    let message = |role: &str, text: &str| Message { role: role.to_owned(), content: text.to_owned() };
    system.map(|text| message("system", text)).into_iter().chain([message("user", prompt)]).collect()
}

/// A compiled chat template.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like, which templates use by name.
    special_tokens: BTreeMap<String, Value>,
}

/// The name under which the environment knows the template.
const NAME: &str = "chat_template";

/// Instructions that a template may take for one conversation: templates come with models, and one that loops on and on is refused. Real ones
/// take some hundred a message.
const MOST_INSTRUCTIONS: u64 = 5_000_000;

/// Memory that rendering one conversation may take: instructions do not limit it, since each may double a text.
const MOST_BYTES: usize = 256 << 20;

/// What the program ends with where a template takes more.
const TOO_LARGE: &str = "error: the chat template takes more than 256 MiB of memory for one conversation\n  \
     it repeats or doubles what it writes: use the template that came with the model, or mend it";

impl ChatTemplate {
    /// Compiles a template. `settings` is `tokenizer_config.json`, of which the special tokens are taken.
    ///
    /// # Errors
    /// If the template's syntax is wrong; the error names the line.
    pub fn new(source: &str, settings: &serde_json::Value) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| Error::input(format!("cannot set up templates: {e}")))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(MOST_INSTRUCTIONS));
        python::extend(&mut environment);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, prepare(source))
            .map_err(|e| Error::input(format!("cannot compile the chat template: {}", describe(&e))))?;
        Ok(Self { source: source.to_owned(), environment, special_tokens: special_tokens(settings) })
    }

    /// The template in `tokenizer_config.json`: a text, or the one called `default` (or the only one) in a list of named ones.
    ///
    /// # Errors
    /// If `chat_template` is neither, or there is a list without a default.
    pub fn named_source(settings: &serde_json::Value) -> Result<Option<&str>> {
        use serde_json::Value as Json;
        let wrong = |message: &str| Error::input(message).at("chat_template");
        match settings.get("chat_template") {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(source)) => Ok(Some(source)),
            Some(Json::Array(named)) => {
                let default = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"));
                let only = if named.len() == 1 { named.first() } else { None };
                let chosen = default.or(only).and_then(|t| t.get("template")).and_then(Json::as_str);
                chosen.map(Some).ok_or_else(|| wrong("expected a template named `default` in the list of templates"))
            }
            Some(_) => Err(wrong("expected a text or a list of named templates")),
        }
    }

    /// The template's text, as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// If the template refuses the conversation (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_values(Value::from(Serde(messages)), Value::from(()), add_generation_prompt)
    }

    /// [`ChatTemplate::render`] for messages with more than role and content (`tool_calls`, say), and for tools: lists of JSON objects as
    /// transformers takes them; `tools` may be null.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_json(&self, messages: &serde_json::Value, tools: &serde_json::Value, add_generation_prompt: bool) -> Result<String> {
        self.render_values(Value::from(Serde(messages)), Value::from(Serde(tools)), add_generation_prompt)
    }

    fn render_values(&self, messages: Value, tools: Value, add_generation_prompt: bool) -> Result<String> {
        let special = Value::from(Serde(&self.special_tokens));
        let context = context! { messages, tools, documents => (), add_generation_prompt, ..special };
        let fail = |e: minijinja::Error| Error::input(format!("the chat template does not take these messages: {}", describe(&e)));
        ceiling::under(MOST_BYTES, TOO_LARGE, || self.environment.get_template(NAME)?.render(context)).map_err(fail)
    }
}

/// A template error's own words, with its line where it has one.
fn describe(e: &minijinja::Error) -> String {
    if e.kind() == ErrorKind::OutOfFuel {
        return format!("it goes on after {MOST_INSTRUCTIONS} instructions");
    }
    let what = e.detail().map_or_else(|| e.kind().to_string(), str::to_owned);
    match e.line() {
        Some(line) if e.kind() != ErrorKind::InvalidOperation || e.detail().is_none() => format!("{what} (line {line} of the template)"),
        _ => what,
    }
}

/// The template as minijinja is to see it. Three things Jinja2 and transformers do are done here:
///
/// * line ends become `\n`;
/// * a backslash at the end of a line inside a string joins the lines, as in Python (Mistral's templates are written so);
/// * `{% generation %}`, by which transformers marks the assistant's part and which changes nothing of what is rendered, becomes a
///   condition that always holds, so that blanks around the tag are treated as those around any other.
fn prepare(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(open) = rest.find('{') {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let len = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map_or(tag.len(), |end| end + 2),
            Some(b'{') => tag_len(tag, "}}"),
            Some(b'%') => tag_len(tag, "%}"),
            _ => 1,
        };
        let (tag, after) = tag.split_at(len);
        out.push_str(&match tag.strip_prefix("{%").and_then(|t| t.strip_suffix("%}")) {
            Some(inner) => prepare_block(inner),
            None => join_lines(tag),
        });
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Where a tag ends: its closing mark outside of strings, or the end of the text.
fn tag_len(tag: &str, close: &str) -> usize {
    let bytes = tag.as_bytes();
    let (mut at, mut quote) = (2, None);
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(q), b) if b == q => quote = None,
            (None, b @ (b'\'' | b'"')) => quote = Some(b),
            (None, _) if bytes[at..].starts_with(close.as_bytes()) => return at + close.len(),
            _ => {}
        }
        at += 1;
    }
    bytes.len()
}

/// A block tag, by what stands between its marks.
fn prepare_block(inner: &str) -> String {
    let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    let inner = match word {
        "generation" => inner.replacen(word, "if true", 1),
        "endgeneration" => inner.replacen(word, "endif", 1),
        _ => join_lines(inner),
    };
    format!("{{%{inner}%}}")
}

/// Backslashes at the ends of lines, which can stand in strings only.
fn join_lines(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut chars = tag.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some('\n')) => drop(chars.next()),
            ('\\', Some(next)) => {
                out.extend([c, *next]);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

/// `bos_token`, `eos_token`, ... as texts; in the file they may be objects with the text as `content`.
fn special_tokens(settings: &serde_json::Value) -> BTreeMap<String, Value> {
    let text = |v: &serde_json::Value| v.as_str().or_else(|| v.get("content")?.as_str()).map(str::to_owned);
    let mut out = BTreeMap::new();
    for role in ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"] {
        if let Some(token) = settings.get(role).and_then(text) {
            out.insert(role.to_owned(), Value::from(token));
        }
    }
    if let Some(list) = settings.get("additional_special_tokens").and_then(|v| v.as_array()) {
        out.insert("additional_special_tokens".to_owned(), Value::from(list.iter().filter_map(text).collect::<Vec<_>>()));
    }
    out
}

/// `raise_exception(message)`: how a template refuses a conversation.
fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `strftime_now(format)`: the local time.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    use chrono::format::StrftimeItems;
    let items = StrftimeItems::new(format)
        .parse()
        .map_err(|_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format `{format}`")))?;
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}

/// `tojson`, which is `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)` with these options.
fn to_json(value: &Value, ascii: Option<bool>, indent: Option<usize>, options: Kwargs) -> Result<Value, minijinja::Error> {
    let ascii = ascii.or(options.get("ensure_ascii")?).unwrap_or(false);
    let indent: Option<usize> = indent.or(options.get("indent")?);
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) => Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string())),
        None => None,
    };
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let json = serde_json::to_value(value)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, "cannot serialise to JSON").with_source(e))?;
    let text = python_json::dumps(&json, indent, separators, sort_keys);
    Ok(Value::from_safe_string(if ascii { python_json::ascii(&text) } else { text }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn render(source: &str, messages: serde_json::Value) -> Result<String> {
        let t = ChatTemplate::new(source, &json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}))?;
        t.render_json(&messages, &serde_json::Value::Null, true)
    }

    #[test]
    fn renders_as_jinja2_does() {
        let user = json!([{"role": "user", "content": " hé\n"}]);
        for (source, expected) in [
            (
                "{{ bos_token }}{% for m in messages %}\n  {% if true %}\n[{{ m.role }}|{{ m['content'] | trim }}]\n  {% endif %}\n{% endfor %}\n{{ eos_token }}\n",
                "<s>[user|hé]\n</s>",
            ),
            ("{%- for m in messages %}{% generation %}{{ m.content.strip() }}{% endgeneration %}{% endfor %}", "hé"),
            ("{% for m in messages -%}\n  x {%- generation -%} y {%- endgeneration %}\nz{% endfor %}", "xyz"),
            ("{% if add_generation_prompt and not tools %}{{ messages[0].content.upper() + '!' }}{% endif %}", " HÉ\n!"),
            (
                "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "013",
            ),
            ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \" hé\\n\"}]"),
            (
                "{{ {'b': [1.5, none, true], 'a': '<&>\\'' } | tojson(indent=2) }}",
                "{\n  \"b\": [\n    1.5,\n    null,\n    true\n  ],\n  \"a\": \"<&>'\"\n}",
            ),
            ("{{ 'é😀' | tojson(ensure_ascii=true) }}{{ [1] | tojson(false, 1) }}", "\"\\u00e9\\ud83d\\ude00\"[\n 1\n]"),
            ("{{ messages[0].tool_calls is defined }}{{ none }}{{ messages[0].missing }}", "FalseNone"),
            ("{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
            ("{{ strftime_now('%Y') | length }}", "4"),
            ("{% set s = 'a\\\nb' %}\r\n{{ s + '%}' + \"}}\" + 'x\\\\' }}\r\n", "ab%}}}x\\"),
            ("{# ' #}{{ 'abc'.removeprefix('a').removesuffix('x') }}{ '", "bc{ '"),
        ] {
            assert_eq!(render(source, user.clone()).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn errors_say_what_the_template_says() {
        let e = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err().to_string();
        assert_eq!(e, "the chat template does not take these messages: roles must alternate");
        let e = ChatTemplate::new("{% if %}", &json!({})).err().unwrap().to_string();
        assert!(e.contains("cannot compile the chat template") && e.contains("line 1"), "{e}");
        let loops = "{% for i in range(9999) %}{% for j in range(9999) %}{{ i }}{% endfor %}{% endfor %}";
        let e = render(loops, json!([])).unwrap_err().to_string();
        assert_eq!(e, "the chat template does not take these messages: it goes on after 5000000 instructions");
        assert!(render("{{ strftime_now('%Q%') }}", json!([])).unwrap_err().to_string().contains("bad format"));
    }

    #[test]
    fn the_default_of_named_templates_is_chosen() {
        let named = json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        assert_eq!(ChatTemplate::named_source(&named).unwrap(), Some("d"));
        assert_eq!(ChatTemplate::named_source(&json!({"chat_template": "x"})).unwrap(), Some("x"));
        assert_eq!(ChatTemplate::named_source(&json!({})).unwrap(), None);
        assert!(ChatTemplate::named_source(&json!({"chat_template": []})).is_err());
        assert!(ChatTemplate::named_source(&json!({"chat_template": 3})).is_err());
    }
}
