//! What the commands of a network answer, for a person and for a program.

use std::path::Path;

use serde_json::json;

use super::Stay;
use super::command::Common;
use super::processes::Ending;
use crate::network::Error;
use crate::plan;
use crate::report::Report;

/// What a command prints.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) json: serde_json::Value,
    /// Whether the program ends with success.
    pub(super) ok: bool,
}

impl Answer {
    pub(super) const fn new(text: String, json: serde_json::Value) -> Self {
        Self { text, json, ok: true }
    }
}

pub(super) async fn status(stay: &Stay) -> Result<Answer, Error> {
    let status = stay.status().await?;
    let json = serde_json::to_value(&status).map_err(|error| Error::Wrong(error.to_string()))?;
    Ok(Answer::new(status.text(), json))
}

pub(super) fn what_now(stay: &Stay) -> String {
    let first = stay.state.plan.nodes.iter().find(|node| node.kind == plan::Kind::Millrace);
    let name = first.map_or("NODE", |node| node.name.as_str());
    // Whoever runs it from a checkout need not have it on the PATH.
    let program = if std::env::var_os("CARGO").is_some() { "cargo regtest" } else { "millrace-regtest" };
    format!(
        "It goes on running. Next:\n  \
         eval \"$({program} env {name})\"   then `millrace` talks to {name}\n  \
         {program} status | mine 6 | load --rate 5 | kill {name} | start {name} | down"
    )
}

pub(super) async fn mine(stay: &Stay, blocks: u32) -> Result<Answer, Error> {
    let mut mesh = stay.mesh().await?;
    mesh.mine(blocks).await?;
    let height = tokio::task::block_in_place(|| mesh.network.bitcoind.height())?;
    Ok(Answer::new(format!("height {height}"), json!({ "ok": true, "mined": blocks, "height": height })))
}

pub(super) async fn start(stay: Stay, name: &str) -> Result<Answer, Error> {
    let node = stay.node_named(name)?;
    let is_new = stay.start_node(node).await?;
    let links = stay.connect(&stay.mesh().await?, Some(node)).await?;
    let what = if is_new { "runs" } else { "runs already" };
    let text = format!("{name} {what}, connected with {links} of its peers");
    Ok(Answer::new(text, json!({ "ok": true, "node": name, "was_running": !is_new, "links": links })))
}

pub(super) async fn down(common: &Common, wipe: bool, report: &mut Report) -> Result<Answer, Error> {
    let folder = common.folder()?;
    let Some(mut stay) = Stay::find(&folder)? else {
        let text = format!("there is no network in {}", folder.display());
        return Ok(Answer::new(text, json!({ "ok": true, "was_running": false, "wiped": false })));
    };
    stay.lock()?;
    let mut did_run = false;
    for node in stay.state.plan.nodes.clone() {
        report.begin(&format!("stop {}", node.name));
        let ending = stay.stop_node(&node.name).await;
        report.end(&ending.as_ref().map(|ending| word(*ending)).map_err(ToString::to_string));
        did_run |= ending? != Ending::WasAway;
    }
    report.begin("stop bitcoind");
    let ending = stay.stop_bitcoind();
    report.end(&ending.as_ref().map(|ending| word(*ending)).map_err(ToString::to_string));
    did_run |= ending? != Ending::WasAway;
    let mut text = format!("Nothing of the network in {} runs any more", folder.display());
    if wipe {
        stay.wipe()?;
        text += "; its data is gone";
    } else {
        text += "; its data is kept for the next `up`";
    }
    Ok(Answer::new(text, json!({ "ok": true, "was_running": did_run, "wiped": wipe })))
}

fn word(ending: Ending) -> String {
    match ending {
        Ending::WasAway => "did not run",
        Ending::Stopped => "",
        Ending::Killed => "did not stop in time, and was killed",
    }
    .to_owned()
}

pub(super) fn env(stay: &Stay, name: &str) -> Result<Answer, Error> {
    let node = &stay.state.plan.nodes[stay.node_named(name)?];
    if node.kind != plan::Kind::Millrace {
        return Err(Error::Wrong(format!("{name} is an ldk-node, and `millrace` talks to millraced only")));
    }
    let data_dir = stay.folder.join(name);
    let mut text = format!("export MILLRACE_DATA_DIR={}\n", quoted(&data_dir));
    text += "export MILLRACE_NETWORK=regtest\n";
    // They would lead elsewhere.
    text += "unset MILLRACE_RPC MILLRACE_TLS_CERT MILLRACE_TOKEN_FILE";
    let programs = stay.state.millrace.parent().unwrap_or(Path::new("/"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder == programs) {
        text += &format!("\nexport PATH={}:\"$PATH\"", quoted(programs));
    }
    let json = json!({ "ok": true, "MILLRACE_DATA_DIR": data_dir, "MILLRACE_NETWORK": "regtest", "millrace": stay.state.millrace });
    Ok(Answer::new(text, json))
}

/// For a shell, whatever is in it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_goes_through_a_shell_unchanged() {
        let path = Path::new("/a b/it's $HOME");
        let output =
            std::process::Command::new("/bin/sh").args(["-c", &format!("printf %s {}", quoted(path))]).output();
        assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), "/a b/it's $HOME");
    }
}
