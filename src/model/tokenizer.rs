//! Text to token ids and back, from a Hugging Face `tokenizer.json` or rebuilt from GGUF metadata.

mod stream;

pub use stream::StreamDecoder;

use crate::{Error, Result};

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What it was made of: a save writes the very same bytes.
    json: Vec<u8>,
    /// One more than the largest id.
    vocab_size: usize,
    adds_bos: bool,
}

impl Tokenizer {
    /// Parses the bytes of a `tokenizer.json`. Truncation and padding that it may prescribe are left out, as transformers does.
    ///
    /// # Errors
    /// If the bytes are no tokenizer, or a token cannot have the id that its entry says.
    pub fn from_json(json: Vec<u8>) -> Result<Self> {
        let mut inner = parse(&json).map_err(|e| {
            Error::input(format!("cannot read the tokenizer: {e}"))
                .hint("the file is damaged, its download is not complete, or its kind is not known")
        })?;
        inner.with_truncation(None).map_err(|e| Error::input(format!("cannot read the tokenizer: {e}")))?;
        inner.with_padding(None);
        check_added_tokens(&json, &inner)?;
        let vocab_size = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let mut tokenizer = Self { inner, json, vocab_size, adds_bos: false };
        // What the post-processor puts before an arbitrary text.
        let (with, without) = (tokenizer.encode("a", true)?, tokenizer.encode("a", false)?);
        tokenizer.adds_bos = with.first() != without.first();
        Ok(tokenizer)
    }

    /// The ids of `text`. Special tokens in the text are recognised; a BOS is added only where the tokenizer's post-processor adds one and
    /// `add_special` is set.
    ///
    /// # Errors
    /// If the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(|e| Error::input(format!("the text cannot be tokenised: {e}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`. Ids that are no tokens (a model's vocabulary may be padded) have no text; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| Error::input(format!("the tokens cannot be decoded: {e}")))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token given by its exact text (`<|im_end|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary writes it (byte-level vocabularies write a blank as `Ġ`).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether a token is special: [`Tokenizer::decode`] leaves it out when asked to.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|t| self.inner.get_added_vocabulary().is_special_token(&t))
    }

    /// Whether [`Tokenizer::encode`] with `add_special` puts a token before the text.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The bytes of `tokenizer.json`.
    pub fn to_json(&self) -> &[u8] {
        &self.json
    }

    /// That every id it can give is one of the model's.
    ///
    /// # Errors
    /// Names the token that is not.
    pub fn check_fits(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size <= model_vocab_size {
            return Ok(());
        }
        let id = self.vocab_size - 1;
        let token = u32::try_from(id).ok().and_then(|id| self.id_to_token(id)).unwrap_or_default();
        let message =
            format!("a tokenizer that does not fit the model: token `{token}` has id {id}, the model has {model_vocab_size} tokens");
        Err(Error::input(message).hint("use the tokenizer.json that came with these weights"))
    }
}

/// Reads the file. The crate panics where JSON ends inside some parts, and on some parts that are not what they should be: the first is made
/// sure of before, the second is caught.
fn parse(json: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    serde_json::from_slice::<serde::de::IgnoredAny>(json).map_err(|e| e.to_string())?;
    match std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json)) {
        Ok(read) => read.map_err(|e| e.to_string()),
        Err(_) => Err("a part of it is not what it should be".to_owned()),
    }
}

