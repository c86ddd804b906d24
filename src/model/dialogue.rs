//! Prompts and gold answers as tokens: through the model's chat template, where it has one.

use crate::error::{Error, Result};
use crate::model::chat::{ChatTemplate, Message, conversation};
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::ModelFiles;

/// Tokens left free beside the chat template's own, since tokens may part differently where texts meet.
const SEAM: usize = 2;

/// Turns texts into the ids that the model is trained on and asked with.
pub struct Dialogue<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    eos: &'a [u32],
}

impl<'a> Dialogue<'a> {
    /// The dialogue of a model; `chat` uses its chat template, where it has one.
    ///
    /// # Errors
    /// A model without a tokenizer, or without an end-of-sequence token.
    pub fn new(files: &'a ModelFiles, chat: bool) -> Result<Self> {
        let tokenizer = files.tokenizer.as_ref().ok_or_else(|| {
            Error::input("has no tokenizer, which training on tasks needs")
                .at_file(&files.path)
                .hint("lines of {\"ids\", \"loss_mask\"} can be trained on without one")
        })?;
        let eos = &files.config.eos_token_ids[..];
        if eos.is_empty() {
            return Err(Error::input("names no end-of-sequence token (eos_token_id)").at_file(&files.path));
        }
        Ok(Self { tokenizer, template: files.chat_template.as_ref().filter(|_| chat), eos })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Tokens of a text in the middle of a prompt.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer.encode(text, false)?.len())
    }

    /// Tokens that the chat template puts around a prompt, or around a message of the system's and a prompt.
    pub fn overhead(&self, system: bool) -> Result<usize> {
        // A word of one token, since a template may treat an empty message otherwise.
        let messages = conversation(system.then_some("a"), "a");
        Ok(self.conversation_ids(&messages)?.len().saturating_sub(messages.len() * self.count("a")?))
    }

    /// The tokens that the chat template leaves, of a prompt of `most`, for the prompt's own text; none where it leaves none.
    ///
    /// # Errors
    /// As [`Self::overhead`].
    pub fn room(&self, most: usize, system: bool) -> Result<Option<usize>> {
        Ok(most.checked_sub(self.overhead(system)? + SEAM).filter(|&room| room > 0))
    }

    /// The ids of a conversation that an answer is to follow.
    ///
    /// # Errors
    /// Without a template, a conversation of more than the system's message and the user's: nothing says how to write it.
    pub fn conversation_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        match (self.template, messages) {
            // A template writes the BOS itself.
            (Some(template), _) => self.tokenizer.encode(&template.render(messages, true)?, false),
            (None, [message]) => self.tokenizer.encode(&message.content, true),
            (None, [system, message]) if system.role == "system" => {
                self.tokenizer.encode(&format!("{}\n\n{}", system.content, message.content), true)
            }
            (None, _) => Err(Error::input(format!("{} messages, and no chat template to write them by", messages.len()))),
        }
    }

    /// The ids of an answer to a conversation, ending with the token that ends the assistant's turn. They are encoded apart from the
    /// prompt's, because that is how an answer is sampled.
    pub fn reply_ids(&self, messages: &[Message], answer: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(&self.answer_text(messages, answer)?, false)?;
        // What the template writes after the turn's end is not the model's to say.
        match ids.iter().position(|id| self.eos.contains(id)) {
            Some(end) => ids.truncate(end + 1),
            None => ids.push(self.eos[0]),
        }
        Ok(ids)
    }

    /// The answer as the template writes it after the prompt; the plain answer where there is no template, or one that changes the prompt
    /// once it is answered.
    fn answer_text(&self, messages: &[Message], answer: &str) -> Result<String> {
        let Some(template) = self.template else {
            return Ok(answer.to_owned());
        };
        let before = template.render(messages, true)?;
        let turn = Message { role: "assistant".into(), content: answer.to_owned() };
        let whole = template.render(&[messages, &[turn]].concat(), false)?;
        Ok(whole.strip_prefix(&before).unwrap_or(answer).to_owned())
    }
}
