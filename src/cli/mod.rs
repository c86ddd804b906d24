//! The command line: one file a subcommand. The only place that prints or draws progress bars.

/// Runs the program and returns its exit status.
pub fn run() -> u8 {
    0
}
