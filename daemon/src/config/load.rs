//! Reading the settings: flags, environment, file, in this order of weight.
//!
//! Everything that depends on the machine (arguments, variables, home folder) is an argument, [`Surroundings`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bitcoin::Network;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use strsim::levenshtein;
use thiserror::Error;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::setting::{Class, Setting};
use super::table::{Exposure, Field, fields};
use super::{Config, check, network_name};

/// The name of the file in the data folder.
const FILE_NAME: &str = "millrace.toml";
/// The network of a node that was told nothing: one without value.
const NETWORK_DEFAULT: Network = Network::Regtest;

/// What the machine tells.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// The user's home folder.
    pub home: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        let readable =
            |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self {
            arguments: std::env::args_os().collect(),
            variables: std::env::vars_os().filter_map(readable).collect(),
            home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()).unwrap_or_else(|| "/".into()),
        }
    }
}

/// What to do with the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Run the node.
    Run,
    /// Show the settings and where each came from.
    PrintConfig,
    /// Say whether they are right.
    CheckConfig,
    /// Show a file with every setting at its default.
    PrintExampleConfig,
    /// Show the seed's words.
    PrintSeed,
    /// Put the seed of this file into the data folder.
    RestoreSeed(PathBuf, Option<u32>),
}

/// Where a setting came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable.
    Environment(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Environment(name) => write!(f, "environment, {name}"),
            Self::Flag(name) => write!(f, "flag, --{name}"),
        }
    }
}

/// The settings, with all there is to say about them.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What to do.
    pub action: Action,
    /// What the operator should know but need not change.
    pub warnings: Vec<String>,
    pub(super) sources: BTreeMap<&'static str, Source>,
}

/// Why the settings are not right.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The command line. Also `--help` and `--version`, see [`clap::Error::exit_code`].
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is not TOML.
    #[error("{path}, line {line}: not valid TOML: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// The file has a key that means nothing.
    #[error("{path}, line {line}: unknown key `{key}`{}", suggested(suggestion))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key, with its section.
        key: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// The environment has a variable that means nothing.
    #[error("the environment has {name}, which is no setting{}", suggested(suggestion))]
    UnknownVariable {
        /// Its name.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A value that cannot be one.
    #[error("{source_}: `{key}` is not right: expected {expected}, found {found}")]
    Value {
        /// The key.
        key: &'static str,
        /// What a right value looks like.
        expected: &'static str,
        /// What was there instead.
        found: String,
        /// Where it stands.
        source_: Source,
    },
    /// A value that makes no sense.
    #[error("{source_}: `{key}`: {reason}")]
    Sense {
        /// The key.
        key: &'static str,
        /// Why not.
        reason: String,
        /// Where it stands.
        source_: Source,
    },
}

fn suggested(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map_or_else(String::new, |key| format!("; did you mean `{key}`?"))
}

/// Reads and checks all settings.
///
/// # Errors
/// [`ConfigError`], with the place and the reason.
pub fn load(surroundings: &Surroundings) -> Result<Loaded, ConfigError> {
    let fields = fields();
    let matches = command(&fields).try_get_matches_from(&surroundings.arguments)?;
    let given = Given { fields: &fields, matches: &matches, surroundings };
    given.check_variables()?;
    let text = read_file(&given)?;
    let file = match &text {
        Some((path, text)) => parse_file(&fields, path, text)?,
        None => BTreeMap::new(),
    };
    let values = given.layered(file);
    let mut config = Config::defaults(network_of(&fields, &values)?, &surroundings.home);
    for field in &fields {
        if let Some((value, source)) = values.get(field.key) {
            put(&mut config, field, value, source)?;
        }
    }
    expand_home(&mut config, &surroundings.home);
    let sources: BTreeMap<_, _> = values.into_iter().map(|(key, (_, source))| (key, source)).collect();
    let source_of = |key: &str| sources.get(key).cloned().unwrap_or(Source::Default);
    if let Err((key, reason)) = check::check(&config) {
        return Err(ConfigError::Sense { key, reason, source_: source_of(key) });
    }
    given.check_file_belongs(&config, text.as_ref().map(|(path, _)| path.as_path()), source_of)?;
    let warnings = open_rpc(&config).into_iter().collect();
    Ok(Loaded { config, action: action(&matches), warnings, sources })
}

