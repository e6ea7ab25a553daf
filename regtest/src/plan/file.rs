//! A plan as a TOML file: `[[nodes]]`, `[[channels]]`, `[[policies]]`.
//!
//! Whatever is wrong is told with its line and with what to do. An unknown key is an error that suggests the right one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strsim::levenshtein;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    CAPACITY_SAT, CAPACITY_SAT_MAX, CAPACITY_SAT_MIN, CLTV_DELTA_MAX, CLTV_DELTA_MIN, ChannelPlan, FEE_MAX, Kind,
    LDK_CAPACITY_SAT_MAX, NODES_MAX, NODES_MIN, NodePlan, Plan, PolicyPlan,
};

const TABLES: &[&str] = &["nodes", "channels", "policies"];
const NODE_KEYS: &[&str] = &["name", "kind", "alias"];
const CHANNEL_KEYS: &[&str] = &["from", "to", "capacity_sat", "push_sat", "public"];
const POLICY_KEYS: &[&str] =
    &["node", "peer", "fee_base_msat", "fee_ppm", "cltv_delta", "htlc_minimum_msat", "htlc_maximum_msat"];

/// The longest name: it is a folder's, and an alias unless that is said.
const NAME_BYTES_MAX: usize = 32;
/// BOLT 7 gives the alias so many bytes.
const ALIAS_BYTES_MAX: usize = 32;
/// What a node forwards at least, unless it is said.
const HTLC_MINIMUM_MSAT: u64 = 1;
/// Folders and commands of the network itself.
const NAMES_TAKEN: &[&str] = &["bitcoind", "run"];

/// Why a file is no plan.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something in it is not as it must be.
    #[error("{path}, line {line}: {what}")]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
        /// What is wrong, and what to do.
        what: String,
    },
}

/// Reads a file.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path) -> Result<Plan, FileError> {
    let text = std::fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|(offset, what)| FileError::Wrong {
        path: path.to_owned(),
        line: line_at(&text, offset),
        what,
    })
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// What is wrong, and at which byte.
type Wrong = (usize, String);

fn parse(text: &str) -> Result<Plan, Wrong> {
    let syntax = |error: toml::de::Error| (error.span().map_or(0, |span| span.start), error.message().to_owned());
    let table = DeTable::parse(text).map_err(syntax)?;
    for (name, _) in table.get_ref() {
        check_key(name, TABLES, "the file")?;
    }
    let mut plan = Plan::default();
    for entry in entries(&table, "nodes", NODE_KEYS)? {
        let node = node(&entry)?;
        if plan.node_named(&node.name).is_some() {
            return Err((entry.at, format!("there is a node {} already: choose another name", node.name)));
        }
        plan.nodes.push(node);
    }
    let count = plan.nodes.len();
    if !(NODES_MIN..=NODES_MAX).contains(&count) {
        let what = format!("{count} nodes: there must be {NODES_MIN} to {NODES_MAX}, each in a table [[nodes]]");
        return Err((0, what));
    }
    for entry in entries(&table, "channels", CHANNEL_KEYS)? {
        let channel = channel(&entry, &plan)?;
        plan.channels.push(channel);
    }
    let mut bounds = Bounds::default();
    for entry in entries(&table, "policies", POLICY_KEYS)? {
        let policy = policy(&entry, &plan)?;
        bounds
            .narrow(&policy, &plan)
            .map_err(|what| (entry.at_of(&["htlc_maximum_msat", "htlc_minimum_msat"]), what))?;
        plan.policies.push(policy);
    }
    Ok(plan)
}

