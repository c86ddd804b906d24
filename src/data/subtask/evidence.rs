//! What a prompt says of each candidate beside its path. Everything here is a function of the issue and of the files, never of the
//! gold patch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::data::lexical::{self, Field, Ranking};
use crate::data::symbols::top_level_names;
use crate::{Error, Result};

/// How a candidate's lexical match with the issue is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lexical {
    /// Not at all.
    #[default]
    None,
    /// A digit from 1 to 9: the score as tenths of the best score, rounded down, the best being 9. Less than a tenth is not shown.
    Score,
    /// `#1` to `#5` for the five best.
    Rank,
    /// The words that the issue and the file share, the rarest among the candidates first.
    Words,
}

/// Which evidence a prompt carries. By default none: paths alone. In JSON it is its text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Evidence {
    /// The names that each file defines at its top level; those that share words with the issue come first.
    pub names: bool,
    /// The lexical match.
    pub lexical: Lexical,
}

impl FromStr for Evidence {
    type Err = Error;

    /// Reads `paths` (nothing beside them), or a list with commas of `names` and at most one of `score`, `rank` and `words`.
    fn from_str(text: &str) -> Result<Self> {
        let mut evidence = Self::default();
        for word in text.split(',').map(str::trim) {
            let lexical = match word {
                "paths" => Lexical::None,
                "names" => {
                    evidence.names = true;
                    continue;
                }
                "score" => Lexical::Score,
                "rank" => Lexical::Rank,
                "words" => Lexical::Words,
                other => {
                    let hint = "expected `paths`, or some of names, score, rank, words with commas between them";
                    return Err(Error::usage(format!("there is no evidence `{other}`")).hint(hint));
                }
            };
            if lexical != Lexical::None && evidence.lexical != Lexical::None {
                return Err(Error::usage("only one of score, rank and words can be shown").hint("choose one of them"));
            }
            evidence.lexical = if lexical == Lexical::None { evidence.lexical } else { lexical };
        }
        Ok(evidence)
    }
}

impl TryFrom<String> for Evidence {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Evidence> for String {
    fn from(evidence: Evidence) -> Self {
        evidence.to_string()
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lexical = match self.lexical {
            Lexical::None => None,
            Lexical::Score => Some("score"),
            Lexical::Rank => Some("rank"),
            Lexical::Words => Some("words"),
        };
        let parts: Vec<&str> = self.names.then_some("names").into_iter().chain(lexical).collect();
        f.write_str(if parts.is_empty() { "paths".to_owned() } else { parts.join(",") }.as_str())
    }
}

/// A candidate's evidence: a mark, and a list that can be cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// A score or a rank; empty for none.
    pub mark: String,
    /// Words or names, the most telling first.
    pub items: Vec<String>,
}

impl Note {
    /// The note as the prompt shows it, with at most `items` items, and without its mark if `mark` is false.
    pub fn show(&self, items: usize, mark: bool) -> String {
        let mark = Some(self.mark.as_str()).filter(|m| mark && !m.is_empty());
        mark.into_iter().chain(self.items.iter().take(items).map(String::as_str)).collect::<Vec<_>>().join(" ")
    }
}

impl Evidence {
    /// The evidence of each candidate, its scores by `ranking`; contents that `files` does not have give none.
    pub fn notes(&self, issue: &str, candidates: &[String], files: &BTreeMap<String, String>, ranking: Ranking) -> Vec<Note> {
        let mut notes = vec![Note::default(); candidates.len()];
        match self.lexical {
            Lexical::None => {}
            Lexical::Words => {
                let words = lexical::index(candidates, files, Field::Content).matched_words(issue);
                notes.iter_mut().zip(words).for_each(|(note, words)| note.items = words);
            }
            Lexical::Score | Lexical::Rank => self.marks(&lexical::scores(issue, candidates, files, ranking), &mut notes),
        }
        if self.names {
            let wanted = words_of(issue);
            let names: Vec<Vec<String>> =
                candidates.iter().map(|path| files.get(path).map(|text| top_level_names(path, text)).unwrap_or_default()).collect();
            let rarity = rarity(&names);
            for (note, mut names) in notes.iter_mut().zip(names) {
                names.sort_by_cached_key(|name| std::cmp::Reverse(match_weight(name, &wanted, &rarity)));
                note.items.extend(names);
            }
        }
        notes
    }