/// Variables of the same prefix that are for the command line and the tests, which may start a daemon.
const OTHERS_VARIABLES: [&str; 8] = [
    "MILLRACE_CONFIG",
    "MILLRACE_RPC",
    "MILLRACE_TLS_CERT",
    "MILLRACE_TOKEN_FILE",
    "MILLRACE_SEEDS",
    "MILLRACE_TALLY",
    "MILLRACE_LOG_LINES",
    "MILLRACE_UPDATE_SNAPSHOTS",
];
/// Slips of the keyboard in a name that is still recognised.
const SLIPS_MAX: usize = 3;

/// A value as text, or a sample of what stands there instead of one.
type Value = Result<String, String>;
type Values = BTreeMap<&'static str, (Value, Source)>;

struct Given<'a> {
    fields: &'a [Field],
    matches: &'a ArgMatches,
    surroundings: &'a Surroundings,
}

impl Given<'_> {
    /// What a flag or a variable says about a setting.
    fn before_file(&self, field: &Field) -> Option<(String, Source)> {
        let flag = field.flag();
        if field.exposure != Exposure::Secret
            && let Some(value) = self.matches.get_one::<String>(&flag)
        {
            return Some((value.clone(), Source::Flag(flag)));
        }
        let variable = field.variable();
        let value = self.surroundings.variables.get(&variable).filter(|value| !value.is_empty())?;
        Some((value.clone(), Source::Environment(variable)))
    }

    fn by_key(&self, key: &str) -> Option<(String, Source)> {
        self.fields.iter().find(|field| field.key == key).and_then(|field| self.before_file(field))
    }

    fn layered(&self, file: Values) -> Values {
        let mut values = file;
        for field in self.fields {
            if let Some((value, source)) = self.before_file(field) {
                values.insert(field.key, (Ok(value), source));
            }
        }
        values
    }

    /// The file, and whether it was asked for by name.
    fn file_path(&self) -> Result<(PathBuf, bool), ConfigError> {
        let by_variable =
            || self.surroundings.variables.get("MILLRACE_CONFIG").filter(|path| !path.is_empty()).cloned();
        if let Some(path) = self.matches.get_one::<String>("config").cloned().or_else(by_variable) {
            return Ok((tilde(Path::new(&path), &self.surroundings.home), true));
        }
        if let Some((folder, _)) = self.by_key("data_dir") {
            return Ok((tilde(Path::new(&folder), &self.surroundings.home).join(FILE_NAME), false));
        }
        let network = match self.by_key("network") {
            Some((text, source)) => parse_network(&text, &source)?,
            None => NETWORK_DEFAULT,
        };
        let folder = Config::defaults(network, &self.surroundings.home).data_dir;
        Ok((folder.join(FILE_NAME), false))
    }

    /// A file that was found in a data folder must not lead to another one.
    fn check_file_belongs(
        &self,
        config: &Config,
        path: Option<&Path>,
        source_of: impl Fn(&str) -> Source,
    ) -> Result<(), ConfigError> {
        let Some(path) = path else { return Ok(()) };
        if self.file_path()?.1 || path.parent() == Some(config.data_dir.as_path()) {
            return Ok(());
        }
        let key = if matches!(source_of("data_dir"), Source::File { .. }) { "data_dir" } else { "network" };
        let reason = format!(
            "the file in this data folder leads to another one, {}; name the network or the data folder by a flag, or \
             the file by --config",
            config.data_dir.display()
        );
        Err(ConfigError::Sense { key, reason, source_: source_of(key) })
    }

    /// Refuses variables that look like settings and are none.
    fn check_variables(&self) -> Result<(), ConfigError> {
        let known: Vec<String> = self.fields.iter().map(Field::variable).collect();
        let is_known = |name: &String| known.contains(name) || OTHERS_VARIABLES.contains(&name.as_str());
        let named = self.surroundings.variables.iter().filter(|(name, value)| {
            // One that is empty is not set.
            name.starts_with("MILLRACE_") && !value.is_empty()
        });
        let Some((name, _)) = named.into_iter().find(|(name, _)| !is_known(name)) else { return Ok(()) };
        let nearest = known.iter().min_by_key(|known| levenshtein(name, known));
        let suggestion = nearest.filter(|known| levenshtein(name, known) <= SLIPS_MAX).cloned();
        Err(ConfigError::UnknownVariable { name: name.clone(), suggestion })
    }
}

