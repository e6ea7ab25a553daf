//! Progress of long work, told to a person on standard error.
//!
//! On a terminal one line that changes; otherwise plain lines. With JSON the steps themselves are the answer,
//! and nothing is added unless a person looks on.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::fault::Fault;
use crate::output::Output;
use crate::session::Step;
use crate::words;

/// Tells how long work goes on.
pub(crate) struct Progress {
    form: Form,
    /// Steps that were told: after a broken connection the daemon tells some of them again.
    told: Vec<Value>,
}

/// How a person is told.
enum Form {
    /// One line that changes.
    Spinner(ProgressBar),
    /// A line per step.
    Lines,
    /// Not at all.
    Silent,
}

impl Progress {
    /// Begins with what is being done.
    pub(crate) fn begin(output: &Output, message: &str) -> Self {
        let terminal = stderr().is_terminal();
        let form = match (terminal, output.is_json()) {
            (true, _) => Form::Spinner(spinner()),
            (false, false) => Form::Lines,
            (false, true) => Form::Silent,
        };
        let mut progress = Self { form, told: Vec::new() };
        progress.say(message);
        progress
    }

    /// Tells a person what is being done now.
    pub(crate) fn say(&mut self, message: &str) {
        let message = words::printable(message);
        match &self.form {
            Form::Spinner(bar) => bar.set_message(message),
            Form::Lines => eprintln!("{message}"),
            Form::Silent => {}
        }
    }

    /// Tells a step that the daemon has told, to a program on standard output, unless it was told before.
    /// `last` is the result if it was the last one.
    pub(crate) fn tell<R>(
        &mut self,
        output: &mut Output,
        (json, text): (Value, String),
        last: Option<R>,
    ) -> Result<Step<R>, Fault> {
        let new = !self.told.contains(&json);
        if new {
            self.say(&text);
            if output.is_json() {
                output.item(&json, String::new)?;
            }
            self.told.push(json);
        }
        Ok(match last {
            Some(result) => Step::Last(result),
            None if new => Step::New,
            None => Step::Known,
        })
    }

    /// The line is cleared; the answer follows on standard output.
    pub(crate) fn end(&mut self) {
        if let Form::Spinner(bar) = &self.form {
            bar.finish_and_clear();
        }
    }
}

/// An error that ends the work does not leave a half-drawn line behind.
impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}
