//! What happened in a cell, block by block, for whoever has to find out why it failed.

use std::fmt::Write;

/// Lines with their heights.
#[derive(Clone, Debug, Default)]
pub(super) struct Story {
    lines: Vec<(u32, String)>,
}

/// A story is no longer than this: a cell that tells more has lost its way.
const LINES_MAX: usize = 400;

impl Story {
    pub(super) fn tell(&mut self, height: u32, line: impl Into<String>) {
        if self.lines.len() < LINES_MAX {
            self.lines.push((height, line.into()));
        }
    }

    /// All of it, indented.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut last = None;
        for (height, line) in &self.lines {
            let shown = if last == Some(*height) { String::new() } else { height.to_string() };
            last = Some(*height);
            let _ = writeln!(text, "    {shown:>6}  {line}");
        }
        text
    }
}
