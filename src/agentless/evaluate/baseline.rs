//! What a user has for nothing: the files and the definitions whose words match the best (BM25).

use super::judge::Judge;
use crate::data::Task;
use crate::data::lexical::{self, Field, Ranking, definitions};
use crate::data::metrics::SetScore;

/// The best `k` of the candidates, by contents where all are known, else by paths; `fused`: by four rankings at once.
pub(super) fn files(task: &Task, judge: &Judge<'_>, candidates: &[String], k: usize, fused: bool) -> SetScore {
    let ranking = if fused { Ranking::Fused } else { Ranking::Bm25(Field::Content) };
    let mut ranked = lexical::rank(task, candidates, ranking);
    ranked.truncate(k);
    SetScore::new(&ranked, &judge.files, true)
}

/// The best `k` definitions of the files whose contents are known ([`definitions::scores`]); `fused`: by four rankings at once.
pub(super) fn functions(task: &Task, judge: &Judge<'_>, k: usize, fused: bool) -> SetScore {
    let ranking = if fused { Ranking::Fused } else { Ranking::Bm25(Field::Content) };
    let ranked = definitions::ranked(&task.problem_statement, &task.files, ranking);
    let named: Vec<definitions::Named> = ranked.into_iter().take(k).map(|(named, _)| named).collect();
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
        assert_eq!([false, true].map(|fused| functions(&task, &judge, 1, fused).common), [1, 1]);
        assert_eq!(super::files(&task, &judge, &["m.py".to_owned()], 3, true).answers, 1);
    }
}
