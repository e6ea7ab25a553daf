//! Standard output: whole lines, one at a time, from any thread.

use std::io::Write;

use crate::protocol::Line;

/// Writes a line. If nobody reads any more, the process ends.
pub(crate) fn write(line: &Line) {
    let mut text = serde_json::to_vec(line).expect("lines have no maps with keys other than text");
    text.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(&text).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(1);
    }
}
