//! What a benchmark says: a table for each case, JSON with every sample, and a plot of the ratios.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use askama::Template;
use serde::Serialize;

use super::{
    cases::{Bound, Case, Goal, Metric, Sample},
    contender::Contender,
};

/// Every round's samples of one case.
pub type Samples = Vec<BTreeMap<Contender, Sample>>;

/// A median and how far the rounds lie apart.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) };
        Some(Self { median, least: *values.first()?, most: *values.last()? })
    }

    fn told(self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}-{:.digits$})", self.median, self.least, self.most)
    }
}

/// A goal and what was measured of it.
#[derive(Debug, Serialize)]
struct Verdict {
    metric: &'static str,
    peer: Option<&'static str>,
    wanted: String,
    #[serde(skip)]
    bound: f64,
    got: Spread,
    reached: bool,
}

/// All that is known of one case.
#[derive(Debug, Serialize)]
pub struct Outcome {
    name: &'static str,
    title: &'static str,
    rounds: usize,
    medians: BTreeMap<&'static str, BTreeMap<&'static str, Spread>>,
    verdicts: Vec<Verdict>,
    samples: Vec<BTreeMap<&'static str, Sample>>,
}

impl Outcome {
    /// What follows from the samples of a case.
    #[must_use]
    pub fn of(case: &Case, samples: &Samples) -> Self {
        let medians = case.contenders.iter().map(|contender| {
            let metrics =
                case.metrics.iter().filter_map(|metric| Some((metric.name, spread(samples, *contender, metric)?)));
            (contender.name(), metrics.collect())
        });
        Self {
            name: case.name,
            title: case.title,
            rounds: samples.len(),
            medians: medians.collect(),
            verdicts: case.goals.iter().filter_map(|goal| verdict(samples, goal)).collect(),
            samples: samples
                .iter()
                .map(|round| round.iter().map(|(contender, sample)| (contender.name(), sample.clone())).collect())
                .collect(),
        }
    }

    /// The table, and whether each goal was reached.
    pub fn print(&self, case: &Case) {
        println!("\n{} ({} rounds)", self.title, self.rounds);
        println!("{}", row("", case.metrics.iter().map(|metric| metric.title.to_owned())));
        for contender in case.contenders {
            let found = self.medians.get(contender.name());
            let cell = |metric: &Metric| match found.and_then(|found| found.get(metric.name)) {
                Some(spread) => spread.told(metric.digits),
                None => "-".to_owned(),
            };
            println!("{}", row(contender.name(), case.metrics.iter().map(cell)));
        }
        for verdict in &self.verdicts {
            let said = if verdict.reached { "reached" } else { "MISSED " };
            let of = verdict.peer.map_or_else(String::new, |peer| format!(" ÷ {peer}"));
            println!("  {said} {}{of}: {}, wanted {}", verdict.metric, verdict.got.told(3), verdict.wanted);
        }
    }
}

fn spread(samples: &Samples, contender: Contender, metric: &Metric) -> Option<Spread> {
    Spread::of(samples.iter().filter_map(|round| round.get(&contender)?.get(metric.name).copied()))
}

fn verdict(samples: &Samples, goal: &Goal) -> Option<Verdict> {
    let got = Spread::of(samples.iter().filter_map(|round| {
        let ours = round.get(&Contender::Ours)?.get(goal.metric)?;
        match goal.peer {
            Some(peer) => Some(ours / round.get(&peer)?.get(goal.metric)?),
            None => Some(*ours),
        }
    }))?;
    let (reached, wanted, bound) = match goal.bound {
        Bound::AtMost(bound) => (got.median <= bound, format!("at most {bound}"), bound),
        Bound::AtLeast(bound) => (got.median >= bound, format!("at least {bound}"), bound),
    };
    Some(Verdict { metric: goal.metric, peer: goal.peer.map(Contender::name), wanted, bound, got, reached })
}

#[derive(Template)]
#[template(path = "plot.svg", escape = "html")]
struct Plot {
    height: usize,
    bars: Vec<Bar>,
}

/// A ratio as a bar; 1 is in the middle. Lengths are pixels from the left end of the bar.
struct Bar {
    y: usize,
    label: String,
    told: String,
    width: f64,
    /// The bound, and the least and the most of the rounds.
    bound: f64,
    least: f64,
    most: f64,
    reached: bool,
}

impl Bar {
    const HEIGHT: usize = 26;
    /// So wide is a ratio of 1.
    const ONE: f64 = 200.0;
    const WIDEST: f64 = 400.0;

    fn length(ratio: f64) -> f64 {
        (ratio * Self::ONE).min(Self::WIDEST)
    }
}

/// Writes `bench.json` and `bench.svg` into `folder`.
pub fn write(folder: &Path, outcomes: &[Outcome]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let json = serde_json::to_string_pretty(outcomes)?;
    fs::write(folder.join("bench.json"), json).context("cannot write bench.json")?;
    let ratios = outcomes
        .iter()
        .flat_map(|outcome| outcome.verdicts.iter().filter_map(move |verdict| Some((outcome, verdict, verdict.peer?))));
    let bars = ratios.enumerate().map(|(row, (outcome, verdict, peer))| Bar {
        y: 40 + row * Bar::HEIGHT,
        label: format!("{}: {} ÷ {peer}", outcome.name, verdict.metric),
        told: format!("{:.2} ({})", verdict.got.median, verdict.wanted),
        width: Bar::length(verdict.got.median),
        bound: Bar::length(verdict.bound),
        least: Bar::length(verdict.got.least),
        most: Bar::length(verdict.got.most),
        reached: verdict.reached,
    });
    let bars: Vec<Bar> = bars.collect();
    let plot = Plot { height: 60 + bars.len() * Bar::HEIGHT, bars };
    fs::write(folder.join("bench.svg"), plot.render()?).context("cannot write bench.svg")
}

/// A line of a table.
fn row(name: &str, cells: impl Iterator<Item = String>) -> String {
    let line = format!("  {name:<20}");
    cells.fold(line, |line, cell| line + &format!("{cell:>28}"))
}