fn node(entry: &Entry<'_, '_>) -> Result<NodePlan, Wrong> {
    let (at, name) = entry.needed("name")?;
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_letter) {
        let what = format!("`{name}` is no name: 1 to {NAME_BYTES_MAX} small letters, digits, `-` and `_`");
        return Err((at, what));
    }
    if NAMES_TAKEN.contains(&name) || name.starts_with('-') {
        return Err((at, format!("`{name}` means something else here: choose another name")));
    }
    let kind = match entry.text("kind")? {
        None => Kind::default(),
        Some((_, "millrace")) => Kind::Millrace,
        Some((_, "ldk")) => Kind::Ldk,
        Some((at, other)) => return Err((at, format!("`{other}` is no kind of node: say \"millrace\" or \"ldk\""))),
    };
    let alias = match entry.text("alias")? {
        Some((at, alias)) if alias.len() > ALIAS_BYTES_MAX => {
            return Err((at, format!("an alias has at most {ALIAS_BYTES_MAX} bytes, and this has {}", alias.len())));
        }
        Some((_, alias)) => alias,
        None => name,
    };
    Ok(NodePlan { name: name.to_owned(), kind, alias: alias.to_owned() })
}

fn channel(entry: &Entry<'_, '_>, plan: &Plan) -> Result<ChannelPlan, Wrong> {
    let (from, to) = (named(entry.needed("from")?, plan)?, named(entry.needed("to")?, plan)?);
    if from == to {
        return Err((entry.at, format!("a channel from {0} to {0}: name two nodes", plan.nodes[from].name)));
    }
    let has_ldk = [from, to].into_iter().any(|node| plan.nodes[node].kind == Kind::Ldk);
    let most = if has_ldk { LDK_CAPACITY_SAT_MAX } else { CAPACITY_SAT_MAX };
    let capacity_sat = entry.number("capacity_sat", CAPACITY_SAT_MIN, most)?.unwrap_or(CAPACITY_SAT);
    // The other side gets no more than leaves the opener its reserve and the commitment's fee.
    let push_most = capacity_sat - capacity_sat / 10;
    let push_sat = entry.number("push_sat", 0, push_most)?.unwrap_or(capacity_sat / 2);
    Ok(ChannelPlan { from, to, capacity_sat, push_sat, public: entry.truth("public")?.unwrap_or(true) })
}

fn policy(entry: &Entry<'_, '_>, plan: &Plan) -> Result<PolicyPlan, Wrong> {
    let (node_at, name) = entry.needed("node")?;
    let node = named((node_at, name), plan)?;
    let peer = entry.text("peer")?.map(|found| named(found, plan)).transpose()?;
    let of_all = PolicyPlan { node, peer, ..PolicyPlan::default() };
    if !plan.channels.iter().any(|channel| of_all.is_for(channel)) {
        let with = peer.map_or_else(String::new, |peer| format!(" with {}", plan.nodes[peer].name));
        return Err((node_at, format!("{name} has no channel{with}: add one in a table [[channels]], or drop this")));
    }
    let wide = |key: &'static str| entry.number(key, 0, 1_000_000_000_000);
    let fee_ppm = entry.number("fee_ppm", 0, FEE_MAX)?;
    let cltv_delta = entry.number("cltv_delta", CLTV_DELTA_MIN.into(), CLTV_DELTA_MAX.into())?;
    Ok(PolicyPlan {
        fee_base_msat: entry.number("fee_base_msat", 0, FEE_MAX)?,
        fee_ppm: fee_ppm.and_then(|ppm| u32::try_from(ppm).ok()),
        cltv_delta: cltv_delta.and_then(|delta| u16::try_from(delta).ok()),
        htlc_minimum_msat: wide("htlc_minimum_msat")?,
        htlc_maximum_msat: wide("htlc_maximum_msat")?,
        ..of_all
    })
}

/// The smallest and the largest HTLC that a node forwards over each of its channels, as one policy after the other sets them:
/// what one leaves out stays as those before it have left it.
#[derive(Default)]
struct Bounds(BTreeMap<(usize, usize), (u64, Option<u64>)>);

