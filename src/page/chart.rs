//! Line charts as inline SVG: axes with round ticks, a raw and a smoothed line, bands, stage boundaries. Colours are CSS variables, so one
//! drawing serves a light and a dark page.

use std::fmt::Write as _;

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 30.0;
/// More points than this are averaged in buckets: the eye cannot tell them apart.
const MOST_POINTS: usize = 600;

/// One line of a chart.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Its name in the legend; empty for none.
    pub name: String,
    /// Points (x, y) with ascending x. Points that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// The area between low and high (x, low, high).
    pub band: Vec<(f64, f64, f64)>,
    /// Mark each point (few points, such as evaluations) instead of smoothing them.
    pub marked: bool,
    /// Draw the points as they are: the line is not noisy.
    pub plain: bool,
}

/// A chart.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What that means, in a few words.
    pub caption: String,
    /// Its lines.
    pub series: Vec<Series>,
    /// Where a stage ends.
    pub boundaries: Vec<f64>,
    /// Bounds that the y axis does not leave.
    pub within: Option<(f64, f64)>,
}

/// A linear map from data to the drawing.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn at(&self, v: f64) -> f64 {
        self.from + (v - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

impl Chart {
    /// Whether there is anything to draw.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|s| !s.points.iter().any(|p| p.1.is_finite()))
    }

    /// The drawing as an HTML `<figure>`.
    pub fn render(&self) -> String {
        let series: Vec<Series> = self.series.iter().map(Series::cleaned).filter(|s| !s.points.is_empty()).collect();
        let xs = || series.iter().flat_map(|s| s.points.iter().map(|p| p.0));
        let (x_ticks, x) = axis(extent(xs()), None, LEFT, WIDTH - RIGHT, 6, true);
        let (y_ticks, y) = axis(extent(series.iter().flat_map(Series::y_values)), self.within, HEIGHT - BOTTOM, TOP, 5, false);
        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><g class=\"axis\">", escape(&self.title));
        for t in &y_ticks {
            let at = y.at(*t);
            let _ = write!(svg, "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>", WIDTH - RIGHT);
            let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 7.0, at + 3.5, label(*t, &y_ticks));
        }
        for t in &x_ticks {
            let (at, below) = (x.at(*t), HEIGHT - BOTTOM + 16.0);
            let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{below:.1}\" text-anchor=\"middle\">{}</text>", label(*t, &x_ticks));
        }
        svg.push_str("</g>");
        for b in self.boundaries.iter().filter(|b| (x.low..=x.high).contains(*b)) {
            let at = x.at(*b);
            let _ = write!(svg, "<line class=\"stage\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>", HEIGHT - BOTTOM);
        }
        for (i, s) in series.iter().enumerate() {
            s.draw(i % 4 + 1, &self.boundaries, &x, &y, &mut svg);
        }
        svg.push_str("</svg>");
        let legend: String = series
            .iter()
            .enumerate()
            .filter(|(_, s)| !s.name.is_empty())
            .map(|(i, s)| format!("<span class=\"key c{}\">{}</span>", i % 4 + 1, escape(&s.name)))
            .collect();
        format!(
            "<figure><figcaption><b>{}</b> <small>{}</small>{legend}</figcaption>{svg}</figure>",
            escape(&self.title),
            escape(&self.caption)
        )
    }
}

impl Series {
    fn cleaned(&self) -> Self {
        let points: Vec<(f64, f64)> = self.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
        let band: Vec<(f64, f64, f64)> = self.band.iter().copied().filter(|b| b.1.is_finite() && b.2.is_finite()).collect();
        let bucket = points.len().div_ceil(MOST_POINTS).max(1);
        let mean = |chunk: &[(f64, f64)]| {
            let n = chunk.len() as f64;
            (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
        };
        let band_mean = |chunk: &[(f64, f64, f64)]| {
            let n = chunk.len() as f64;
            let sum = chunk.iter().fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2));
            (sum.0 / n, sum.1 / n, sum.2 / n)
        };
        Self { points: points.chunks(bucket).map(mean).collect(), band: band.chunks(bucket).map(band_mean).collect(), ..self.clone() }
    }

    fn y_values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|p| p.1).chain(self.band.iter().flat_map(|b| [b.1, b.2]))
    }

    fn draw(&self, class: usize, boundaries: &[f64], x: &Axis, y: &Axis, out: &mut String) {
        if self.band.len() > 1 {
            let up = self.band.iter().map(|b| (b.0, b.2));
            let down = self.band.iter().rev().map(|b| (b.0, b.1));
            let _ = write!(out, "<path class=\"band c{class}\" d=\"{}Z\"/>", path(up.chain(down), x, y));
        }
        if self.marked || self.points.len() < 3 {
            let _ = write!(out, "<path class=\"line c{class}\" d=\"{}\"/>", path(self.points.iter().copied(), x, y));
            for b in if self.band.len() == 1 { &self.band[..] } else { &[] } {
                let at = x.at(b.0);
                let _ = write!(out, "<path class=\"line c{class}\" d=\"M{at:.1} {:.1}V{:.1}\"/>", y.at(b.1), y.at(b.2));
            }
            for (px, py) in &self.points {
                let (cx, cy) = (x.at(*px), y.at(*py));
                let tip = format!("{px}: {}", short(*py));
                let _ = write!(out, "<circle class=\"dot c{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.2\"><title>{tip}</title></circle>");
            }
            return;
        }
        // What one stage ends with says nothing of what the next begins with: no line goes across.
        for part in self.points.chunk_by(|a, b| !boundaries.iter().any(|at| (a.0..b.0).contains(at))) {
            let line = if self.plain || part.len() < 24 { part.to_vec() } else { smoothed(part) };
            if line != part {
                let _ = write!(out, "<path class=\"raw c{class}\" d=\"{}\"/>", path(part.iter().copied(), x, y));
            }
            let _ = write!(out, "<path class=\"line c{class}\" d=\"{}\"/>", path(line.into_iter(), x, y));
        }
    }
}

