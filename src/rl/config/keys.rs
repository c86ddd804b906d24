//! The one table of settings: names, types, defaults, meaning. Parsing, checking, the resolved `config.toml` and `docs/configuration.md`
//! all come from it.

use std::fmt::Write as _;

/// What a setting's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A model: a folder, a `.gguf` file (relative to the configuration's folder) or a hub id.
    Model,
    /// A file or folder, relative to the configuration's folder; empty for none.
    Path,
    /// One path or a list of them.
    Paths,
    /// A list of texts.
    Texts,
    /// Some of these texts, each at most once.
    Choices(&'static [&'static str]),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// True or false.
    Bool,
    /// A whole number of at least this.
    Integer(i64),
    /// A finite number within these bounds, both included.
    Number(f64, f64),
    /// Two numbers, each in `[0, 1)`.
    Betas,
    /// A number, or two: below and above.
    Clip,
}

impl Kind {
    /// What is expected, in words.
    pub fn expected(&self) -> String {
        match self {
            Kind::Text => "a text in quotes".into(),
            Kind::Model => "a model folder, a .gguf file or a hub id, in quotes".into(),
            Kind::Path => "a path in quotes".into(),
            Kind::Paths => "a path in quotes, or a list of paths".into(),
            Kind::Texts => "a list of texts".into(),
            Kind::Choice(of) => format!("one of {}", quoted(of)),
            Kind::Choices(of) => format!("a list, each once, of {}", quoted(of)),
            Kind::Bool => "true or false".into(),
            Kind::Integer(min) => format!("a whole number of at least {min}"),
            Kind::Number(min, max) if *max == f64::MAX => format!("a number of at least {min}"),
            Kind::Number(min, max) => format!("a number from {min} to {max}"),
            Kind::Betas => "two numbers from 0 to below 1, such as [0.9, 0.999]".into(),
            Kind::Clip => "a number from 0 to 1, or two: [below, above]".into(),
        }
    }
}

fn quoted(texts: &[&str]) -> String {
    texts.iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(", ")
}

/// Where a setting may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// At the top only: it holds for the whole run.
    Run,
    /// At the top and in `[[stage]]` tables.
    Stage,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its dotted name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// The default as TOML; empty where the setting must be given.
    pub default: &'static str,
    /// The default of `algorithm = "ppo"` where it is another; else empty.
    pub ppo: &'static str,
    /// Where it may stand.
    pub scope: Scope,
    /// What it means.
    pub doc: &'static str,
}

const ANY: f64 = f64::MAX;

const fn run(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, ppo: "", scope: Scope::Run, doc }
}

const fn stage(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, ppo: "", scope: Scope::Stage, doc }
}

impl Key {
    /// The same with another default for `algorithm = "ppo"`: SoRFT's where it is known, else OpenRLHF's of that time.
    const fn ppo(self, ppo: &'static str) -> Self {
        Self { ppo, ..self }
    }
}

