//! Which answers are kept (SoRFT, section 3.1): one that is well-formed and overlaps with the gold set. There is no threshold above that.

use super::Sample;
use crate::model::generate::{Completion, FinishReason};
use crate::rl::reward::{Question, Reward};

/// Whether an answer is kept.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is trained on.
    Kept,
    /// It is not.
    Rejected {
        /// Why: one of a few words.
        reason: &'static str,
        /// More of it.
        detail: Option<String>,
    },
}

/// Judges an answer by its question's own rules: a malformed one (for an edit: also one that edits what the prompt does not show) is
/// rejected, and one without anything of the gold set (the files, functions or lines; for an edit: the modified lines).
pub fn judge(question: &dyn Question, sample: &Sample) -> Verdict {
    let rejected = |reason, detail| Verdict::Rejected { reason, detail };
    if sample.cut_off {
        return rejected("cut off", Some(format!("after {} tokens", sample.completion_tokens)));
    }
    let reward = question.judge(&Completion {
        prompt_index: 0,
        index: sample.index,
        ids: Vec::new(),
        logprobs: Vec::new(),
        text: sample.text.clone(),
        finish_reason: FinishReason::Eos,
    });
    match overlaps(&reward) {
        _ if reward.error.is_some() => rejected("malformed", reward.error),
        true => Verdict::Kept,
        false => rejected("no overlap", None),
    }
}

/// Whether the answer has anything of the gold set: its part `hit`, or `recall`, or, of a reward with neither, its value.
fn overlaps(reward: &Reward) -> bool {
    reward.part("hit").or_else(|| reward.part("recall")).unwrap_or(reward.value) > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives the reward that it was made with.
    struct Fixed(Reward);

    impl Question for Fixed {
        fn text(&self) -> &str {
            ""
        }
        fn gold_answer(&self) -> &str {
            ""
        }
        fn judge(&self, _: &Completion) -> Reward {
            self.0.clone()
        }
        fn cut(&self) -> Option<String> {
            None
        }
    }

    #[test]
    fn any_overlap_of_a_whole_well_formed_answer_is_kept() {
        let mut sample = Sample {
            id: String::new(),
            prompt: String::new(),
            index: 0,
            teacher: String::new(),
            text: "x".into(),
            cut_off: false,
            prompt_tokens: 0,
            completion_tokens: 9,
        };
        let reward = |value, parts: &[(&'static str, f64)], error: Option<&str>| {
            Fixed(Reward { value, parts: parts.to_vec(), error: error.map(str::to_owned) })
        };
        let reason = |question: &Fixed, sample: &Sample| match judge(question, sample) {
            Verdict::Kept => "kept",
            Verdict::Rejected { reason, .. } => reason,
        };
        assert_eq!(reason(&reward(0.01, &[("hit", 1.0)], None), &sample), "kept");
        assert_eq!(reason(&reward(0.0, &[("valid", 1.0), ("hit", 0.0)], None), &sample), "no overlap");
        assert_eq!(reason(&reward(0.0, &[("recall", 0.1)], None), &sample), "kept");
        assert_eq!(reason(&reward(0.2, &[], None), &sample), "kept");
        assert_eq!(reason(&reward(0.0, &[], None), &sample), "no overlap");
        assert_eq!(reason(&reward(1.0, &[("hit", 1.0)], Some("edits a file that is not shown")), &sample), "malformed");
        sample.cut_off = true;
        assert_eq!(reason(&reward(1.0, &[("hit", 1.0)], None), &sample), "cut off");
    }
}
