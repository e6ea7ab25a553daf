//! What cannot be done is told, with what to do, and changes nothing.

use millrace_regtest::mesh::Mesh;
use millrace_regtest::network::random_key;
use millrace_regtest::plan::{CLTV_DELTA_MAX, CLTV_DELTA_MIN, FEE_MAX, Plan};
use millrace_rpc::v1::SetPolicyRequest;

use crate::support::{Place, program};
use crate::tried::ours;

#[test]
fn a_broken_file_is_told_with_its_line_before_anything_is_made() {
    let place = Place::new();
    let plan = place.file("plan.toml", "[[nodes]]\nname = \"a\"\n[[nodes]]\nname = \"b\"\nallias = \"B\"\n");
    let why = place.refused(&["up", "--file", plan.to_str().unwrap()]);
    for part in ["plan.toml, line 5", "`allias`", "did you mean `alias`?"] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
    let policy = "[[nodes]]\nname = \"a\"\n[[nodes]]\nname = \"b\"\n[[channels]]\nfrom = \"a\"\nto = \"b\"\n\
                  [[policies]]\nnode = \"a\"\ncltv_delta = 20\n";
    let why = place.refused(&["up", "--file", place.file("policy.toml", policy).to_str().unwrap()]);
    for part in ["policy.toml, line 10", "cltv_delta", "from 48"] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }
    assert!(!place.dir().exists());
    let missing = place.refused(&["up", "--file", "/no/such.toml"]);
    assert!(missing.contains("/no/such.toml"), "{missing}");
}

/// What a plan lets a policy say, a daemon takes, and nothing beyond it: but for the most blocks, where a daemon takes more.
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_bounds_policies_as_a_daemon_does() {
    let mesh = Mesh::start(Plan::line(2)).await.unwrap();
    let is_taken = async |policy: SetPolicyRequest| {
        let (idempotency_key, channel_id) = (random_key(), mesh.channel_id(0).to_vec());
        let request = SetPolicyRequest { idempotency_key, channel_id, ..policy };
        match ours(&mesh, 0).client().unwrap().channels.set_policy(request).await {
            Ok(_) => true,
            Err(status) if status.code() == tonic::Code::InvalidArgument => false,
            Err(status) => panic!("{status}"),
        }
    };
    let bounds = |least: u64, most: u64| SetPolicyRequest {
        htlc_minimum_msat: Some(least),
        htlc_maximum_msat: Some(most),
        ..SetPolicyRequest::default()
    };
    let cltv = |blocks: u16| SetPolicyRequest { cltv_delta_blocks: Some(blocks.into()), ..SetPolicyRequest::default() };
    let base = |msat: u64| SetPolicyRequest { fee_base_msat: Some(msat), ..SetPolicyRequest::default() };
    let share = |ppm: u32| SetPolicyRequest { fee_ppm: Some(ppm), ..SetPolicyRequest::default() };
    // What a new channel forwards at least is 1 msat.
    let most = |msat: u64| SetPolicyRequest { htlc_maximum_msat: Some(msat), ..SetPolicyRequest::default() };
    for (policy, wanted) in [
        (most(1), true),
        (bounds(7, 7), true),
        (bounds(7, 6), false),
        (most(6), false),
        (bounds(7, 0), true),
        (cltv(CLTV_DELTA_MIN), true),
        (cltv(CLTV_DELTA_MIN - 1), false),
        (cltv(CLTV_DELTA_MAX), true),
        (base(FEE_MAX), true),
        (base(FEE_MAX + 1), false),
        (share(u32::try_from(FEE_MAX).unwrap()), true),
    ] {
        assert_eq!(is_taken(policy.clone()).await, wanted, "{policy:?}");
    }
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