/// Every setting, in the order in which they are documented and written.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    run("model", Kind::Model, "", "The model to train: a Hugging Face folder, a `.gguf` file, or a hub id `owner/name`."),
    run("adapter", Kind::Path, "\"\"", "A PEFT LoRA folder to go on training from; its rank, alpha and targets hold. Empty: none."),
    run("seed", Kind::Integer(0), "0", "All randomness (data order, sampling, initialisation) follows from it."),
    run("compute", Kind::Choice(&["f32", "bf16"]), "\"f32\"", "What the processor multiplies matrices in: f32, or operands rounded to bf16 with sums in f32, which is fast where the processor has AMX (`doctor` says so) and half the memory of what is not trained; all else stays f32, the trained weights and the optimizer among it. It changes results, and the way of a run with it. On a GPU products are always in bf16."),
    stage("algorithm", Kind::Choice(&["sft", "grpo", "ppo"]), "\"sft\"", "What is trained: supervised fine-tuning on gold answers or token lines, a policy gradient on rewards without a critic (GRPO and its kin), or PPO with one."),
    stage("steps", Kind::Integer(1), "100", "Optimizer batches of the stage."),
    stage("data.train", Kind::Paths, "", "Task files, or for `sft` files of `{\"ids\", \"loss_mask\"}` or `{\"messages\", \"answer\"}` lines. Several are read one after another."),
    run("data.heldout", Kind::Paths, "[]", "Task files for evaluation; never trained on."),
    stage("data.shuffle", Kind::Bool, "true", "A fresh order every epoch, keyed by the seed; `false` keeps the files' order."),
    stage("batch_prompts", Kind::Integer(1), "8", "Prompts (or token lines) in an optimizer batch.").ppo("64"),
    stage("group_size", Kind::Integer(1), "8", "Answers sampled for each prompt.").ppo("1"),
    stage("max_prompt_tokens", Kind::Integer(16), "2048", "Longest prompt in tokens, chat template included; the issue's text is cut to fit. The top-level value holds for evaluations."),
    stage("max_new_tokens", Kind::Integer(1), "256", "Longest answer in tokens. The top-level value holds for evaluations."),
    stage("temperature", Kind::Number(0.01, 100.0), "1.0", "Logits are divided by it before the softmax, in sampling and in training alike. Supervised training always uses 1."),
    stage("microbatch_tokens", Kind::Integer(1), "4096", "Whole trees (a prompt and its answers) are processed together up to this many tokens. Bounds memory; changes no result."),
    run("rollout_batch", Kind::Integer(1), "64", "Answers decoded together. Bounds memory; changes no result."),
    stage("updates_per_batch", Kind::Integer(1), "1", "Optimizer updates on each batch of answers (the GRPO paper's mu; `ppo` has `ppo.epochs`). With 1 every ratio is exactly 1."),
    stage("ppo.epochs", Kind::Integer(1), "1", "PPO: how often a batch of answers is gone through."),
    stage("ppo.minibatches", Kind::Integer(1), "1", "PPO: updates in each of these epochs, each on its part of the prompts, drawn anew every epoch."),
    stage("activation_checkpointing", Kind::Bool, "false", "Keep only each block's input and recompute the rest in the backward pass: less memory, more time."),
    run("subtask", Kind::Choice(super::SUBTASKS), "\"file\"", "What is asked about a task: which files to change, which functions and classes in them, which lines, or the change itself from localised code (SoRFT); `repair`: the change from whole files (SWE-RL; the reward is the similarity of patches, or with `reward.score = \"exact\"` 1 for the gold patches and else 0)."),
    run("subtasks", Kind::Choices(super::SUBTASKS), "[]", "A mixture: several subtasks asked of the same tasks, as SoRFT trains on all four. Empty: `subtask` alone."),
    stage("subtask_weights.file", Kind::Number(0.0, ANY), "1.0", "Of a mixture: the subtask's share of the examples, by its part of the sum of all weights; 0: none."),
    stage("subtask_weights.function", Kind::Number(0.0, ANY), "1.0", "The same of `function`."),
    stage("subtask_weights.line", Kind::Number(0.0, ANY), "1.0", "The same of `line`."),
    stage("subtask_weights.edit", Kind::Number(0.0, ANY), "1.0", "The same of `edit`."),
    stage("subtask_weights.repair", Kind::Number(0.0, ANY), "1.0", "The same of `repair`."),
    run("prompt.chat", Kind::Bool, "true", "Prompts go through the model's chat template, where it has one."),
    run("prompt.universe", Kind::Choice(&["files", "tree"]), "\"files\"", "Candidates of file localisation: the task's `files`, or the whole tree (`all_paths`)."),
    run("prompt.order", Kind::Choice(&["alphabetical", "shuffled", "lexical", "lexical_paths", "fused"]), "\"alphabetical\"", "Order of the candidates: as a directory listing has them, a permutation keyed by the seed and the task, or the best lexical match with the issue first (BM25 over paths and contents, over paths alone, or four such rankings fused: paths, contents, contents for the issue's first line, names defined)."),
    run("prompt.names", Kind::Bool, "false", "Show, beside each candidate, names that it defines."),
    run("prompt.lexical", Kind::Choice(&["none", "score", "rank", "words"]), "\"none\"", "Show how well each candidate's words match the issue's, by the ranking that goes with `prompt.order`: not at all, a digit, the rank of the best five, or the words in common."),
    run("prompt.min_issue_tokens", Kind::Integer(0), "48", "Tokens of the issue that are kept before anything else is cut. (`function`, `line` and `edit` aim at a third of the prompt, and keep so many where that does not fit.)"),
    run("prompt.answers", Kind::Integer(0), "0", "File localisation: how many files an answer is to name. The prompt asks for so many, and gold answers that name fewer go on with the best lexical matches. 0: as many as it takes."),
    run("prompt.close", Kind::Number(0.0, 1.0), "0.0", "Above 0, `prompt.answers` is the most: gold answers name, beside the gold files, the candidates that score at least this part of the best lexical match, in the prompt's order, so that one file is named where the evidence is clear. In a ranked `prompt.order` a line `--` stands behind these candidates, and ends an answer. 0: gold answers always go on."),
    run("prompt.definitions", Kind::Integer(0), "0", "Function localisation: how many definitions prompts list, in the form of an answer, as those that match the issue's words best, by four rankings fused (documents, documents for the issue's first line, qualified names, the file's score). `prompt.answers` and `prompt.close` hold for this list as for that of files. 0: no list."),
    run("prompt.templates.file", Kind::Path, "\"\"", "A Jinja template in place of the subtask's built-in prompt. Empty: the built-in one."),
    run("prompt.templates.function", Kind::Path, "\"\"", "The same of `function`."),
    run("prompt.templates.line", Kind::Path, "\"\"", "The same of `line`."),
    run("prompt.templates.edit", Kind::Path, "\"\"", "The same of `edit`."),
    run("prompt.templates.repair", Kind::Path, "\"\"", "The same of `repair`."),
    stage("reward.score", Kind::Choice(&["fbeta", "f1", "exact", "hit"]), "\"fbeta\"", "The reward: F-beta (SoRFT), F1, exact match, or hit (1 if any gold element is named)."),
    run("reward.beta", Kind::Number(0.01, 100.0), "3.0", "Beta of F-beta: 3 weighs recall nine times, as SoRFT does."),
    stage("optim.lr", Kind::Number(0.0, ANY), "1e-5", "Peak learning rate of AdamW.").ppo("5e-7"),
    stage("optim.schedule", Kind::Choice(&["cosine", "linear", "constant"]), "\"cosine\"", "Shape of the learning rate over the stage, after the warm-up."),
    stage("optim.warmup", Kind::Number(0.0, ANY), "0.0", "Warm-up: a number of steps (1 or more), or a part of the stage's steps (below 1).").ppo("0.03"),
    stage("optim.weight_decay", Kind::Number(0.0, ANY), "0.0", "Decoupled weight decay, on matrices."),
    stage("optim.decay_norms_and_biases", Kind::Bool, "false", "Weight decay on norms and biases as well."),
    stage("optim.betas", Kind::Betas, "[0.9, 0.999]", "Decay rates of AdamW's moments.").ppo("[0.9, 0.95]"),
    stage("optim.eps", Kind::Number(1e-20, 1.0), "1e-8", "Added to the root of the second moment."),
    stage("optim.moments", Kind::Choice(&["f32", "8bit"]), "\"f32\"", "How AdamW's moments are kept: in f32, or those of matrices of 4096 numbers or more in 8-bit codes with a scale for every 256 numbers, rounded at random by the seed (2 bytes for a number's two moments instead of 8; `docs/performance.md` has a comparison)."),
    stage("optim.max_grad_norm", Kind::Number(0.0, ANY), "1.0", "Gradients are scaled down to this 2-norm over all tensors; 0 for no clipping."),
    run("lora.rank", Kind::Integer(0), "0", "Rank of a fresh LoRA adapter; 0 trains all parameters."),
    run("lora.alpha", Kind::Number(1e-6, ANY), "16.0", "The adapter's scale is alpha / rank."),
    run("lora.targets", Kind::Texts, "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]", "Modules that get an adapter."),
    stage("kl.coef", Kind::Number(0.0, ANY), "0.0", "Weight of the KL penalty to the reference policy.").ppo("0.01"),
    stage("kl.estimator", Kind::Choice(&["k1", "k2", "k3"]), "\"k3\"", "Its estimate from the sampled tokens (Schulman 2020).").ppo("\"k1\""),
    stage("kl.in", Kind::Choice(&["loss", "reward"]), "\"loss\"", "Where the penalty stands: in the loss, or in the reward of each token, beside the score at the last one.").ppo("\"reward\""),
    stage("kl.target", Kind::Number(0.0, ANY), "0.0", "The mean KL of a token that an adaptive weight aims at (Ziegler et al. 2019), beginning with `kl.coef`; 0: the weight is fixed."),
    stage("kl.horizon", Kind::Number(1.0, ANY), "10000.0", "Answers over which the adaptive weight moves."),
    stage("kl.measure", Kind::Bool, "true", "Measure the KL to the reference even where its weight is 0; costs a forward pass, and a second copy of the weights unless LoRA is trained."),
    stage("kl.reference", Kind::Choice(&["start", "base"]), "\"start\"", "The reference: the policy at the start of the stage, or the model as it was loaded (with LoRA: the adapter off)."),
    stage("clip", Kind::Clip, "0.2", "The ratio is held in [1 - below, 1 + above]; one number stands for both."),
    stage("dual_clip", Kind::Number(0.0, ANY), "0.0", "Above 1: the loss of a token of negative advantage is held at this many times the advantage (3 is usual); 0: not."),
    stage("loss.ratio", Kind::Choice(&["token", "sequence"]), "\"token\"", "The ratio that is clipped: each token's, or the geometric mean of the sequence's (GSPO, with clips such as [3e-4, 4e-4])."),
    stage("loss.aggregation", Kind::Choice(&["token", "sequence", "constant"]), "\"token\"", "The policy's loss: the mean over all tokens of the batch (DAPO), over sequences of their token means (the GRPO paper, GSPO), or the sum of all tokens by sequences times `max_new_tokens` (Dr. GRPO)."),
    stage("entropy.coef", Kind::Number(0.0, ANY), "0.0", "Weight of the entropy bonus."),
    stage("advantage.kind", Kind::Choice(&["grpo", "dr_grpo", "rloo", "reinforce++", "reinforce++_baseline", "gae"]), "\"grpo\"", "How rewards become advantages: normalised in the group, less the group's mean, less the mean of the group's others, the return whitened over the batch, the same of the reward less the group's mean; `ppo` alone has, and needs, `gae`.").ppo("\"gae\""),
    stage("advantage.whiten", Kind::Choice(&["population", "sample", "none"]), "\"population\"", "Whitening over the batch's tokens, for `reinforce++`, its baseline variant and `gae`: with divisor n (OpenRLHF), n - 1 (TRL, verl), or none."),
    stage("advantage.center", Kind::Choice(&["batch", "subtask"]), "\"batch\"", "In a mixture of subtasks: whether whitening takes off the mean over the batch, or each subtask's own, so that one that earns less than the others is not unlearned for it. The deviation that it divides by is the batch's."),
    stage("advantage.gamma", Kind::Number(0.0, 1.0), "1.0", "Discount of rewards that come later, where there are token rewards."),
    stage("advantage.lambda", Kind::Number(0.0, 1.0), "0.95", "GAE's lambda."),
    stage("advantage.std", Kind::Choice(&["sample", "population", "none"]), "\"sample\"", "What a group's deviations are divided by: the deviation with divisor n - 1, with divisor n, or nothing (Dr. GRPO)."),
    stage("advantage.eps", Kind::Number(0.0, 1.0), "1e-4", "Added to that deviation."),
    stage("dapo.sampling_rounds", Kind::Integer(1), "1", "Above 1: dynamic sampling. Prompts whose answers all earn the same are dropped, and new ones asked in their place, in up to this many rounds a step."),
    stage("dapo.overlong_buffer", Kind::Integer(0), "0", "Soft overlong punishment: over this many tokens before `max_new_tokens` an answer's reward falls, in a straight line; 0: not."),
    stage("dapo.overlong_penalty", Kind::Number(0.0, ANY), "1.0", "By how much it has fallen at `max_new_tokens`."),
    stage("critic.kind", Kind::Choice(&["trunk", "lora", "full"]), "\"full\"", "PPO's critic: a value head on the policy's own trunk, a model of its own that shares the frozen base and has its own adapter, or a full model of its own (the paper). `lora` needs an adapter, `full` none."),
    stage("critic.lr", Kind::Number(0.0, ANY), "9e-6", "The critic's peak learning rate; schedule, warm-up and the rest of AdamW are `optim`'s."),
    stage("critic.warmup", Kind::Integer(0), "0", "Steps at the start of the stage in which the critic alone learns."),
    stage("critic.clip", Kind::Number(0.0, ANY), "0.2", "A value that has moved further than this from the sampled batch's gives no gradient; 0: any distance."),
    stage("critic.coef", Kind::Number(0.0, ANY), "0.1", "`trunk`: weight of the value loss in the trunk's gradient; 0: the head alone learns from it."),
    stage("max_skipped", Kind::Integer(1), "5", "After this many skipped steps in a row (a loss or gradient that is not finite) the run stops."),
    run("eval.every", Kind::Integer(0), "0", "Evaluate on `data.heldout` every this many steps; 0: only at the start and at the end of each stage."),
    run("eval.at_start", Kind::Bool, "true", "Evaluate before the first step."),
    run("eval.tasks", Kind::Integer(0), "0", "Evaluate on the first this many held-out tasks; 0: on all."),
    run("eval.best", Kind::Text, "\"\"", "The number of an evaluation by which the best one is told, the larger the better: `fbeta`, `hit`, `valid`, ..., or of one subtask of a mixture `function/fbeta`. The model at the best evaluation is kept in `best/`. Empty: none is."),
    run("eval.patience", Kind::Integer(0), "0", "A stage ends once so many evaluations in a row were not better than the best before them, by `eval.best`; the next stage goes on from there. 0: never before its last step."),
    run("checkpoint.every", Kind::Integer(1), "50", "Write a checkpoint every this many steps; one is always written at the end, and on Ctrl-C."),
    run("checkpoint.keep", Kind::Integer(0), "2", "Keep the last this many checkpoints; 0: all."),
    run("save.dtype", Kind::Choice(&["f32", "bf16"]), "\"f32\"", "Numbers in the saved `model/`."),
];

