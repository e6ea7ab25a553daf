//! Progress of long work, for a person and for a program: named steps with their time, and one JSON object at the end.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// One step that has ended.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Whether it did what it should.
    pub ok: bool,
    /// How long it took, in ms.
    pub ms: u64,
    /// What it found, or why it failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Everything that is told of a run.
pub struct Report {
    steps: Vec<Step>,
    begun: Instant,
    bar: Option<ProgressBar>,
    current: Option<(String, Instant)>,
}

impl Default for Report {
    fn default() -> Self {
        Self::new()
    }
}

impl Report {
    /// A report without steps. Progress goes to standard error.
    #[must_use]
    pub fn new() -> Self {
        Self { steps: Vec::new(), begun: Instant::now(), bar: None, current: None }
    }

    /// A step begins.
    pub fn begin(&mut self, name: &str) {
        self.current = Some((name.to_owned(), Instant::now()));
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
                .expect("a template that is known to be right");
            let bar = ProgressBar::new_spinner().with_style(style).with_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            self.bar = Some(bar);
        }
    }

    /// What the present step has come to.
    pub fn progress(&self, text: &str) {
        if let (Some(bar), Some((name, _))) = (&self.bar, &self.current) {
            bar.set_message(format!("{name}: {text}"));
        }
    }

    /// Whether somebody sees the progress as it changes.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.bar.is_some()
    }

    /// The present step has ended.
    pub fn end<E: std::fmt::Display>(&mut self, result: &Result<String, E>) {
        let Some((name, begun)) = self.current.take() else { return };
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let (ok, note) = match result {
            Ok(note) => (true, note.clone()),
            Err(error) => (false, error.to_string()),
        };
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mark = if ok { "✓" } else { "✗" };
        let note_shown = if note.is_empty() { String::new() } else { format!("  {note}") };
        // A closed standard error is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{mark} {name} ({:.1} s){note_shown}", ms as f64 / 1000.0);
        self.steps.push(Step { name, ok, ms, note });
    }

    /// Every step so far.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether every step did what it should.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.steps.iter().all(|step| step.ok)
    }

    /// Time since the report began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}
