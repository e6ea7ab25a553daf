//! Connections that break: what changes something is asked for again with the same key and done once, or its
//! outcome is said to be unknown.

use crate::fake::Fake;

/// All requests are the same, key included.
#[track_caller]
fn all_the_same(requests: &[String]) {
    assert!(requests.iter().all(|request| request == &requests[0]), "{requests:#?}");
    assert!(!requests[0].contains("idempotency_key: \"\""), "{}", requests[0]);
}

mod pay {
    use super::*;

    #[test]
    fn broken_once_is_asked_again_with_the_same_key() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "break-once"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let requests = fake.requests();
        assert_eq!(requests.len(), 2);
        all_the_same(&requests);
        let steps: Vec<_> = ran.lines().iter().map(|line| line["step"].clone()).collect();
        assert_eq!(steps, ["accepted", "attempt", "outcome"], "each step is told once");
    }

    #[test]
    fn broken_then_the_node_starts_again() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "break-then-start"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(fake.requests().len(), 3);
    }

    #[test]
    fn broken_for_good_is_unknown_and_names_the_key() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "vanish", "--retry-for", "1s", "--json"]);
        assert_eq!(ran.code, 5, "{ran:?}");
        let error = serde_json::from_str::<serde_json::Value>(&ran.stderr).unwrap()["error"].clone();
        assert_eq!(error["kind"], "outcome_unknown");
        let key = error["idempotency_key"].as_str().unwrap();
        assert_eq!(key.len(), 32);
        assert!(fake.requests()[0].contains(key));
    }

    #[test]
    fn broken_without_patience_is_unknown_after_one_call() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "break-always", "--retry-for", "0s"]);
        assert_eq!(ran.code, 5, "{ran:?}");
        assert!(ran.stderr.contains("--idempotency-key "));
        assert_eq!(fake.requests().len(), 1);
    }

    /// Once the payment was accepted, a refusal does not say that it failed.
    #[test]
    fn broken_then_refused_is_unknown() {
        let ran = Fake::start().run(&["pay", "break-then-refuse"]);
        assert_eq!(ran.code, 5, "{ran:?}");
    }

    #[test]
    fn a_stream_that_ends_without_outcome_is_unknown() {
        let fake = Fake::start();
        let ran = fake.run(&["pay", "silent", "--retry-for", "1s"]);
        assert_eq!(ran.code, 5, "{ran:?}");
        all_the_same(&fake.requests());
    }

    #[test]
    fn an_internal_error_is_no_refusal() {
        let ran = Fake::start().run(&["pay", "internal"]);
        assert_eq!(ran.code, 5, "{ran:?}");
    }
}

mod wallet_send {
    use super::*;

    #[test]
    fn broken_once_is_asked_again_with_the_same_key() {
        let fake = Fake::start();
        let ran = fake.run(&["wallet", "send", "break-once", "1000sat"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let requests = fake.requests();
        assert_eq!(requests.len(), 2);
        all_the_same(&requests);
    }

    #[test]
    fn broken_for_good_is_unknown() {
        let ran = Fake::start().run(&["wallet", "send", "vanish", "1000sat", "--retry-for", "1s"]);
        assert_eq!(ran.code, 5, "{ran:?}");
    }

    /// The daemon knows the key: its refusal says that nothing was done before either.
    #[test]
    fn broken_then_refused_is_refused() {
        let ran = Fake::start().run(&["wallet", "send", "break-then-refuse", "1000sat"]);
        assert_eq!(ran.code, 1, "{ran:?}");
    }
}

mod channel {
    use super::*;

    #[test]
    fn an_opening_is_followed_again() {
        let fake = Fake::start();
        let node = "02".repeat(33);
        let ran = fake.run(&["channel", "open", &node, "20000sat", "--close-address", "break-once"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        let requests = fake.requests();
        assert_eq!(requests.len(), 2);
        all_the_same(&requests);
        assert_eq!(ran.lines().len(), 5, "each step is told once");
    }

    /// However long the connection held before, patience begins when it breaks.
    #[test]
    fn patience_begins_when_the_connection_breaks() {
        let fake = Fake::start();
        let node = "02".repeat(33);
        let ran =
            fake.run(&["channel", "open", &node, "20000sat", "--close-address", "break-late", "--retry-for", "1s"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(fake.requests().len(), 2);
    }

    #[test]
    fn a_closing_that_cannot_be_followed_is_unknown() {
        let id = "c1".repeat(32);
        let ran = Fake::start().run(&["channel", "close", &id, "--address", "vanish", "--retry-for", "1s"]);
        assert_eq!(ran.code, 5, "{ran:?}");
    }
}

mod events {
    use super::*;

    /// From 70:0 the connection breaks after the first event; the reading goes on at 70:1.
    #[test]
    fn broken_once_goes_on_after_the_last_event() {
        let fake = Fake::start();
        let ran = fake.run(&["events", "--from", "70:0", "--until-now"]);
        // From 70:1 on the fake breaks once more, as it does for every start in frame 70.
        let cursors: Vec<_> =
            ran.lines().iter().map(|line| (line["cursor"]["frame"].clone(), line["cursor"]["index"].clone())).collect();
        let expected: Vec<_> = (0..16u64).map(|n| ((70 + n / 3).into(), (n % 3).into())).collect();
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(cursors, expected, "none is missing, none comes twice");
        assert!(fake.requests().len() >= 3);
    }

    #[test]
    fn broken_for_good_is_unreachable() {
        let ran = Fake::start().run(&["events", "--from", "72:0", "--retry-for", "0s"]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert_eq!(ran.lines().len(), 1);
    }
}