fn command(fields: &[Field]) -> Command {
    let defaults = Config::defaults(NETWORK_DEFAULT, Path::new("~"));
    let switch = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue).help_heading("Instead of running")
    };
    let mut command = Command::new("millraced")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The Millrace Lightning node")
        .after_help("A flag wins over the environment, the environment over the file, the file over the default.")
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("The configuration file, in place of millrace.toml in the data folder [env: MILLRACE_CONFIG]"),
        )
        .arg(switch("print-config", "Show the settings in force and where each came from"))
        .arg(switch("check-config", "Say whether the settings are right"))
        .arg(switch("print-example-config", "Show a configuration file with every setting"))
        .arg(switch("print-seed", "Show the seed's words, after asking"))
        .arg(
            Arg::new("restore-seed-file")
                .long("restore-seed-file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("Put the 24 words in this file into a data folder that has no seed")
                .help_heading("Instead of running"),
        )
        .arg(
            Arg::new("restore-from-height")
                .long("restore-from-height")
                .value_name("HEIGHT")
                .value_parser(value_parser!(u32))
                .requires("restore-seed-file")
                .help("With --restore-seed-file: the block from which on its coins are looked for [default: 1, on bitcoin 900000]")
                .help_heading("Instead of running"),
        );
    for field in fields.iter().filter(|field| field.exposure != Exposure::Secret) {
        command = command.arg(argument(field, &defaults));
    }
    command
}

fn argument(field: &Field, defaults: &Config) -> Arg {
    let default = field.text(defaults).filter(|text| !text.is_empty() && field.class != Class::Bool);
    let default = default.map_or_else(String::new, |text| format!(" [default: {text}]"));
    let flag = field.flag();
    let heading = match field.section_and_name().0 {
        "" => "Node".to_owned(),
        section => format!("Section [{section}]"),
    };
    let argument = Arg::new(flag.clone())
        .long(flag)
        .help(format!("{}{default} [env: {}]", field.help, field.variable()))
        .help_heading(heading)
        .value_parser(value_parser!(String))
        .allow_hyphen_values(false)
        .value_name("VALUE");
    match field.class {
        Class::Bool => argument.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Class::Text | Class::Integer | Class::List => argument,
    }
}

fn action(matches: &ArgMatches) -> Action {
    if let Some(path) = matches.get_one::<PathBuf>("restore-seed-file") {
        return Action::RestoreSeed(path.clone(), matches.get_one::<u32>("restore-from-height").copied());
    }
    let switches = [
        ("print-example-config", Action::PrintExampleConfig),
        ("print-config", Action::PrintConfig),
        ("check-config", Action::CheckConfig),
        ("print-seed", Action::PrintSeed),
    ];
    switches.into_iter().find(|(name, _)| matches.get_flag(name)).map_or(Action::Run, |(_, action)| action)
}

/// The file's text, if there is one. One that was named must exist.
fn read_file(given: &Given<'_>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let (path, is_named) = given.file_path()?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => Ok(None),
        Err(error) => Err(ConfigError::Read { path, error }),
    }
}

fn parse_file(fields: &[Field], path: &Path, text: &str) -> Result<Values, ConfigError> {
    let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        // Only the message: the whole error would show the line, which may hold the password.
        reason: error.message().to_owned(),
    })?;
    let mut values = Values::new();
    let unknown = |key: String, offset: usize| ConfigError::UnknownKey {
        path: path.to_owned(),
        line: line_of(offset),
        suggestion: suggest(fields, &key),
        key,
    };
    let mut take = |key: String, name: usize, value: &Spanned<DeValue<'_>>| {
        let field = fields.iter().find(|field| field.key == key).ok_or_else(|| unknown(key, name))?;
        let source = Source::File { path: path.to_owned(), line: line_of(value.span().start) };
        values.insert(field.key, (value_text(field, value.get_ref()), source));
        Ok::<(), ConfigError>(())
    };
    for (name, value) in table.get_ref() {
        let is_section = fields.iter().any(|field| field.section_and_name().0 == name.get_ref().as_ref());
        match value.get_ref().as_table().filter(|_| is_section) {
            Some(section) => {
                for (inner, value) in section {
                    take(format!("{}.{}", name.get_ref(), inner.get_ref()), inner.span().start, value)?;
                }
            }
            None => take(name.get_ref().to_string(), name.span().start, value)?,
        }
    }
    Ok(values)
}

