//! Pages of HTML that stand alone: one style, charts as inline SVG, no scripts, nothing from elsewhere. Used by the report of a training run
//! and by that of an evaluation.

pub mod chart;

/// The style sheet of all pages.
pub const STYLE: &str = include_str!("style.css");

/// A whole page: `title` and `version` are escaped, `body` and `made_from` stand as they are.
pub fn page(title: &str, body: &str, made_from: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>\n{STYLE}</style></head><body><main>\n<h1>{title}</h1>{body}\n\
         <footer>Made by sorft-native {version} from {made_from}.</footer>\n</main></body></html>\n",
        title = chart::escape(title),
        version = env!("CARGO_PKG_VERSION"),
    )
}
