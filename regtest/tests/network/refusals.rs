//! What cannot be done is told, with what to do, and changes nothing.

use crate::support::{Place, program};

#[test]
fn a_broken_file_is_told_with_its_line_before_anything_is_made() {
    let place = Place::new();
    let plan = place.file("plan.toml", "[[nodes]]\nname = \"a\"\n[[nodes]]\nname = \"b\"\nallias = \"B\"\n");
    let why = place.refused(&["up", "--file", plan.to_str().unwrap()]);
    for part in ["plan.toml, line 5", "`allias`", "did you mean `alias`?"] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
    assert!(!place.dir().exists());
    let missing = place.refused(&["up", "--file", "/no/such.toml"]);
    assert!(missing.contains("/no/such.toml"), "{missing}");
}

#[test]
fn without_a_network_every_command_says_so() {
    let place = Place::new();
    for words in [&["status"][..], &["mine"], &["env", "a"], &["kill", "a"], &["start", "a"], &["load", "--rate", "1"]]
    {
        let why = place.refused(words);
        assert!(why.contains("there is no network in") && why.contains("`up`"), "{words:?}: {why}");
    }
    // Nothing to stop is no failure: scripts end with it.
    assert_eq!(place.done(&["down"])["was_running"], false);
    let said = place.run(&["status", "--json"]);
    assert!(!said.ok && said.json()["error"].as_str().unwrap().contains("no network"), "{}", said.out);
}

#[test]
fn a_folder_with_something_else_in_it_is_not_taken() {
    let place = Place::new();
    std::fs::create_dir(place.dir()).unwrap();
    std::fs::write(place.dir().join("letter"), "dear").unwrap();
    let why = place.refused(&["up", "--nodes", "2"]);
    assert!(why.contains("something else"), "{why}");
}

#[test]
fn what_cannot_be_meant() {
    for (words, part) in [
        (&["up", "--nodes", "1"][..], "2 to 40 nodes"),
        (&["up", "--nodes", "3", "--file", "x.toml"], "cannot be used with"),
        (&["load", "--rate", "0"], "from 0.01"),
        (&["load", "--rate", "1", "--amount", "9..1"], "more than the most"),
        (&["mine", "0"], "0 is not in 1..=1000"),
    ] {
        let output = program().args(words).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