impl Bounds {
    /// Takes a policy in; what is wrong if a daemon would not.
    fn narrow(&mut self, policy: &PolicyPlan, plan: &Plan) -> Result<(), String> {
        for (place, _) in plan.channels.iter().enumerate().filter(|(_, channel)| policy.is_for(channel)) {
            let (least, most) = self.0.entry((policy.node, place)).or_insert((HTLC_MINIMUM_MSAT, None));
            *least = policy.htlc_minimum_msat.unwrap_or(*least);
            if let Some(told) = policy.htlc_maximum_msat {
                *most = Some(told).filter(|told| *told > 0);
            }
            if let Some(most) = most.filter(|most| most < least) {
                let name = &plan.nodes[policy.node].name;
                return Err(format!(
                    "{name} would forward nothing: htlc_maximum_msat {most} is below htlc_minimum_msat {least}"
                ));
            }
        }
        Ok(())
    }
}

fn named((at, name): (usize, &str), plan: &Plan) -> Result<usize, Wrong> {
    plan.node_named(name).ok_or_else(|| {
        let names: Vec<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        let meant = did_you_mean(name, &names);
        (at, format!("there is no node `{name}`{meant}; the nodes are {}", names.join(", ")))
    })
}

/// One table of a list.
struct Entry<'a, 'text> {
    table: &'a DeTable<'text>,
    at: usize,
}

/// The tables of a list, with no unknown key in them.
fn entries<'a, 'text>(
    file: &'a Spanned<DeTable<'text>>,
    list: &str,
    keys: &[&str],
) -> Result<Vec<Entry<'a, 'text>>, Wrong> {
    let Some((_, value)) = file.get_ref().iter().find(|(name, _)| name.get_ref() == list) else {
        return Ok(Vec::new());
    };
    let no_list = |at| (at, format!("write each one as a table [[{list}]], with two brackets"));
    let DeValue::Array(items) = value.get_ref() else { return Err(no_list(value.span().start)) };
    let mut found = Vec::new();
    for item in items.iter() {
        let at = item.span().start;
        let Some(table) = item.get_ref().as_table() else { return Err(no_list(at)) };
        for (name, _) in table {
            check_key(name, keys, &format!("[[{list}]]"))?;
        }
        found.push(Entry { table, at });
    }
    Ok(found)
}

fn check_key(name: &Spanned<std::borrow::Cow<'_, str>>, known: &[&str], place: &str) -> Result<(), Wrong> {
    let key = name.get_ref().as_ref();
    if known.contains(&key) {
        return Ok(());
    }
    let meant = did_you_mean(key, known);
    Err((name.span().start, format!("{place} has no key `{key}`{meant}; its keys are {}", known.join(", "))))
}

impl<'a, 'text> Entry<'a, 'text> {
    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'text>>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn text(&self, key: &str) -> Result<Option<(usize, &'a str)>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let at = value.span().start;
        match value.get_ref().as_str() {
            Some(text) => Ok(Some((at, text))),
            None => Err((at, format!("{key} is a text, in double quotes"))),
        }
    }

    fn needed(&self, key: &str) -> Result<(usize, &'a str), Wrong> {
        self.text(key)?.ok_or_else(|| (self.at, format!("{key} is missing: add {key} = \"…\"")))
    }

    /// Where the first of these is said that is.
    fn at_of(&self, keys: &[&str]) -> usize {
        keys.iter().find_map(|key| self.value(key)).map_or(self.at, |value| value.span().start)
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let no_truth = || (value.span().start, format!("{key} is true or false, without quotes"));
        value.get_ref().as_bool().map(Some).ok_or_else(no_truth)
    }

    fn number(&self, key: &str, least: u64, most: u64) -> Result<Option<u64>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = match value.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        let in_range = number.filter(|number| (least..=most).contains(number));
        let no_number = || (value.span().start, format!("{key} is a whole number from {least} to {most}"));
        in_range.map(Some).ok_or_else(no_number)
    }
}

