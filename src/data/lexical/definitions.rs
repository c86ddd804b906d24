//! Definitions ranked by how well their words match an issue's.

use std::collections::BTreeMap;

use super::{Bm25, Field, Ranking, add_normalised, scores as file_scores, title};
use crate::data::symbols::{Definition, MODULE, definitions};

/// A definition: its path and its qualified name, or [`MODULE`] for what is outside of all definitions of the file.
pub type Named = (String, String);

/// Every definition of the files with its score, by path and name.
///
/// [`Ranking::Bm25`]: BM25, where a document is the path, the qualified name, and the lines that are in no inner definition (of
/// [`Field::Path`] the first two). [`Ranking::Fused`]: four rankings, each divided by its best score, added up: documents as before for the
/// issue and for its first line, qualified names alone, and the score of the file ([`super::fused_scores`]). Equal weights, as for files. Words
/// that the issue repeats are damped ([`Bm25::scores_damped`]): among some 300 definitions of a task they weigh more than among 19 files, where damping
/// changes nothing.
pub fn scores(issue: &str, files: &BTreeMap<String, String>, ranking: Ranking) -> Vec<(Named, f64)> {
    let (mut names, mut texts): (Vec<Named>, Vec<String>) = (Vec::new(), Vec::new());
    for (path, content) in files {
        for (name, text) in own_lines(&definitions(path, content).unwrap_or_default(), content) {
            names.push((path.clone(), name.to_owned()));
            texts.push(text);
        }
    }
    let with_text = ranking != Ranking::Bm25(Field::Path);
    let text_of = |i: usize| if with_text { texts[i].as_str() } else { "" };
    let contents = Bm25::new(names.iter().enumerate().map(|(i, (path, name))| [path.as_str(), name.as_str(), text_of(i)]));
    let found = match ranking {
        Ranking::Bm25(_) => contents.scores(issue),
        Ranking::Fused => {
            let paths: Vec<&String> = files.keys().collect();
            let of_files: BTreeMap<&String, f64> = paths.iter().copied().zip(file_scores(issue, &paths, files, ranking)).collect();
            let mut sum = vec![0.0; names.len()];
            add_normalised(&mut sum, &contents.scores_damped(issue));
            add_normalised(&mut sum, &contents.scores(title(issue)));
            add_normalised(&mut sum, &Bm25::new(names.iter().map(|(_, name)| [name.as_str()])).scores_damped(issue));
            add_normalised(&mut sum, &names.iter().map(|(path, _)| of_files[path]).collect::<Vec<_>>());
            sum
        }
    };
    names.into_iter().zip(found).collect()
}

/// The same, the best first; equal scores by path and name.
pub fn ranked(issue: &str, files: &BTreeMap<String, String>, ranking: Ranking) -> Vec<(Named, f64)> {
    let mut ranked = scores(issue, files, ranking);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked
}

/// For each name of a file, in alphabetical order, the lines whose innermost definition has it; [`MODULE`] is always there.
fn own_lines<'d>(all: &'d [Definition], content: &str) -> BTreeMap<&'d str, String> {
    let mut innermost: Vec<Option<&Definition>> = vec![None; content.lines().count()];
    // An outer definition comes before those in it.
    for d in all {
        let last = d.last.min(innermost.len());
        innermost[(d.first - 1).min(last)..last].iter_mut().for_each(|of_line| *of_line = Some(d));
    }
    let mut out: BTreeMap<&str, String> = all.iter().map(|d| d.name.as_str()).chain([MODULE]).map(|name| (name, String::new())).collect();
    for (line, of_line) in content.lines().zip(innermost) {
        let text = out.entry(of_line.map_or(MODULE, |d| &d.name)).or_default();
        text.push_str(line);
        text.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::symbols::target_of_line;

    const TEXT: &str = "import zebra\n\nclass A:\n    kind = 1\n\n    def parse(self):\n        def inner():\n            pass\n        return inner\n\n\ndef other():\n    pass\n";

    #[test]
    fn lines_belong_to_the_innermost_definition() {
        let all = definitions("a.py", TEXT).unwrap();
        let own = own_lines(&all, TEXT);
        assert_eq!(own.keys().copied().collect::<Vec<_>>(), ["<module>", "A", "A.parse", "A.parse.inner", "other"]);
        for (i, line) in TEXT.lines().enumerate() {
            assert!(own[target_of_line(&all, i + 1)].lines().any(|l| l == line));
        }
        assert_eq!(own.values().map(|text| text.lines().count()).sum::<usize>(), TEXT.lines().count());
        assert_eq!(own_lines(&[], ""), BTreeMap::from([(MODULE, String::new())]));
    }

    #[test]
    fn rankings_by_hand() {
        let files = BTreeMap::from([("a.py", TEXT), ("zebra.py", "def parse():\n    pass\n")].map(|(p, t)| (p.to_owned(), t.to_owned())));
        let best = |issue: &str, ranking| ranked(issue, &files, ranking).swap_remove(0).0.1;
        assert_eq!(best("inner", Ranking::Bm25(Field::Path)), "A.parse.inner");
        assert_eq!(best("import", Ranking::Bm25(Field::Content)), MODULE);
        assert!(scores("import", &files, Ranking::Bm25(Field::Path)).iter().all(|(_, score)| *score == 0.0));
        // Of two functions of one name the one in the file that the issue is about.
        let fused = ranked("parse\nthe zebra", &files, Ranking::Fused);
        assert_eq!(fused[0].0, ("zebra.py".to_owned(), "parse".to_owned()));
        assert!(fused[0].1 <= 4.0 && fused.windows(2).all(|w| w[0].1 >= w[1].1));
        assert!(scores("x", &BTreeMap::new(), Ranking::Fused).is_empty());
    }
}
