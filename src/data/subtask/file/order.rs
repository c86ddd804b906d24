//! Which paths a file prompt lists, and in which order.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which paths a prompt lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Universe {
    /// Those whose contents the task holds: the gold files and some neighbours.
    #[default]
    Files,
    /// The whole tree, as the papers do ([`Task::all_paths`](crate::data::Task::all_paths)).
    Tree,
}

/// In which order a prompt lists them. Neither knows the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As a directory listing has them.
    #[default]
    Alphabetical,
    /// A random order, keyed by the seed and the task's name.
    Shuffled,
    /// The best lexical match with the issue first (BM25 over paths and contents): a retriever's list, to be chosen from.
    Lexical,
    /// The same by the paths alone, for prompts that are to say nothing of contents.
    LexicalPaths,
    /// By four lexical rankings at once ([`lexical::fused_scores`](crate::data::lexical::fused_scores)): a better retriever's list.
    Fused,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "alphabetical" => Ok(Self::Alphabetical),
            "shuffled" => Ok(Self::Shuffled),
            "lexical" => Ok(Self::Lexical),
            "lexical_paths" => Ok(Self::LexicalPaths),
            "fused" => Ok(Self::Fused),
            other => {
                let hint = "expected alphabetical, shuffled, lexical, lexical_paths or fused";
                Err(Error::usage(format!("there is no order `{other}`")).hint(hint))
            }
        }
    }
}
