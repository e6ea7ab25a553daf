#![allow(clippy::unwrap_used)]
use std::net::SocketAddr;

use millrace_wire::{Msat, Sat};
use tempfile::TempDir;

use super::super::{LogFormat, Secret};
use super::*;

struct Machine {
    home: TempDir,
    surroundings: Surroundings,
}

/// A machine with an empty home, and these flags.
fn machine(flags: &[&str]) -> Machine {
    let home = TempDir::new().unwrap();
    let arguments = std::iter::once("millraced").chain(flags.iter().copied()).map(OsString::from).collect();
    let surroundings = Surroundings { arguments, variables: BTreeMap::new(), home: home.path().to_owned() };
    Machine { home, surroundings }
}

impl Machine {
    fn file(self, network: &str, text: &str) -> Self {
        let folder = self.home.path().join(".millrace").join(network);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("millrace.toml"), text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.surroundings.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn load(&self) -> Result<Loaded, ConfigError> {
        load(&self.surroundings)
    }

    fn error(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

#[test]
fn nothing_said_is_the_defaults_of_regtest() {
    let machine = machine(&[]);
    let loaded = machine.load().unwrap();
    assert_eq!(loaded.config, Config::defaults(Network::Regtest, machine.home.path()));
    assert_eq!(loaded.config.data_dir, machine.home.path().join(".millrace/regtest"));
    assert_eq!(loaded.action, Action::Run);
    assert!(loaded.warnings.is_empty() && loaded.sources.is_empty());
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let text = "alias = \"file\"\n[channel]\nhtlc_minimum_msat = 7\nmin_funding_sat = 30_000\nreserve_ppm = 5";
    let machine = machine(&["--channel-htlc-minimum-msat", "9"])
        .file("regtest", text)
        .variable("MILLRACE_CHANNEL_HTLC_MINIMUM_MSAT", "8")
        .variable("MILLRACE_CHANNEL_MIN_FUNDING_SAT", "40000");
    let loaded = machine.load().unwrap();
    let channel = &loaded.config.channel;
    assert_eq!((channel.htlc_minimum, channel.min_funding, channel.reserve_ppm), (Msat(9), Sat(40_000), 5));
    assert_eq!(loaded.config.alias, "file");
    assert_eq!(loaded.sources["channel.htlc_minimum_msat"].to_string(), "flag, --channel-htlc-minimum-msat");
    assert_eq!(loaded.sources["channel.min_funding_sat"].to_string(), "environment, MILLRACE_CHANNEL_MIN_FUNDING_SAT");
    assert!(loaded.sources["channel.reserve_ppm"].to_string().ends_with("millrace.toml, line 5"));
    assert!(!loaded.sources.contains_key("channel.max_funding_sat"));
}

#[test]
fn every_kind_of_value_by_flag() {
    let machine = machine(&[
        "--network=signet",
        "--listen",
        "0.0.0.0:0",
        "--metrics-listen=127.0.0.1:9100",
        "--log",
        "json",
        "--bitcoind-url=http://10.0.0.2:38332",
        "--bitcoind-cookie=~/cookie",
        "--i-accept-the-risk-of-losing-money",
        "--data-dir",
        "~/here",
    ]);
    let config = machine.load().unwrap().config;
    assert_eq!(config.network, Network::Signet);
    assert_eq!(config.listen, "0.0.0.0:0".parse::<SocketAddr>().unwrap());
    assert_eq!(config.metrics_listen.unwrap().port(), 9100);
    assert_eq!(config.log, LogFormat::Json);
    assert_eq!(config.bitcoind.cookie, machine.home.path().join("cookie"));
    assert_eq!(config.data_dir, machine.home.path().join("here"));
    assert!(config.accepts_risk);
}

#[test]
fn the_password_comes_from_the_environment_or_the_file_and_is_no_flag() {
    let file = machine(&[]).file("regtest", "[bitcoind]\nuser = \"bob\"\npassword = \"hunter2\"");
    let loaded = file.load().unwrap();
    assert_eq!(loaded.config.bitcoind.password, Some(Secret::new("hunter2")));
    assert!(!format!("{loaded:?}").contains("hunter2"));
    let variable = machine(&["--bitcoind-user=bob"]).variable("MILLRACE_BITCOIND_PASSWORD", "hunter3").load().unwrap();
    assert_eq!(variable.config.bitcoind.password, Some(Secret::new("hunter3")));
    assert!(machine(&["--bitcoind-password=x"]).error().contains("unexpected argument"));
}

#[test]
fn unknown_key_suggests_the_right_one_and_names_the_line() {
    for (text, key, line, meant) in [
        ("alias = \"a\"\nlissten = \"1.2.3.4:5\"", "lissten", 2, "listen"),
        ("[channel]\n\nreserve_pmm = 1", "channel.reserve_pmm", 3, "channel.reserve_ppm"),
        ("to_self_delay_blocks = 5", "to_self_delay_blocks", 1, "channel.to_self_delay_blocks"),
        ("bitcoind_url = \"x\"", "bitcoind_url", 1, "bitcoind.url"),
        ("[bitcoin]\nurl = \"x\"", "bitcoin", 1, "bitcoind"),
    ] {
        let error = machine(&[]).file("regtest", text).error();
        assert!(error.contains(&format!("line {line}: unknown key `{key}`")), "{error}");
        assert!(error.ends_with(&format!("did you mean `{meant}`?")), "{error}");
    }
    let error = machine(&[]).file("regtest", "zzzzzzzzzzzz = 1").error();
    assert!(error.ends_with("unknown key `zzzzzzzzzzzz`"), "{error}");
}

#[test]
fn unknown_flag_suggests_the_right_one() {
    assert!(machine(&["--lissten=1.2.3.4:5"]).error().contains("'--listen'"));
}

#[test]
fn wrong_types_name_key_line_and_what_was_expected() {
    for (text, expected) in [
        ("\nlisten = 9735", "line 2: `listen` is not right: expected an address and a port"),
        ("[channel]\nreserve_ppm = \"1\"", "`channel.reserve_ppm` is not right: expected a whole number"),
        ("[channel]\nreserve_ppm = -1", "found `-1`"),
        ("network = \"testnet\"", "expected regtest, signet, testnet4 or bitcoin, found `testnet`"),
        ("i_accept_the_risk_of_losing_money = 1", "expected true or false, found an `integer`"),
        ("[channel]\nzero_conf_peers = [1]", "found a list of something else"),
        ("channel = 1", "unknown key `channel`"),
    ] {
        let error = machine(&[]).file("regtest", text).error();
        assert!(error.contains(expected), "{text}: {error}");
    }
    assert!(machine(&["--shards", "many"]).error().contains("flag, --shards: `shards` is not right"));
}

#[test]
fn a_broken_file_names_the_line_but_does_not_show_it() {
    let error = machine(&[]).file("regtest", "alias = \"a\"\n[bitcoind]\npassword = hunter2").error();
    assert!(error.contains("line 3: not valid TOML"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    let error = machine(&[]).file("regtest", "[bitcoind]\npassword = 12345").error();
    assert!(error.contains("expected a text") && !error.contains("12345"), "{error}");
}

#[test]
fn senseless_values_say_why() {
    for (flags, expected) in [
        (vec!["--channel-max-accepted-htlcs=484"], "484 is not within 1 and 483"),
        (vec!["--channel-received-margin-blocks=19"], "19 is not within 6 and 18"),
        (vec!["--channel-offered-grace-blocks=7"], "7 is not within 0 and 6"),
        (vec!["--channel-offered-grace-blocks=19", "--channel-received-margin-blocks=6"], "19 is not within 0 and 18"),
        (vec!["--bitcoind-user=bob"], "needs bitcoind.password"),
        (vec!["--metrics-listen=127.0.0.1:0"], "needs a port other than 0"),
        (vec!["--bitcoind-url=https://x"], "must begin with http://"),
        (vec!["--channel-min-funding-sat=2000000000"], "is not within"),
        (vec!["--alias=123456789012345678901234567890123"], "33 bytes are more than 32"),
    ] {
        let error = machine(&flags).error();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_was_named_must_exist_and_may_lead_anywhere() {
    assert!(machine(&["--config=~/none.toml"]).error().contains("cannot read the configuration file"));
    let named = machine(&["--config=~/mine.toml"]);
    fs::write(named.home.path().join("mine.toml"), "network = \"signet\"\ndata_dir = \"~/data\"").unwrap();
    let config = named.load().unwrap().config;
    assert_eq!((config.network, config.data_dir), (Network::Signet, named.home.path().join("data")));
}

#[test]
fn a_file_in_a_data_folder_must_not_lead_to_another() {
    let error = machine(&[]).file("regtest", "network = \"signet\"").error();
    assert!(error.contains("`network`: the file in this data folder leads to another one"), "{error}");
    let error = machine(&[]).file("regtest", "data_dir = \"/elsewhere\"").error();
    assert!(error.contains("`data_dir`"), "{error}");
    let same = machine(&["--network=signet"]).file("signet", "network = \"signet\"").load().unwrap();
    assert_eq!(same.config.network, Network::Signet);
}

#[test]
fn warning_for_an_open_rpc() {
    let loaded = machine(&["--rpc-listen=0.0.0.0:1"]).variable("MILLRACE_SEEDS", "0..10").load().unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("0.0.0.0:1"));
}

#[test]
fn variables_that_are_no_setting_are_refused() {
    for (name, meant) in [
        ("MILLRACE_LISTN", Some("MILLRACE_LISTEN")),
        ("MILLRACE_NETWROK", Some("MILLRACE_NETWORK")),
        ("MILLRACE_BITCOIND_ULRR", Some("MILLRACE_BITCOIND_URL")),
        ("MILLRACE_CHANNEL_MAX_FUNDIG", None),
        ("MILLRACE_COLOUR_OF_THE_SKY", None),
    ] {
        let error = machine(&[]).variable(name, "x").error();
        assert!(error.contains(&format!("the environment has {name}, which is no setting")), "{error}");
        if let Some(meant) = meant {
            assert!(error.contains(&format!("did you mean `{meant}`?")), "{error}");
        }
    }
    machine(&[]).variable("MILLRACE_COLOUR_OF_THE_SKY", "").load().unwrap();
}

#[test]
fn empty_variables_say_nothing() {
    assert_eq!(machine(&[]).variable("MILLRACE_NETWORK", "").load().unwrap().config.network, Network::Regtest);
}

#[test]
fn actions() {
    for (flag, action) in [
        ("--print-config", Action::PrintConfig),
        ("--check-config", Action::CheckConfig),
        ("--print-example-config", Action::PrintExampleConfig),
        ("--print-seed", Action::PrintSeed),
        ("--restore-seed-file=words", Action::RestoreSeed("words".into(), None)),
    ] {
        assert_eq!(machine(&[flag]).load().unwrap().action, action);
    }
}
