//! Commit messages: what of them is an issue's text, and which commits they tell to be no fixes.

/// Names and parts of names of accounts that write commits by themselves.
const BOTS: &[&str] = &[
    "dependabot",
    "renovate",
    "greenkeeper",
    "pre-commit-ci",
    "github-actions",
    "pyup",
    "snyk",
    "weblate",
    "transifex",
    "imgbot",
    "allcontributors",
];

/// True for an author whose name or address is that of a bot.
pub(super) fn is_bot(name: &str, email: &str) -> bool {
    let (name, email) = (name.to_lowercase(), email.to_lowercase());
    let last_word = name.rsplit(|c: char| !c.is_alphanumeric()).find(|w| !w.is_empty()).unwrap_or("");
    last_word == "bot" || email.contains("[bot]") || BOTS.iter().any(|b| name.contains(b) || email.contains(b))
}

/// True for a message that `git revert` writes, or one of that kind.
pub(super) fn is_revert(message: &str) -> bool {
    let subject = subject(message).to_lowercase();
    subject.starts_with("revert ") || subject.starts_with("revert:") || message.contains("This reverts commit ")
}

/// True for a subject that names a version, alone or as what is released, bumped or begun.
pub(super) fn is_release(message: &str) -> bool {
    let subject = subject(message).to_lowercase();
    let mut words = subject.split(|c: char| c.is_whitespace() || matches!(c, ':' | '(' | ')' | ',')).filter(|w| !w.is_empty()).peekable();
    let first = words.peek().copied().unwrap_or("");
    if is_version(first) {
        return words.count() == 1;
    }
    match first {
        "bump" => subject.contains("version") || words.any(is_version),
        "release" | "releasing" | "released" | "version" | "start" | "begin" | "prepare" | "preparing" | "prep" | "tag" => {
            let rest: Vec<&str> = words.collect();
            rest.iter().any(|w| is_version(w)) || (rest.len() <= 4 && rest[1..].contains(&"release"))
        }
        "chore" => subject.starts_with("chore(release)") || subject.starts_with("chore: release"),
        _ => false,
    }
}

/// Words that a fix is told by, in its message.
const FIXING: &[&str] = &[
    "fix",
    "fixes",
    "fixed",
    "fixing",
    "bugfix",
    "bugfixes",
    "hotfix",
    "bug",
    "bugs",
    "resolve",
    "resolves",
    "resolved",
    "closes",
    "crash",
    "crashes",
    "crashed",
    "crashing",
    "regression",
    "regressions",
    "broken",
    "breaks",
    "breakage",
    "wrong",
    "wrongly",
    "incorrect",
    "incorrectly",
    "invalid",
    "correct",
    "corrects",
    "corrected",
    "repair",
    "repairs",
    "prevent",
    "prevents",
    "avoid",
    "avoids",
    "error",
    "errors",
    "exception",
    "exceptions",
    "failure",
    "failures",
    "fails",
    "failing",
    "leak",
    "leaks",
    "deadlock",
    "overflow",
    "segfault",
    "segfaults",
    "panic",
    "panics",
    "issue",
    "issues",
    "typo",
];

/// True for a message one of whose words tells a fix.
pub(super) fn is_fix(message: &str) -> bool {
    message.split(|c: char| !c.is_alphanumeric()).any(|w| FIXING.contains(&w.to_ascii_lowercase().as_str()))
}

/// What a hosted merge commit says below its first line (the pull request's title); for another message, the whole of it.
pub(super) fn without_merge_line(message: &str) -> &str {
    let Some((first, rest)) = message.trim_start().split_once('\n') else { return message };
    if first.starts_with("Merge ") && !rest.trim().is_empty() { rest.trim_start() } else { message }
}

/// `1.2`, `v1.2.3`, `2.0.0rc1`, `0.9.dev0`.
fn is_version(word: &str) -> bool {
    let rest = word.strip_prefix('v').unwrap_or(word);
    rest.starts_with(|c: char| c.is_ascii_digit())
        && rest.contains('.')
        && rest.chars().all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c))
}

fn subject(message: &str) -> &str {
    message.trim_start().lines().next().unwrap_or("").trim()
}

/// The message without the trailers at its end (`Signed-off-by`, `Co-authored-by`, ...) and without white space around it.
pub(super) fn without_trailers(message: &str) -> String {
    let mut lines: Vec<&str> = message.trim().lines().map(str::trim_end).collect();
    while let Some(last) = lines.last() {
        // A subject stays, whatever it looks like.
        if lines.len() > 1 && (last.is_empty() || is_trailer(last)) {
            lines.pop();
        } else {
            break;
        }
    }
    lines.join("\n")
}

fn is_trailer(line: &str) -> bool {
    if line.starts_with("(cherry picked from commit ") || line.starts_with("git-svn-id: ") {
        return true;
    }
    let Some((key, value)) = line.split_once(':') else { return false };
    let key = key.trim().to_ascii_lowercase();
    let known =
        ["cc", "change-id", "reviewed-on", "differential revision", "piperorigin-revid", "approved-by-id", "source-link", "commit-queue"];
    let by = key.ends_with("-by") && key.chars().all(|c| c.is_ascii_alphabetic() || c == '-');
    !value.trim().is_empty() && (by || known.contains(&key.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bots_are_known_by_name_or_address() {
        assert!(is_bot("dependabot[bot]", "49699333+dependabot[bot]@users.noreply.github.com"));
        assert!(is_bot("Renovate", "bot@renovateapp.com"));
        assert!(is_bot("my-ci-bot", "x@y"));
        assert!(!is_bot("Abbott", "abbott@example.com"));
        assert!(!is_bot("Robot Fan", "fan@example.com"));
    }

    #[test]
    fn releases_and_reverts() {
        for text in
            ["1.2.3", "v2.0", "Bump version to 8.1", "bump version", "Release 1.0.0", "release version 7.1.2", "start version 8.2.0.dev0"]
        {
            assert!(is_release(text), "{text}");
        }
        for text in ["Prepare for release", "chore(release): publish"] {
            assert!(is_release(text), "{text}");
        }
        for text in [
            "Fix crash in release mode",
            "Bump the recursion limit",
            "1.2 broke parsing of options",
            "Version sort is wrong",
            "release the lock",
            "",
        ] {
            assert!(!is_release(text), "{text}");
        }
        assert!(is_revert("Revert \"x\"\n\nThis reverts commit abc.") && is_revert("revert: x") && !is_revert("Reverting is slow"));
    }

    #[test]
    fn fixes_and_merges() {
        assert!(is_fix("Stop the crash on start") && is_fix("fix(core): x") && !is_fix("Add a prefix to names"));
        assert_eq!(without_merge_line("Merge pull request #7 from a/b\n\nMend it\n"), "Mend it\n");
        assert_eq!(without_merge_line("Merge branch 'x'"), "Merge branch 'x'");
        assert_eq!(without_merge_line("Mend it\n\nbecause"), "Mend it\n\nbecause");
    }

    #[test]
    fn trailers_go_and_the_rest_stays() {
        let message = "\nFix it\n\nBecause: of this\n\nCloses #3\n\nSigned-off-by: A <a@b>\nCo-authored-by: C <c@d>\n\nReviewed-By: x\n";
        assert_eq!(without_trailers(message), "Fix it\n\nBecause: of this\n\nCloses #3");
        assert_eq!(without_trailers("Reviewed-by: x"), "Reviewed-by: x");
        assert_eq!(without_trailers("a\n\n(cherry picked from commit 123)\n"), "a");
        assert_eq!(without_trailers(""), "");
    }
}
