//! What a run says while it samples, and `timing.jsonl`.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Result;
use crate::agentless::files;
use crate::agentless::session::Progress;
use crate::cli::output::{plural, say};

/// Between two lines of progress.
const PAUSE: Duration = Duration::from_secs(10);

/// A hop under way.
struct Hop {
    name: String,
    begun: Instant,
    answers: usize,
    tokens: usize,
}

/// Prints a line at the beginning of a hop, and then every ten seconds.
pub(crate) struct Reporter {
    tasks: usize,
    hop: Option<Hop>,
    last: Instant,
    lines: Vec<Value>,
}

impl Reporter {
    pub(crate) fn new(tasks: usize) -> Self {
        Self { tasks, hop: None, last: Instant::now(), lines: Vec::new() }
    }

    /// Takes in a report of the session.
    pub(crate) fn tell(&mut self, p: Progress<'_>) {
        if self.hop.as_ref().is_none_or(|h| h.name != p.hop) {
            self.end_hop();
            let there = if p.done > 0 { format!(" ({} there already)", p.done) } else { String::new() };
            say!("{}: {} to {}{there}", p.hop, plural(p.total as u64, "answer"), plural(self.tasks as u64, "task"));
            self.hop = Some(Hop { name: p.hop.to_owned(), begun: Instant::now(), answers: 0, tokens: 0 });
            self.last = Instant::now();
        }
        if let (Some(hop), Some((tokens, _))) = (&mut self.hop, p.newest) {
            hop.answers += 1;
            hop.tokens += tokens;
            if self.last.elapsed() >= PAUSE {
                self.last = Instant::now();
                let rate = hop.tokens as f64 / hop.begun.elapsed().as_secs_f64();
                say!("{}: {} of {}, {rate:.0} tokens/s", p.hop, p.done, plural(p.total as u64, "answer"));
            }
        }
    }

    fn end_hop(&mut self) {
        if let Some(hop) = self.hop.take() {
            let seconds = hop.begun.elapsed().as_secs_f64();
            self.lines.push(json!({"hop": hop.name, "seconds": seconds, "answers": hop.answers, "answer_tokens": hop.tokens}));
        }
    }

    /// Writes `timing.jsonl`: a line a hop, of the last call alone.
    pub(crate) fn write(mut self, dir: &Path) -> Result<()> {
        self.end_hop();
        files::write(&dir.join("timing.jsonl"), &self.lines)
    }
}