/// A centred moving average over about a twelfth of the line.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = (points.len() / 24).max(1);
    let window = |i: usize| &points[i.saturating_sub(half)..(i + half + 1).min(points.len())];
    (0..points.len()).map(|i| (points[i].0, window(i).iter().map(|p| p.1).sum::<f64>() / window(i).len() as f64)).collect()
}

fn path(points: impl Iterator<Item = (f64, f64)>, x: &Axis, y: &Axis) -> String {
    let mut out = String::new();
    for (i, (px, py)) in points.enumerate() {
        let _ = write!(out, "{}{:.1} {:.1}", if i == 0 { 'M' } else { 'L' }, x.at(px), y.at(py));
    }
    out
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low.is_finite() { (low, high) } else { (0.0, 1.0) }
}

/// Ticks on round numbers, and the axis: from tick to tick, or `tight` around the data.
fn axis((low, high): (f64, f64), within: Option<(f64, f64)>, from: f64, to: f64, count: usize, tight: bool) -> (Vec<f64>, Axis) {
    let (low, high) = if high - low > 1e-12 * high.abs().max(1e-30) {
        (low, high)
    } else {
        let pad = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
        (low - if tight { 0.0 } else { pad }, high + pad)
    };
    let step = round_step((high - low) / count as f64).max(if tight { 1.0 } else { 0.0 });
    let (first, last) = if tight { ((low / step).ceil(), (high / step).floor()) } else { ((low / step).floor(), (high / step).ceil()) };
    let inside = |t: &f64| within.is_none_or(|(a, b)| *t >= a - 1e-9 && *t <= b + 1e-9);
    let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).filter(inside).collect();
    let (mut a, mut b) = if tight { (low, high) } else { (first * step, last * step) };
    if let Some((least, most)) = within {
        (a, b) = (a.max(least.min(low)), b.min(most.max(high)));
    }
    (ticks, Axis { low: a, high: b, from, to })
}

/// The least of 1, 2, 5 times a power of ten that is at least `v`.
fn round_step(v: f64) -> f64 {
    let power = 10f64.powf(v.log10().floor());
    let lead = v / power;
    power
        * if lead <= 1.0 {
            1.0
        } else if lead <= 2.0 {
            2.0
        } else if lead <= 5.0 {
            5.0
        } else {
            10.0
        }
}

/// A tick's label, with as many decimals as the ticks differ by.
fn label(value: f64, ticks: &[f64]) -> String {
    let step = ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
    let value = if value.abs() < 1e-12 * step.min(1.0) { 0.0 } else { value };
    let largest = ticks.iter().fold(0f64, |m, t| m.max(t.abs()));
    if largest > 0.0 && !(1e-3..1e5).contains(&largest) {
        return if value == 0.0 { "0".into() } else { format!("{value:.1e}").replace(".0e", "e") };
    }
    let decimals = if step.is_finite() { (-step.log10().floor()).clamp(0.0, 6.0) as usize } else { 3 };
    format!("{value:.decimals$}")
}

/// A number for people: about four significant digits.
pub fn short(v: f64) -> String {
    let size = v.abs();
    if v == 0.0 {
        "0".into()
    } else if !(1e-3..1e6).contains(&size) {
        format!("{v:.2e}")
    } else {
        let decimals = (3.0 - size.log10().floor()).clamp(0.0, 4.0) as usize;
        let text = format!("{v:.decimals$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    }
}

/// Text that stands in HTML or in an attribute as it is.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_hold_the_data() {
        let (ticks, axis) = axis((0.013, 0.87), Some((0.0, 1.0)), 0.0, 1.0, 5, false);
        assert_eq!(ticks.iter().map(|t| label(*t, &ticks)).collect::<Vec<_>>(), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert!(axis.low <= 0.013 && axis.high >= 0.87);
        assert_eq!(["0", "0.25", "12.35", "1.00e-5", "123456"].map(String::from), [0.0, 0.25, 12.345678, 1e-5, 123456.0].map(short));
    }

    #[test]
    fn odd_data_draws_without_nonsense() {
        for points in
            [vec![], vec![(1.0, 2.0)], vec![(1.0, 0.0), (2.0, 0.0)], vec![(1.0, f64::NAN), (2.0, 5.0)], vec![(1.0, 1e-9), (2.0, 3e-9)]]
        {
            let chart = Chart { series: vec![Series { points: points.clone(), ..Series::default() }], ..Chart::default() };
            let svg = chart.render();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{points:?}: {svg}");
        }
        let many = (0..5000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        let chart = Chart { series: vec![Series { points: many, ..Series::default() }], ..Chart::default() };
        assert!(chart.render().len() < 40_000);
    }

    #[test]
    fn text_is_escaped() {
        let chart = Chart { title: "<a & \"b\">".into(), ..Chart::default() };
        assert!(chart.render().contains("&lt;a &amp; &quot;b&quot;&gt;"));
    }
}