/// The crate gives an added token the next free id where its entry says another: that would be another token for the model.
fn check_added_tokens(json: &[u8], inner: &tokenizers::Tokenizer) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Entry {
        id: u32,
        content: String,
    }
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Entry>,
    }
    let file: File = serde_json::from_slice(json).map_err(|e| Error::input(format!("cannot read the tokenizer: {e}")))?;
    for entry in file.added_tokens.iter().filter(|e| !e.content.is_empty()) {
        let id = inner.token_to_id(&entry.content);
        if id != Some(entry.id) {
            let found = id.map_or("none".to_owned(), |id| id.to_string());
            return Err(Error::input(format!(
                "token `{}` should have id {}, but the vocabulary gives it {found}",
                entry.content, entry.id
            ))
            .at("added_tokens"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::stream::{State, byte_of};
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn alphabet() -> Vec<String> {
        let mut chars: Vec<char> = (0..=0x143u32).filter_map(char::from_u32).filter(|c| byte_of(*c).is_some()).collect();
        chars.sort_by_key(|c| byte_of(*c));
        chars.into_iter().map(String::from).collect()
    }

    /// A byte-level BPE of 256 bytes, a few merges, a special token and one that is not.
    fn small_bpe() -> Value {
        let merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ã", "©"), ("ð", "Ł"), ("ðŁ", "Ļ")];
        let mut tokens = alphabet();
        tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        tokens.extend(["<|end|>".to_owned(), "<日>".to_owned()]);
        let n = tokens.len();
        let added = |id: usize, special: bool| json!({"id": id, "content": tokens[id], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": special});
        let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, i): (_, u32)| (t.clone(), json!(i))).collect();
        json!({
            "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}, "padding": null,
            "added_tokens": [added(n - 2, true), added(n - 1, false)],
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": merges},
        })
    }

    /// A SentencePiece-like BPE with byte tokens.
    fn small_spm() -> Value {
        let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned()];
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        tokens.extend(["▁", "t", "h", "e", "he", "▁the", "é"].map(str::to_owned));
        let vocab: serde_json::Map<_, _> = tokens.iter().zip(0..).map(|(t, i): (_, u32)| (t.clone(), json!(i))).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null,
            "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
            "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
                      "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab, "merges": [["h", "e"]]},
        })
    }

    fn tokenizer(json: &Value) -> Tokenizer {
        Tokenizer::from_json(serde_json::to_vec(json).unwrap()).unwrap()
    }

    fn streamed(t: &Tokenizer, ids: &[u32]) -> String {
        let mut decoder = StreamDecoder::new(t);
        let mut text: String = ids.iter().map(|id| decoder.push(*id).unwrap()).collect();
        text.push_str(&decoder.finish().unwrap());
        text
    }

    #[test]
    fn the_alphabet_is_gpt2s() {
        let found: std::collections::BTreeSet<char> = alphabet().iter().flat_map(|s| s.chars()).collect();
        let expected: std::collections::BTreeSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        assert_eq!(found, expected);
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('é')), (Some(b' '), Some(b'\n'), Some(0xE9)));
    }

    #[test]
    fn encodes_and_decodes_whatever_length() {
        let json = small_bpe();
        let t = tokenizer(&json);
        let text = "the the é 🙂 <|end|> then <日>";
        let ids = t.encode(text, true).unwrap();
        assert!(ids.len() > 3, "truncation is left out");
        assert_eq!(t.decode(&ids, false).unwrap(), text);
        assert_eq!(t.decode(&ids, true).unwrap(), text.replace("<|end|>", ""));
        let end = t.token_to_id("<|end|>").unwrap();
        assert!(ids.contains(&end) && t.is_special(end) && !t.is_special(end + 1));
        assert_eq!((t.vocab_size(), t.adds_bos()), (end as usize + 2, false));
        assert_eq!(t.to_json(), serde_json::to_vec(&json).unwrap());
        assert!(t.check_fits(t.vocab_size()).is_ok());
        let e = t.check_fits(t.vocab_size() - 1).unwrap_err().to_string();
        assert!(e.contains("a tokenizer that does not fit the model: token `<日>` has id 263, the model has 263 tokens"), "{e}");
        assert!(tokenizer(&small_spm()).adds_bos());
    }

    #[test]
    fn a_character_is_held_back_until_it_is_whole() {
        let t = tokenizer(&small_bpe());
        let mut d = StreamDecoder::new(&t);
        let ids: Vec<u32> = "🙂é".bytes().map(u32::from).map(|b| t.token_to_id(&alphabet()[b as usize]).unwrap()).collect();
        let pieces: Vec<_> = ids.iter().map(|id| d.push(*id).unwrap()).collect();
        assert_eq!(pieces, ["", "", "", "🙂", "", "é"]);
        let mut d = StreamDecoder::new(&t);
        assert_eq!(d.push(ids[0]).unwrap() + &d.push(ids[1]).unwrap(), "");
        assert_eq!(d.finish().unwrap(), "\u{FFFD}");
    }

    #[test]
    fn ids_that_the_crate_would_change_are_refused() {
        let mut json = small_bpe();
        json["added_tokens"][0]["content"] = json!("<|other|>");
        json["added_tokens"][0]["id"] = json!(1000);
        let e = Tokenizer::from_json(serde_json::to_vec(&json).unwrap()).err().unwrap().to_string();
        assert!(e.contains("added_tokens: token `<|other|>` should have id 1000, but the vocabulary gives it 264"), "{e}");
        assert!(Tokenizer::from_json(b"{}".to_vec()).err().unwrap().to_string().contains("cannot read the tokenizer"));
    }

    proptest! {
        #[test]
        fn pieces_together_are_the_decoded_whole(ids in proptest::collection::vec(0u32..270, 0..60)) {
            let t = tokenizer(&small_bpe());
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }

        #[test]
        fn the_same_with_byte_tokens(ids in proptest::collection::vec(prop_oneof![0u32..270, 190u32..230, 258u32..265], 0..40)) {
            let t = tokenizer(&small_spm());
            prop_assert!(matches!(StreamDecoder::new(&t).state, State::Runs { .. }), "runs");
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }

        /// A decoder that changes the end of a text: everything is decoded again.
        #[test]
        fn the_same_with_a_decoder_of_no_known_kind(ids in proptest::collection::vec(prop_oneof![0u32..270, 258u32..265], 0..40)) {
            let mut json = small_spm();
            json["decoder"] = json!(null);
            let t = tokenizer(&json);
            prop_assert!(matches!(StreamDecoder::new(&t).state, State::Again { .. }), "again");
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }

        #[test]
        fn text_survives_the_round_trip(text in any::<String>()) {
            let t = tokenizer(&small_bpe());
            let ids = t.encode(&text, true).unwrap();
            prop_assert_eq!(t.decode(&ids, false).unwrap(), &text[..]);
            prop_assert_eq!(streamed(&t, &ids), t.decode(&ids, true).unwrap());
        }
    }
}
