//! The subtasks whose answers name places or change them: function localisation, line localisation and code edits, each judged by the F-beta
//! of its set (SoRFT, arXiv 2502.20127, section 3).

use super::{Question, Reward, Subtask, set_parts};
use crate::data::Task;
use crate::data::metrics::ScoreKind;
use crate::data::subtask::answer::Place;
use crate::data::subtask::edit::EditSubtask;
use crate::data::subtask::function::FunctionSubtask;
use crate::data::subtask::line::LineSubtask;
use crate::data::subtask::view::{PlacePrompt, ViewOptions};
use crate::error::Result;
use crate::model::generate::Completion;

/// The makers of the prompts.
enum Prompts {
    Function(FunctionSubtask),
    Line(LineSubtask),
    Edit(EditSubtask),
}

/// One of the three subtasks with its prompt's and its reward's settings.
pub struct PlaceSubtask {
    prompts: Prompts,
    score: ScoreKind,
    beta: f64,
}

impl PlaceSubtask {
    /// The subtask.
    ///
    /// # Errors
    /// A template that is not Jinja.
    pub fn new(place: Place, options: ViewOptions, score: ScoreKind, beta: f64) -> Result<Self> {
        let prompts = match place {
            Place::Function => Prompts::Function(FunctionSubtask::new(options)?),
            Place::Line => Prompts::Line(LineSubtask::new(options)?),
            Place::Edit => Prompts::Edit(EditSubtask::new(options)?),
        };
        Ok(Self { prompts, score, beta })
    }
}

impl Subtask for PlaceSubtask {
    fn name(&self) -> &'static str {
        match self.prompts {
            Prompts::Function(_) => "function",
            Prompts::Line(_) => "line",
            Prompts::Edit(_) => "edit",
        }
    }

    fn question(&self, task: &Task, count_tokens: &dyn Fn(&str) -> usize) -> Result<Box<dyn Question>> {
        let (prompt, place) = match &self.prompts {
            Prompts::Function(f) => (f.prompt(task, count_tokens), Place::Function),
            Prompts::Line(l) => (l.prompt(task, count_tokens), Place::Line),
            Prompts::Edit(e) => (e.prompt(task, count_tokens), Place::Edit),
        };
        Ok(Box::new(PlaceQuestion { prompt: prompt?, place, score: self.score, beta: self.beta }))
    }
}

struct PlaceQuestion {
    prompt: PlacePrompt,
    place: Place,
    score: ScoreKind,
    beta: f64,
}

impl Question for PlaceQuestion {
    fn text(&self) -> &str {
        &self.prompt.asked.text
    }

    fn gold_answer(&self) -> &str {
        &self.prompt.answer
    }

    fn judge(&self, completion: &Completion) -> Reward {
        let (score, error) = self.prompt.score(&completion.text);
        let mut parts = set_parts(&score, self.beta);
        if self.place == Place::Edit {
            // The paper's %Applied: there are edits, they can be made, and they give a patch.
            parts.push(("applied", f64::from(u8::from(score.valid && score.answers > 0))));
        }
        Reward { value: score.reward(self.score, self.beta), parts, error }
    }

    fn cut(&self) -> Option<String> {
        let cut = &self.prompt.asked.cut;
        let mut said = Vec::new();
        if cut.issue_bytes.0 < cut.issue_bytes.1 {
            said.push(format!("{} of {} bytes of the issue", cut.issue_bytes.0, cut.issue_bytes.1));
        }
        if cut.unknown_files > 0 {
            said.push(format!("{} changed files whose contents the task does not hold", cut.unknown_files));
        }
        match (self.place, cut.piece_lines) {
            (Place::Function, _) if cut.units.0 > 0 => {
                said.push(format!("{} of {} functions and classes left out", cut.units.0, cut.units.1));
            }
            // That not all code of the files is shown is what localised means.
            (_, Some(lines)) => said.push(format!("definitions cut into pieces of at most {lines} lines")),
            _ => {}
        }
        (!said.is_empty()).then(|| said.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::generate::FinishReason;

    fn question(place: Place) -> Box<dyn Question> {
        let patch = "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n";
        let task = json!({
            "instance_id": "o__r-1", "problem_statement": "f is wrong", "patch": patch,
            "files": {"a.py": "def f():\n    return 1\n\n\ndef g():\n    return 1\n", "b.py": "def h():\n    return 3\n"},
        });
        let subtask = PlaceSubtask::new(place, ViewOptions::default(), ScoreKind::Fbeta, 3.0).unwrap();
        subtask.question(&Task::from_json(task).unwrap(), &|text| text.len()).unwrap()
    }

    fn judge(question: &dyn Question, text: &str) -> Reward {
        let (ids, logprobs) = (vec![0], vec![0.0]);
        question.judge(&Completion { prompt_index: 0, index: 0, ids, logprobs, text: text.into(), finish_reason: FinishReason::Eos })
    }

    #[test]
    fn gold_answers_earn_one_and_what_is_not_in_the_prompt_nothing() {
        for (place, partly, outside) in [
            (Place::Function, "a.py\nfunction: f\nfunction: g", "a.py\nfunction: f\nfunction: missing"),
            (Place::Line, "a.py\nline: 1-2", "a.py\nline: 2\nline: 99"),
            (
                Place::Edit,
                "### a.py\n<<<<<<< SEARCH\ndef f():\n    return 1\n=======\ndef f():\n    return 5\n>>>>>>> REPLACE",
                "### a.py\n<<<<<<< SEARCH\n    return 7\n=======\n    return 2\n>>>>>>> REPLACE",
            ),
        ] {
            let question = question(place);
            let gold = judge(&*question, &format!("<think>so</think>{}", question.gold_answer()));
            assert_eq!((gold.value, gold.part("valid"), gold.part("recall"), gold.error.as_deref()), (1.0, Some(1.0), Some(1.0), None));
            let some = judge(&*question, partly);
            assert!(some.value > 0.0 && some.value < 1.0 && some.part("hit") == Some(1.0), "{some:?}");
            let none = judge(&*question, outside);
            assert!(none.value == 0.0 && none.part("valid") == Some(0.0) && none.error.is_some(), "{none:?}");
            assert_eq!(judge(&*question, "").value, 0.0);
            assert_eq!(gold.part("applied").is_some(), place == Place::Edit);
            assert_eq!(question.cut(), None);
        }
    }
}
