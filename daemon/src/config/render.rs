//! Showing the settings, as a file that could be read again.

use std::fmt::Write;
use std::path::Path;

use super::Config;
use super::load::{Loaded, Source};
use super::setting::Class;
use super::table::{Exposure, Field, fields};

/// What stands in place of a secret.
const REDACTED: &str = "(not shown)";

impl Loaded {
    /// The settings in force as a file, each with where it came from; secrets are not shown.
    #[must_use]
    pub fn render(&self) -> String {
        render(|field| {
            let source = self.sources.get(field.key).unwrap_or(&Source::Default);
            let line = match (field.exposure, field.text(&self.config)) {
                (_, None) => format!("# {} =", field.section_and_name().1),
                (Exposure::Secret, Some(_)) => format!("# {} = {REDACTED}", field.section_and_name().1),
                (Exposure::Open | Exposure::Local, Some(text)) => assignment(field, &text),
            };
            format!("{line}  # {source}\n")
        })
    }
}

/// A file with every setting at its default, and what it means.
#[must_use]
pub(super) fn example() -> String {
    let defaults = Config::defaults(bitcoin::Network::Regtest, Path::new("~"));
    let head = "# Settings of millraced. Each line shows the default; those that begin with `#` depend on the user or\n\
                # the network, or have none. A flag (--channel-reserve-ppm) wins over the environment\n\
                # (MILLRACE_CHANNEL_RESERVE_PPM), the environment over this file.\n\n";
    let body = render(|field| {
        let line = match (field.exposure, field.text(&defaults)) {
            (Exposure::Open, Some(text)) => assignment(field, &text),
            (_, Some(text)) => format!("# {}", assignment(field, &text)),
            (_, None) => format!("# {} =", field.section_and_name().1),
        };
        format!("# {}\n{line}\n", field.help)
    });
    format!("{head}{body}")
}

impl Config {
    /// A file with every setting at its default, and what it means.
    #[must_use]
    pub fn example() -> String {
        example()
    }
}

fn render(line: impl Fn(&Field) -> String) -> String {
    let mut out = String::new();
    let mut current = "";
    for field in fields() {
        let (section, _) = field.section_and_name();
        if section != current {
            let _ = write!(out, "\n[{section}]\n");
            current = section;
        }
        out.push_str(&line(&field));
    }
    out
}

fn assignment(field: &Field, text: &str) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let value = match field.class {
        Class::Text => quoted(text),
        Class::Integer | Class::Bool => text.to_owned(),
        Class::List => {
            let items: Vec<_> = text.split(',').filter(|item| !item.is_empty()).map(quoted).collect();
            format!("[{}]", items.join(", "))
        }
    };
    format!("{} = {value}", field.section_and_name().1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::ffi::OsString;
    use std::fs;

    use super::super::{Surroundings, load};
    use super::*;

    fn surroundings(home: &Path, flags: &[String]) -> Surroundings {
        let arguments = std::iter::once("millraced").chain(flags.iter().map(String::as_str)).map(OsString::from);
        Surroundings { arguments: arguments.collect(), variables: BTreeMap::new(), home: home.to_owned() }
    }

    #[test]
    fn the_example_in_the_repository_is_this_one_and_says_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("millrace.example.toml");
        let stored = fs::read_to_string(&path).unwrap();
        assert_eq!(stored, example(), "write it again: cargo run --bin millraced -- --print-example-config");
        let home = tempfile::tempdir().unwrap();
        let loaded = load(&surroundings(home.path(), &[format!("--config={}", path.display())])).unwrap();
        assert_eq!(loaded.config, Config::defaults(bitcoin::Network::Regtest, home.path()));
        let open = fields().iter().filter(|field| field.exposure == Exposure::Open).count();
        assert!(loaded.sources.len() > open - 3, "nearly all are spelled out: {}", loaded.sources.len());
    }

    #[test]
    fn what_is_shown_can_be_read_again() {
        let home = tempfile::tempdir().unwrap();
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        let flags = [
            "--network=signet".to_owned(),
            format!("--channel-zero-conf-peers={key},{key}"),
            "--alias=a \"quoted\" name".to_owned(),
            "--metrics-listen=127.0.0.1:9100".to_owned(),
        ];
        let loaded = load(&surroundings(home.path(), &flags)).unwrap();
        let shown = loaded.render();
        assert!(shown.contains("network = \"signet\"  # flag, --network\n"), "{shown}");
        assert!(shown.contains("log = \"text\"  # default\n"), "{shown}");
        let path = home.path().join("again.toml");
        fs::write(&path, shown).unwrap();
        let again = load(&surroundings(home.path(), &[format!("--config={}", path.display())])).unwrap();
        assert_eq!(again.config, loaded.config);
    }

    #[test]
    fn no_secret_is_shown() {
        let home = tempfile::tempdir().unwrap();
        let mut around = surroundings(home.path(), &["--bitcoind-user=bob".to_owned()]);
        around.variables.insert("MILLRACE_BITCOIND_PASSWORD".to_owned(), "hunter2".to_owned());
        let shown = load(&around).unwrap().render();
        assert!(shown.contains("# password = (not shown)  # environment, MILLRACE_BITCOIND_PASSWORD"), "{shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}
