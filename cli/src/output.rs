//! Where answers go: JSON for programs, tables and QR codes for people.
//!
//! Answers go to standard output, and nothing else does.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::Value;

use crate::args::Globals;
use crate::fault::Fault;
use crate::words;

/// Standard output, and the form that answers take.
pub(crate) struct Output {
    json: bool,
    terminal: bool,
    closed: bool,
    out: io::Stdout,
}

impl Output {
    /// As the flags say; without them, JSON unless a person looks on.
    pub(crate) fn new(globals: &Globals) -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal();
        Self { json: globals.json || !(globals.table || terminal), terminal, closed: false, out }
    }

    /// True if answers are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A command's one answer.
    pub(crate) fn answer(&mut self, json: &Value, text: impl FnOnce() -> String) -> Result<(), Fault> {
        if self.json { self.json(json) } else { self.line(&text()) }
    }

    /// One of many answers, on a line of its own.
    pub(crate) fn item(&mut self, json: &Value, text: impl FnOnce() -> String) -> Result<(), Fault> {
        if self.json { self.line(&json.to_string()) } else { self.line(&text()) }
    }

    /// Indented for a person's eye, else on one line.
    fn json(&mut self, json: &Value) -> Result<(), Fault> {
        if self.terminal { self.line(&format!("{json:#}")) } else { self.line(&json.to_string()) }
    }

    /// Text as it is.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Fault> {
        self.write(format!("{}\n", text.trim_end()).as_bytes())
    }

    /// Bytes as they are. A reader that has gone away is no error: it has seen enough. What the command does
    /// goes on, and its exit code is the same.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if self.closed {
            return Ok(());
        }
        let mut out = self.out.lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(Fault::Untold(error)),
            Ok(()) => Ok(()),
        }
    }

    /// True if nobody reads any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }
}

/// A list's column.
pub(crate) enum Column {
    /// Text, to the left.
    Text(&'static str),
    /// A number, to the right.
    Number(&'static str),
}

/// A list as a table, or `nothing` if it has no row.
pub(crate) fn list(columns: &[Column], rows: Vec<Vec<String>>, nothing: &str) -> String {
    if rows.is_empty() {
        return nothing.to_owned();
    }
    let mut table = plain_table();
    let align = |column: &Column, text: &str| match column {
        Column::Text(_) => Cell::new(text),
        Column::Number(_) => Cell::new(text).set_alignment(CellAlignment::Right),
    };
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(name) | Column::Number(name) => align(column, name),
    }));
    for row in rows {
        table.add_row(columns.iter().zip(row).map(|(column, text)| align(column, &words::printable(&text))));
    }
    without_trailing_space(&table)
}

/// A list's page with the way to the next one.
pub(crate) fn page(table: String, next_cursor: &str) -> String {
    if next_cursor.is_empty() { table } else { format!("{table}\nMore with --cursor {next_cursor}") }
}

/// One thing as lines of name and value. Pairs with an empty value are left out.
pub(crate) fn facts<'a>(facts: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = plain_table();
    for (name, value) in facts {
        if !value.is_empty() {
            table.add_row([name, words::printable(&value).as_str()]);
        }
    }
    without_trailing_space(&table)
}

fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn without_trailing_space(table: &Table) -> String {
    let lines: Vec<String> =
        table.lines().map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A text as a QR code in half blocks, light on dark; nothing if it is too long for one.
pub(crate) fn qr(text: &str) -> String {
    let Ok(code) = QrCode::new(text) else {
        return String::new();
    };
    // A terminal is dark: a printed block is a light module.
    code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).quiet_zone(true).build()
}

/// Which shares of a channel are whose, as a bar: `█` ours, `▒` in flight, `░` the peer's. Every share that
/// is not nothing gets at least one cell.
pub(crate) fn balance_bar(local_msat: u64, in_flight_msat: u64, remote_msat: u64) -> String {
    const CELLS: u128 = 20;
    let (local, in_flight, remote) = (u128::from(local_msat), u128::from(in_flight_msat), u128::from(remote_msat));
    let sides = local + remote;
    let in_flight_cells = match (sides, in_flight) {
        (0, 0) => return "·".repeat(20),
        (0, _) => CELLS,
        (_, 0) => 0,
        (_, _) => (in_flight * CELLS / (sides + in_flight)).clamp(1, CELLS - 2),
    };
    let side_cells = CELLS - in_flight_cells;
    let local_cells = match (local, remote) {
        (0, _) => 0,
        (_, 0) => side_cells,
        (_, _) => (local * side_cells / sides).clamp(1, side_cells - 1),
    };
    let marks = |mark: char, cells: u128| (0..cells).map(move |_| mark);
    marks('█', local_cells).chain(marks('▒', in_flight_cells)).chain(marks('░', side_cells - local_cells)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bars() {
        assert_eq!(balance_bar(1, 0, 0), "█".repeat(20));
        assert_eq!(balance_bar(0, 0, 1), "░".repeat(20));
        assert_eq!(balance_bar(0, 5, 0), "▒".repeat(20));
        assert_eq!(balance_bar(0, 0, 0), "·".repeat(20));
        let half = format!("{}{}", "█".repeat(10), "░".repeat(10));
        assert_eq!(balance_bar(500, 0, 500), half);
        let nearly = format!("{}▒░", "█".repeat(18));
        assert_eq!(balance_bar(1_000_000, 1, 1), nearly);
    }

    #[test]
    fn qr_codes_have_half_as_many_lines_as_columns() {
        let code = qr("LIGHTNING:LNBCRT1");
        let width = code.lines().next().map_or(0, |line| line.chars().count());
        assert_eq!(code.lines().count(), width.div_ceil(2));
        assert!(qr(&"x".repeat(5000)).is_empty());
    }

    proptest! {
        /// Any shares fill the bar exactly, and none that is there is hidden.
        #[test]
        fn a_bar_has_twenty_cells(local: u64, in_flight: u64, remote: u64) {
            let bar = balance_bar(local, in_flight, remote);
            prop_assert_eq!(bar.chars().count(), 20);
            prop_assert_eq!(local > 0, bar.contains('█'));
            prop_assert_eq!(in_flight > 0, bar.contains('▒'));
            prop_assert_eq!(remote > 0, bar.contains('░'));
        }
    }
}
