//! From scores, values and the reference's log-probabilities to a batch's advantages and returns.

use crate::rl::advantage::{
    Scale, Whitening, gae, group_baseline, group_normalised, leave_one_out, to_go, token_rewards, whiten, whiten_within,
};
use crate::rl::config::{AdvantageKind, Stage};
use crate::rl::objective::KlEstimator;
use crate::rl::reward::overlong::soft_overlong;
use crate::rl::rollout::{Job, Targets};

/// How a stage makes advantages.
#[derive(Clone, Debug)]
pub struct Rule {
    kind: AdvantageKind,
    scale: Scale,
    eps: f64,
    whitening: Whitening,
    /// Whether whitening takes off the mean of each subtask, not the batch's.
    center_subtasks: bool,
    gamma: f64,
    lambda: f64,
    /// The KL penalty in the token rewards, with its weight.
    kl: Option<(KlEstimator, f64)>,
    /// The soft overlong punishment: the longest answer, the buffer, the weight.
    overlong: (usize, usize, f64),
}

impl Rule {
    /// A stage's rule; `kl_coef` is the KL penalty's weight at this step.
    pub fn new(stage: &Stage, kl_coef: f64) -> Self {
        Self {
            kind: stage.advantage,
            scale: stage.advantage_scale,
            eps: stage.advantage_eps,
            whitening: stage.whitening,
            center_subtasks: stage.center_subtasks,
            gamma: stage.gamma,
            lambda: stage.lambda,
            kl: (stage.kl_in_reward && kl_coef > 0.0).then_some((stage.kl_estimator, kl_coef)),
            overlong: (stage.max_new_tokens, stage.overlong_buffer, stage.overlong_penalty),
        }
    }

    /// The reward of an answer of so many tokens with what shapes it.
    pub fn shaped(&self, reward: f64, tokens: usize) -> f64 {
        let (longest, buffer, weight) = self.overlong;
        if buffer == 0 { reward } else { reward + weight * soft_overlong(tokens, longest, buffer) }
    }

    /// The scores of the answers of one prompt: what stands at each answer's last token, or is its advantage where no token has its own.
    pub fn scores(&self, rewards: &[f64]) -> Vec<f64> {
        let normalised = |scale| group_normalised(rewards, scale, self.eps).into_iter().map(f64::from).collect();
        match self.kind {
            AdvantageKind::Grpo => normalised(self.scale),
            AdvantageKind::DrGrpo => normalised(Scale::None),
            AdvantageKind::Rloo => leave_one_out(rewards),
            AdvantageKind::ReinforcePlusPlusBaseline => group_baseline(rewards),
            AdvantageKind::ReinforcePlusPlus | AdvantageKind::Gae => rewards.to_vec(),
        }
    }

    /// Whether each token has an advantage of its own, which [`Rule::assign`] gives.
    pub fn by_token(&self) -> bool {
        use AdvantageKind::{Gae, ReinforcePlusPlus, ReinforcePlusPlusBaseline};
        self.kl.is_some() || matches!(self.kind, Gae | ReinforcePlusPlus | ReinforcePlusPlusBaseline)
    }

    /// Whether [`Rule::assign`] reads the reference's log-probabilities.
    pub fn needs_reference(&self) -> bool {
        self.kl.is_some()
    }

    /// Gives every token of a batch its advantage, and with GAE its return. A sequence's own advantage becomes the mean of its tokens'.
    pub fn assign(&self, jobs: &mut [Job]) {
        let subtasks: Vec<&str> = jobs.iter().flat_map(|j| std::iter::repeat_n(j.subtask, j.targets.len())).collect();
        let mut all: Vec<&mut Targets> = jobs.iter_mut().flat_map(|j| &mut j.targets).collect();
        let rewards: Vec<Vec<f64>> = all.iter().map(|t| self.token_rewards(t)).collect();
        let to_go = || rewards.iter().map(|r| to_go(r, self.gamma)).collect();
        let advantages = match self.kind {
            AdvantageKind::Gae => {
                let mut advantages = Vec::with_capacity(all.len());
                for (targets, rewards) in all.iter_mut().zip(&rewards) {
                    let found = gae(rewards, &targets.old_values, self.gamma, self.lambda);
                    targets.returns = rounded(&found.returns);
                    advantages.push(found.advantages);
                }
                self.whitened(advantages, &subtasks)
            }
            AdvantageKind::ReinforcePlusPlus | AdvantageKind::ReinforcePlusPlusBaseline => self.whitened(to_go(), &subtasks),
            _ => to_go(),
        };
        for (targets, advantages) in all.into_iter().zip(advantages) {
            targets.advantage = (advantages.iter().sum::<f64>() / advantages.len().max(1) as f64) as f32;
            targets.token_advantages = rounded(&advantages);
        }
    }

    fn whitened(&self, mut advantages: Vec<Vec<f64>>, subtasks: &[&str]) -> Vec<Vec<f64>> {
        if self.center_subtasks {
            whiten_within(&mut advantages, subtasks, self.whitening);
        } else {
            whiten(&mut advantages, self.whitening);
        }
        advantages
    }

