//! What do samples say, and is a goal held?

use std::path::Path;

use serde::Serialize;

use crate::say;

/// Samples of one quantity, in its unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value below which this share of the samples is.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let places = (share * sorted.len() as f64).ceil();
        let index = (1..=sorted.len())
            .find(|place| *place as f64 >= places)
            .unwrap_or(1)
            - 1;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match (sorted.get(middle), sorted.len() % 2) {
            (Some(value), 1) => *value,
            (Some(value), _) => f64::midpoint(*value, sorted[middle - 1]),
            (None, _) => f64::NAN,
        }
    }

    pub(crate) fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// How far two halves of the same quantity lie apart: every second sample against the others, as a share of the median.
    pub(crate) fn spread(&self) -> f64 {
        let half = |rest: usize| Self(self.0.iter().copied().skip(rest).step_by(2).collect());
        apart(&half(0), &half(1))
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// How far the medians of two series of the same thing lie apart, as a share of their mean: an A/A run's result.
pub(crate) fn apart(a: &Samples, b: &Samples) -> f64 {
    let (a, b) = (a.median(), b.median());
    if a.is_finite() && b.is_finite() && a + b > 0.0 {
        2.0 * (a - b).abs() / (a + b)
    } else {
        0.0
    }
}

/// What is said of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Verdict {
    #[serde(rename = "held")]
    Held,
    #[serde(rename = "missed")]
    Missed,
    /// The goal lies within the spread, or there is no goal.
    #[serde(rename = "not judged")]
    NotJudged,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    name: &'static str,
    value: f64,
    unit: &'static str,
    /// The value must not be larger.
    goal: Option<f64>,
    verdict: Verdict,
    /// As a share of the value.
    spread: f64,
}

/// A goal is held or missed if it would be so at both ends of the spread.
fn judge(value: f64, goal: Option<f64>, spread: f64) -> Verdict {
    match goal {
        Some(goal) if value * (1.0 + spread) <= goal => Verdict::Held,
        Some(goal) if value * (1.0 - spread) > goal => Verdict::Missed,
        _ => Verdict::NotJudged,
    }
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<Figure>);

impl Report {
    /// Adds a figure and prints its line.
    pub(crate) fn add(
        &mut self,
        name: &'static str,
        value: f64,
        unit: &'static str,
        goal: Option<f64>,
        spread: f64,
    ) {
        let verdict = judge(value, goal, spread);
        let goal_text = goal.map_or_else(String::new, |goal| format!(", goal at most {goal}"));
        let verdict_text = match (verdict, goal) {
            (Verdict::Held, _) => "held",
            (Verdict::Missed, _) => "MISSED",
            (Verdict::NotJudged, Some(_)) => "not judged: the goal is within the spread",
            (Verdict::NotJudged, None) => "reported, not judged",
        };
        say(&format!(
            "{name}: {value:.3} {unit} (spread {:.0} %{goal_text}): {verdict_text}",
            spread * 100.0
        ));
        self.0.push(Figure {
            name,
            value,
            unit,
            goal,
            verdict,
            spread,
        });
    }

    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut text = serde_json::to_string_pretty(&self.0)?;
        text.push('\n');
        std::fs::write(path, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_within_the_spread_is_not_judged() {
        assert_eq!(judge(9.0, Some(10.0), 0.1), Verdict::Held);
        assert_eq!(judge(9.5, Some(10.0), 0.1), Verdict::NotJudged);
        assert_eq!(judge(10.5, Some(10.0), 0.1), Verdict::NotJudged);
        assert_eq!(judge(12.0, Some(10.0), 0.1), Verdict::Missed);
        assert_eq!(judge(12.0, None, 0.0), Verdict::NotJudged);
    }

    #[test]
    fn medians_and_quantiles() {
        let samples = Samples((1..=100).rev().map(f64::from).collect());
        assert_eq!((samples.median(), samples.mean()), (50.5, 50.5));
        assert_eq!(
            (
                samples.quantile(0.99),
                samples.quantile(1.0),
                samples.quantile(0.0)
            ),
            (99.0, 100.0, 1.0)
        );
        assert_eq!(Samples(vec![3.0]).median(), 3.0);
        assert!(Samples::default().median().is_nan());
        assert!((apart(&Samples(vec![9.0]), &Samples(vec![11.0])) - 0.2).abs() < 1e-9);
    }
}
