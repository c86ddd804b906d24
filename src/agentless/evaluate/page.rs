//! `eval.html`: an evaluation as a page, with its tables and the curves of what several samples reach together.

use std::fmt::Write as _;

use super::table::{BREAKDOWN, PATCHES, percent, place_rows};
use super::{Interval, Summary};
use crate::page::chart::{Chart, Series, escape};
use crate::page::page;

/// The page. `settings` are what the run was made with, as text.
pub fn render(title: &str, summary: &Summary, settings: &str) -> String {
    let mut body = format!(
        "<p class=\"lead\">{} tasks of {} repositories &middot; percent, with 95 % bootstrap intervals clustered by repository</p>\n",
        summary.tasks,
        summary.repositories.len()
    );
    body += &html_table(&["localised", "any gold element", "all gold elements", "named"], place_rows(summary).iter().map(|r| r.to_vec()));
    let patches = PATCHES.iter().filter_map(|(name, label)| {
        let mean = summary.numbers.get(*name)?;
        Some(vec![(*label).to_owned(), percent(&mean.interval), mean.tasks.to_string()])
    });
    body += &html_table(&["patches", "", "tasks"], patches);
    let charts: String = charts(summary).iter().map(Chart::render).collect();
    if !charts.is_empty() {
        let _ = write!(
            body,
            "<h2>Curves</h2><p class=\"lead\">The best of k samples, expected, against k.</p><div class=\"charts\">{charts}</div>"
        );
    }
    body += "<h2>By repository</h2>";
    let shown: Vec<_> = BREAKDOWN.iter().filter(|(name, _)| summary.numbers.contains_key(*name)).collect();
    let head: Vec<&str> = ["repository", "tasks"].into_iter().chain(shown.iter().map(|(_, label)| *label)).collect();
    let rows = summary.repositories.iter().map(|(repo, of)| {
        let cells = shown.iter().map(|(name, _)| of.numbers.get(*name).map_or("-".to_owned(), |v| format!("{:.1}", 100.0 * v)));
        [repo.clone(), of.tasks.to_string()].into_iter().chain(cells).collect()
    });
    body += &html_table(&head, rows);
    if !summary.no_patch.is_empty() {
        body += "<h2>Tasks without a patch</h2>";
        let rows = summary.no_patch.iter().map(|(reason, n)| vec![reason.clone(), n.to_string()]);
        body += &html_table(&["reason", "tasks"], rows);
    }
    let _ = write!(body, "<h2>Settings</h2><details><summary>As the run was made</summary><pre>{}</pre></details>", escape(settings));
    page(title, &body, "tasks.jsonl and settings.json of the evaluation's folder")
}

fn html_table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = String::from("<div class=\"scroll\"><table><tr>");
    head.iter().for_each(|h| out += &format!("<th>{}</th>", escape(h)));
    out += "</tr>";
    for row in rows {
        out += "<tr>";
        row.iter().for_each(|cell| out += &format!("<td>{}</td>", escape(cell)));
        out += "</tr>";
    }
    out + "</table></div>\n"
}

fn charts(summary: &Summary) -> Vec<Chart> {
    const CHARTS: [(&str, &[(&str, &str)]); 5] = [
        ("Files localised", &[("file.any", "any gold file"), ("file.all", "all gold files")]),
        ("Functions localised", &[("function.any", "any gold function"), ("function.all", "all gold functions")]),
        ("Lines localised", &[("line.any", "any gold line"), ("line.all", "all gold lines")]),
        ("Places that the patch edits", &[("patch.function.all", "all gold functions"), ("patch.line.any", "any gold line")]),
        ("Patches", &[("patch.applied", "applied"), ("patch.similarity", "similarity to gold"), ("patch.exact", "the same as gold")]),
    ];
    let series = |name: &str, label: &str| {
        let curve = summary.coverage.get(name).filter(|c| c.len() > 1)?;
        let at = |k: usize| (k + 1) as f64;
        let point = |(k, i): (usize, &Interval)| (at(k), i.mean);
        let band = |(k, i): (usize, &Interval)| (at(k), i.low, i.high);
        let (points, band) = (curve.iter().enumerate().map(point).collect(), curve.iter().enumerate().map(band).collect());
        Some(Series { name: label.to_owned(), points, band, marked: curve.len() <= 40, plain: true })
    };
    let chart = |(title, of): &(&str, &[(&str, &str)])| Chart {
        title: (*title).to_owned(),
        caption: "best of k samples, 95 % intervals".to_owned(),
        series: of.iter().filter_map(|(name, label)| series(name, label)).collect(),
        boundaries: Vec::new(),
        within: Some((0.0, 1.0)),
    };
    CHARTS.iter().map(chart).filter(|c| !c.is_empty()).collect()
}