    fn token_rewards(&self, t: &Targets) -> Vec<f64> {
        match self.kl {
            None => token_rewards(t.score, &vec![0.0; t.tokens], 0.0),
            Some((estimator, coef)) => {
                let pairs = t.old_logprob.iter().zip(&t.ref_logprob);
                token_rewards(t.score, &pairs.map(|(old, reference)| estimator.estimate(*old, *reference).0).collect::<Vec<_>>(), coef)
            }
        }
    }
}

/// How much of the returns' variance the values explain: `1 - Var(return - value) / Var(return)` over all tokens of a batch. 1 is perfect, 0
/// no better than a constant; `None` where all returns are equal.
pub fn explained_variance(jobs: &[Job]) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = jobs
        .iter()
        .flat_map(|j| &j.targets)
        .flat_map(|t| t.returns.iter().zip(&t.old_values))
        .map(|(r, v)| (f64::from(*r), f64::from(*v)))
        .collect();
    let variance = |x: &dyn Fn(&(f64, f64)) -> f64| {
        let mean = pairs.iter().map(x).sum::<f64>() / pairs.len().max(1) as f64;
        pairs.iter().map(|p| (x(p) - mean).powi(2)).sum::<f64>()
    };
    let total = variance(&|p| p.0);
    (total > 0.0).then(|| 1.0 - variance(&|p| p.0 - p.1) / total)
}

fn rounded(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|x| *x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::config::Config;
    use crate::tensor::plan::Tree;
    use std::path::Path;

    fn rule(text: &str) -> Rule {
        let config = Config::parse(&format!("model = \"a/b\"\ndata.train = \"x\"\n{text}"), Path::new("a.toml")).unwrap();
        Rule::new(&config.stages[0], config.stages[0].kl_coef)
    }

    fn jobs() -> Vec<Job> {
        let targets = |score: f64, values: &[f32], reference: &[f32]| Targets {
            tokens: values.len(),
            old_logprob: vec![-1.0; values.len()],
            ref_logprob: reference.to_vec(),
            old_values: values.to_vec(),
            score,
            ..Targets::default()
        };
        let tree = Tree::prompt_with_answers(&[1], &[vec![2, 3], vec![4]]);
        vec![Job { tree, subtask: "", targets: vec![targets(1.0, &[0.5, 0.25], &[-2.0, -1.0]), targets(0.0, &[0.0], &[-1.0])] }]
    }

    #[test]
    fn the_kl_is_paid_token_by_token() {
        let rule = rule("algorithm = \"ppo\"\nkl.coef = 0.1\nadvantage.whiten = \"none\"\nadvantage.lambda = 1.0\n");
        assert!(rule.by_token() && rule.needs_reference());
        let mut jobs = jobs();
        rule.assign(&mut jobs);
        // Token rewards -0.1 and 1; values 0.5 and 0.25.
        let first = &jobs[0].targets[0];
        assert_eq!(first.returns, [0.9, 1.0]);
        assert_eq!(first.token_advantages, [0.4, 0.75]);
        assert_eq!(first.advantage, 0.575);
        assert_eq!(jobs[0].targets[1].token_advantages, [0.0]);
        let explained = explained_variance(&jobs).unwrap();
        assert!(explained > 0.0 && explained < 1.0, "{explained}");
    }

    #[test]
    fn kinds_without_a_critic() {
        let plain = rule("algorithm = \"grpo\"\nadvantage.kind = \"rloo\"\n");
        assert!(!plain.by_token());
        assert_eq!(plain.scores(&[1.0, 0.0]), [1.0, -1.0]);
        let with_kl = rule("algorithm = \"grpo\"\nadvantage.kind = \"rloo\"\nkl.in = \"reward\"\nkl.coef = 0.1\nkl.estimator = \"k1\"\n");
        let mut jobs = jobs();
        with_kl.assign(&mut jobs);
        assert_eq!(jobs[0].targets[0].token_advantages, [0.9, 1.0]);
        let whitened = rule("algorithm = \"grpo\"\nadvantage.kind = \"reinforce++\"\n");
        whitened.assign(&mut jobs);
        let all: f32 = jobs[0].targets.iter().flat_map(|t| &t.token_advantages).sum();
        assert!(all.abs() < 1e-6 && explained_variance(&jobs).is_none());
        // A batch of two subtasks: by its own mean, one that earns less is not below its own average.
        let mut mixed = [jobs.clone(), jobs.clone()].concat();
        (mixed[0].subtask, mixed[1].subtask) = ("file", "edit");
        mixed[1].targets.iter_mut().for_each(|t| t.score -= 5.0);
        rule("algorithm = \"grpo\"\nadvantage.kind = \"reinforce++\"\nadvantage.center = \"subtask\"\n").assign(&mut mixed);
        assert_eq!(mixed[0].targets[0].token_advantages, mixed[1].targets[0].token_advantages);
        assert!(mixed[1].targets[0].advantage > 0.0);
        whitened.assign(&mut mixed);
        assert!(mixed[1].targets[0].advantage < 0.0);
        assert_eq!(rule("algorithm = \"grpo\"\nadvantage.kind = \"dr_grpo\"\n").scores(&[1.0, 0.0]), [0.5, -0.5]);
        assert_eq!(rule("algorithm = \"grpo\"\nadvantage.kind = \"reinforce++_baseline\"\n").scores(&[1.0, 0.0]), [0.5, -0.5]);
    }
}
