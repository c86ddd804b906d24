//! File localisation: the F-beta of the paths that an answer names (SoRFT, arXiv 2502.20127, section 3).

use super::{Question, Reward, Subtask, set_parts};
use crate::data::Task;
use crate::data::metrics::ScoreKind;
use crate::data::subtask::file::{self, FileOptions, FilePrompt, FileSubtask};
use crate::error::Result;
use crate::model::generate::Completion;
use crate::rl::config::PromptSettings;
use std::collections::BTreeSet;

/// The subtask with its prompt's and its reward's settings.
pub struct FileLocalisation {
    prompts: FileSubtask,
    score: ScoreKind,
    beta: f64,
}

impl FileLocalisation {
    /// The subtask; prompts have at most `max_tokens` tokens, without the chat template.
    pub fn new(prompt: &PromptSettings, max_tokens: usize, seed: u64, score: ScoreKind, beta: f64) -> Result<Self> {
        let template = prompt.template("file")?;
        let options = FileOptions {
            universe: prompt.universe,
            order: prompt.order,
            evidence: prompt.evidence,
            max_tokens,
            min_issue_tokens: prompt.min_issue_tokens,
            answers: prompt.answers,
            close: prompt.close,
            seed,
            template,
        };
        Ok(Self { prompts: FileSubtask::new(options)?, score, beta })
    }
}

impl Subtask for FileLocalisation {
    fn name(&self) -> &'static str {
        "file"
    }

    fn question(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<Box<dyn Question>> {
        let prompt = self.prompts.prompt(task, count_tokens)?;
        let universe = prompt.candidates.iter().cloned().collect();
        Ok(Box::new(FileQuestion { prompt, universe, score: self.score, beta: self.beta }))
    }
}

struct FileQuestion {
    prompt: FilePrompt,
    universe: BTreeSet<String>,
    score: ScoreKind,
    beta: f64,
}

impl Question for FileQuestion {
    fn text(&self) -> &str {
        &self.prompt.text
    }

    fn gold_answer(&self) -> &str {
        &self.prompt.answer
    }

    fn candidates(&self) -> &[String] {
        &self.prompt.candidates
    }

    fn judge(&self, completion: &Completion) -> Reward {
        let (score, error) = file::score(&completion.text, &self.universe, &self.prompt.gold);
        let mut parts = set_parts(&score, self.beta);
        parts.insert(2, ("top1", f64::from(u8::from(score.valid && score.first))));
        Reward { value: score.reward(self.score, self.beta), parts, error }
    }

    fn cut(&self) -> Option<String> {
        let cut = &self.prompt.cut;
        let mut said = Vec::new();
        if cut.issue {
            said.push(format!("{} of {} bytes of the issue", cut.issue_bytes.0, cut.issue_bytes.1));
        }
        if cut.evidence.0 > 0 {
            said.push(format!("{} of {} items of evidence left out", cut.evidence.0, cut.evidence.1));
        }
        if cut.paths.0 > 0 {
            said.push(format!("{} of {} paths left out", cut.paths.0, cut.paths.1));
        }
        (!said.is_empty()).then(|| said.join(", "))
    }
}