/// The text of a value of the right class; else what is there instead (its kind only: it may be a secret).
fn value_text(field: &Field, value: &DeValue<'_>) -> Value {
    let found = || Err(format!("{} `{}`", article(value.type_str()), value.type_str()));
    match (field.class, value) {
        (Class::Text, DeValue::String(text)) => Ok(text.to_string()),
        (Class::Integer, DeValue::Integer(number)) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        (Class::Bool, DeValue::Boolean(value)) => Ok(value.to_string()),
        (Class::List, DeValue::Array(items)) => {
            let texts: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            texts.map_or_else(|| Err("a list of something else".to_owned()), |texts| Ok(texts.join(",")))
        }
        (Class::Text | Class::Integer | Class::Bool | Class::List, _) => found(),
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn put(config: &mut Config, field: &Field, value: &Value, source: &Source) -> Result<(), ConfigError> {
    let found = match value {
        Ok(text) if field.set(config, text) => return Ok(()),
        Ok(_) if field.exposure == Exposure::Secret => "something else".to_owned(),
        Ok(text) => format!("`{text}`"),
        Err(found) => found.clone(),
    };
    Err(ConfigError::Value { key: field.key, expected: field.expected, found, source_: source.clone() })
}

fn network_of(fields: &[Field], values: &Values) -> Result<Network, ConfigError> {
    let Some((value, source)) = values.get("network") else { return Ok(NETWORK_DEFAULT) };
    let mut config = Config::defaults(NETWORK_DEFAULT, Path::new("/"));
    let field = fields.iter().find(|field| field.key == "network").expect("the table has a row for the network");
    put(&mut config, field, value, source)?;
    Ok(config.network)
}

fn parse_network(text: &str, source: &Source) -> Result<Network, ConfigError> {
    Network::parse(text).ok_or_else(|| ConfigError::Value {
        key: "network",
        expected: <Network as Setting>::EXPECTED,
        found: format!("`{text}`"),
        source_: source.clone(),
    })
}

fn tilde(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_owned(), |rest| home.join(rest))
}

fn expand_home(config: &mut Config, home: &Path) {
    for path in [&mut config.data_dir, &mut config.bitcoind.cookie] {
        *path = tilde(path, home);
    }
}

/// A word of warning when gRPC is not on loopback only.
fn open_rpc(config: &Config) -> Option<String> {
    (!config.rpc_listen.ip().is_loopback()).then(|| {
        format!(
            "rpc_listen is {}: whoever reaches it and has the access token controls the money of this {} node",
            config.rpc_listen,
            network_name(config.network)
        )
    })
}

/// The key that was probably meant: the same name in another section, or the nearest by edits.
fn suggest(fields: &[Field], key: &str) -> Option<String> {
    let name = key.rsplit('.').next().unwrap_or(key);
    let moved = fields.iter().find(|field| field.section_and_name().1 == name || field.key.replace('.', "_") == key);
    if let Some(field) = moved {
        return Some(field.key.to_owned());
    }
    let whole = nearest(key, fields.iter().map(|field| field.key));
    let by_name = || {
        let meant = nearest(name, fields.iter().map(|field| field.section_and_name().1))?;
        fields.iter().find(|field| field.section_and_name().1 == meant).map(|field| field.key)
    };
    let by_section = || nearest(key, fields.iter().map(|field| field.section_and_name().0));
    whole.or_else(by_name).or_else(by_section).map(str::to_owned)
}

/// The candidate with the fewest edits, if they are few for its length.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.map(|candidate| (levenshtein(word, candidate), candidate));
    scored.filter(|(edits, candidate)| *edits <= 1 + candidate.len() / 4).min().map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests;