/// The setting of this name.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

/// The known name most like `name`: by the whole name, or by its last part (`lr` is like `optim.lr`).
pub fn nearest(name: &str) -> &'static str {
    let last = |s: &str| s.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |k: &Key| {
        strsim::normalized_damerau_levenshtein(name, k.name).max(0.95 * strsim::normalized_damerau_levenshtein(&last(name), &last(k.name)))
    };
    let best = KEYS.iter().fold(&KEYS[0], |best, k| if likeness(k) > likeness(best) { k } else { best });
    best.name
}

/// The table of `docs/configuration.md`, in Markdown.
pub fn markdown() -> String {
    let mut out = String::from("| setting | default | stage | meaning |\n|---|---|---|---|\n");
    for k in KEYS {
        let mut default = if k.default.is_empty() { "required".to_owned() } else { format!("`{}`", k.default) };
        if !k.ppo.is_empty() {
            let _ = write!(default, "; ppo `{}`", k.ppo);
        }
        let stage = if k.scope == Scope::Stage { "yes" } else { "" };
        let kind = match k.kind {
            Kind::Choice(of) | Kind::Choices(of) => format!(" ({})", of.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")),
            _ => String::new(),
        };
        let _ = writeln!(out, "| `{}` | {default} | {stage} | {}{kind} |", k.name, k.doc);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_the_nearest_is_sensible() {
        let mut names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KEYS.len());
        assert_eq!(nearest("batch_prompt"), "batch_prompts");
        assert_eq!(nearest("lr"), "optim.lr");
        assert_eq!(nearest("optmi.lr"), "optim.lr");
        assert_eq!(nearest("data.trian"), "data.train");
        assert_eq!(nearest("learning_rate"), nearest("learning_rate"));
    }
}
