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
            Kind::Choice(of) => format!("one of {}", of.iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(", ")),
            Kind::Bool => "true or false".into(),
            Kind::Integer(min) => format!("a whole number of at least {min}"),
            Kind::Number(min, max) if *max == f64::MAX => format!("a number of at least {min}"),
            Kind::Number(min, max) => format!("a number from {min} to {max}"),
            Kind::Betas => "two numbers from 0 to below 1, such as [0.9, 0.999]".into(),
            Kind::Clip => "a number from 0 to 1, or two: [below, above]".into(),
        }
    }
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
    /// Where it may stand.
    pub scope: Scope,
    /// What it means.
    pub doc: &'static str,
}

const ANY: f64 = f64::MAX;

const fn run(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, scope: Scope::Run, doc }
}

const fn stage(name: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { name, kind, default, scope: Scope::Stage, doc }
}

/// Every setting, in the order in which they are documented and written.
#[rustfmt::skip]
pub static KEYS: &[Key] = &[
    run("model", Kind::Model, "", "The model to train: a Hugging Face folder, a `.gguf` file, or a hub id `owner/name`."),
    run("adapter", Kind::Path, "\"\"", "A PEFT LoRA folder to go on training from; its rank, alpha and targets hold. Empty: none."),
    run("seed", Kind::Integer(0), "0", "All randomness (data order, sampling, initialisation) follows from it."),
    stage("algorithm", Kind::Choice(&["sft", "grpo", "ppo"]), "\"sft\"", "What is trained: supervised fine-tuning on gold answers or token lines, GRPO on rewards, or PPO (not in this version)."),
    stage("steps", Kind::Integer(1), "100", "Optimizer batches of the stage."),
    stage("data.train", Kind::Paths, "", "Task files, or for `sft` files of `{\"ids\", \"loss_mask\"}` or `{\"messages\", \"answer\"}` lines. Several are read one after another."),
    run("data.heldout", Kind::Paths, "[]", "Task files for evaluation; never trained on."),
    stage("data.shuffle", Kind::Bool, "true", "A fresh order every epoch, keyed by the seed; `false` keeps the files' order."),
    stage("batch_prompts", Kind::Integer(1), "8", "Prompts (or token lines) in an optimizer batch."),
    stage("group_size", Kind::Integer(1), "8", "Answers sampled for each prompt (GRPO)."),
    stage("max_prompt_tokens", Kind::Integer(16), "2048", "Longest prompt in tokens, chat template included; the issue's text is cut to fit. The top-level value holds for evaluations."),
    stage("max_new_tokens", Kind::Integer(1), "256", "Longest answer in tokens. The top-level value holds for evaluations."),
    stage("temperature", Kind::Number(0.01, 100.0), "1.0", "Logits are divided by it before the softmax, in sampling and in training alike. Supervised training always uses 1."),
    stage("microbatch_tokens", Kind::Integer(1), "4096", "Whole trees (a prompt and its answers) are processed together up to this many tokens. Bounds memory; changes no result."),
    run("rollout_batch", Kind::Integer(1), "64", "Answers decoded together. Bounds memory; changes no result."),
    stage("updates_per_batch", Kind::Integer(1), "1", "Optimizer updates on each batch of answers (the GRPO paper's mu). With 1 every ratio is exactly 1."),
    stage("activation_checkpointing", Kind::Bool, "false", "Keep only each block's input and recompute the rest in the backward pass: less memory, more time."),
    run("subtask", Kind::Choice(&["file", "repair"]), "\"file\"", "What is asked about a task: which files to change (SoRFT), or the change itself, from whole files (SWE-RL; the reward is the similarity of patches, or with `reward.score = \"exact\"` 1 for the gold patches and else 0)."),
    run("prompt.chat", Kind::Bool, "true", "Prompts go through the model's chat template, where it has one."),
    run("prompt.universe", Kind::Choice(&["files", "tree"]), "\"files\"", "Candidates of file localisation: the task's `files`, or the whole tree (`all_paths`)."),
    run("prompt.order", Kind::Choice(&["alphabetical", "shuffled", "lexical", "lexical_paths"]), "\"alphabetical\"", "Order of the candidates: as a directory listing has them, a permutation keyed by the seed and the task, or the best lexical match with the issue first (BM25 over paths and contents, or over paths alone)."),
    run("prompt.names", Kind::Bool, "false", "Show, beside each candidate, names that it defines."),
    run("prompt.lexical", Kind::Choice(&["none", "score", "rank", "words"]), "\"none\"", "Show how well each candidate's words match the issue's (BM25): not at all, a digit, the rank of the best five, or the words in common."),
    run("prompt.min_issue_tokens", Kind::Integer(0), "48", "Tokens of the issue that are kept before anything else is cut."),
    run("prompt.answers", Kind::Integer(0), "0", "File localisation: how many files an answer is to name. The prompt asks for so many, and gold answers that name fewer go on with the best lexical matches. 0: as many as it takes."),
    run("prompt.template", Kind::Path, "\"\"", "A Jinja template in place of the built-in prompt. Empty: the built-in one."),
    stage("reward.score", Kind::Choice(&["fbeta", "f1", "exact", "hit"]), "\"fbeta\"", "The reward: F-beta (SoRFT), F1, exact match, or hit (1 if any gold element is named)."),
    run("reward.beta", Kind::Number(0.01, 100.0), "3.0", "Beta of F-beta: 3 weighs recall nine times, as SoRFT does."),
    stage("optim.lr", Kind::Number(0.0, ANY), "1e-5", "Peak learning rate of AdamW."),
    stage("optim.schedule", Kind::Choice(&["cosine", "linear", "constant"]), "\"cosine\"", "Shape of the learning rate over the stage, after the warm-up."),
    stage("optim.warmup", Kind::Number(0.0, ANY), "0.0", "Warm-up: a number of steps (1 or more), or a part of the stage's steps (below 1)."),
    stage("optim.weight_decay", Kind::Number(0.0, ANY), "0.0", "Decoupled weight decay, on matrices."),
    stage("optim.decay_norms_and_biases", Kind::Bool, "false", "Weight decay on norms and biases as well."),
    stage("optim.betas", Kind::Betas, "[0.9, 0.999]", "Decay rates of AdamW's moments."),
    stage("optim.eps", Kind::Number(1e-20, 1.0), "1e-8", "Added to the root of the second moment."),
    stage("optim.max_grad_norm", Kind::Number(0.0, ANY), "1.0", "Gradients are scaled down to this 2-norm over all tensors; 0 for no clipping."),
    run("lora.rank", Kind::Integer(0), "0", "Rank of a fresh LoRA adapter; 0 trains all parameters."),
    run("lora.alpha", Kind::Number(0.0, ANY), "16.0", "The adapter's scale is alpha / rank."),
    run("lora.targets", Kind::Texts, "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]", "Modules that get an adapter."),
    stage("kl.coef", Kind::Number(0.0, ANY), "0.0", "Weight of the KL penalty to the reference policy (k3 estimate, in the loss)."),
    stage("kl.measure", Kind::Bool, "true", "Measure the KL to the reference even where its weight is 0; costs a forward pass, and a second copy of the weights unless LoRA is trained."),
    stage("kl.reference", Kind::Choice(&["start", "base"]), "\"start\"", "The reference: the policy at the start of the stage, or the model as it was loaded (with LoRA: the adapter off)."),
    stage("clip", Kind::Clip, "0.2", "The ratio is held in [1 - below, 1 + above]; one number stands for both."),
    stage("loss.aggregation", Kind::Choice(&["token", "sequence"]), "\"token\"", "GRPO's loss: the mean over all tokens of the batch (DAPO), or over sequences of their token means (the GRPO paper)."),
    stage("entropy.coef", Kind::Number(0.0, ANY), "0.0", "Weight of the entropy bonus."),
    stage("advantage.std", Kind::Choice(&["sample", "population", "none"]), "\"sample\"", "What a group's deviations are divided by: the deviation with divisor n - 1, with divisor n, or nothing (Dr. GRPO)."),
    stage("advantage.eps", Kind::Number(0.0, 1.0), "1e-4", "Added to that deviation."),
    stage("max_skipped", Kind::Integer(1), "5", "After this many skipped steps in a row (a loss or gradient that is not finite) the run stops."),
    run("eval.every", Kind::Integer(0), "0", "Evaluate on `data.heldout` every this many steps; 0: only at the start and at the end of each stage."),
    run("eval.at_start", Kind::Bool, "true", "Evaluate before the first step."),
    run("eval.tasks", Kind::Integer(0), "0", "Evaluate on the first this many held-out tasks; 0: on all."),
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
        let default = if k.default.is_empty() { "required".to_owned() } else { format!("`{}`", k.default) };
        let stage = if k.scope == Scope::Stage { "yes" } else { "" };
        let kind = match k.kind {
            Kind::Choice(of) => format!(" ({})", of.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ")),
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
