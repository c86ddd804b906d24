//! `kernels/resources.txt`: what every kernel takes of a chip, so that a change is seen in review.

use crate::witness::{HOPPER, Seen};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

/// Ampere, Hopper with its own features, Blackwell with its own.
pub const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90a", "sm_100a"];

/// Of one kernel on one architecture: registers of a thread, bytes of shared memory of a block, bytes spilled by a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub registers: u32,
    pub fixed: u32,
    /// What launches ask for, the most that tests have seen.
    pub dynamic: u32,
    pub spilled: u32,
}

/// Rows by kernel, and by the architecture's place in [`ARCHITECTURES`].
pub type Table = BTreeMap<(String, usize), Row>;

const HEAD: &str = "\
# What every kernel takes of a chip, by NVRTC 13.0: registers of a thread, bytes of shared memory of a block (static; dynamic, the most that a
# launch of the tests asks for; 0 where a kernel is for another chip), and bytes that a thread spills. `cargo test --test ops` compares;
# SORFT_WRITE_RESOURCES=1 writes this file instead.
#
";

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernels/resources.txt")
}

fn read() -> Table {
    let text = std::fs::read_to_string(file()).unwrap_or_default();
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words.get(i)?.parse::<u32>().ok();
        let architecture = ARCHITECTURES.iter().position(|a| Some(a) == words.get(1))?;
        let row = Row { registers: number(2)?, fixed: number(3)?, dynamic: number(4)?, spilled: number(5)? };
        Some(((words[0].to_owned(), architecture), row))
    };
    text.lines().filter(|l| !l.starts_with('#')).skip(1).map(|l| row(l).unwrap_or_else(|| panic!("{}: {l}", file().display()))).collect()
}

fn line((kernel, architecture): &(String, usize), row: &Row) -> String {
    let Row { registers, fixed, dynamic, spilled } = row;
    format!("{kernel:<28} {:<12} {registers:>9} {fixed:>7} {dynamic:>8} {spilled:>8}\n", ARCHITECTURES[*architecture])
}

fn write(table: &Table) {
    let title = format!("{:<28} {:<12} {:>9} {:>7} {:>8} {:>8}\n", "kernel", "architecture", "registers", "static", "dynamic", "spilled");
    let lines: String = table.iter().map(|(key, row)| line(key, row)).collect();
    std::fs::write(file(), format!("{HEAD}{title}{lines}")).expect("the table is written");
}

/// Fails, naming the rows, if the table is not `table` but for `dynamic`.
pub fn check_compiled(mut table: Table) {
    let fill = |table: &mut Table, known: &Table| {
        table.iter_mut().for_each(|(key, row)| row.dynamic = known.get(key).map_or(0, |r| r.dynamic));
    };
    let known = update(|known| {
        fill(&mut table, known);
        known.clone_from(&table);
    });
    fill(&mut table, &known);
    compare(&known, &table);
}

/// The same of `dynamic`, for the kernels that were launched.
pub fn check_dynamic(seen: &BTreeMap<String, Seen>) {
    // Kernels for Hopper alone are empty elsewhere.
    let launched = |(kernel, architecture): &(String, usize)| !kernel.contains("_hopper") || ARCHITECTURES[*architecture] == HOPPER;
    let with_dynamic = |table: &mut Table| {
        let rows = table.iter_mut().filter(|(key, _)| launched(key));
        rows.for_each(|((kernel, _), row)| row.dynamic = seen.get(kernel).map_or(row.dynamic, |s| s.dynamic));
    };
    let known = update(with_dynamic);
    let mut table = known.clone();
    with_dynamic(&mut table);
    compare(&known, &table);
}

/// The table that is committed; where it is to be written, after `change`.
fn update(change: impl FnOnce(&mut Table)) -> Table {
    static FILE: Mutex<()> = Mutex::new(());
    let _alone = FILE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut table = read();
    if std::env::var_os("SORFT_WRITE_RESOURCES").is_some() {
        change(&mut table);
        write(&table);
    }
    table
}

fn compare(known: &Table, found: &Table) {
    let differences: Vec<String> = known
        .iter()
        .filter(|(key, row)| found.get(*key) != Some(*row))
        .map(|(key, row)| format!("- {}", line(key, row)))
        .chain(found.iter().filter(|(key, row)| known.get(*key) != Some(*row)).map(|(key, row)| format!("+ {}", line(key, row))))
        .collect();
    assert!(
        differences.is_empty(),
        "kernels/resources.txt (-) is not what was found (+); SORFT_WRITE_RESOURCES=1 writes it:\n{}",
        differences.concat()
    );
}