/// A hint at the word that was probably meant, if one is near.
fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    let begins = |candidate: &str| candidate.starts_with(word) || candidate.split('_').any(|part| part == word);
    let scored = candidates.iter().map(|candidate| (!begins(candidate), levenshtein(word, candidate), *candidate));
    let near = scored.filter(|(is_other, edits, candidate)| !is_other || *edits <= 1 + candidate.len() / 4).min();
    near.map_or_else(String::new, |(_, _, candidate)| format!(" (did you mean `{candidate}`?)"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TWO: &str = "[[nodes]]\nname = \"alice\"\n[[nodes]]\nname = \"bob\"\nkind = \"ldk\"\nalias = \"Bob's\"\n";

    fn with(text: &str) -> String {
        format!("{TWO}{text}")
    }

    #[track_caller]
    fn wrong(text: &str, line: usize, parts: &[&str]) {
        let (offset, what) = parse(text).unwrap_err();
        assert_eq!(line_at(text, offset), line, "{what}");
        for part in parts {
            assert!(what.contains(part), "{part:?} is not in {what:?}");
        }
    }

    #[test]
    fn everything_that_can_be_said() {
        let plan = parse(&with(
            "[[channels]]\nfrom = \"bob\"\nto = \"alice\"\ncapacity_sat = 2_000_000\npush_sat = 700_000\npublic = false\n\
             [[channels]]\nfrom = \"alice\"\nto = \"bob\"\n\
             [[policies]]\nnode = \"alice\"\npeer = \"bob\"\nfee_base_msat = 5\nfee_ppm = 7\ncltv_delta = 48\n\
             htlc_minimum_msat = 9\nhtlc_maximum_msat = 10\n",
        ))
        .unwrap();
        assert_eq!(plan.nodes[1], NodePlan { name: "bob".into(), kind: Kind::Ldk, alias: "Bob's".into() });
        assert_eq!(plan.nodes[0].alias, "alice");
        let said = ChannelPlan { from: 1, to: 0, capacity_sat: 2_000_000, push_sat: 700_000, public: false };
        assert_eq!(plan.channels, [said, ChannelPlan::halves(0, 1)]);
        let policy = PolicyPlan {
            node: 0,
            peer: Some(1),
            fee_base_msat: Some(5),
            fee_ppm: Some(7),
            cltv_delta: Some(48),
            htlc_minimum_msat: Some(9),
            htlc_maximum_msat: Some(10),
        };
        assert_eq!(plan.policies, [policy]);
    }

    #[test]
    fn the_sample_is_a_plan() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("networks/market.toml");
        let plan = read(&path).unwrap();
        assert!(plan.nodes.iter().any(|node| node.kind == Kind::Ldk) && plan.nodes.len() >= 4);
        assert!(plan.channels.iter().any(|channel| !channel.public) && !plan.policies.is_empty());
    }

    #[test]
    fn no_toml() {
        wrong("[[nodes]]\nname = alice\n", 2, &[]);
    }

    #[test]
    fn unknown_keys_are_told_with_what_was_meant() {
        wrong(&with("[[channel]]\n"), 7, &["`channel`", "did you mean `channels`?"]);
        let text = with("[[channels]]\nfrom = \"alice\"\nto = \"bob\"\ncapacity = 7\n");
        wrong(&text, 10, &["[[channels]] has no key `capacity`", "did you mean `capacity_sat`?"]);
        wrong(&with("[[policies]]\nnode = \"bob\"\nfee = 7\n"), 9, &["`fee`", "did you mean `fee_ppm`?"]);
        wrong("[[nodes]]\nname = \"alice\"\nxyz = 1\n", 3, &["`xyz`", "its keys are name, kind, alias"]);
    }

    #[test]
    fn nodes_that_are_none() {
        wrong("[[nodes]]\nkind = \"ldk\"\n", 1, &["name is missing"]);
        wrong("[[nodes]]\nname = \"Al Ice\"\n", 2, &["`Al Ice`", "small letters"]);
        wrong("[[nodes]]\nname = \"bitcoind\"\n", 2, &["choose another name"]);
        wrong("[[nodes]]\nname = \"a\"\nkind = \"lnd\"\n", 3, &["`lnd`", "\"ldk\""]);
        wrong("[[nodes]]\nname = \"a\"\n[[nodes]]\nname = \"a\"\n", 3, &["already"]);
        wrong("[[nodes]]\nname = \"a\"\n", 1, &["1 nodes", "2 to 40"]);
        wrong("[nodes]\nname = \"a\"\n", 1, &["[[nodes]]"]);
        let long = "x".repeat(33);
        wrong(&format!("[[nodes]]\nname = \"a\"\nalias = \"{long}\"\n"), 3, &["32 bytes"]);
    }

    #[test]
    fn channels_that_are_none() {
        let channel = |rest: &str| with(&format!("[[channels]]\nfrom = \"alice\"\n{rest}\n"));
        wrong(&channel(""), 7, &["to is missing"]);
        wrong(&channel("to = \"bobb\""), 9, &["`bobb`", "did you mean `bob`?", "alice, bob"]);
        wrong(&channel("to = \"alice\""), 7, &["two nodes"]);
        wrong(&channel("to = \"bob\"\ncapacity_sat = 1"), 10, &["from 100000 to 16777215"]);
        wrong(&channel("to = \"bob\"\ncapacity_sat = \"much\""), 10, &["whole number"]);
        wrong(&channel("to = \"bob\"\npush_sat = 9_500_000"), 10, &["from 0 to 9000000"]);
        wrong(&channel("to = \"bob\"\npublic = \"yes\""), 10, &["true or false"]);
    }

    #[test]
    fn policies_that_no_daemon_takes() {
        let policy = |rest: &str| {
            let both = "[[channels]]\nfrom = \"alice\"\nto = \"bob\"\n[[policies]]\nnode = \"alice\"\n";
            with(&format!("{both}{rest}\n"))
        };
        wrong(&policy("cltv_delta = 47"), 12, &["cltv_delta", "from 48 to 2016"]);
        wrong(&policy("cltv_delta = 2_017"), 12, &["from 48 to 2016"]);
        wrong(&policy("fee_base_msat = 4_294_967_296"), 12, &["fee_base_msat", "from 0 to 4294967295"]);
        wrong(&policy("fee_ppm = 4_294_967_296"), 12, &["fee_ppm", "from 0 to 4294967295"]);
        wrong(&policy("htlc_minimum_msat = -1"), 12, &["htlc_minimum_msat", "whole number"]);
        let below = ["alice", "htlc_maximum_msat 6 is below htlc_minimum_msat 7"];
        wrong(&policy("htlc_minimum_msat = 7\nhtlc_maximum_msat = 6"), 13, &below);
        // What an earlier policy has said holds; 0 takes a maximum away.
        let earlier = "htlc_maximum_msat = 6\n[[policies]]\nnode = \"alice\"\n";
        wrong(&policy(&format!("{earlier}htlc_minimum_msat = 7")), 15, &below);
        for fine in ["htlc_minimum_msat = 7\nhtlc_maximum_msat = 7", "htlc_minimum_msat = 0\nhtlc_maximum_msat = 1"] {
            assert!(parse(&policy(fine)).is_ok());
        }
        let apart = format!("{earlier}htlc_minimum_msat = 7\nhtlc_maximum_msat = 0");
        assert!(parse(&policy(&apart)).is_ok());
        let of_another = earlier.replace("alice", "bob");
        assert!(parse(&policy(&format!("{of_another}htlc_minimum_msat = 7"))).is_ok());
    }

    #[test]
    fn policies_for_no_channel() {
        wrong(&with("[[policies]]\nnode = \"bob\"\n"), 8, &["bob has no channel", "[[channels]]"]);
    }
}
