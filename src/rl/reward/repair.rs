//! Repair with SWE-RL's reward: whole files in the prompt, edits in the answer, judged by the similarity of patches.

use super::{Question, Reward, Subtask};
use crate::data::Task;
use crate::data::difflib::Scratch;
use crate::data::metrics::ScoreKind;
use crate::data::patch_similarity::{Files, Oracle, Rule};
use crate::data::subtask::repair::{RepairOptions, RepairPrompt, RepairSubtask};
use crate::error::Result;
use crate::model::generate::Completion;
use crate::rl::config::PromptSettings;
use std::sync::Arc;

/// The subtask with its prompt's and its reward's settings.
pub struct Repair {
    prompts: RepairSubtask,
    rule: Rule,
}

impl Repair {
    /// The subtask; prompts have at most `max_tokens` tokens, without the chat template. The score `exact` is the discrete reward, any other
    /// the similarity.
    pub fn new(prompt: &PromptSettings, max_tokens: usize, seed: u64, score: ScoreKind) -> Result<Self> {
        let template = prompt.template("repair")?;
        let options = RepairOptions { max_tokens, min_issue_tokens: prompt.min_issue_tokens, seed, template };
        let rule = if score == ScoreKind::Exact { Rule::Discrete } else { Rule::Continuous };
        Ok(Self { prompts: RepairSubtask::new(options)?, rule })
    }
}

impl Subtask for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    fn question(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<Box<dyn Question>> {
        let prompt = self.prompts.prompt(task, count_tokens)?;
        let texts = |files: &std::collections::BTreeMap<String, String>| -> Files {
            files.iter().map(|(path, text)| (path.as_str().into(), text.as_str().into())).collect()
        };
        let context = texts(&prompt.context);
        let oracle = Oracle::from_contents(&context, &texts(&prompt.gold));
        let system = self.prompts.system().map(Arc::from);
        Ok(Box::new(RepairQuestion { prompt, system, context, oracle, rule: self.rule }))
    }
}

struct RepairQuestion {
    prompt: RepairPrompt,
    system: Option<Arc<str>>,
    context: Files,
    oracle: Oracle,
    rule: Rule,
}

impl Question for RepairQuestion {
    fn text(&self) -> &str {
        &self.prompt.text
    }

    fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    fn gold_answer(&self) -> &str {
        &self.prompt.answer
    }

    fn judge(&self, completion: &Completion) -> Reward {
        let judgement = self.oracle.judge(&self.context, completion.text.as_bytes(), self.rule, &mut Scratch::default());
        let valid = judgement.error.is_none();
        let share = |n: usize| if judgement.files.is_empty() { 0.0 } else { n as f64 / judgement.files.len() as f64 };
        let similar = judgement.files.iter().map(|f| f.similarity).sum::<f64>() / judgement.files.len().max(1) as f64;
        let parts = vec![
            ("valid", f64::from(u8::from(valid))),
            ("similarity", similar),
            ("exact", f64::from(u8::from(valid && judgement.files.iter().all(|f| f.predicted == f.oracle)))),
            ("found_files", share(judgement.files.iter().filter(|f| !f.predicted.is_empty() && !f.oracle.is_empty()).count())),
        ];
        Reward { value: judgement.reward, parts, error: judgement.error }
    }

    fn cut(&self) -> Option<String> {
        let (files, issue) = (self.prompt.files_cut, self.prompt.issue_bytes);
        let mut said = Vec::new();
        if issue.0 < issue.1 {
            said.push(format!("{} of {} bytes of the issue", issue.0, issue.1));
        }
        if files.0 > 0 {
            said.push(format!("{} of {} files left out", files.0, files.1));
        }
        (!said.is_empty()).then(|| said.join(", "))
    }
}
