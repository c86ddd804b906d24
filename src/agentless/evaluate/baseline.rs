//! What a user has for nothing: the files and the definitions whose words match the best (BM25).

use std::collections::BTreeSet;

use super::judge::Judge;
use crate::data::Task;
use crate::data::lexical::{self, Bm25, Field, Ranking};
use crate::data::metrics::SetScore;
use crate::data::symbols::{MODULE, definitions, target_of_line};

/// The best `k` of the candidates, by contents where all are known, else by paths; `fused`: by four rankings at once.
pub(super) fn files(task: &Task, judge: &Judge<'_>, candidates: &[String], k: usize, fused: bool) -> SetScore {
    let ranking = if fused { Ranking::Fused } else { Ranking::Bm25(Field::Content) };
    let mut ranked = lexical::rank(task, candidates, ranking);
    ranked.truncate(k);
    SetScore::new(&ranked, &judge.files, true)
}

/// The best `k` definitions of the files whose contents are known; what is outside of all definitions of a file counts as one. A document
/// is the path, the qualified name, and the lines that are in no inner definition.
pub(super) fn functions(task: &Task, judge: &Judge<'_>, k: usize) -> SetScore {
    let (mut names, mut texts): (Vec<(String, String)>, Vec<String>) = (Vec::new(), Vec::new());
    for (path, content) in &task.files {
        let all = definitions(path, content).unwrap_or_default();
        let units: BTreeSet<&str> = all.iter().map(|d| d.name.as_str()).chain([MODULE]).collect();
        let first = names.len();
        for unit in units {
            names.push((path.clone(), unit.to_owned()));
            texts.push(String::new());
        }
        for (i, line) in content.lines().enumerate() {
            let unit = target_of_line(&all, i + 1);
            if let Some(at) = names[first..].iter().position(|(_, name)| name == unit) {
                texts[first + at].extend([line, "\n"]);
            }
        }
    }
    let index = Bm25::new(names.iter().zip(&texts).map(|((path, name), text)| [path.as_str(), name.as_str(), text.as_str()]));
    let scores = index.scores(&task.problem_statement);
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let named: Vec<(String, String)> = order.into_iter().take(k).map(|i| names[i].clone()).collect();
    SetScore::new(&named, &judge.functions, true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn definitions_that_share_words_come_first() {
        let files = json!({"m.py": "import zebra\n\ndef parse_option(x):\n    return x\n\ndef other(y):\n    return y\n"});
        let patch = "--- a/m.py\n+++ b/m.py\n@@ -3,2 +3,2 @@\n def parse_option(x):\n-    return x\n+    return 1\n";
        let task = json!({"instance_id": "o__r-1", "problem_statement": "the option parser", "patch": patch, "files": files});
        let task = Task::from_json(task).unwrap();
        let judge = Judge::new(&task).unwrap();
        assert_eq!(functions(&task, &judge, 1).common, 1);
        assert_eq!(super::files(&task, &judge, &["m.py".to_owned()], 3, true).answers, 1);
    }
}