    fn marks(&self, scores: &[f64], notes: &mut [Note]) {
        let best = scores.iter().copied().fold(0.0, f64::max);
        let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] > 0.0).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        for (rank, i) in order.into_iter().enumerate() {
            let tenths = ((scores[i] / best * 10.0) as usize).min(9);
            match self.lexical {
                Lexical::Score if tenths > 0 => notes[i].mark = tenths.to_string(),
                Lexical::Rank if rank < 5 => notes[i].mark = format!("#{}", rank + 1),
                _ => {}
            }
        }
    }
}

fn words_of(text: &str) -> BTreeSet<String> {
    let mut set = BTreeSet::new();
    lexical::words(text, |w| {
        set.insert(w.to_owned());
    });
    set
}

/// In how many candidates' names each word stands.
fn rarity(names: &[Vec<String>]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for set in names.iter().map(|names| words_of(&names.join(" "))) {
        set.into_iter().for_each(|w| *counts.entry(w).or_insert(0) += 1);
    }
    counts
}

/// How much a name's words tell of the issue: thousandths of the sum of 1 / (candidates with the word) over the shared words.
fn match_weight(name: &str, wanted: &BTreeSet<String>, rarity: &HashMap<String, usize>) -> usize {
    words_of(name).iter().filter(|w| wanted.contains(*w)).map(|w| 1000 / rarity.get(w).copied().unwrap_or(1).max(1)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_has_names() {
        for text in ["paths", "names", "score", "names,rank", "words"] {
            assert_eq!(text.parse::<Evidence>().unwrap().to_string(), text);
        }
        assert_eq!(" rank , names".parse::<Evidence>().unwrap().to_string(), "names,rank");
        assert!("score,rank".parse::<Evidence>().is_err() && "name".parse::<Evidence>().is_err() && "".parse::<Evidence>().is_err());
    }

    #[test]
    fn notes_by_hand() {
        let files = BTreeMap::from([
            ("a.py".to_owned(), "class Alpha:\n    pass\ndef parse_option():\n    'zebra zebra'\n".to_owned()),
            ("b.py".to_owned(), "def beta():\n    'zebra'\n".to_owned()),
            ("c.py".to_owned(), "def gamma(): pass\n".to_owned()),
        ]);
        let known: Vec<String> = files.keys().cloned().collect();
        let and_unknown: Vec<String> = known.iter().cloned().chain(["d.py".to_owned()]).collect();
        let show = |names, lexical, candidates: &[String]| {
            let notes = Evidence { names, lexical }.notes("The zebra option of beta", candidates, &files, Ranking::Bm25(Field::Content));
            notes.iter().map(|n| n.show(9, true)).collect::<Vec<_>>()
        };
        assert_eq!(show(false, Lexical::None, &and_unknown), ["", "", "", ""]);
        assert_eq!(show(true, Lexical::None, &and_unknown), ["parse_option Alpha", "beta", "gamma", ""]);
        assert_eq!(show(false, Lexical::Words, &and_unknown), ["option zebra", "beta zebra", "", ""]);
        let ranks = show(false, Lexical::Rank, &known);
        assert!(ranks[..2].iter().all(|r| r == "#1" || r == "#2") && ranks[2].is_empty(), "{ranks:?}");
        let scores = show(false, Lexical::Score, &known);
        assert!(scores.contains(&"9".to_owned()) && scores[2].is_empty(), "{scores:?}");
        assert_eq!(show(false, Lexical::Score, &and_unknown), [""; 4], "where a content is not known, paths alone count");
        assert_eq!(Note { mark: "9".into(), items: vec!["x".into(), "y".into()] }.show(1, false), "x");
    }
}
