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
        let (prompt, unit) = match &self.prompts {
            Prompts::Function(f) => (f.prompt(task, count_tokens), "functions and classes"),
            Prompts::Line(l) => (l.prompt(task, count_tokens), "pieces of code"),
            Prompts::Edit(e) => (e.prompt(task, count_tokens), "pieces of code"),
        };
        let prompt = prompt.map_err(|e| e.at(&task.instance_id))?;
        let edits = matches!(self.prompts, Prompts::Edit(_));
        Ok(Box::new(PlaceQuestion { prompt, unit, edits, score: self.score, beta: self.beta }))
    }
}

struct PlaceQuestion {
    prompt: PlacePrompt,
    /// What a view is made of, in words.
    unit: &'static str,
    edits: bool,
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
        if self.edits {
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
        if cut.units.0 > 0 {
            said.push(format!("{} of {} {} left out", cut.units.0, cut.units.1, self.unit));
        }
        (!said.is_empty()).then(|| said.join(", "))
    }
}
