//! `fix`: an issue of a repository in, ranked patches out.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::common::{PlaceArgs, load};
use super::eval::{Folder, PipelineArgs, Reporter};
use super::interrupt;
use super::output::{json_line, plural, say, to_stdout};
use crate::agentless::evaluate::why_none;
use crate::agentless::fix::{Proposal, localisation, proposals, task};
use crate::agentless::generator::Local;
use crate::agentless::journal::digest;
use crate::agentless::pipeline::{Product, Settings};
use crate::agentless::records::{self, Ranked, Tests};
use crate::agentless::repository::Repository;
use crate::agentless::run;
use crate::data::Task;
use crate::model::dialogue::Dialogue;
use crate::model::weights::{self, ModelFiles};
use crate::{Error, Result};

/// Propose patches for an issue of a git repository, as diffs that `git apply` takes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The repository: its tracked sources, as they are in the work tree
    #[arg(long, default_value = ".", value_name = "PATH")]
    repo: PathBuf,
    /// The issue's title and text; `-` reads stdin
    #[arg(long, value_name = "FILE")]
    issue: PathBuf,
    /// A Hugging Face folder, a .gguf file, or a hub id owner/name
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// A PEFT LoRA folder
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    #[command(flatten)]
    pub place: PlaceArgs,
    /// How many patches to print, the best first
    #[arg(long, default_value_t = 1, value_name = "K")]
    top: usize,
    /// Write the best patch to the work tree, on a new branch sorft-native/fix-...; refused over uncommitted changes
    #[arg(long)]
    apply: bool,
    /// How many files localisation chooses from: those that match the issue best
    #[arg(long, default_value_t = 100, value_name = "N")]
    candidates: usize,
    /// Keep everything sampled in a folder [default: nothing is kept]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with what --out holds
    #[arg(long, requires = "out")]
    resume: bool,
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(mut args: Args) -> Result<()> {
    args.pipeline.check()?;
    for (flag, value) in [("--top", args.top), ("--candidates", args.candidates)] {
        if value == 0 {
            return Err(Error::usage(format!("{flag} takes a number of at least 1")));
        }
    }
    let issue = read_issue(&args.issue)?;
    let repository = Repository::open(&args.repo)?;
    if args.apply {
        repository.require_clean()?;
    }
    let task = question(&args, &repository, &issue)?;
    let files = weights::open(&args.model)?;
    args.pipeline.learn(&files, args.adapter.as_deref())?;
    let (product, ranked) = answer(&args, &files, &issue, task)?;
    let found = localisation(&product);
    let patches = proposals(&ranked, args.top);
    let Some(best) = patches.first() else {
        let reason = why_none(&product, &ranked);
        let hint = format!("what was localised:\n    {}", found.replace('\n', "\n    "));
        if args.json {
            print(&args, &product, &[], Some(&reason))?;
        }
        return Err(
            Error::input(format!("no patch was found in {}: {reason}", plural(product.candidates.len() as u64, "answer"))).hint(hint)
        );
    };
    say!("{found}");
    print(&args, &product, &patches, None)?;
    if args.apply {
        let branch = repository.apply_on_branch(&best.patch, &format!("sorft-native/fix-{}", &digest(&best.patch)[..8]))?;
        say!("applied on the new branch {branch}; nothing is committed");
    }
    Ok(())
}

/// What the pipeline is asked.
fn question(args: &Args, repository: &Repository, issue: &str) -> Result<Task> {
    let sources = repository.sources()?;
    if sources.is_empty() {
        return Err(Error::input("git tracks no source file of a known language here").at_file(repository.root()));
    }
    let all = sources.len();
    let task = task(&repository.name(), issue, sources, args.candidates);
    if task.files.len() < all {
        say!("the {} of {all} source files that match the issue best are looked at", task.files.len());
    }
    Ok(task)
}

/// Runs the pipeline on the one task.
fn answer(args: &Args, files: &ModelFiles, issue: &str, task: Task) -> Result<(Product, Ranked)> {
    let dialogue = Dialogue::new(files, args.pipeline.chat())?;
    let settings = Settings { fallback: true, ..args.pipeline.resolve(files, &dialogue)? };
    let described = json!({"model": args.model, "adapter": args.adapter.as_deref().map(Path::to_string_lossy), "issue": digest(issue), "candidates": args.candidates,
        "sampling": args.pipeline.describe(), "settings": settings});
    let folder = Folder::open(args.out.as_deref(), args.resume, &described, &[])?;
    interrupt::listen()?;
    let model = load(files, args.adapter.as_deref(), &args.place.device.open()?, args.place.compute)?;
    let mut reporter = Reporter::new(1);
    let local = Local { model: Some(&model), dialogue, sampling: args.pipeline.sampling(), stop: &interrupt::pressed };
    let tasks = [task];
    let mut products = run::sample(folder.path(), &tasks, &settings, &local, true, &mut |p| reporter.tell(p))?;
    let mut ranked = run::rank(&tasks, &products, settings.pipeline, &|_, _| Tests::default())?;
    if args.out.is_some() {
        records::write(folder.path(), &tasks, &products, &ranked)?;
        reporter.write(folder.path())?;
    }
    products.pop().zip(ranked.pop()).ok_or_else(|| Error::input("the pipeline gave nothing"))
}

/// Prints the patches; as JSON also why there is none.
fn print(args: &Args, product: &Product, patches: &[Proposal], error: Option<&str>) -> Result<()> {
    for (i, p) in patches.iter().enumerate() {
        say!("patch {} of {}: {} of {} answers", i + 1, patches.len(), p.votes, product.candidates.len());
    }
    if args.json {
        let (functions, lines) = (product.functions.as_ref().map(|h| &h.merged), product.lines.as_ref().map(|h| &h.merged));
        let best = patches.first().map(|p| &p.patch);
        return json_line(&json!({"files": product.files.merged, "functions": functions, "lines": lines, "patch": best,
            "patches": patches, "error": error}));
    }
    to_stdout(|out| {
        for (i, p) in patches.iter().enumerate() {
            // What stands before a diff says nothing to `git apply`.
            if args.top > 1 {
                writeln!(out, "# patch {} of {}", i + 1, patches.len())?;
            }
            write!(out, "{}", p.patch)?;
        }
        Ok(())
    })
}

fn read_issue(path: &Path) -> Result<String> {
    let text = match path.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Error::io("read", Path::new("stdin"), e))?;
            text
        }
        false => std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?,
    };
    if text.trim().is_empty() {
        return Err(Error::input("the issue is empty").at_file(path).hint("its first line is the title, the rest tells what is wrong"));
    }
    Ok(text)
}
